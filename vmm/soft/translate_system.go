package soft

import (
	"github.com/gvmspawn/gvmspawn/vmm/soft/decode"
	"github.com/gvmspawn/gvmspawn/vmm/vcpu"
)

// This file emits string and system instructions.

// repCheck emits the lookup of the address in reg for RCX elements of 1<<sh
// bytes, which must lie on one page. RCX is at most 4096. The host address is
// left in hT1.
func (e *emitter) repCheck(reg, sh uint8, write bool) {
	h := e.h
	h.mov(hT1, reg)
	at := e.tlbEntry(h)
	e.inTLB(h, 0x33, hT1, at, tagOf(write)) // xor
	h.alui(true, 7, hT1, 4095)
	h.jcc(ccA, e.slowPath())
	h.lea(true, hT1, hT1, hCX, sh, 0)
	h.alui(true, 7, hT1, 4096)
	h.jcc(ccA, e.slowPath())
	h.rr(false, 0x89, reg, hT1)
	h.alui(false, 4, hT1, 0xfff)
	e.inTLB(h, 0x03, hT1, at, tagHost) // add
}

// rep is REP MOVS and REP STOS upwards within one page; the interpreter does
// all others page by page.
func (e *emitter) rep(t *tinst) {
	in, h, j := &t.in, e.h, e.j
	e.spill(t)
	h.put(0xf7, 0x04, 0x25) // test dword [flags], DF
	h.u32(uint32(j.state(offFlags)))
	h.u32(flagDF)
	h.jcc(ccNE, e.slowPath())
	h.alui(true, 7, hCX, 4096)
	h.jcc(ccA, e.slowPath())
	sh := uint8(0)
	if in.Op == decode.MOVSV || in.Op == decode.STOSV {
		sh = map[uint8]uint8{2: 1, 4: 2, 8: 3}[in.OpSize]
	}
	moves := in.Op == decode.MOVSB || in.Op == decode.MOVSV
	if moves {
		e.repCheck(vcpu.RSI, sh, false)
		h.ra(true, 0x89, hT1, j.ctx(jxTmp))
	}
	e.repCheck(vcpu.RDI, sh, true)
	h.mov(hT2, vcpu.RDI)
	h.mov(vcpu.RDI, hT1)
	if moves {
		h.ra(true, 0x89, vcpu.RSI, j.ctx(jxTmp2))
		h.ra(true, 0x8b, vcpu.RSI, j.ctx(jxTmp))
	}
	if sh == 1 {
		h.put(0x66)
	}
	h.put(0xf3)
	h.rex(sh == 3, 0, 0, 0)
	h.put(in.Opcode)
	h.rr(true, 0x29, hT1, vcpu.RDI) // sub: how many bytes
	if moves {
		h.ra(true, 0x8b, vcpu.RSI, j.ctx(jxTmp2))
		h.rr(true, 0x01, vcpu.RDI, vcpu.RSI)
	}
	h.rr(true, 0x01, hT2, vcpu.RDI)
	e.clobber()
}

// bitMem is BT, BTS, BTR and BTC of memory with the bit number in a register:
// the number also selects the word.
func (e *emitter) bitMem(t *tinst) {
	in, h, j := &t.in, e.h, e.j
	e.spill(t)
	w := in.OpSize == 8
	word, sh := uint8(5), uint8(2)
	if w {
		word, sh = 6, 3
	}
	r := in.Reg()
	number := func() {
		if host, inMem := guestReg(r); inMem {
			h.ra(w, 0x8b, hT2, j.reg(r))
		} else {
			h.rr(w, 0x89, host, hT2)
		}
	}
	e.effective(t, hT1)
	number()
	if !w {
		h.rr(true, 0x63, hT2, hT2) // movsxd
	}
	h.rex(true, 0, 0, hT2)
	h.put(0xc1, 0xc0|7<<3|hT2&7, word) // sar
	h.lea(true, hT1, hT1, hT2, sh, 0)
	if in.Mem.Seg >= decode.FS {
		h.ra(true, 0x03, hT1, j.reg(regSeg+in.Mem.Seg))
	}
	e.check(uint16(in.OpSize), t.write, 0, false)
	number()
	h.alui(false, 4, hT2, int32(in.OpSize)*8-1)
	if t.need != 0 { // the check has clobbered them
		h.ra(true, 0x89, hT2, j.ctx(jxTmp))
		e.flags(t)
		h.ra(true, 0x8b, hT2, j.ctx(jxTmp))
	}
	e.emit(t, hT2, hT1, 0, 0)
	e.wrote(t)
}

