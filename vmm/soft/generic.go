package soft

import (
	"github.com/gvmspawn/gvmspawn/vmm/soft/decode"
	"github.com/gvmspawn/gvmspawn/vmm/vcpu"
)

// A genFn executes any form of an operation, in any mode, straight from the
// decoded instruction. CPU.next is the address of the following instruction.
// It is the reference for the specialised functions of the common forms.
type genFn func(c *CPU, in *decode.Inst) int

// ea is the effective address (offset in the segment).
func (c *CPU) ea(in *decode.Inst) uint64 {
	m := &in.Mem
	v := uint64(m.Disp)
	switch m.Base {
	case decode.RegNone:
	case decode.RegRIP:
		v += c.next
	default:
		v += c.s.R[m.Base&15]
	}
	if m.Index != decode.RegNone {
		v += c.s.R[m.Index&15] << (m.Scale & 3)
	}
	return v & ipMask(in.AddrSize)
}

// mem is the linear address of the memory operand.
func (c *CPU) mem(in *decode.Inst, size uint8, write bool) (uint64, bool) {
	return c.linear(in.Mem.Seg, c.ea(in), size, write)
}

// loadSeg reads at seg:off.
func (c *CPU) loadSeg(seg uint8, off uint64, size uint8) (uint64, bool) {
	la, ok := c.linear(seg, off, size, false)
	if !ok {
		return 0, false
	}
	c.stackAccess = seg == vcpu.SS
	v, ok := c.load(la, size)
	c.stackAccess = false
	return v, ok
}

func (c *CPU) storeSeg(seg uint8, off, v uint64, size uint8) bool {
	la, ok := c.linear(seg, off, size, true)
	if !ok {
		return false
	}
	c.stackAccess = seg == vcpu.SS
	ok = c.store(la, v, size)
	c.stackAccess = false
	return ok
}

// reg reads a register operand, zero-extended.
func (c *CPU) reg(a decode.Arg) uint64 {
	if a.Kind == decode.KRegH {
		return c.s.R[a.Reg&3] >> 8 & 0xff
	}
	return zeroExtend(c.s.R[a.Reg&15], a.Size)
}

// setReg writes a register operand; 4-byte writes clear the upper half.
func (c *CPU) setReg(a decode.Arg, v uint64) {
	p := &c.s.R[a.Reg&15]
	switch {
	case a.Kind == decode.KRegH:
		*p = *p&^0xff00 | v&0xff<<8
	case a.Size == 8:
		*p = v
	case a.Size == 4:
		*p = v & 0xffffffff
	case a.Size == 2:
		*p = *p&^0xffff | v&0xffff
	default:
		*p = *p&^0xff | v&0xff
	}
}

// get reads operand i.
func (c *CPU) get(in *decode.Inst, i int) (uint64, bool) {
	a := in.Args[i]
	switch a.Kind {
	case decode.KMem:
		return c.loadSeg(in.Mem.Seg, c.ea(in), a.Size)
	case decode.KImm:
		return in.Imm, true
	}
	return c.reg(a), true
}

// set writes operand i.
func (c *CPU) set(in *decode.Inst, i int, v uint64) bool {
	a := in.Args[i]
	if a.Kind == decode.KMem {
		return c.storeSeg(in.Mem.Seg, c.ea(in), v, a.Size)
	}
	c.setReg(a, v)
	return true
}

// modify replaces operand 0 by f of it, atomically with LOCK. f may be called
// several times and has no side effect but on the flags.
func (c *CPU) modify(in *decode.Inst, lock bool, f func(old uint64) uint64) int {
	a := in.Args[0]
	if a.Kind != decode.KMem {
		c.setReg(a, f(c.reg(a)))
		return stNext
	}
	la, ok := c.mem(in, a.Size, true)
	if !ok {
		return stFault
	}
	if lock {
		h, ok := c.hostWrite(la, a.Size)
		if !ok {
			return stFault
		}
		for h != 0 {
			old := ldn(h, a.Size)
			if cas(h, old, f(old), a.Size) {
				return stNext
			}
		}
		// MMIO or two pages: not atomic.
	} else if !c.probeWrite(la, a.Size) {
		return stFault
	}
	old, ok := c.load(la, a.Size)
	if !ok || !c.store(la, f(old), a.Size) {
		return stFault
	}
	return stNext
}

