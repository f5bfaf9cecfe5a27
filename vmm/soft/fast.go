package soft

import (
	"math/bits"

	"github.com/gvmspawn/gvmspawn/vmm/soft/decode"
	"github.com/gvmspawn/gvmspawn/vmm/vcpu"
)

// The functions in the fast files are the common forms in 64-bit mode with
// their operands resolved when the block was decoded. They do exactly what the
// generic functions do.

// fea is the linear address of the memory operand.
func (c *CPU) fea(o *op) uint64 {
	r := &c.s.R
	return r[o.base&31] + r[o.idx&31]<<(o.sh&3) + r[o.seg&31] + uint64(int64(o.disp))
}

// onStack says whether a bad address of o raises #SS.
func (o *op) onStack() bool {
	return o.seg == regZero && (o.base == vcpu.RSP || o.base == vcpu.RBP)
}

// flat32 reports whether 32-bit code sees memory as it is: its segments but FS
// and GS begin at 0 and are 4 GiB of writable memory.
func (c *CPU) flat32() bool {
	s := c.s
	if g := &s.Seg[vcpu.CS]; g.Base != 0 || g.Limit != 0xffffffff {
		return false
	}
	for _, i := range [...]int{vcpu.ES, vcpu.SS, vcpu.DS} {
		g := &s.Seg[i]
		if g.Base != 0 || g.Limit != 0xffffffff || g.Attr&(attrUnusable|attrP|attrS|attrCode|attrDC|attrRW) != attrP|attrS|attrRW {
			return false
		}
	}
	return s.Flags&flagVM == 0 && c.protected()
}

// fast32 reports whether the specialised functions of in do for flat 32-bit
// code what they do in 64-bit mode. Addresses beyond 4 GiB take the slow path,
// which wraps them.
func fast32(in *decode.Inst) bool {
	if in.Mode != decode.Mode32 {
		return false
	}
	switch in.Op {
	case decode.NOP, decode.LEA, decode.MOVZX, decode.MOVSX, decode.INC, decode.DEC, decode.NEG, decode.NOT,
		decode.SHL, decode.SHR, decode.SAR, decode.ROL, decode.ROR, decode.SETCC, decode.CMOVCC,
		decode.IMUL2, decode.IMUL3, decode.CWD, decode.CBW, decode.BT, decode.XCHG:
		return true
	case decode.JCC, decode.JMP:
		return in.OpSize == 4
	}
	return aluIndex[in.Op] != 0
}

// wrapOp is the address of an operand in the mode's width. An operand of flat
// 32-bit code that goes on behind 4 GiB is beyond its segment's limit.
func (c *CPU) wrapOp(o *op, va uint64, size uint8) (uint64, bool) {
	if c.mode == decode.Mode64 {
		return va, true
	}
	va &= 0xffffffff
	if va+uint64(size) > 1<<32 {
		if o.onStack() {
			return 0, c.faultErr(vecSS, 0)
		}
		return 0, c.faultErr(vecGP, 0)
	}
	return va, true
}

// loadOp is the slow path of a load.
func (c *CPU) loadOp(o *op, va uint64, size uint8) (uint64, bool) {
	va, ok := c.wrapOp(o, va, size)
	if !ok {
		return 0, false
	}
	c.stackAccess = o.onStack()
	v, ok := c.loadSlow(va, size, c.tlbMode)
	c.stackAccess = false
	return v, ok
}

func (c *CPU) storeOp(o *op, va, v uint64, size uint8) bool {
	va, ok := c.wrapOp(o, va, size)
	if !ok {
		return false
	}
	c.stackAccess = o.onStack()
	ok = c.storeSlow(va, v, size, c.tlbMode)
	c.stackAccess = false
	return ok
}

// loadForWrite reads for a read-modify-write instruction.
func (c *CPU) loadForWrite(o *op, va uint64, size uint8) (uint64, bool) {
	va, ok := c.wrapOp(o, va, size)
	if !ok {
		return 0, false
	}
	c.stackAccess = o.onStack()
	ok = c.probeWrite(va, size)
	var v uint64
	if ok {
		v, ok = c.load(va, size)
	}
	c.stackAccess = false
	return v, ok
}

// setEA fills in the address of in's memory operand; false if it needs the
// generic path.
func (o *op) setEA(in *decode.Inst, pos int) bool {
	m := &in.Mem
	if in.AddrSize != 8 && (in.Mode != decode.Mode32 || in.AddrSize != 4 || m.Seg >= decode.FS || m.Seg == decode.CS) {
		return false
	}
	disp := m.Disp
	o.base, o.idx, o.seg, o.sh = m.Base, m.Index, regZero, m.Scale
	switch m.Base {
	case decode.RegNone:
		o.base = regZero
	case decode.RegRIP:
		o.base = regBlock
		disp += int64(pos) + int64(in.Len)
	}
	if m.Index == decode.RegNone {
		o.idx = regZero
	}
	if m.Seg >= decode.FS {
		o.seg = regSeg + m.Seg
	}
	o.disp = int32(disp)
	return disp == int64(o.disp)
}

// regIndex is how the functions of an operand size name a register.
func regIndex(a decode.Arg) uint8 {
	switch {
	case a.Kind == decode.KRegH:
		return a.Reg*8 + 1
	case a.Size == 1:
		return a.Reg * 8
	}
	return a.Reg
}

func isReg(a decode.Arg) bool { return a.Kind == decode.KReg || a.Kind == decode.KRegH }

var aluIndex = [decode.NumOps]uint8{
	decode.ADD: 1, decode.OR: 2, decode.ADC: 3, decode.SBB: 4, decode.AND: 5, decode.SUB: 6, decode.XOR: 7,
	decode.CMP: 8, decode.TEST: 9, decode.MOV: 10,
}

// fast returns the specialised operation of a common form in 64-bit mode. pos
// is the instruction's offset in its block.
func fast(in *decode.Inst, pos int) (op, bool) {
	if in.Lock {
		return op{}, false
	}
	if i := aluIndex[in.Op]; i != 0 {
		return fastTwo(in, pos, int(i)-1)
	}
	return fastOther(in, pos)
}

// fastTwo is the two-operand instructions.
func fastTwo(in *decode.Inst, pos, i int) (o op, ok bool) {
	d, s := in.Args[0], in.Args[1]
	size := bits.TrailingZeros8(d.Size)
	form := 0
	switch {
	case isReg(d) && isReg(s):
	case isReg(d) && s.Kind == decode.KImm:
		form = 1
	case isReg(d) && s.Kind == decode.KMem:
		form = 2
	case d.Kind == decode.KMem && isReg(s):
		form = 3
	case d.Kind == decode.KMem && s.Kind == decode.KImm:
		form = 4
	default:
		return o, false // segment, control and debug registers
	}
	if form >= 2 && !o.setEA(in, pos) {
		return o, false
	}
	if isReg(d) {
		o.dst = regIndex(d)
	}
	if isReg(s) {
		o.src = regIndex(s)
	}
	o.imm = in.Imm
	o.fn = fastALU[i][form][size]
	return o, true
}
