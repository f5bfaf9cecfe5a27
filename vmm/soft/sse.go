package soft

import (
	"github.com/gvmspawn/gvmspawn/vmm/soft/decode"
	"github.com/gvmspawn/gvmspawn/vmm/vcpu"
)

// nativeArgs is the operand block of callNative. Register 0 is the guest's
// XMM0, 1 the destination, 2 the source; gpr is the general register operand.
type nativeArgs struct {
	xmm0, dst, src [2]uint64
	gpr            uint64
	mxcsr, mxcsrUp uint32
	flags          uint64
	mm             uint64 // MMX result
	rdx, rcx       uint64 // second length and result of the SSE4.2 string forms
}

func nativeBase() uint64

//go:noescape
func callNative(a *nativeArgs, entry uint64)

//go:noescape
func callNativeMMX(a *nativeArgs, entry uint64)

//go:noescape
func callX87(fx, operand, entry, flags uint64) uint64

var nativeStart = nativeBase()

// sseUsable raises what a vector instruction raises while the kernel has not
// enabled it or lazily switches its state (SDM vol. 3A §14.2).
func (c *CPU) sseUsable() bool {
	s := c.s
	if s.CR0&(cr0EM|cr0TS) == 0 && s.CR4&cr4OSFXSR != 0 {
		return true
	}
	if s.CR0&cr0EM != 0 || s.CR4&cr4OSFXSR == 0 {
		return c.fault(vecUD)
	}
	return c.fault(vecNM)
}

// mmxUsable is the same for MMX, which also reports pending x87 exceptions.
func (c *CPU) mmxUsable() bool {
	s := c.s
	if s.CR0&cr0EM != 0 {
		return c.fault(vecUD)
	}
	if s.CR0&cr0TS != 0 {
		return c.fault(vecNM)
	}
	return c.x87Pending()
}

// load128 reads 16 bytes; aligned demands a multiple of 16.
func (c *CPU) load128(in *decode.Inst, aligned bool) (v [2]uint64, ok bool) {
	la, ok := c.mem(in, 16, false)
	if !ok {
		return v, false
	}
	if aligned && la&15 != 0 {
		return v, c.faultErr(vecGP, 0)
	}
	e := c.s.entry(la)
	if off := la ^ e.Read; off <= 4096-16 {
		return [2]uint64{ld64(e.Host + off), ld64(e.Host + off + 8)}, true
	}
	if v[0], ok = c.load(la, 8); !ok {
		return v, false
	}
	v[1], ok = c.load(c.wrap(la+8), 8)
	return v, ok
}

func (c *CPU) store128(in *decode.Inst, v [2]uint64, aligned bool) bool {
	la, ok := c.mem(in, 16, true)
	if !ok {
		return false
	}
	if aligned && la&15 != 0 {
		return c.faultErr(vecGP, 0)
	}
	e := c.s.entry(la)
	if off := la ^ e.Write; off <= 4096-16 {
		st64(e.Host+off, v[0])
		st64(e.Host+off+8, v[1])
		return true
	}
	// Both halves must be writable before the first is written.
	return c.probeWrite(la, 16) && c.store(la, v[0], 8) && c.store(c.wrap(la+8), v[1], 8)
}

// vec reads vector or general operand i, zero-extended to 16 bytes.
func (c *CPU) vec(in *decode.Inst, i int) (v [2]uint64, ok bool) {
	s := c.s
	a := in.Args[i]
	switch a.Kind {
	case decode.KXMM:
		x := &s.XMM[a.Reg&15]
		return [2]uint64{x[0], x[1]}, true
	case decode.KMMX:
		return [2]uint64{c.mm(a.Reg)}, true
	case decode.KMem:
		if a.Size == 16 {
			return c.load128(in, !a.Unaligned)
		}
		v[0], ok = c.loadSeg(in.Mem.Seg, c.ea(in), a.Size)
		return v, ok
	}
	return [2]uint64{c.reg(a)}, true
}

func (c *CPU) setXMM(r uint8, v [2]uint64) { x := &c.s.XMM[r&15]; x[0], x[1] = v[0], v[1] }

