package soft

import (
	"math/bits"

	"github.com/gvmspawn/gvmspawn/vmm/soft/decode"
	"github.com/gvmspawn/gvmspawn/vmm/vcpu"
)

// fastOther is everything but the two-operand integer instructions.
func fastOther(in *decode.Inst, pos int) (o op, ok bool) {
	d, a := in.Args[0], in.Args[1]
	wide := d.Size >= 4
	next := uint64(pos) + uint64(in.Len)
	o.dst, o.src, o.size, o.imm = regIndex(d), regIndex(a), d.Size, in.Imm
	switch in.Op {
	case decode.NOP:
		o.fn = fNop
	case decode.PAUSE:
		o.fn = fPause
	case decode.LEA:
		if !wide || !o.setEA(in, pos) {
			return o, false
		}
		o.seg = regZero
		o.fn = pick(d.Size, fLea32, fLea64)
	case decode.MOVZX, decode.MOVSX, decode.MOVSXD:
		return fastExtend(in, pos)
	case decode.JCC:
		o.imm, o.disp = next+in.Imm, int32(next)
		o.fn = fastJcc[in.Cond()]
	case decode.JMP:
		o.imm = next + in.Imm
		o.fn = fJmp
	case decode.CALL:
		o.imm, o.disp = next+in.Imm, int32(next)
		o.fn = fCall
	case decode.RET:
		if d.Kind == decode.KImm {
			return o, false
		}
		o.fn = fRet
	case decode.CALLR, decode.JMPR:
		return fastIndirect(in, pos, next)
	case decode.PUSH:
		return fastPush(in, pos)
	case decode.POP:
		if d.Kind != decode.KReg || d.Size != 8 {
			return o, false
		}
		o.fn = fPop
	case decode.LEAVE:
		if in.OpSize != 8 {
			return o, false
		}
		o.fn = fLeave
	case decode.INC, decode.DEC, decode.NEG, decode.NOT:
		return fastUnary(in, pos)
	case decode.SHL, decode.SHR, decode.SAR, decode.ROL, decode.ROR:
		return fastShift(in)
	case decode.SETCC:
		if !isReg(d) {
			return o, false
		}
		o.sh = in.Cond()
		o.fn = fSetcc
	case decode.CMOVCC:
		return fastCmov(in, pos)
	case decode.IMUL2, decode.IMUL3, decode.MUL:
		return fastMul(in, pos)
	case decode.CBW:
		o.fn = map[uint8]func(*CPU, *op) int{4: fCwde, 8: fCdqe}[in.OpSize]
	case decode.CWD:
		o.fn = map[uint8]func(*CPU, *op) int{4: fCdq, 8: fCqo}[in.OpSize]
	case decode.BT:
		if !isReg(d) || a.Kind != decode.KImm || !wide {
			return o, false
		}
		o.imm &= uint64(d.Size)*8 - 1
		o.fn = fBtRI
	case decode.XCHG:
		if !isReg(d) || !wide {
			return o, false
		}
		o.fn = pick(d.Size, fXchg32, fXchg64)
	default:
		return fastVector(in, pos)
	}
	return o, o.fn != nil
}

func pick(size uint8, f32, f64 func(*CPU, *op) int) func(*CPU, *op) int {
	switch size {
	case 4:
		return f32
	case 8:
		return f64
	}
	return nil
}

func fNop(c *CPU, o *op) int { return stNext }

func fPause(c *CPU, o *op) int { c.pause(); return stNext }

func fLea32(c *CPU, o *op) int { c.s.R[o.dst&31] = c.fea(o) & 0xffffffff; return stNext }
func fLea64(c *CPU, o *op) int { c.s.R[o.dst&31] = c.fea(o); return stNext }

func fXchg32(c *CPU, o *op) int {
	r := &c.s.R
	r[o.dst&31], r[o.src&31] = r[o.src&31]&0xffffffff, r[o.dst&31]&0xffffffff
	return stNext
}

func fXchg64(c *CPU, o *op) int {
	r := &c.s.R
	r[o.dst&31], r[o.src&31] = r[o.src&31], r[o.dst&31]
	return stNext
}