// alu computes a two-operand operation and sets the flags.
func (s *State) alu(op decode.Op, a, b, cf uint64, size uint8) uint64 {
	var r uint64
	b = zeroExtend(b, size)
	switch op {
	case decode.ADD, decode.ADC:
		if op == decode.ADC {
			r = cf
		}
		r += a + b
		s.flagsAdd(a, b, r, size)
	case decode.SUB, decode.CMP, decode.SBB:
		if op == decode.SBB {
			r = -cf
		}
		r += a - b
		s.flagsSub(a, b, r, size)
	case decode.AND, decode.TEST:
		r = a & b
		s.flagsLogic(r, size)
	case decode.OR:
		r = a | b
		s.flagsLogic(r, size)
	case decode.XOR:
		r = a ^ b
		s.flagsLogic(r, size)
	}
	return r
}

func genALU(c *CPU, in *decode.Inst) int {
	b, ok := c.get(in, 1)
	if !ok {
		return stFault
	}
	cf, size := c.s.cf(), in.Args[0].Size
	return c.modify(in, in.Lock, func(a uint64) uint64 { return c.s.alu(in.Op, a, b, cf, size) })
}

func genCmp(c *CPU, in *decode.Inst) int {
	a, ok := c.get(in, 0)
	if !ok {
		return stFault
	}
	b, ok := c.get(in, 1)
	if !ok {
		return stFault
	}
	c.s.alu(in.Op, a, b, 0, in.Args[0].Size)
	return stNext
}

func genUnary(c *CPU, in *decode.Inst) int {
	s, size := c.s, in.Args[0].Size
	cf := s.cf()
	return c.modify(in, in.Lock, func(a uint64) uint64 {
		switch in.Op {
		case decode.INC:
			s.flagsAdd(a, 1, a+1, size)
			s.setCF(cf)
			return a + 1
		case decode.DEC:
			s.flagsSub(a, 1, a-1, size)
			s.setCF(cf)
			return a - 1
		case decode.NEG:
			s.flagsSub(0, a, -a, size)
			return -a
		}
		return ^a // NOT sets no flags
	})
}

func genMov(c *CPU, in *decode.Inst) int {
	a := in.Args[1]
	var v uint64
	switch a.Kind {
	case decode.KSeg:
		if a.Reg > vcpu.GS {
			return c.raise(vecUD)
		}
		v = uint64(c.s.Seg[a.Reg].Selector)
	case decode.KCR, decode.KDR:
		return c.movFromSystem(in)
	default:
		switch in.Args[0].Kind {
		case decode.KCR, decode.KDR:
			return c.movToSystem(in)
		}
		var ok bool
		if v, ok = c.get(in, 1); !ok {
			return stFault
		}
	}
	if !c.set(in, 0, v) {
		return stFault
	}
	return stNext
}

func genMovzx(c *CPU, in *decode.Inst) int {
	v, ok := c.get(in, 1)
	if !ok {
		return stFault
	}
	if in.Op != decode.MOVZX {
		v = signExtend(v, in.Args[1].Size)
	}
	c.setReg(in.Args[0], v)
	return stNext
}

func genLea(c *CPU, in *decode.Inst) int {
	c.setReg(in.Args[0], c.ea(in))
	return stNext
}

func genXchg(c *CPU, in *decode.Inst) int {
	v := c.reg(in.Args[1])
	var old uint64
	if st := c.modify(in, true, func(o uint64) uint64 { old = o; return v }); st != stNext {
		return st
	}
	c.setReg(in.Args[1], old)
	return stNext
}

func genXadd(c *CPU, in *decode.Inst) int {
	v, size := c.reg(in.Args[1]), in.Args[0].Size
	var old uint64
	if in.Args[0].Kind != decode.KMem { // both may be one register
		old = c.reg(in.Args[0])
		r := c.s.alu(decode.ADD, old, v, 0, size)
		c.setReg(in.Args[1], old)
		c.setReg(in.Args[0], r)
		return stNext
	}
	if st := c.modify(in, in.Lock, func(o uint64) uint64 { old = o; return c.s.alu(decode.ADD, o, v, 0, size) }); st != stNext {
		return st
	}
	c.setReg(in.Args[1], old)
	return stNext
}