// genNative runs the instruction on the host.
func genNative(c *CPU, in *decode.Inst) int {
	s := c.s
	mmx := in.Op == decode.CVTPI2PS || in.Op == decode.CVTPI2PD
	for _, a := range in.Args[:2] {
		mmx = mmx || a.Kind == decode.KMMX
	}
	if in.Prefix != 0 || !mmx || in.Args[0].Kind == decode.KXMM || in.Args[1].Kind == decode.KXMM {
		if !c.sseUsable() {
			return stFault
		}
	}
	if mmx && !c.mmxUsable() {
		return stFault
	}
	a := &c.native
	a.xmm0 = [2]uint64{s.XMM[0][0], s.XMM[0][1]}
	var ok bool
	if in.Args[0].Kind != decode.KReg {
		if a.dst, ok = c.vec(in, 0); !ok {
			return stFault
		}
	}
	imm := uint64(0)
	src := in.Args[1]
	if src.Kind == decode.KImm || in.Args[2].Kind == decode.KImm {
		imm = in.Imm & 0xff
	}
	if in.Op == decode.INSERTPS && src.Kind == decode.KMem {
		imm &= 0x3f // a memory source has one element only
	}
	if src.Kind != decode.KImm {
		if a.src, ok = c.vec(in, 1); !ok {
			return stFault
		}
	}
	a.gpr = a.src[0]
	if in.Attrs&decode.AttrStr != 0 {
		a.gpr, a.rdx = c.stringLength(in, vcpu.RAX), c.stringLength(in, vcpu.RDX)
	}
	entry := uint64(nativeFirst[in.Native-1]) + imm
	if in.REX&8 != 0 && (src.Kind == decode.KReg || src.Kind == decode.KMem && in.Args[1].Size == 8 && isCvtSI(in.Op) || in.Args[0].Kind == decode.KReg && wideDst(in.Op)) {
		entry++
	}
	a.mxcsr = s.MXCSR&^0x3f | 0x1f80
	at := nativeStart + entry*8
	if mmx {
		callNativeMMX(a, at)
		c.touchMMX()
	} else {
		callNative(a, at)
	}
	if up := a.mxcsrUp & 0x3f; up != 0 {
		s.MXCSR |= up
		if up&^(s.MXCSR>>7) != 0 {
			if s.CR4&cr4OSXMMEXCPT == 0 {
				return c.raise(vecUD)
			}
			return c.raise(vecXM)
		}
	}
	switch d := in.Args[0]; {
	case in.Attrs&decode.AttrStr != 0:
		s.setArith(a.flags)
		if in.Op == decode.PCMPESTRI || in.Op == decode.PCMPISTRI {
			s.R[vcpu.RCX] = a.rcx & 0xffffffff
		} else {
			c.setXMM(0, a.xmm0)
		}
	case in.Attrs&decode.AttrFlags != 0:
		s.setArith(a.flags)
	case d.Kind == decode.KReg:
		c.setReg(d, a.gpr)
	case d.Kind == decode.KMMX:
		c.setMM(d.Reg, a.mm)
	default:
		c.setXMM(d.Reg, a.dst)
	}
	return stNext
}

// stringLength is an explicit length of PCMPESTRI and PCMPESTRM: 64 bits wide
// with REX.W, saturated to 16 by the instruction itself.
func (c *CPU) stringLength(in *decode.Inst, r int) uint64 {
	v := c.s.R[r]
	if in.REX&8 != 0 {
		return uint64(max(min(int64(v), 100), -100))
	}
	return v
}

func isCvtSI(op decode.Op) bool { return op == decode.CVTSI2SS || op == decode.CVTSI2SD }

func wideDst(op decode.Op) bool {
	switch op {
	case decode.CVTTSS2SI, decode.CVTTSD2SI, decode.CVTSS2SI, decode.CVTSD2SI, decode.MOVMSKPS, decode.MOVMSKPD:
		return true
	}
	return false
}