func fCwde(c *CPU, o *op) int { c.s.R[0] = uint64(uint32(int16(c.s.R[0]))); return stNext }
func fCdqe(c *CPU, o *op) int { c.s.R[0] = uint64(int32(c.s.R[0])); return stNext }
func fCdq(c *CPU, o *op) int  { c.s.R[2] = uint64(uint32(int32(c.s.R[0]) >> 31)); return stNext }
func fCqo(c *CPU, o *op) int  { c.s.R[2] = uint64(int64(c.s.R[0]) >> 63); return stNext }

func fBtRI(c *CPU, o *op) int {
	c.s.setCF(c.s.R[o.dst&31] >> (o.imm & 63) & 1)
	return stNext
}

// fastExtend is MOVZX, MOVSX and MOVSXD to 32 and 64 bits.
func fastExtend(in *decode.Inst, pos int) (o op, ok bool) {
	d, a := in.Args[0], in.Args[1]
	o.dst, o.src = d.Reg, regIndex(a)
	if d.Size < 4 || a.Kind == decode.KMem && !o.setEA(in, pos) {
		return o, false
	}
	i := bits.TrailingZeros8(a.Size) // 0, 1, 2
	k := 0
	if in.Op != decode.MOVZX {
		k = 1 + int(boolBit(d.Size == 8))
	}
	m := boolBit(a.Kind == decode.KMem)
	o.fn = fastExt[k][m][i]
	return o, o.fn != nil
}

// fastExt is by kind (zero, sign to 32, sign to 64), memory, and log2 of the source size.
var fastExt = [3][2][3]func(*CPU, *op) int{
	{{fMovzxR8, fMovzxR16}, {fMovzxM8, fMovzxM16}},
	{{fMovsx32R8, fMovsx32R16, fMovsx32R32}, {fMovsx32M8, fMovsx32M16, fMovsx32M32}},
	{{fMovsx64R8, fMovsx64R16, fMovsx64R32}, {fMovsx64M8, fMovsx64M16, fMovsx64M32}},
}

// fload reads the memory operand, zero-extended.
func (c *CPU) fload8(o *op) (uint64, bool) {
	va := c.fea(o)
	e := c.s.entry(va)
	if off := va ^ e.Read; off <= 4095 {
		return uint64(ld8(e.Host + off)), true
	}
	return c.loadOp(o, va, 1)
}

func (c *CPU) fload16(o *op) (uint64, bool) {
	va := c.fea(o)
	e := c.s.entry(va)
	if off := va ^ e.Read; off <= 4094 {
		return uint64(ld16(e.Host + off)), true
	}
	return c.loadOp(o, va, 2)
}

func (c *CPU) fload32(o *op) (uint64, bool) {
	va := c.fea(o)
	e := c.s.entry(va)
	if off := va ^ e.Read; off <= 4092 {
		return uint64(ld32(e.Host + off)), true
	}
	return c.loadOp(o, va, 4)
}

func (c *CPU) fload64(o *op) (uint64, bool) {
	va := c.fea(o)
	e := c.s.entry(va)
	if off := va ^ e.Read; off <= 4088 {
		return ld64(e.Host + off), true
	}
	return c.loadOp(o, va, 8)
}

func fMovzxR8(c *CPU, o *op) int  { c.s.R[o.dst&31] = uint64(*c.s.r8(o.src)); return stNext }
func fMovzxR16(c *CPU, o *op) int { c.s.R[o.dst&31] = c.s.R[o.src&31] & 0xffff; return stNext }

func fMovsx32R8(c *CPU, o *op) int {
	c.s.R[o.dst&31] = uint64(uint32(int8(*c.s.r8(o.src))))
	return stNext
}

func fMovsx64R8(c *CPU, o *op) int { c.s.R[o.dst&31] = uint64(int8(*c.s.r8(o.src))); return stNext }

func fMovsx32R16(c *CPU, o *op) int {
	c.s.R[o.dst&31] = uint64(uint32(int16(c.s.R[o.src&31])))
	return stNext
}

func fMovsx64R16(c *CPU, o *op) int {
	c.s.R[o.dst&31] = uint64(int16(c.s.R[o.src&31]))
	return stNext
}

func fMovsx32R32(c *CPU, o *op) int {
	c.s.R[o.dst&31] = c.s.R[o.src&31] & 0xffffffff
	return stNext
}

