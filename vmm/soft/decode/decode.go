// Package decode is a table-driven decoder of x86 machine code in 16, 32 and
// 64-bit mode. One [Inst] serves the interpreter, the translator, the
// disassembler and the tests.
//
// Documents: Intel SDM vol. 2 (chapter 2, appendices A and B), AMD APM vol. 3.
package decode

import "errors"

// Mode is the code segment's default size.
type Mode uint8

// The modes. Their values are the default address sizes in bytes.
const (
	Mode16 Mode = 2
	Mode32 Mode = 4
	Mode64 Mode = 8
)

// Decoding failures. ErrTruncated means that more bytes are needed, ErrTooLong
// that the instruction is longer than 15 bytes (#GP), ErrInvalid #UD.
var (
	ErrTruncated = errors.New("truncated instruction")
	ErrTooLong   = errors.New("instruction longer than 15 bytes")
	ErrInvalid   = errors.New("invalid opcode")
)

// MaxLen is the longest instruction in bytes (SDM vol. 2A §2.3.11).
const MaxLen = 15

// Kind is what an operand is.
type Kind uint8

// The kinds of operand.
const (
	KNone   Kind = iota
	KReg         // general register Reg of Size bytes
	KRegH        // AH, CH, DH or BH: byte 1 of register Reg (0 to 3)
	KMem         // Inst.Mem, Size bytes (0: no data access or of fixed layout)
	KImm         // Inst.Imm, extended to 64 bits as the instruction does
	KImm2        // Inst.Imm2
	KRel         // branch displacement in Inst.Imm
	KSeg         // segment register Reg
	KCR          // control register Reg
	KDR          // debug register Reg
	KXMM         // vector register Reg
	KMMX         // MMX register Reg
	KFar         // far pointer: offset Inst.Imm, selector Inst.Imm2
	KOpmask      // unused, reserved
)

// Arg is one operand.
type Arg struct {
	Kind Kind
	Reg  uint8
	Size uint8 // bytes
	// Unaligned says that a 16-byte memory operand need not be aligned.
	Unaligned bool
}

// Register numbers beyond the 16 general ones, for Mem.
const (
	RegNone = 0xff // no base, no index
	RegRIP  = 0xfe // base is the next instruction's address
)

// Segment numbers in the encoding of ModRM.reg.
const (
	ES = iota
	CS
	SS
	DS
	FS
	GS
)

// Mem is a memory operand's address.
type Mem struct {
	Base, Index uint8 // register number, RegNone or RegRIP
	Scale       uint8 // log2
	Seg         uint8 // effective segment, overrides applied
	Disp        int64
}

// Inst is one decoded instruction.
type Inst struct {
	Op       Op
	Len      uint8 // bytes
	Mode     Mode
	OpSize   uint8 // effective operand size: 2, 4 or 8 bytes
	AddrSize uint8 // effective address size: 2, 4 or 8 bytes

	Map    uint8 // 0: one byte, 1: 0F, 2: 0F 38, 3: 0F 3A
	Opcode uint8
	ModRM  uint8
	REX    uint8 // 0 if absent
	// Prefix is the mandatory prefix that selected the form: 0, 0x66, 0xf3, 0xf2.
	Prefix uint8

	Lock, Rep, Repne, OpSizePrefix bool
	HasModRM                       bool
	// SegOverride is the segment prefix's register, or RegNone.
	SegOverride uint8
	// OpcodeAt, ModRMAt are offsets of these bytes in the instruction.
	OpcodeAt, ModRMAt uint8

	Args  [4]Arg
	Mem   Mem
	Imm   uint64
	Imm2  uint64
	Attrs Attr
	// VEX says that the instruction has a VEX prefix; its W, R, X and B are in
	// REX, VexL is 1 for 256 bits. Form belongs to the operation VEX; Args[0]
	// is then the memory operand, if there is one.
	VEX        bool
	VexL, Vvvv uint8
	Form       *VexForm
	// Thunk is for who executes the instruction; decoding leaves it 0.
	Thunk uint64
	// Native numbers the forms with attribute nat from 1; 0 is none.
	Native uint16
}

// Attr are properties of a form.
type Attr uint16

// The attributes.
const (
	AttrLock   Attr = 1 << iota // may carry LOCK when the destination is memory
	AttrFlags                   // native form writes the arithmetic flags
	AttrXMM0                    // XMM0 is an implicit third operand
	AttrNative                  // pure function of its vector operands
	AttrStr                     // SSE4.2 string comparison
	attrI64
	attrO64
	attrD64
	attrF64
)

