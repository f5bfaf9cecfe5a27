package soft

import (
	"github.com/gvmspawn/gvmspawn/vmm/soft/decode"
	"github.com/gvmspawn/gvmspawn/vmm/vcpu"
)

// This file emits the stack, branches and flag bits.

// slot emits the check of the stack slot below RSP, for a push.
func (e *emitter) slot(t *tinst) {
	if e.grouped {
		return
	}
	e.spill(t)
	e.h.lea(true, hT1, hSP, noReg, 0, -8)
	e.check(8, true, 0, false)
}

// top emits the check of the stack slot at RSP.
func (e *emitter) top(t *tinst) {
	if e.grouped {
		return
	}
	e.spill(t)
	e.h.mov(hT1, hSP)
	e.check(8, false, 0, false)
}

// grow commits a push.
func (e *emitter) grow() { e.h.lea(true, hSP, hSP, noReg, 0, -8) }

// storeImm stores the constant v at [hT1+off]; it clobbers hT2.
func (e *emitter) storeImm(v uint64, off int32) {
	h := e.h
	if int64(v) == int64(int32(v)) {
		h.rex(true, 0, 0, hT1)
		h.put(0xc7)
		h.modrm(0, hT1, off)
		h.u32(uint32(v))
		return
	}
	h.imm(hT2, v)
	h.rm(true, 0x89, hT2, hT1, off)
}

// storeNext stores the address behind t in the slot; it clobbers hT2.
func (e *emitter) storeNext(t *tinst) {
	if !e.t.anywhere {
		e.storeImm(e.t.la&^0xfff+e.next(t), e.offset(t))
		return
	}
	e.inPage(e.h, hT2, e.next(t))
	e.h.rm(true, 0x89, hT2, hT1, e.offset(t))
}

func (e *emitter) push(t *tinst) {
	in, h, j := &t.in, e.h, e.j
	switch a := in.Args[0]; a.Kind {
	case decode.KImm:
		e.slot(t)
		e.storeImm(in.Imm, e.offset(t))
	case decode.KReg:
		e.slot(t)
		src, inMem := guestReg(a.Reg)
		if inMem {
			h.ra(true, 0x8b, src, j.reg(a.Reg))
		}
		h.rm(true, 0x89, src, hT1, e.offset(t))
	default:
		e.access(t)
		h.rm(true, 0x8b, hT1, hT1, 0)
		h.ra(true, 0x89, hT1, j.ctx(jxTmp))
		e.slot(t)
		h.ra(true, 0x8b, hT2, j.ctx(jxTmp))
		h.rm(true, 0x89, hT2, hT1, 0)
	}
	e.grow()
}

func (e *emitter) pop(t *tinst) {
	h := e.h
	e.top(t)
	r := t.in.Args[0].Reg
	host, inMem := guestReg(r)
	h.rm(true, 0x8b, host, hT1, e.offset(t))
	if inMem {
		h.ra(true, 0x89, host, e.j.reg(r))
	}
	if r != vcpu.RSP {
		h.lea(true, hSP, hSP, noReg, 0, 8)
	}
}

func (e *emitter) leaveInst(t *tinst) {
	h := e.h
	e.spill(t)
	h.mov(hT1, vcpu.RBP)
	e.check(8, false, 0, false)
	h.lea(true, hSP, vcpu.RBP, noReg, 0, 8)
	h.rm(true, 0x8b, vcpu.RBP, hT1, 0)
}

// callInst is CALL but for the branch.
func (e *emitter) callInst(t *tinst) {
	e.slot(t)
	e.storeNext(t)
	e.grow()
}

// probe looks the address in hT1 up in the jump table and leaves twice the number
// of its slot in hT2. The flags are in memory.
func (e *emitter) probe() {
	h := e.h
	h.lea(false, hT2, hT1, hT1, 0, 0)
	h.alui(false, 4, hT2, (jumpSlots-1)*2)
	h.rx(true, 0x3b, hT1, hT2, e.table()) // cmp
	h.jcc(ccNE, e.slowPath())
	e.clobber()
}

// table is the address of the jump table of the block's mode.
func (e *emitter) table() uint64 {
	return e.j.ctx(jxJump) + uint64(e.j.c.userTable())*jumpSlots*16
}

// jumpSlot goes to the code of the slot that probe found.
func (e *emitter) jumpSlot() {
	if e.t.anywhere {
		e.h.alui(true, 4, hT1, ^0xfff)
	}
	e.h.rx(false, 0xff, 4, hT2, e.table()+8) // jmp
}

func (e *emitter) ret(t *tinst) {
	h := e.h
	e.spill(t) // for the probe
	e.top(t)
	h.rm(true, 0x8b, hT1, hT1, e.offset(t))
	e.probe()
	n := int32(8)
	if t.in.Args[0].Kind == decode.KImm {
		n += int32(t.in.Imm)
	}
	h.lea(true, hSP, hSP, noReg, 0, n)
	e.jumpSlot()
}