func fMovsx64R32(c *CPU, o *op) int {
	c.s.R[o.dst&31] = uint64(int32(c.s.R[o.src&31]))
	return stNext
}

func fMovzxM8(c *CPU, o *op) int {
	v, ok := c.fload8(o)
	if !ok {
		return stFault
	}
	c.s.R[o.dst&31] = v
	return stNext
}

func fMovzxM16(c *CPU, o *op) int {
	v, ok := c.fload16(o)
	if !ok {
		return stFault
	}
	c.s.R[o.dst&31] = v
	return stNext
}

func fMovsx32M8(c *CPU, o *op) int {
	v, ok := c.fload8(o)
	if !ok {
		return stFault
	}
	c.s.R[o.dst&31] = uint64(uint32(int8(v)))
	return stNext
}

func fMovsx64M8(c *CPU, o *op) int {
	v, ok := c.fload8(o)
	if !ok {
		return stFault
	}
	c.s.R[o.dst&31] = uint64(int8(v))
	return stNext
}

func fMovsx32M16(c *CPU, o *op) int {
	v, ok := c.fload16(o)
	if !ok {
		return stFault
	}
	c.s.R[o.dst&31] = uint64(uint32(int16(v)))
	return stNext
}

func fMovsx64M16(c *CPU, o *op) int {
	v, ok := c.fload16(o)
	if !ok {
		return stFault
	}
	c.s.R[o.dst&31] = uint64(int16(v))
	return stNext
}

func fMovsx32M32(c *CPU, o *op) int {
	v, ok := c.fload32(o)
	if !ok {
		return stFault
	}
	c.s.R[o.dst&31] = v
	return stNext
}

func fMovsx64M32(c *CPU, o *op) int {
	v, ok := c.fload32(o)
	if !ok {
		return stFault
	}
	c.s.R[o.dst&31] = uint64(int32(v))
	return stNext
}

// jump goes to block offset off.
func (s *State) jump(off uint64) int {
	s.RIP = s.R[regBlock] + off
	return stTaken
}

func (s *State) fall(o *op) int {
	s.RIP = s.R[regBlock] + uint64(int64(o.disp))
	return stFall
}

var fastJcc = [16]func(*CPU, *op) int{
	func(c *CPU, o *op) int {
		if s := c.s; s.of() == 0 {
			return s.fall(o)
		}
		return c.s.jump(o.imm)
	},
	func(c *CPU, o *op) int {
		if s := c.s; s.of() != 0 {
			return s.fall(o)
		}
		return c.s.jump(o.imm)
	},
	func(c *CPU, o *op) int { // B
		if s := c.s; int64(s.FAux) >= 0 {
			return s.fall(o)
		}
		return c.s.jump(o.imm)
	},
	func(c *CPU, o *op) int { // AE
		if s := c.s; int64(s.FAux) < 0 {
			return s.fall(o)
		}
		return c.s.jump(o.imm)
	},
	func(c *CPU, o *op) int { // E
		if s := c.s; s.FRes != 0 {
			return s.fall(o)
		}
		return c.s.jump(o.imm)
	},
	func(c *CPU, o *op) int { // NE
		if s := c.s; s.FRes == 0 {
			return s.fall(o)
		}
		return c.s.jump(o.imm)
	},
	func(c *CPU, o *op) int { // BE
		if s := c.s; s.FRes != 0 && int64(s.FAux) >= 0 {
			return s.fall(o)
		}
		return c.s.jump(o.imm)
	},
	func(c *CPU, o *op) int { // A
		if s := c.s; s.FRes == 0 || int64(s.FAux) < 0 {
			return s.fall(o)
		}
		return c.s.jump(o.imm)
	},
	func(c *CPU, o *op) int { // S
		if s := c.s; s.sf() == 0 {
			return s.fall(o)
		}
		return c.s.jump(o.imm)
	},
	func(c *CPU, o *op) int { // NS
		if s := c.s; s.sf() != 0 {
			return s.fall(o)
		}
		return c.s.jump(o.imm)
	},
	func(c *CPU, o *op) int {
		if s := c.s; s.pf() == 0 {
			return s.fall(o)
		}
		return c.s.jump(o.imm)
	},
	func(c *CPU, o *op) int {
		if s := c.s; s.pf() != 0 {
			return s.fall(o)
		}
		return c.s.jump(o.imm)
	},
	func(c *CPU, o *op) int { // L
		if s := c.s; s.sf() == s.of() {
			return s.fall(o)
		}
		return c.s.jump(o.imm)
	},
	func(c *CPU, o *op) int { // GE
		if s := c.s; s.sf() != s.of() {
			return s.fall(o)
		}
		return c.s.jump(o.imm)
	},
	func(c *CPU, o *op) int { // LE
		if s := c.s; s.FRes != 0 && s.sf() == s.of() {
			return s.fall(o)
		}
		return c.s.jump(o.imm)
	},
	func(c *CPU, o *op) int { // G
		if s := c.s; s.FRes == 0 || s.sf() != s.of() {
			return s.fall(o)
		}
		return c.s.jump(o.imm)
	},
}