// segField is the address of a field of segment register n.
func (e *emitter) segField(n uint8, off uint64) uint64 {
	return e.j.state(offSeg + uint64(n)*segmentSize + off)
}

// setBase stores r as the base of segment n, in both places.
func (e *emitter) setBase(n, r uint8) {
	e.h.ra(true, 0x89, r, e.segField(n, offSegBase))
	e.h.ra(true, 0x89, r, e.j.reg(regSeg+n))
}

func (e *emitter) swapgs() {
	h, j := e.h, e.j
	h.ra(true, 0x8b, hT1, j.reg(regSeg+vcpu.GS))
	h.ra(true, 0x8b, hT2, j.ctx(jxKernelGS))
	h.ra(true, 0x89, hT1, j.ctx(jxKernelGS))
	e.setBase(vcpu.GS, hT2)
}

// accessControl is CLAC and STAC, which choose a translation buffer.
func (e *emitter) accessControl(t *tinst) {
	h, j := e.h, e.j
	e.spill(t)
	at := j.ctx(jxTLBs)
	if t.in.Op == decode.STAC {
		h.aluai(1, j.state(offFlags), flagAC)
	} else {
		h.aluai(4, j.state(offFlags), ^flagAC)
		at += 8
	}
	h.ra(true, 0x8b, hT2, at)
	h.ra(true, 0x89, hT2, j.state(offTLB))
	if j.gs {
		h.gsbase(3, hT2)
	}
	e.clobber()
}

// segBase is RDFSBASE, RDGSBASE, WRFSBASE and WRGSBASE.
func (e *emitter) segBase(t *tinst) {
	in, h, j := &t.in, e.h, e.j
	seg := uint8(vcpu.FS)
	if in.Op == decode.RDGSBASE || in.Op == decode.WRGSBASE {
		seg = vcpu.GS
	}
	r, w := in.Args[0].Reg, in.Args[0].Size == 8
	e.spill(t)
	host, inMem := guestReg(r)
	if in.Op == decode.RDFSBASE || in.Op == decode.RDGSBASE {
		h.ra(w, 0x8b, host, j.reg(regSeg+seg))
		if inMem {
			h.ra(true, 0x89, host, j.reg(r))
		}
		return
	}
	if inMem {
		h.ra(w, 0x8b, hT2, j.reg(r))
	} else {
		h.rr(w, 0x89, host, hT2)
	}
	if w { // only canonical addresses
		h.mov(hT1, hT2)
		h.put(0x49, 0xc1, 0xe3, 16) // shl r11, 16
		h.put(0x49, 0xc1, 0xfb, 16) // sar r11, 16
		h.rr(true, 0x39, hT1, hT2)
		h.jcc(ccNE, e.slowPath())
		e.clobber()
	}
	e.setBase(seg, hT2)
}

// movSys reads a segment or control register.
func (e *emitter) movSys(t *tinst) {
	in, h, j := &t.in, e.h, e.j
	d, a := in.Args[0], in.Args[1]
	host, inMem := guestReg(d.Reg)
	if a.Kind == decode.KSeg {
		h.rex(false, host, 0, 0)
		h.put(0x0f, 0xb7, host&7<<3|4, 0x25) // movzx
		h.u32(uint32(e.segField(a.Reg, offSelector)))
	} else {
		h.ra(true, 0x8b, host, j.state(offCRs[a.Reg]))
	}
	if inMem {
		h.ra(true, 0x89, host, j.reg(d.Reg))
	}
}
