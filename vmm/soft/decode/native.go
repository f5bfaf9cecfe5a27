package decode

// NativeForm is a form with attribute nat, for the generator of the host
// instruction table.
type NativeForm struct {
	Map, Opcode, Prefix uint8
	Reg                 int8    // opcode extension in ModRM.reg, or -1
	Args                [4]byte // operand letters, 0 behind the last
	Wide                bool    // takes REX.W (a y-sized general register)
}

// NativeForms lists the forms; Inst.Native-1 is the index.
func NativeForms() []NativeForm {
	initTables()
	var out []NativeForm
	for m := range index {
		for op, sp := range index[m] {
			for _, f := range forms[sp.first : int(sp.first)+int(sp.n)] {
				if f.native == 0 {
					continue
				}
				for len(out) < int(f.native) {
					out = append(out, NativeForm{})
				}
				n := NativeForm{Map: uint8(m), Opcode: uint8(op), Prefix: f.mandatory(), Reg: f.reg}
				for i, a := range f.args {
					n.Args[i] = a.code
					n.Wide = n.Wide || a.size == 'y'
				}
				out[f.native-1] = n
			}
		}
	}
	return out
}

// NativeOps lists the operations that have a native form.
func NativeOps() []Op {
	initTables()
	var out []Op
	seen := map[Op]bool{}
	for i := range forms {
		if f := &forms[i]; f.native != 0 && !seen[f.op] {
			seen[f.op] = true
			out = append(out, f.op)
		}
	}
	return out
}