func fJmp(c *CPU, o *op) int { return c.s.jump(o.imm) }

// push8 pushes 8 bytes in 64-bit mode.
func (c *CPU) push8(v uint64) bool {
	s := c.s
	sp := s.R[vcpu.RSP] - 8
	e := s.entry(sp)
	if off := sp ^ e.Write; off <= 4088 {
		st64(e.Host+off, v)
	} else if !c.stackStore(sp, v) {
		return false
	}
	s.R[vcpu.RSP] = sp
	return true
}

func (c *CPU) stackStore(sp, v uint64) bool {
	c.stackAccess = true
	ok := c.storeSlow(sp, v, 8, c.tlbMode)
	c.stackAccess = false
	return ok
}

// top8 reads the top of the stack.
func (c *CPU) top8(sp uint64) (uint64, bool) {
	e := c.s.entry(sp)
	if off := sp ^ e.Read; off <= 4088 {
		return ld64(e.Host + off), true
	}
	c.stackAccess = true
	v, ok := c.loadSlow(sp, 8, c.tlbMode)
	c.stackAccess = false
	return v, ok
}

func fCall(c *CPU, o *op) int {
	if !c.push8(c.s.R[regBlock] + uint64(int64(o.disp))) {
		return stFault
	}
	return c.s.jump(o.imm)
}

func fRet(c *CPU, o *op) int {
	s := c.s
	ip, ok := c.top8(s.R[vcpu.RSP])
	if !ok {
		return stFault
	}
	if !canonical(ip) {
		return c.raiseErr(vecGP, 0)
	}
	s.R[vcpu.RSP] += 8
	s.RIP = ip
	return stIndirect
}

// fastIndirect is CALL and JMP through a register or memory.
func fastIndirect(in *decode.Inst, pos int, next uint64) (o op, ok bool) {
	d := in.Args[0]
	call := in.Op == decode.CALLR
	o.imm = next
	if d.Kind == decode.KMem {
		o.fn = fJmpM
		if call {
			o.fn = fCallM
		}
		return o, d.Size == 8 && o.setEA(in, pos)
	}
	o.src = d.Reg
	o.fn = fJmpR
	if call {
		o.fn = fCallR
	}
	return o, d.Size == 8
}

func (c *CPU) indirect(ip uint64) int {
	if !canonical(ip) {
		return c.raiseErr(vecGP, 0)
	}
	c.s.RIP = ip
	return stIndirect
}

func (c *CPU) indirectCall(ip uint64, o *op) int {
	if !canonical(ip) {
		return c.raiseErr(vecGP, 0)
	}
	if !c.push8(c.s.R[regBlock] + o.imm) {
		return stFault
	}
	c.s.RIP = ip
	return stIndirect
}

func fJmpR(c *CPU, o *op) int  { return c.indirect(c.s.R[o.src&31]) }
func fCallR(c *CPU, o *op) int { return c.indirectCall(c.s.R[o.src&31], o) }

func fJmpM(c *CPU, o *op) int {
	ip, ok := c.fload64(o)
	if !ok {
		return stFault
	}
	return c.indirect(ip)
}

func fCallM(c *CPU, o *op) int {
	ip, ok := c.fload64(o)
	if !ok {
		return stFault
	}
	return c.indirectCall(ip, o)
}