func genCmpxchg(c *CPU, in *decode.Inst) int {
	s, size := c.s, in.Args[0].Size
	acc, v := zeroExtend(s.R[0], size), c.reg(in.Args[1])
	var old uint64
	if in.Args[0].Kind != decode.KMem {
		old = c.reg(in.Args[0])
		if s.flagsSub(acc, old, acc-old, size); acc == old {
			c.setReg(in.Args[0], v)
		} else {
			c.setReg(decode.Arg{Kind: decode.KReg, Size: size}, old)
		}
		return stNext
	}
	st := c.modify(in, in.Lock, func(o uint64) uint64 {
		old = o
		if o == acc {
			return v
		}
		return o
	})
	if st != stNext {
		return st
	}
	s.flagsSub(acc, old, acc-old, size)
	if acc != old {
		c.setReg(decode.Arg{Kind: decode.KReg, Size: size}, old)
	}
	return stNext
}

// genCmpxchg8b is CMPXCHG8B and CMPXCHG16B (SDM vol. 2A).
func genCmpxchg8b(c *CPU, in *decode.Inst) int {
	s := c.s
	n := uint8(8)
	if in.OpSize == 8 {
		n = 16
	}
	la, ok := c.mem(in, n, true)
	if !ok {
		return stFault
	}
	if n == 16 && la&15 != 0 {
		return c.raiseErr(vecGP, 0)
	}
	if n == 16 {
		return c.cmpxchg16b(la)
	}
	h, ok := c.hostWrite(la, n)
	if !ok {
		return stFault
	}
	want := s.R[vcpu.RDX]<<32 | s.R[vcpu.RAX]&0xffffffff
	v := s.R[vcpu.RCX]<<32 | s.R[vcpu.RBX]&0xffffffff
	var old uint64
	for {
		if h != 0 {
			old = ld64(h)
		} else if old, ok = c.load(la, 8); !ok {
			return stFault
		}
		r := old
		if old == want {
			r = v
		}
		if h != 0 && cas64(h, old, r) {
			break
		}
		if h == 0 {
			if !c.store(la, r, 8) {
				return stFault
			}
			break
		}
	}
	if old != want {
		s.R[vcpu.RAX], s.R[vcpu.RDX] = old&0xffffffff, old>>32
	}
	s.setZF(old == want)
	return stNext
}

func (c *CPU) cmpxchg16b(la uint64) int {
	s := c.s
	h, ok := c.hostWrite(la, 16)
	if !ok {
		return stFault
	}
	if h == 0 {
		return c.raiseErr(vecGP, 0) // MMIO: no device has a 16-byte register
	}
	lo, hi, ok := cas128(h, s.R[vcpu.RAX], s.R[vcpu.RDX], s.R[vcpu.RBX], s.R[vcpu.RCX])
	s.setZF(ok)
	if !ok {
		s.R[vcpu.RAX], s.R[vcpu.RDX] = lo, hi
	}
	return stNext
}

func genBswap(c *CPU, in *decode.Inst) int {
	a := in.Args[0]
	v := c.reg(a)
	switch a.Size {
	case 8:
		v = bswap64(v)
	case 4:
		v = bswap64(v) >> 32
	default:
		v = 0 // undefined; processors give zero
	}
	c.setReg(a, v)
	return stNext
}

func genMovbe(c *CPU, in *decode.Inst) int {
	v, ok := c.get(in, 1)
	if !ok {
		return stFault
	}
	if !c.set(in, 0, bswap64(v)>>(64-8*uint(in.OpSize))) {
		return stFault
	}
	return stNext
}

func genSetcc(c *CPU, in *decode.Inst) int {
	var v uint64
	if c.s.cond(in.Cond()) {
		v = 1
	}
	if !c.set(in, 0, v) {
		return stFault
	}
	return stNext
}

func genCmovcc(c *CPU, in *decode.Inst) int {
	v, ok := c.get(in, 1) // the load happens, and faults, in any case
	if !ok {
		return stFault
	}
	if !c.s.cond(in.Cond()) {
		v = c.reg(in.Args[0])
	}
	c.setReg(in.Args[0], v)
	return stNext
}