// indirect is JMP and CALL through a register or memory. CALL of a register whose
// target the jump table lacks has stored its return address by then; the
// interpreter stores it again.
func (e *emitter) indirect(t *tinst) {
	h, j := e.h, e.j
	e.spill(t)
	if !t.mem {
		if t.class == tcCallr {
			e.slot(t)
			e.storeNext(t)
		}
		if host, inMem := guestReg(t.in.Args[0].Reg); inMem {
			h.ra(true, 0x8b, hT1, j.reg(t.in.Args[0].Reg))
		} else {
			h.mov(hT1, host)
		}
		e.probe()
		if t.class == tcCallr {
			e.grow()
		}
		e.jumpSlot()
		return
	}
	e.access(t)
	h.rm(true, 0x8b, hT1, hT1, 0)
	e.probe()
	if t.class == tcJmpr {
		e.jumpSlot()
		return
	}
	h.rx(true, 0x8b, hT2, hT2, e.table()+8)
	h.ra(true, 0x89, hT2, j.ctx(jxTmp))
	if e.t.anywhere {
		h.alui(true, 4, hT1, ^0xfff)
		h.ra(true, 0x89, hT1, j.ctx(jxTmp2))
	}
	e.slot(t)
	e.storeNext(t)
	e.grow()
	if e.t.anywhere {
		h.ra(true, 0x8b, hT1, j.ctx(jxTmp2))
	}
	h.put(0xff, 0x24, 0x25) // jmp [tmp]
	h.u32(uint32(j.ctx(jxTmp)))
}

// moffs is MOV between the accumulator and an absolute address.
func (e *emitter) moffs(t *tinst) {
	in, h := &t.in, e.h
	e.spill(t)
	if in.Mem.Seg >= decode.FS {
		h.imm(hT1, uint64(in.Mem.Disp))
		h.ra(true, 0x03, hT1, e.j.reg(regSeg+in.Mem.Seg))
		e.check(uint16(t.size), t.write, 0, false)
	} else {
		e.check(uint16(t.size), t.write, uint64(in.Mem.Disp), true)
	}
	op := map[uint8]uint8{0xa0: 0x8a, 0xa1: 0x8b, 0xa2: 0x88, 0xa3: 0x89}[in.Opcode]
	if t.size == 2 {
		h.put(0x66)
	}
	h.rm(t.size == 8, op, hAX, hT1, 0)
}

// div emits DIV and IDIV behind a test that the host's cannot fault.
func (e *emitter) div(t *tinst) {
	in, h, j := &t.in, e.h, e.j
	w := in.OpSize == 8
	short := func() { // what follows has operands of 16 bits
		if in.OpSize == 2 {
			h.put(0x66)
		}
	}
	rm := uint8(hT1)
	if t.mem {
		e.access(t)
		short()
		h.rm(w, 0x8b, hT1, hT1, 0)
	} else {
		e.spill(t)
		r := in.Args[0].Reg
		host, inMem := guestReg(r)
		if inMem {
			h.ra(true, 0x8b, hT1, j.reg(r))
		} else {
			rm = host
		}
	}
	if in.Op == decode.DIV { // the quotient fits if and only if the high half is less than the divisor
		short()
		h.rr(w, 0x39, rm, hDX)
		h.jcc(ccAE, e.slowPath())
	} else { // the common case: a sign-extended dividend, the divisor neither 0 nor -1
		h.rr(w, 0x89, hAX, hT2)
		short()
		h.rex(w, 0, 0, hT2)
		h.put(0xc1, 0xc0|7<<3|hT2&7, in.OpSize*8-1) // sar
		short()
		h.rr(w, 0x39, hDX, hT2)
		h.jcc(ccNE, e.slowPath())
		h.lea(w, hT2, rm, noReg, 0, 1)
		short()
		h.alui(w, 7, hT2, 1)
		h.jcc(ccBE, e.slowPath())
	}
	short()
	h.rex(w, 0, 0, rm)
	h.put(0xf7, 0xc0|in.ModRM&0x38|rm&7)
	e.wrote(t)
}

// flagBits is CLI, STI and CLD.
func (e *emitter) flagBits(t *tinst) {
	h, j := e.h, e.j
	at := j.state(offFlags)
	e.spill(t)
	switch t.class {
	case tcCli:
		h.aluai(4, at, ^flagIF)
	case tcCld:
		h.aluai(4, at, ^flagDF)
	default:
		// The interpreter knows what to do if an interrupt waits. Otherwise
		// the next look at events is behind at least one more instruction,
		// unless the block ends here.
		if e.n == len(j.list)-1 || j.list[e.n+1].class == tcEnd {
			j.exitCode(h, xInterp, e.n, e.t.index)
			e.host, e.mem = true, true
			return
		}
		h.put(0xf7, 0x04, 0x25) // test dword [flags], IF
		h.u32(uint32(at))
		h.u32(flagIF)
		skip := h.jccForward(ccNE)
		h.aluai(7, j.ctx(jxIntr), 0)
		h.jcc(ccNE, e.slowPath())
		h.aluai(1, at, flagIF)
		h.bind(skip, h.pc())
	}
	e.clobber()
}

// pushf stores the flags; they are in memory.
func (e *emitter) pushf(t *tinst) {
	h, j := e.h, e.j
	if e.host && !e.mem {
		j.saveFlags(h)
		e.mem = true
	}
	e.slot(t)
	h.rex(false, hT2, 0, 0)
	h.put(0x0f, 0xb6, hT2&7<<3|4, 0x25) // movzx r15d, byte [flags]: OF
	h.u32(uint32(j.ctx(jxFlags)))
	h.rex(false, 0, 0, hT2)
	h.put(0xc1, 0xc0|4<<3|hT2&7, 11)         // shl
	h.ra(false, 0x0a, hT2, j.ctx(jxFlags)+1) // or r15b, [flags+1]
	h.alui(false, 4, hT2, flagsArith)
	h.ra(true, 0x0b, hT2, j.state(offFlags)) // or
	h.alui(true, 4, hT2, ^(flagVM | flagRF))
	h.alui(true, 1, hT2, 2)
	h.rm(true, 0x89, hT2, hT1, 0)
	e.grow()
}