// MemMod reports whether ModRM selects a memory operand.
func (i *Inst) MemMod() bool { return i.HasModRM && i.ModRM < 0xc0 }

// RegField is ModRM.reg without REX.R.
func (i *Inst) RegField() uint8 { return i.ModRM >> 3 & 7 }

// Reg is the register that ModRM.reg and REX.R name.
func (i *Inst) Reg() uint8 { return i.ModRM>>3&7 | i.REX&4<<1 }

// RM is the register that ModRM.rm and REX.B name, when it is one.
func (i *Inst) RM() uint8 { return i.ModRM&7 | i.REX&1<<3 }

// OpcodeReg is the register that the opcode's low bits and REX.B name.
func (i *Inst) OpcodeReg() uint8 { return i.Opcode&7 | i.REX&1<<3 }

// Cond is the condition code of a jcc, setcc or cmovcc.
func (i *Inst) Cond() uint8 { return i.Opcode & 15 }

// String names the operation.
func (o Op) String() string {
	if o == Invalid || o >= numOps {
		return "invalid"
	}
	return opNames[o]
}

// reader walks over the instruction's bytes.
type reader struct {
	b   []byte
	pos int
	err error
}

func (r *reader) u8() uint8 {
	if r.pos >= len(r.b) {
		if r.err == nil {
			r.err = ErrTruncated
			if r.pos >= MaxLen {
				r.err = ErrTooLong
			}
		}
		r.pos++
		return 0
	}
	v := r.b[r.pos]
	r.pos++
	return v
}

// peek is the next byte, which stays; 0 if there is none.
func (r *reader) peek() uint8 {
	if r.pos >= len(r.b) {
		return 0
	}
	return r.b[r.pos]
}

func (r *reader) uint(n uint8) uint64 {
	var v uint64
	for i := uint8(0); i < n; i++ {
		v |= uint64(r.u8()) << (8 * i)
	}
	return v
}

// sint reads n bytes, sign-extended.
func (r *reader) sint(n uint8) int64 {
	s := 64 - 8*uint(n)
	return int64(r.uint(n)<<s) >> s
}

// Decode decodes the instruction at the start of b into in. On error in.Len is
// the number of bytes looked at. ErrInvalid is given for undefined opcodes and
// for LOCK where it is not allowed.
func Decode(in *Inst, b []byte, mode Mode) error {
	initTables()
	if len(b) > MaxLen {
		b = b[:MaxLen]
	}
	r := reader{b: b}
	*in = Inst{Mode: mode, SegOverride: RegNone}
	op := in.prefixes(&r)
	err := in.opcode(&r, op)
	if r.err != nil {
		err = r.err
	}
	in.Len = uint8(min(r.pos, len(b)))
	return err
}

// prefixes reads legacy prefixes and REX, and returns the byte behind them.
func (in *Inst) prefixes(r *reader) uint8 {
	var addrPrefix bool
	var last uint8 // last of F2, F3
	op := r.u8()
	for r.err == nil {
		switch op {
		case 0x66:
			in.OpSizePrefix = true
		case 0x67:
			addrPrefix = true
		case 0xf0:
			in.Lock = true
		case 0xf2, 0xf3:
			last = op
		case 0x26, 0x2e, 0x36, 0x3e:
			if in.Mode != Mode64 {
				in.SegOverride = op >> 3 & 3
			}
		case 0x64, 0x65:
			in.SegOverride = op & 7
		default:
			if in.Mode == Mode64 && op&0xf0 == 0x40 {
				in.REX = op
				op = r.u8()
				if isPrefix(op) || op&0xf0 == 0x40 {
					in.REX = 0 // a REX that is not last is ignored
					continue
				}
			}
			in.Rep, in.Repne = last == 0xf3, last == 0xf2
			in.sizes(addrPrefix)
			return op
		}
		op = r.u8()
	}
	return op
}

func isPrefix(b uint8) bool {
	switch b {
	case 0x66, 0x67, 0xf0, 0xf2, 0xf3, 0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65:
		return true
	}
	return false
}

// sizes sets the effective sizes before the opcode's own rules (SDM vol. 1 §3.6.1).
func (in *Inst) sizes(addrPrefix bool) {
	in.OpSize, in.AddrSize = 4, 4
	switch in.Mode {
	case Mode16:
		in.OpSize, in.AddrSize = 2, 2
		if in.OpSizePrefix {
			in.OpSize = 4
		}
		if addrPrefix {
			in.AddrSize = 4
		}
		return
	case Mode64:
		in.AddrSize = 8
		if addrPrefix {
			in.AddrSize = 4
		}
	case Mode32:
		if addrPrefix {
			in.AddrSize = 2
		}
	}
	if in.OpSizePrefix {
		in.OpSize = 2
	}
	if in.REX&8 != 0 {
		in.OpSize = 8
	}
}