// genVecMove is the moves between vector registers and memory.
func genVecMove(c *CPU, in *decode.Inst) int {
	if !c.sseUsable() {
		return stFault
	}
	d, a := in.Args[0], in.Args[1]
	v, ok := c.vec(in, 1)
	if !ok {
		return stFault
	}
	if d.Kind == decode.KMem {
		if in.Op == decode.MOVHPS || in.Op == decode.MOVHPD {
			v[0] = v[1]
		}
		if d.Size == 16 {
			ok = c.store128(in, v, !d.Unaligned)
		} else {
			ok = c.storeSeg(in.Mem.Seg, c.ea(in), v[0], d.Size)
		}
		if !ok {
			return stFault
		}
		return stNext
	}
	x := &c.s.XMM[d.Reg&15]
	switch in.Op {
	case decode.MOVSS:
		if a.Kind == decode.KXMM {
			v = [2]uint64{x[0]&^0xffffffff | v[0]&0xffffffff, x[1]}
		}
	case decode.MOVSD:
		if a.Kind == decode.KXMM {
			v[1] = x[1]
		}
	case decode.MOVLPS, decode.MOVLPD:
		v[1] = x[1]
	case decode.MOVHLPS:
		v = [2]uint64{v[1], x[1]}
	case decode.MOVHPS, decode.MOVHPD, decode.MOVLHPS:
		v = [2]uint64{x[0], v[0]}
	case decode.MOVQ:
		v[1] = 0
	}
	x[0], x[1] = v[0], v[1]
	return stNext
}

// genMovd is MOVD and MOVQ with MMX or general registers.
func genMovd(c *CPU, in *decode.Inst) int {
	d, a := in.Args[0], in.Args[1]
	if in.Op == decode.MOVQ && d.Kind != decode.KMMX && a.Kind != decode.KMMX {
		return genVecMove(c, in)
	}
	if d.Kind == decode.KMMX || a.Kind == decode.KMMX {
		if !c.mmxUsable() {
			return stFault
		}
	} else if !c.sseUsable() {
		return stFault
	}
	v, ok := c.vec(in, 1)
	if !ok {
		return stFault
	}
	if d.Kind == decode.KMem {
		if !c.storeSeg(in.Mem.Seg, c.ea(in), v[0], d.Size) {
			return stFault
		}
	}
	if d.Kind == decode.KMMX || a.Kind == decode.KMMX {
		c.touchMMX()
	}
	switch d.Kind {
	case decode.KXMM: // MOVD, MOVQ2DQ
		c.setXMM(d.Reg, [2]uint64{v[0]})
	case decode.KMMX: // MOVD, MOVQ, MOVDQ2Q
		c.setMM(d.Reg, v[0])
	case decode.KReg:
		c.setReg(d, v[0])
	}
	return stNext
}

func genMovnti(c *CPU, in *decode.Inst) int {
	if !c.set(in, 0, c.reg(in.Args[1])) {
		return stFault
	}
	return stNext
}

// genExtract is PEXTRB, PEXTRW, PEXTRD, PEXTRQ and EXTRACTPS.
func genExtract(c *CPU, in *decode.Inst) int {
	a, d := in.Args[1], in.Args[0]
	if a.Kind == decode.KMMX && !c.mmxUsable() || a.Kind == decode.KXMM && !c.sseUsable() {
		return stFault
	}
	v, _ := c.vec(in, 1)
	var n, mask uint64 // element size and index mask
	switch in.Op {
	case decode.PEXTRB:
		n, mask = 1, 15
	case decode.PEXTRW:
		n, mask = 2, 7
	case decode.EXTRACTPS:
		n, mask = 4, 3
	default:
		n, mask = uint64(d.Size), 16/uint64(d.Size)-1
	}
	if a.Kind == decode.KMMX {
		mask = 3
		c.touchMMX()
	}
	at := in.Imm & mask * n
	r := zeroExtend(v[at>>3]>>(at&7*8), uint8(n))
	if d.Kind == decode.KMem {
		if !c.storeSeg(in.Mem.Seg, c.ea(in), r, d.Size) {
			return stFault
		}
		return stNext
	}
	c.setReg(d, r)
	return stNext
}