func fastPush(in *decode.Inst, pos int) (o op, ok bool) {
	d := in.Args[0]
	if in.OpSize != 8 {
		return o, false
	}
	switch d.Kind {
	case decode.KReg:
		o.src = d.Reg
		o.fn = fPushR
	case decode.KImm:
		o.imm = in.Imm
		o.fn = fPushI
	case decode.KMem:
		o.fn = fPushM
		return o, o.setEA(in, pos)
	}
	return o, o.fn != nil
}

func fPushR(c *CPU, o *op) int {
	if !c.push8(c.s.R[o.src&31]) {
		return stFault
	}
	return stNext
}

func fPushI(c *CPU, o *op) int {
	if !c.push8(o.imm) {
		return stFault
	}
	return stNext
}

func fPushM(c *CPU, o *op) int {
	v, ok := c.fload64(o)
	if !ok || !c.push8(v) {
		return stFault
	}
	return stNext
}

func fPop(c *CPU, o *op) int {
	s := c.s
	v, ok := c.top8(s.R[vcpu.RSP])
	if !ok {
		return stFault
	}
	s.R[vcpu.RSP] += 8
	s.R[o.dst&31] = v
	return stNext
}

func fLeave(c *CPU, o *op) int {
	s := c.s
	v, ok := c.top8(s.R[vcpu.RBP])
	if !ok {
		return stFault
	}
	s.R[vcpu.RSP] = s.R[vcpu.RBP] + 8
	s.R[vcpu.RBP] = v
	return stNext
}

// fastUnary is INC, DEC, NEG and NOT of 32 and 64-bit registers.
func fastUnary(in *decode.Inst, pos int) (o op, ok bool) {
	d := in.Args[0]
	if d.Kind != decode.KReg || d.Size < 4 {
		return o, false
	}
	o.dst, o.size = d.Reg, d.Size
	switch in.Op {
	case decode.INC:
		o.fn = fInc
	case decode.DEC:
		o.fn = fDec
	case decode.NEG:
		o.fn = fNeg
	default:
		o.fn = pick(d.Size, fNot32, fNot64)
	}
	return o, true
}

func fInc(c *CPU, o *op) int {
	s := c.s
	a, cf := zeroExtend(s.R[o.dst&31], o.size), s.cf()
	r := zeroExtend(a+1, o.size)
	s.flagsAdd(a, 1, r, o.size)
	s.setCF(cf)
	s.R[o.dst&31] = r
	return stNext
}

func fDec(c *CPU, o *op) int {
	s := c.s
	a, cf := zeroExtend(s.R[o.dst&31], o.size), s.cf()
	r := zeroExtend(a-1, o.size)
	s.flagsSub(a, 1, r, o.size)
	s.setCF(cf)
	s.R[o.dst&31] = r
	return stNext
}

func fNeg(c *CPU, o *op) int {
	s := c.s
	a := zeroExtend(s.R[o.dst&31], o.size)
	r := zeroExtend(-a, o.size)
	s.flagsSub(0, a, r, o.size)
	s.R[o.dst&31] = r
	return stNext
}

func fNot32(c *CPU, o *op) int {
	c.s.R[o.dst&31] = uint64(^uint32(c.s.R[o.dst&31]))
	return stNext
}
func fNot64(c *CPU, o *op) int { c.s.R[o.dst&31] ^= ^uint64(0); return stNext }

// fastShift is shifts and rotates of 32 and 64-bit registers by an immediate
// or CL.
func fastShift(in *decode.Inst) (o op, ok bool) {
	d, a := in.Args[0], in.Args[1]
	if d.Kind != decode.KReg || d.Size < 4 {
		return o, false
	}
	o.dst, o.size = d.Reg, d.Size
	if a.Kind != decode.KImm {
		o.src = uint8(in.Op - decode.ROL)
		o.imm = uint64(d.Size)*8 - 1
		o.fn = fShiftCL
		return o, true
	}
	o.imm = in.Imm & (uint64(d.Size)*8 - 1)
	if o.imm == 0 {
		return o, false
	}
	switch in.Op {
	case decode.SHL:
		o.fn = pick(d.Size, fShl32, fShl64)
	case decode.SHR:
		o.fn = pick(d.Size, fShr32, fShr64)
	case decode.SAR:
		o.fn = pick(d.Size, fSar32, fSar64)
	default:
		o.src = uint8(in.Op - decode.ROL)
		o.fn = fRotate
	}
	return o, true
}