// opcode reads the opcode bytes and all that follows.
func (in *Inst) opcode(r *reader, op uint8) error {
	if op == 0xc4 || op == 0xc5 {
		if in.Mode == Mode64 {
			return in.vex(r, op)
		}
		if b := r.peek(); b >= 0xc0 { // else LES or LDS, which have no such forms
			return in.vex(r, op)
		}
	}
	if op == 0x62 && in.Mode == Mode64 {
		return ErrInvalid
	}
	if op == 0x0f {
		in.Map = 1
		op = r.u8()
		switch op {
		case 0x38:
			in.Map, op = 2, r.u8()
		case 0x3a:
			in.Map, op = 3, r.u8()
		}
	}
	in.Opcode, in.OpcodeAt = op, uint8(r.pos-1)
	head := index[in.Map][op]
	if r.err != nil {
		return r.err
	}
	if head.n == 0 {
		return ErrInvalid
	}
	fs := forms[head.first : int(head.first)+int(head.n)]
	if fs[0].modrm {
		in.HasModRM, in.ModRMAt = true, uint8(r.pos)
		in.ModRM = r.u8()
		if r.err != nil {
			return r.err
		}
	}
	for i := range fs {
		if fs[i].matches(in) {
			return in.form(r, &fs[i])
		}
	}
	return ErrInvalid
}

// form fills in the operands of the form f.
func (in *Inst) form(r *reader, f *form) error {
	in.Op, in.Attrs, in.Native, in.Prefix = f.op, f.attrs, f.native, f.mandatory()
	if in.Mode == Mode64 {
		if f.attrs&attrF64 != 0 || f.attrs&attrD64 != 0 && in.OpSize == 4 {
			in.OpSize = 8
		}
	}
	if in.MemMod() && !f.crdr {
		in.address(r)
	}
	if in.Map == 0 && in.Opcode == 0x90 && in.REX&1 == 0 && in.Op == XCHG {
		in.Op = NOP // not even EAX to itself, which would clear RAX's upper half
		return in.checkLock(f)
	}
	for i := range f.args {
		if f.args[i].code == 0 {
			break
		}
		in.Args[i] = in.operand(r, f.args[i])
	}
	return in.checkLock(f)
}

// checkLock rejects LOCK where it is not allowed.
func (in *Inst) checkLock(f *form) error {
	if in.Lock && (f.attrs&AttrLock == 0 || in.Args[0].Kind != KMem) {
		return ErrInvalid
	}
	return nil
}

// reg16 are base and index of 16-bit addressing by ModRM.rm (SDM vol. 2A table 2-1).
var reg16 = [8][2]uint8{{3, 6}, {3, 7}, {5, 6}, {5, 7}, {6, RegNone}, {7, RegNone}, {5, RegNone}, {3, RegNone}}

// address decodes ModRM, SIB and displacement into in.Mem.
func (in *Inst) address(r *reader) {
	m := &in.Mem
	m.Base, m.Index = RegNone, RegNone
	mod, rm := in.ModRM>>6, in.ModRM&7
	if in.AddrSize == 2 {
		m.Base, m.Index = reg16[rm][0], reg16[rm][1]
		switch {
		case mod == 0 && rm == 6:
			m.Base = RegNone
			m.Disp = int64(r.uint(2))
		case mod == 1:
			m.Disp = r.sint(1)
		case mod == 2:
			m.Disp = r.sint(2)
		}
	} else {
		base := rm
		sib := false
		if rm == 4 {
			sib = true
			s := r.u8()
			m.Scale = s >> 6
			base = s & 7
			if x := s>>3&7 | in.REX&2<<2; x != 4 {
				m.Index = x
			}
		}
		switch {
		case mod == 0 && base == 5:
			m.Disp = r.sint(4)
			if !sib && in.Mode == Mode64 {
				m.Base = RegRIP
			}
		default:
			m.Base = base | in.REX&1<<3
			if mod == 1 {
				m.Disp = r.sint(1)
			} else if mod == 2 {
				m.Disp = r.sint(4)
			}
		}
	}
	m.Seg = DS
	if m.Base == 4 || m.Base == 5 {
		m.Seg = SS
	}
	if in.SegOverride != RegNone {
		m.Seg = in.SegOverride
	}
}

// gpr is a general register operand of size bytes.
func (in *Inst) gpr(n, size uint8) Arg {
	if size == 1 && in.REX == 0 && n >= 4 && n < 8 {
		return Arg{Kind: KRegH, Reg: n - 4, Size: 1}
	}
	return Arg{Kind: KReg, Reg: n, Size: size}
}

