package decode

import (
	"strconv"
	"strings"
	"sync"
)

// VEX-encoded instructions (SDM vol. 2A §2.3) have a table of their own, one
// line per form:
//
//	map opcode[-last] prefix[,prefix…] operands [m|r] [/reg] [L0|L1] [W0|W1] [flags] [aligned]
//
// Operands: V W U H vector registers by ModRM.reg, ModRM.rm and VEX.vvvv, G E B
// general ones, I an immediate byte, L a register in its upper half. Behind W
// and E stand the bytes of a memory operand; without a number W is as long as
// the vector, h, q and e are a half, a quarter and an eighth of it, d is 8 bytes
// for 128 bits and else the whole. The first operand is the destination.
const vexTable = `
1 10 np,66 V,W
1 10 f3 V,W4 m
1 10 f3 V,H,U r
1 10 f2 V,W8 m
1 10 f2 V,H,U r
1 11 np,66 W,V
1 11 f3 W4,V m
1 11 f3 U,H,V r
1 11 f2 W8,V m
1 11 f2 U,H,V r
1 12 np V,H,W8 L0
1 12 66 V,H,W8 m L0
1 12 f3 V,W
1 12 f2 V,Wd
1 13 np,66 W8,V m L0
1 14-15 np,66 V,H,W
1 16 np V,H,W8 L0
1 16 66 V,H,W8 m L0
1 16 f3 V,W
1 17 np,66 W8,V m L0
1 28 np,66 V,W aligned
1 29 np,66 W,V aligned
1 2A f3,f2 V,H,Ey
1 2B np,66 W,V m aligned
1 2C-2D f3 G,W4
1 2C-2D f2 G,W8
1 2E-2F np V,W4 flags
1 2E-2F 66 V,W8 flags
1 50 np,66 G,U r
1 51 np,66 V,W
1 51 f3 V,H,W4
1 51 f2 V,H,W8
1 52-53 np V,W
1 52-53 f3 V,H,W4
1 54-57 np,66 V,H,W
1 58-59 np,66 V,H,W
1 58-59 f3 V,H,W4
1 58-59 f2 V,H,W8
1 5A np V,Wh
1 5A 66 V,W
1 5A f3 V,H,W4
1 5A f2 V,H,W8
1 5B np,66,f3 V,W
1 5C-5F np,66 V,H,W
1 5C-5F f3 V,H,W4
1 5C-5F f2 V,H,W8
1 60-6D 66 V,H,W
1 6E 66 V,Ey L0
1 6F 66 V,W aligned
1 6F f3 V,W
1 70 66,f3,f2 V,W,I
1 71 66 H,U,I r /2 /4 /6
1 72 66 H,U,I r /2 /4 /6
1 73 66 H,U,I r /2 /3 /6 /7
1 74-76 66 V,H,W
1 7C-7D 66,f2 V,H,W
1 7E 66 Ey,V L0
1 7E f3 V,W8 L0
1 7F 66 W,V aligned
1 7F f3 W,V
1 C2 np,66 V,H,W,I
1 C2 f3 V,H,W4,I
1 C2 f2 V,H,W8,I
1 C4 66 V,H,E2,I L0
1 C5 66 G,U,I r L0
1 C6 np,66 V,H,W,I
1 D0 66,f2 V,H,W
1 D1-D3 66 V,H,W16
1 D4-D5 66 V,H,W
1 D6 66 W8,V L0
1 D7 66 G,U r
1 D8-E0 66 V,H,W
1 E1-E2 66 V,H,W16
1 E3-E5 66 V,H,W
1 E6 66,f2 V,W
1 E6 f3 V,Wh
1 E7 66 W,V m aligned
1 E8-EF 66 V,H,W
1 F0 f2 V,W m
1 F1-F3 66 V,H,W16
1 F4-F6 66 V,H,W
1 F8-FE 66 V,H,W
2 00-0B 66 V,H,W
2 0C-0D 66 V,H,W W0
2 0E-0F 66 V,W flags W0
2 13 66 V,Wh W0
2 16 66 V,H,W L1 W0
2 17 66 V,W flags
2 18 66 V,W4 W0
2 19 66 V,W8 L1 W0
2 1A 66 V,W16 m L1 W0
2 1C-1E 66 V,W
2 20 66 V,Wh
2 21 66 V,Wq
2 22 66 V,We
2 23 66 V,Wh
2 24 66 V,Wq
2 25 66 V,Wh
2 28-29 66 V,H,W
2 2A 66 V,W m aligned
2 2B 66 V,H,W
2 30 66 V,Wh
2 31 66 V,Wq
2 32 66 V,We
2 33 66 V,Wh
2 34 66 V,Wq
2 35 66 V,Wh
2 36 66 V,H,W L1 W0
2 37-40 66 V,H,W
2 41 66 V,W L0
2 45 66 V,H,W
2 46 66 V,H,W W0
2 47 66 V,H,W
2 58 66 V,W4 W0
2 59 66 V,W8 W0
2 5A 66 V,W16 m L1 W0
2 78 66 V,W1 W0
2 79 66 V,W2 W0
2 96-98 66 V,H,W
2 99 66 V,H,W4 W0
2 99 66 V,H,W8 W1
2 9A 66 V,H,W
2 9B 66 V,H,W4 W0
2 9B 66 V,H,W8 W1
2 9C 66 V,H,W
2 9D 66 V,H,W4 W0
2 9D 66 V,H,W8 W1
2 9E 66 V,H,W
2 9F 66 V,H,W4 W0
2 9F 66 V,H,W8 W1
2 A6-A8 66 V,H,W
2 A9 66 V,H,W4 W0
2 A9 66 V,H,W8 W1
2 AA 66 V,H,W
2 AB 66 V,H,W4 W0
2 AB 66 V,H,W8 W1
2 AC 66 V,H,W
2 AD 66 V,H,W4 W0
2 AD 66 V,H,W8 W1
2 AE 66 V,H,W
2 AF 66 V,H,W4 W0
2 AF 66 V,H,W8 W1
2 B6-B8 66 V,H,W
2 B9 66 V,H,W4 W0
2 B9 66 V,H,W8 W1
2 BA 66 V,H,W
2 BB 66 V,H,W4 W0
2 BB 66 V,H,W8 W1
2 BC 66 V,H,W
2 BD 66 V,H,W4 W0
2 BD 66 V,H,W8 W1
2 BE 66 V,H,W
2 BF 66 V,H,W4 W0
2 BF 66 V,H,W8 W1
2 DB 66 V,W L0
2 DC-DF 66 V,H,W L0
2 F2 np G,B,Ey L0 flags
2 F3 np B,Ey L0 /1 /2 /3 flags
2 F5 np G,Ey,B L0 flags
2 F5 f3,f2 G,B,Ey L0
2 F6 f2 G,B,Ey L0
2 F7 np G,Ey,B L0 flags
2 F7 66,f3,f2 G,Ey,B L0
3 00-01 66 V,W,I L1 W1
3 02 66 V,H,W,I W0
3 04-05 66 V,W,I W0
3 06 66 V,H,W,I L1 W0
3 08-09 66 V,W,I
3 0A 66 V,H,W4,I
3 0B 66 V,H,W8,I
3 0C-0F 66 V,H,W,I
3 14 66 E1,V,I L0
3 15 66 E2,V,I L0
3 16 66 Ey,V,I L0
3 17 66 E4,V,I L0
3 18 66 V,H,W16,I L1 W0
3 19 66 W16,V,I L1 W0
3 1D 66 Wh,V,I W0
3 20 66 V,H,E1,I L0
3 21 66 V,H,W4,I L0
3 22 66 V,H,Ey,I L0
3 38 66 V,H,W16,I L1 W0
3 39 66 W16,V,I L1 W0
3 40 66 V,H,W,I
3 41 66 V,H,W,I L0
3 42 66 V,H,W,I
3 44 66 V,H,W,I L0
3 46 66 V,H,W,I L1 W0
3 4A-4C 66 V,H,W,L W0
3 DF 66 V,W,I L0
3 F0 f2 G,Ey,I L0
`