func fShiftCL(c *CPU, o *op) int {
	s := c.s
	n := s.R[vcpu.RCX] & o.imm
	a := zeroExtend(s.R[o.dst&31], o.size)
	if n != 0 {
		a = s.shift(decode.ROL+decode.Op(o.src), a, uint(n), o.size)
	}
	s.R[o.dst&31] = a
	return stNext
}

func fRotate(c *CPU, o *op) int {
	s := c.s
	a := zeroExtend(s.R[o.dst&31], o.size)
	s.R[o.dst&31] = s.shift(decode.ROL+decode.Op(o.src), a, uint(o.imm), o.size)
	return stNext
}

func fShl64(c *CPU, o *op) int {
	s := c.s
	n := o.imm & 63
	a := s.R[o.dst&31]
	r := a << n
	s.R[o.dst&31], s.FRes = r, r
	cf := a >> (64 - n) & 1
	s.FAux = cf<<63 | (r>>63)<<62 // CF ^ OF is the new sign
	return stNext
}

func fShl32(c *CPU, o *op) int {
	s := c.s
	n := o.imm & 31
	a := uint64(uint32(s.R[o.dst&31]))
	r := uint32(a << n)
	s.R[o.dst&31], s.FRes = uint64(r), uint64(int32(r))
	s.FAux = a<<n>>32<<63 | uint64(r>>31)<<62
	return stNext
}

func fShr64(c *CPU, o *op) int {
	s := c.s
	n := o.imm & 63
	a := s.R[o.dst&31]
	r := a >> n
	s.R[o.dst&31], s.FRes = r, r
	cf := a >> (n - 1) & 1
	of := (r ^ r<<1) >> 63 & 1
	s.FAux = cf<<63 | (cf^of)<<62
	return stNext
}

func fShr32(c *CPU, o *op) int {
	s := c.s
	n := o.imm & 31
	a := uint64(uint32(s.R[o.dst&31]))
	r := a >> n
	s.R[o.dst&31], s.FRes = r, uint64(int32(r))
	cf := a >> (n - 1) & 1
	of := (r ^ r<<1) >> 31 & 1
	s.FAux = cf<<63 | (cf^of)<<62
	return stNext
}

func fSar64(c *CPU, o *op) int {
	s := c.s
	n := o.imm & 63
	a := int64(s.R[o.dst&31])
	r := uint64(a >> n)
	s.R[o.dst&31], s.FRes = r, r
	cf := uint64(a>>(n-1)) & 1
	s.FAux = cf<<63 | cf<<62
	return stNext
}

func fSar32(c *CPU, o *op) int {
	s := c.s
	n := o.imm & 31
	a := int32(s.R[o.dst&31])
	r := a >> n
	s.R[o.dst&31], s.FRes = uint64(uint32(r)), uint64(r)
	cf := uint64(a>>(n-1)) & 1
	s.FAux = cf<<63 | cf<<62
	return stNext
}

func fSetcc(c *CPU, o *op) int {
	*c.s.r8(o.dst) = uint8(boolBit(c.s.cond(o.sh)))
	return stNext
}

func fastCmov(in *decode.Inst, pos int) (o op, ok bool) {
	d, a := in.Args[0], in.Args[1]
	if d.Size < 4 {
		return o, false
	}
	o.dst, o.src, o.size = d.Reg, a.Reg, in.Cond()
	if a.Kind == decode.KMem {
		o.fn = pick(d.Size, fCmovM32, fCmovM64)
		return o, o.setEA(in, pos)
	}
	o.fn = pick(d.Size, fCmov32, fCmov64)
	return o, true
}

func fCmov32(c *CPU, o *op) int {
	s := c.s
	i := o.dst
	if s.cond(o.size) {
		i = o.src
	}
	s.R[o.dst&31] = s.R[i&31] & 0xffffffff
	return stNext
}

func fCmov64(c *CPU, o *op) int {
	if s := c.s; s.cond(o.size) {
		s.R[o.dst&31] = s.R[o.src&31]
	}
	return stNext
}