// genCbw is CBW, CWDE, CDQE.
func genCbw(c *CPU, in *decode.Inst) int {
	v := signExtend(c.s.R[0], in.OpSize/2)
	c.setReg(decode.Arg{Kind: decode.KReg, Size: in.OpSize}, v)
	return stNext
}

// genCwd is CWD, CDQ, CQO.
func genCwd(c *CPU, in *decode.Inst) int {
	v := signExtend(c.s.R[0], in.OpSize)
	c.setReg(decode.Arg{Kind: decode.KReg, Reg: vcpu.RDX, Size: in.OpSize}, uint64(int64(v)>>63))
	return stNext
}

func genNop(c *CPU, in *decode.Inst) int { return stNext }

func genFlag(c *CPU, in *decode.Inst) int {
	s := c.s
	switch in.Op {
	case decode.CLC:
		s.setCF(0)
	case decode.STC:
		s.setCF(1)
	case decode.CMC:
		s.setCF(s.cf() ^ 1)
	case decode.CLD:
		s.Flags &^= flagDF
	case decode.STD:
		s.Flags |= flagDF
	case decode.LAHF:
		s.R[0] = s.R[0]&^0xff00 | (s.arith()&0xff|2)<<8
	case decode.SAHF:
		s.setArith(s.R[0]>>8&0xff | s.of()<<11)
	case decode.SALC:
		s.R[0] = s.R[0]&^0xff | -s.cf()&0xff
	}
	return stNext
}

func genPush(c *CPU, in *decode.Inst) int {
	var v uint64
	ok := true
	if a := in.Args[0]; a.Kind == decode.KSeg {
		v = uint64(c.s.Seg[a.Reg&7].Selector)
	} else if v, ok = c.get(in, 0); !ok {
		return stFault
	}
	if !c.push(v, in.OpSize) {
		return stFault
	}
	return stNext
}

func genPop(c *CPU, in *decode.Inst) int {
	s := c.s
	v, ok := c.top(0, in.OpSize)
	if !ok {
		return stFault
	}
	a := in.Args[0]
	switch a.Kind {
	case decode.KSeg:
		if !c.loadSegment(a.Reg, uint16(v)) {
			return stFault
		}
		c.drop(uint64(in.OpSize))
		return c.afterSegment(a.Reg)
	case decode.KMem:
		// The address is computed with RSP already moved (SDM vol. 2B, POP).
		sp := s.R[vcpu.RSP]
		c.drop(uint64(in.OpSize))
		if !c.set(in, 0, v) {
			s.R[vcpu.RSP] = sp
			return stFault
		}
	default:
		c.drop(uint64(in.OpSize))
		c.setReg(a, v)
	}
	return stNext
}

// afterSegment ends the block after a load of a segment register where the
// following code may depend on it; SS inhibits interrupts for one instruction.
func (c *CPU) afterSegment(seg uint8) int {
	if seg == vcpu.SS {
		c.shadow = true
	}
	if seg == vcpu.SS || c.mode != decode.Mode64 {
		c.s.RIP = c.next
		return stExit
	}
	return stNext
}

func genMovseg(c *CPU, in *decode.Inst) int {
	seg := in.Args[0].Reg
	if seg == vcpu.CS || seg > vcpu.GS {
		return c.raise(vecUD)
	}
	v, ok := c.get(in, 1)
	if !ok || !c.loadSegment(seg, uint16(v)) {
		return stFault
	}
	return c.afterSegment(seg)
}

func genPusha(c *CPU, in *decode.Inst) int {
	s := c.s
	sp := s.R[vcpu.RSP]
	for i := range 8 {
		v := s.R[i]
		if i == vcpu.RSP {
			v = sp
		}
		if !c.push(v, in.OpSize) {
			s.R[vcpu.RSP] = sp
			return stFault
		}
	}
	return stNext
}