// VexForm says how a VEX instruction uses its operands.
type VexForm struct {
	// Dst is the letter of the destination. Reg, Rm and Vvvv say what kind of
	// register these fields name: 'v', 'g' or 0 for none.
	Dst           byte
	Reg, Rm, Vvvv byte
	Imm, Is4      bool
	Flags         bool // writes the arithmetic flags
	Compare       bool // writes nothing but the flags
	Aligned       bool // a memory operand must be aligned to its size

	mod    byte
	regs   uint8 // set of ModRM.reg, 0 for any
	prefix uint8
	l, w   int8 // -1 any
	size   byte // of the memory operand: bytes, or a letter
}

var (
	vexForms [4][256][]VexForm
	vexOnce  sync.Once
)

func parseVexTable() {
	for line := range strings.Lines(strings.TrimLeft(vexTable, "\n")) {
		w := strings.Fields(line)
		lo, hi, isRange := strings.Cut(w[1], "-")
		if !isRange {
			hi = lo
		}
		l, _ := strconv.ParseUint(lo, 16, 8)
		h, _ := strconv.ParseUint(hi, 16, 8)
		for p := range strings.SplitSeq(w[2], ",") {
			f := VexForm{l: -1, w: -1, size: '.'}
			if v, err := strconv.ParseUint(p, 16, 8); err == nil {
				f.prefix = uint8(v)
			}
			f.operands(w[3])
			f.attributes(w[4:])
			for op := l; op <= h; op++ {
				list := &vexForms[w[0][0]-'0'][op]
				*list = append(*list, f)
			}
		}
	}
}