func fCmovM32(c *CPU, o *op) int {
	s := c.s
	v, ok := c.fload32(o)
	if !ok {
		return stFault
	}
	if !s.cond(o.size) {
		v = s.R[o.dst&31] & 0xffffffff
	}
	s.R[o.dst&31] = v
	return stNext
}

func fCmovM64(c *CPU, o *op) int {
	v, ok := c.fload64(o)
	if !ok {
		return stFault
	}
	if s := c.s; s.cond(o.size) {
		s.R[o.dst&31] = v
	}
	return stNext
}

// fastMul is MUL with 64-bit operands and the IMUL forms without RDX.
func fastMul(in *decode.Inst, pos int) (o op, ok bool) {
	d := in.Args[0]
	if in.Op == decode.MUL {
		if d.Size != 8 {
			return o, false
		}
		o.src = d.Reg
		if d.Kind == decode.KMem {
			o.fn = fMulM64
			return o, o.setEA(in, pos)
		}
		o.fn = fMulR64
		return o, true
	}
	if d.Size < 4 {
		return o, false
	}
	a := in.Args[1]
	o.dst, o.src, o.imm = d.Reg, a.Reg, in.Imm
	i := 0
	if in.Op == decode.IMUL3 {
		i = 2
	}
	if a.Kind == decode.KMem {
		i++
		if !o.setEA(in, pos) {
			return o, false
		}
	}
	o.fn = [2][4]func(*CPU, *op) int{{fImulRR32, fImulRM32, fImulRRI32, fImulRMI32}, {fImulRR64, fImulRM64, fImulRRI64, fImulRMI64}}[boolBit(d.Size == 8)][i]
	return o, true
}

func (s *State) mul64(b uint64) int {
	hi, lo := bits.Mul64(s.R[0], b)
	s.R[0], s.R[2] = lo, hi
	s.FRes = lo
	s.FAux = boolBit(hi != 0) << 63
	return stNext
}

func fMulR64(c *CPU, o *op) int { return c.s.mul64(c.s.R[o.src&31]) }

func fMulM64(c *CPU, o *op) int {
	v, ok := c.fload64(o)
	if !ok {
		return stFault
	}
	return c.s.mul64(v)
}

func (s *State) imul32(o *op, a, b uint64) int {
	r := int64(int32(a)) * int64(int32(b))
	s.R[o.dst&31] = uint64(uint32(r))
	s.FRes = uint64(int32(r))
	s.FAux = boolBit(r != int64(int32(r))) << 63
	return stNext
}

func (s *State) imul64(o *op, a, b uint64) int {
	hi, lo := mulSigned(a, b)
	s.R[o.dst&31], s.FRes = lo, lo
	s.FAux = boolBit(hi != uint64(int64(lo)>>63)) << 63
	return stNext
}

func fImulRR32(c *CPU, o *op) int  { return c.s.imul32(o, c.s.R[o.dst&31], c.s.R[o.src&31]) }
func fImulRRI32(c *CPU, o *op) int { return c.s.imul32(o, c.s.R[o.src&31], o.imm) }
func fImulRR64(c *CPU, o *op) int  { return c.s.imul64(o, c.s.R[o.dst&31], c.s.R[o.src&31]) }
func fImulRRI64(c *CPU, o *op) int { return c.s.imul64(o, c.s.R[o.src&31], o.imm) }

func fImulRM32(c *CPU, o *op) int {
	v, ok := c.fload32(o)
	if !ok {
		return stFault
	}
	return c.s.imul32(o, c.s.R[o.dst&31], v)
}

func fImulRMI32(c *CPU, o *op) int {
	v, ok := c.fload32(o)
	if !ok {
		return stFault
	}
	return c.s.imul32(o, v, o.imm)
}

func fImulRM64(c *CPU, o *op) int {
	v, ok := c.fload64(o)
	if !ok {
		return stFault
	}
	return c.s.imul64(o, c.s.R[o.dst&31], v)
}

func fImulRMI64(c *CPU, o *op) int {
	v, ok := c.fload64(o)
	if !ok {
		return stFault
	}
	return c.s.imul64(o, v, o.imm)
}

// fastVector is reserved for vector instructions in Go.
func fastVector(in *decode.Inst, pos int) (op, bool) { return op{}, false }