// genInsert is PINSRB, PINSRW, PINSRD and PINSRQ.
func genInsert(c *CPU, in *decode.Inst) int {
	d, a := in.Args[0], in.Args[1]
	if d.Kind == decode.KMMX && !c.mmxUsable() || d.Kind == decode.KXMM && !c.sseUsable() {
		return stFault
	}
	v, ok := c.get(in, 1)
	if !ok {
		return stFault
	}
	var n, mask uint64
	switch in.Op {
	case decode.PINSRB:
		n, mask = 1, 15
	case decode.PINSRW:
		n, mask = 2, 7
	default:
		n, mask = uint64(a.Size), 16/uint64(a.Size)-1
	}
	if d.Kind == decode.KMMX {
		mask = 3
	}
	x, _ := c.vec(in, 0)
	at := in.Imm & mask * n
	p := &x[at>>3]
	sh := at & 7 * 8
	m := ipMask(uint8(n)) << sh
	*p = *p&^m | v<<sh&m
	if d.Kind == decode.KMMX {
		c.touchMMX()
		c.setMM(d.Reg, x[0])
	} else {
		c.setXMM(d.Reg, x)
	}
	return stNext
}

// genPmovmskb is PMOVMSKB.
func genPmovmskb(c *CPU, in *decode.Inst) int {
	a := in.Args[1]
	if a.Kind == decode.KMMX && !c.mmxUsable() || a.Kind == decode.KXMM && !c.sseUsable() {
		return stFault
	}
	v, _ := c.vec(in, 1)
	if a.Kind == decode.KMMX {
		c.touchMMX()
		v[1] = 0
	}
	const ones = 0x8080808080808080
	lo := (v[0] & ones >> 7 * 0x0102040810204080) >> 56
	hi := (v[1] & ones >> 7 * 0x0102040810204080) >> 56
	c.setReg(in.Args[0], lo|hi<<8)
	return stNext
}

// genMaskmov is MASKMOVDQU and MASKMOVQ.
func genMaskmov(c *CPU, in *decode.Inst) int {
	n := 8
	if in.Args[0].Kind == decode.KXMM {
		n = 16
		if !c.sseUsable() {
			return stFault
		}
	} else if !c.mmxUsable() {
		return stFault
	}
	seg := uint8(vcpu.DS)
	if in.SegOverride != decode.RegNone {
		seg = in.SegOverride
	}
	data, _ := c.vec(in, 0)
	mask, _ := c.vec(in, 1)
	at := c.s.R[vcpu.RDI] & ipMask(in.AddrSize)
	for i := range n {
		if mask[i>>3]>>(i&7*8+7)&1 != 0 {
			la, ok := c.linear(seg, at+uint64(i), 1, true)
			if !ok || !c.probeWrite(la, 1) {
				return stFault
			}
		}
	}
	for i := range n {
		if mask[i>>3]>>(i&7*8+7)&1 != 0 && !c.storeSeg(seg, at+uint64(i), data[i>>3]>>(i&7*8), 1) {
			return stFault
		}
	}
	return stNext
}

// genMXCSR is LDMXCSR and STMXCSR.
func genMXCSR(c *CPU, in *decode.Inst) int {
	if !c.sseUsable() {
		return stFault
	}
	if in.Op == decode.STMXCSR {
		if !c.set(in, 0, uint64(c.s.MXCSR)) {
			return stFault
		}
		return stNext
	}
	v, ok := c.get(in, 0)
	if !ok {
		return stFault
	}
	if v>>16 != 0 {
		return c.raiseErr(vecGP, 0)
	}
	c.s.MXCSR = uint32(v)
	return stNext
}

// genFence is LFENCE, MFENCE and SFENCE. The interpreter's own loads and stores
// keep program order but for a store followed by a load.
func genFence(c *CPU, in *decode.Inst) int {
	if in.Op == decode.MFENCE {
		hostFence()
	}
	return stNext
}