func (f *VexForm) operands(s string) {
	for i, o := range strings.Split(s, ",") {
		switch o[0] {
		case 'V':
			f.Reg = 'v'
		case 'G':
			f.Reg = 'g'
		case 'H':
			f.Vvvv = 'v'
		case 'B':
			f.Vvvv = 'g'
		case 'W', 'U':
			f.Rm = 'v'
		case 'E':
			f.Rm = 'g'
		case 'I':
			f.Imm = true
		case 'L':
			f.Imm, f.Is4 = true, true
		}
		if i == 0 {
			f.Dst = o[0]
		}
		if len(o) > 1 {
			if n, err := strconv.Atoi(o[1:]); err == nil {
				f.size = byte(n)
			} else {
				f.size = o[1]
			}
		}
	}
}

func (f *VexForm) attributes(w []string) {
	for _, s := range w {
		switch {
		case s == "m" || s == "r":
			f.mod = s[0]
		case s[0] == '/':
			f.regs |= 1 << (s[1] - '0')
		case s[0] == 'L':
			f.l = int8(s[1] - '0')
		case s[0] == 'W':
			f.w = int8(s[1] - '0')
		case s == "flags":
			f.Flags = true
			f.Compare = f.Dst == 'V'
		case s == "aligned":
			f.Aligned = true
		}
	}
}

func (f *VexForm) matches(in *Inst) bool {
	switch {
	case f.prefix != in.Prefix,
		f.l >= 0 && uint8(f.l) != in.VexL,
		f.w >= 0 && uint8(f.w) != in.REX>>3&1,
		f.mod == 'm' && in.ModRM >= 0xc0, f.mod == 'r' && in.ModRM < 0xc0,
		f.regs != 0 && f.regs>>(in.ModRM>>3&7)&1 == 0,
		f.Vvvv == 0 && in.Vvvv != 0: // VEX.vvvv must be 1111b
		return false
	}
	return true
}