// size resolves a size code to bytes.
func (in *Inst) size(code uint8) uint8 {
	switch code {
	case 'b':
		return 1
	case 'w':
		return 2
	case 'd':
		return 4
	case 'q':
		return 8
	case 'v':
		return in.OpSize
	case 'y':
		if in.Mode == Mode64 && in.REX&8 != 0 {
			return 8
		}
		return 4
	}
	return 0
}

func (in *Inst) operand(r *reader, a operandSpec) Arg {
	reg, rm := in.Reg(), in.RM()
	size := in.size(a.size)
	mem := in.ModRM < 0xc0
	switch a.code {
	case 'E':
		if mem {
			return Arg{Kind: KMem, Size: size}
		}
		return in.gpr(rm, size)
	case 'G':
		return in.gpr(reg, size)
	case 'R':
		if a.size == 'y' && in.Map == 1 && in.Opcode&^3 == 0x20 { // mov to and from CR, DR
			size = 4
			if in.Mode == Mode64 {
				size = 8
			}
		}
		return in.gpr(rm, size)
	case 'M':
		if a.size == 'p' {
			size = in.OpSize + 2
		}
		return Arg{Kind: KMem, Size: size}
	case 'Z':
		return in.gpr(in.OpcodeReg(), size)
	case 'I':
		in.immediate(r, a.size)
		return Arg{Kind: KImm, Size: size}
	case '1':
		in.Imm = 1
		return Arg{Kind: KImm, Size: 1}
	case 'J':
		n := uint8(1)
		if a.size == 'z' {
			n = min(in.OpSize, 4)
		}
		in.Imm = uint64(r.sint(n))
		return Arg{Kind: KRel, Size: n}
	case 'A':
		in.Imm = r.uint(in.OpSize)
		in.Imm2 = r.uint(2)
		return Arg{Kind: KFar, Size: in.OpSize}
	case 'O':
		in.Mem = Mem{Base: RegNone, Index: RegNone, Seg: DS, Disp: int64(r.uint(in.AddrSize))}
		if in.SegOverride != RegNone {
			in.Mem.Seg = in.SegOverride
		}
		return Arg{Kind: KMem, Size: size}
	case 'a': // AL, rAX, eAX
		if a.size == 'e' {
			size = min(in.OpSize, 4)
		}
		return Arg{Kind: KReg, Reg: 0, Size: size}
	case 'c':
		return Arg{Kind: KReg, Reg: 1, Size: 1}
	case 'x':
		return Arg{Kind: KReg, Reg: 2, Size: 2}
	case 's':
		return Arg{Kind: KSeg, Reg: a.size, Size: in.OpSize}
	case 'S':
		return Arg{Kind: KSeg, Reg: in.ModRM >> 3 & 7, Size: 2}
	case 'C':
		return Arg{Kind: KCR, Reg: reg}
	case 'D':
		return Arg{Kind: KDR, Reg: reg}
	}
	return in.vector(a, reg, rm, mem)
}

func (in *Inst) vector(a operandSpec, reg, rm uint8, mem bool) Arg {
	switch a.code {
	case 'V':
		return Arg{Kind: KXMM, Reg: reg, Size: 16}
	case 'U':
		return Arg{Kind: KXMM, Reg: rm, Size: 16}
	case 'P':
		return Arg{Kind: KMMX, Reg: reg & 7, Size: 8}
	case 'N':
		return Arg{Kind: KMMX, Reg: rm & 7, Size: 8}
	case 'W':
		if mem {
			return Arg{Kind: KMem, Size: a.size, Unaligned: a.unaligned}
		}
		return Arg{Kind: KXMM, Reg: rm, Size: a.size}
	case 'Q':
		if mem {
			return Arg{Kind: KMem, Size: a.size, Unaligned: true}
		}
		return Arg{Kind: KMMX, Reg: rm & 7, Size: a.size}
	}
	return Arg{}
}

// immediate reads an immediate operand. The second one goes to Imm2.
func (in *Inst) immediate(r *reader, code uint8) {
	var v uint64
	switch code {
	case 'b':
		v = r.uint(1)
	case 's':
		v = uint64(r.sint(1))
	case 'w':
		v = r.uint(2)
	case 'z':
		v = uint64(r.sint(min(in.OpSize, 4)))
	case 'v':
		v = r.uint(in.OpSize)
	}
	if in.Op == ENTER && code == 'b' {
		in.Imm2 = v
		return
	}
	in.Imm = v
}
