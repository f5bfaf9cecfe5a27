package decode

import (
	"fmt"
	"strconv"
	"strings"
	"sync"
)

// operandSpec is one operand letter of a form with its size code or size in bytes.
type operandSpec struct {
	code, size uint8
	unaligned  bool
}

// form is a parsed line of the table.
type form struct {
	op     Op
	args   [4]operandSpec
	attrs  Attr
	native uint16
	modrm  bool  // ModRM byte present (same for all forms of an opcode)
	crdr   bool  // moves to control registers ignore ModRM.mod
	prefix uint8 // 0 any, 1 none, else 0x66, 0xf3, 0xf2
	reg    int8  // ModRM.reg, or -1
	mod    uint8 // 0 any, 'm' memory, 'r' register
	whole  uint8 // whole ModRM byte, if nonzero
}

func (f *form) mandatory() uint8 {
	if f.prefix > 1 {
		return f.prefix
	}
	return 0
}

// matches reports whether the prefixes, ModRM and mode select f.
func (f *form) matches(in *Inst) bool {
	if f.prefix != 0 {
		var have uint8 = 1
		switch {
		case in.Rep:
			have = 0xf3
		case in.Repne:
			have = 0xf2
		case in.OpSizePrefix:
			have = 0x66
		}
		// F2 with 66: CRC32 and MOVBE take 66 as operand size beside it.
		if f.prefix != have {
			return false
		}
	}
	if f.reg >= 0 && uint8(f.reg) != in.ModRM>>3&7 || f.whole != 0 && f.whole != in.ModRM {
		return false
	}
	if f.mod == 'm' && in.ModRM >= 0xc0 || f.mod == 'r' && in.ModRM < 0xc0 {
		return false
	}
	if in.Mode == Mode64 {
		return f.attrs&attrI64 == 0
	}
	return f.attrs&attrO64 == 0
}

type span struct {
	first uint16
	n     uint8
}

var (
	forms []form
	index [4][256]span
	once  sync.Once
)

// initTables parses the table on first use: programs that never decode pay nothing.
func initTables() { once.Do(parseTable) }

var mapNames = map[string]int{"1": 0, "0F": 1, "38": 2, "3A": 3}

var attrNames = map[string]Attr{"i64": attrI64, "o64": attrO64, "d64": attrD64, "f64": attrF64,
	"lock": AttrLock, "nat": AttrNative, "flags": AttrFlags, "xmm0": AttrXMM0, "str": AttrStr}

func parseTable() {
	byName := make(map[string]Op, numOps)
	for o := Invalid + 1; o < numOps; o++ {
		byName[opNames[o]] = o
	}
	var lists [4][256][]form
	var natives uint16
	add := func(m, lo, hi int, f form, operands string) {
		f.operands(operands)
		if f.attrs&AttrNative != 0 {
			natives++
			f.native = natives
		}
		for op := lo; op <= hi; op++ {
			lists[m][op] = append(lists[m][op], f)
		}
	}
	for i, name := range []string{"add", "or", "adc", "sbb", "and", "sub", "xor", "cmp"} {
		f := form{op: byName[name], reg: -1}
		if name != "cmp" {
			f.attrs = AttrLock
		}
		for j, args := range []string{"Eb,Gb", "Ev,Gv", "Gb,Eb", "Gv,Ev", "AL,Ib", "rAX,Iz"} {
			add(0, i*8+j, i*8+j, f, args)
		}
	}
	for line := range strings.Lines(strings.TrimLeft(table, "\n")) {
		parseLine(strings.Fields(line), byName, add)
	}
	for m := range lists {
		for op, l := range lists[m] {
			modrm := false
			for i := range l {
				modrm = modrm || l[i].needsModRM()
			}
			for i := range l {
				l[i].modrm = modrm
			}
			index[m][op] = span{uint16(len(forms)), uint8(len(l))}
			forms = append(forms, l...)
		}
	}
}

// parseLine reads one line; add takes the forms it stands for.
func parseLine(w []string, byName map[string]Op, add func(m, lo, hi int, f form, operands string)) {
	f := form{reg: -1}
	m, ok := mapNames[w[0]]
	lo, hi, isRange := strings.Cut(w[1], "-")
	if !isRange {
		hi = lo
	}
	l, err1 := strconv.ParseUint(lo, 16, 8)
	h, err2 := strconv.ParseUint(hi, 16, 8)
	if !ok || err1 != nil || err2 != nil {
		panic(fmt.Sprintf("decode: bad line in the opcode table: %q", w))
	}
	w = w[2:]
	for ; ; w = w[1:] {
		switch s := w[0]; {
		case s[0] == '/':
			f.reg = int8(s[1] - '0')
		case s == "np":
			f.prefix = 1
		case s == "66" || s == "f3" || s == "f2":
			v, _ := strconv.ParseUint(s, 16, 8)
			f.prefix = uint8(v)
		case s == "m" || s == "r":
			f.mod = s[0]
		case s[0] == '=':
			v, _ := strconv.ParseUint(s[1:], 16, 8)
			f.whole = uint8(v)
		default:
			f.op = byName[s]
			f.crdr = m == 1 && l >= 0x20 && h <= 0x23
			parseRest(w[1:], m, int(l), int(h), f, add)
			return
		}
	}
}

// parseRest reads operands and attributes.
func parseRest(w []string, m, lo, hi int, f form, add func(m, lo, hi int, f form, operands string)) {
	if len(w) > 0 && w[0] == "mmx" { // an MMX form and its SSE2 twin
		f.attrs |= AttrNative
		f.prefix = 1
		add(m, lo, hi, f, "P,Q8")
		f.prefix = 0x66
		add(m, lo, hi, f, "V,W16")
		return
	}
	operands := ""
	for _, s := range w {
		if a, ok := attrNames[s]; ok {
			f.attrs |= a
		} else {
			operands = s
		}
	}
	add(m, lo, hi, f, operands)
}

// fixed are the operands that are whole words.
var fixed = map[string]operandSpec{
	"AL": {code: 'a', size: 'b'}, "rAX": {code: 'a', size: 'v'}, "eAX": {code: 'a', size: 'e'},
	"CL": {code: 'c'}, "DX": {code: 'x'}, "1": {code: '1'},
	"ES": {code: 's', size: ES}, "CS": {code: 's', size: CS}, "SS": {code: 's', size: SS},
	"DS": {code: 's', size: DS}, "FS": {code: 's', size: FS}, "GS": {code: 's', size: GS},
}

func (f *form) operands(s string) {
	if s == "" {
		return
	}
	for i, o := range strings.Split(s, ",") {
		if a, ok := fixed[o]; ok {
			f.args[i] = a
			continue
		}
		a := operandSpec{code: o[0]}
		rest := o[1:]
		switch {
		case rest == "":
		case rest == "bs":
			a.size = 's'
		case rest[0] >= '0' && rest[0] <= '9':
			rest, a.unaligned = strings.CutSuffix(rest, "u")
			n, _ := strconv.Atoi(rest)
			a.size = uint8(n)
		default:
			a.size = rest[0]
		}
		f.args[i] = a
	}
}

// needsModRM reports whether the form reads a ModRM byte.
func (f *form) needsModRM() bool {
	if f.reg >= 0 || f.mod != 0 || f.whole != 0 {
		return true
	}
	for _, a := range f.args {
		switch a.code {
		case 'E', 'G', 'R', 'M', 'S', 'C', 'D', 'V', 'W', 'U', 'P', 'Q', 'N':
			return true
		}
	}
	return false
}