// memSize is the length of the memory operand in bytes.
func (f *VexForm) memSize(in *Inst) uint8 {
	full := uint8(16) << in.VexL
	switch f.size {
	case '.':
		return full
	case 'h':
		return full / 2
	case 'q':
		return full / 4
	case 'e':
		return full / 8
	case 'd':
		if in.VexL == 0 {
			return 8
		}
		return full
	case 'y':
		return 4 << (in.REX >> 3 & 1)
	}
	return f.size
}

// vex decodes what follows the byte C4 or C5. Register fields that do not
// exist outside 64-bit mode are ignored there.
func (in *Inst) vex(r *reader, first uint8) error {
	vexOnce.Do(parseVexTable)
	if in.Lock || in.Rep || in.Repne || in.OpSizePrefix || in.REX != 0 {
		return ErrInvalid
	}
	a := r.u8()
	b := a
	in.Map = 1
	in.REX = 0x40 | ^a>>5&4
	if first == 0xc4 {
		in.Map = a & 31
		in.REX = 0x40 | ^a>>5&7
		b = r.u8()
		in.REX |= b >> 4 & 8
	}
	in.VEX = true
	in.VexL = b >> 2 & 1
	in.Vvvv = ^b >> 3 & 15
	in.Prefix = [4]uint8{0, 0x66, 0xf3, 0xf2}[b&3]
	if in.Mode != Mode64 {
		in.REX &^= 7
		in.Vvvv &= 7
	}
	op := r.u8()
	in.Opcode, in.OpcodeAt = op, uint8(r.pos-1)
	if r.err != nil {
		return r.err
	}
	if in.Map == 1 && op == 0x77 && in.Prefix == 0 && in.Vvvv == 0 {
		in.Op = VZEROUPPER
		return nil
	}
	if in.Map < 1 || in.Map > 3 {
		return ErrInvalid
	}
	in.HasModRM, in.ModRMAt = true, uint8(r.pos)
	in.ModRM = r.u8()
	if r.err != nil {
		return r.err
	}
	if in.vexSpecial() {
		in.address(r)
		return nil
	}
	list := vexForms[in.Map][op]
	for i := range list {
		if list[i].matches(in) {
			in.vexForm(r, &list[i])
			return nil
		}
	}
	return ErrInvalid
}

func (in *Inst) vexForm(r *reader, f *VexForm) {
	in.Op, in.Form = VEX, f
	if in.MemMod() {
		in.address(r)
		in.Args[0] = Arg{Kind: KMem, Size: f.memSize(in)}
	}
	if f.Imm {
		in.Imm = r.uint(1)
	}
}

// vexSpecial takes the instructions with an address of their own kind: masked
// moves, gathers, and the control register's.
func (in *Inst) vexSpecial() bool {
	if in.ModRM >= 0xc0 {
		return false
	}
	w := in.REX >> 3 & 1
	n := uint8(4) << w
	switch {
	case in.Map == 1 && in.Opcode == 0xae && in.Prefix == 0 && in.VexL == 0 && in.Vvvv == 0 && in.RegField()&^1 == 2:
		in.Op, in.Args[0] = LDMXCSR, Arg{Kind: KMem, Size: 4}
		if in.RegField() == 3 {
			in.Op = STMXCSR
		}
		return true
	case in.Map != 2 || in.Prefix != 0x66:
		return false
	}
	switch in.Opcode {
	case 0x2c, 0x2d, 0x2e, 0x2f:
		if w != 0 {
			return false
		}
		n = 4 << (in.Opcode & 1)
		in.Op = VMASKMOV
		in.Imm = uint64(in.Opcode >> 1 & 1)
	case 0x8c, 0x8e:
		in.Op = VMASKMOV
		in.Imm = uint64(in.Opcode >> 1 & 1)
	case 0x90, 0x91, 0x92, 0x93:
		if in.ModRM&7 != 4 { // a SIB byte is needed
			return false
		}
		in.Op = VGATHER
	default:
		return false
	}
	in.Args[0] = Arg{Kind: KMem, Size: n}
	return true
}