func genPopa(c *CPU, in *decode.Inst) int {
	var v [8]uint64
	for i := range v {
		var ok bool
		if v[i], ok = c.top(uint64(i)*uint64(in.OpSize), in.OpSize); !ok {
			return stFault
		}
	}
	for i := range v {
		if r := uint8(7 - i); r != vcpu.RSP {
			c.setReg(decode.Arg{Kind: decode.KReg, Reg: r, Size: in.OpSize}, v[i])
		}
	}
	c.drop(8 * uint64(in.OpSize))
	return stNext
}

func genPushf(c *CPU, in *decode.Inst) int {
	f := c.s.rflags() &^ (flagVM | flagRF)
	if !c.push(f, in.OpSize) {
		return stFault
	}
	return stNext
}

func genPopf(c *CPU, in *decode.Inst) int {
	s := c.s
	f, ok := c.top(0, in.OpSize)
	if !ok {
		return stFault
	}
	c.drop(uint64(in.OpSize))
	mask := uint64(flagsArith | flagTF | flagDF | flagNT)
	if in.OpSize > 2 {
		mask |= flagAC | flagID
	}
	cpl := s.CPL
	if !c.protected() {
		cpl = 0
	}
	if cpl == 0 {
		mask |= flagIOPL
	}
	if uint64(cpl) <= s.Flags>>12&3 {
		mask |= flagIF
	}
	old := s.Flags
	c.setFlags(f, mask)
	s.Flags &^= flagRF
	if (old^s.Flags)&(flagIF|flagTF|flagAC) == 0 {
		return stNext
	}
	s.RIP = c.next
	return stExit
}

func genEnter(c *CPU, in *decode.Inst) int {
	s := c.s
	size := in.OpSize
	sp := s.R[vcpu.RSP]
	fail := func() int { s.R[vcpu.RSP] = sp; return stFault }
	if !c.push(s.R[vcpu.RBP], size) {
		return fail()
	}
	frame := s.R[vcpu.RSP]
	level := in.Imm2 & 31
	bp := s.R[vcpu.RBP]
	for i := uint64(1); i < level; i++ {
		bp -= uint64(size)
		v, ok := c.loadSeg(vcpu.SS, bp&c.stackMask(), size)
		if !ok || !c.push(v, size) {
			return fail()
		}
	}
	if level > 0 && !c.push(frame, size) {
		return fail()
	}
	m := c.stackMask()
	s.R[vcpu.RSP] = s.R[vcpu.RSP]&^m | (s.R[vcpu.RSP]-in.Imm)&m
	c.setReg(decode.Arg{Kind: decode.KReg, Reg: vcpu.RBP, Size: size}, frame)
	return stNext
}

func genLeave(c *CPU, in *decode.Inst) int {
	s := c.s
	m := c.stackMask()
	v, ok := c.loadSeg(vcpu.SS, s.R[vcpu.RBP]&m, in.OpSize)
	if !ok {
		return stFault
	}
	s.R[vcpu.RSP] = s.R[vcpu.RSP]&^m | (s.R[vcpu.RBP]+uint64(in.OpSize))&m
	c.setReg(decode.Arg{Kind: decode.KReg, Reg: vcpu.RBP, Size: in.OpSize}, v)
	return stNext
}

func genXlat(c *CPU, in *decode.Inst) int {
	seg := uint8(vcpu.DS)
	if in.SegOverride != decode.RegNone {
		seg = in.SegOverride
	}
	off := (c.s.R[vcpu.RBX] + c.s.R[0]&0xff) & ipMask(in.AddrSize)
	v, ok := c.loadSeg(seg, off, 1)
	if !ok {
		return stFault
	}
	c.s.R[0] = c.s.R[0]&^0xff | v
	return stNext
}

// genBound is BOUND (SDM vol. 2A).
func genBound(c *CPU, in *decode.Inst) int {
	n := in.OpSize
	lo, ok := c.loadSeg(in.Mem.Seg, c.ea(in), n)
	if !ok {
		return stFault
	}
	hi, ok := c.loadSeg(in.Mem.Seg, c.ea(in)+uint64(n), n)
	if !ok {
		return stFault
	}
	v := int64(signExtend(c.reg(in.Args[0]), n))
	if v < int64(signExtend(lo, n)) || v > int64(signExtend(hi, n)) {
		return c.raise(vecBR)
	}
	return stNext
}
