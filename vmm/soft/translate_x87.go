package soft

import (
	"golang.org/x/sys/cpu"

	"github.com/gvmspawn/gvmspawn/vmm/soft/decode"
)

// This file translates x87 instructions, and those that move MXCSR. x87 code is
// the same on the host, with memory operands redirected: while such a block
// runs, the guest's x87 state is in the host's registers, where XRSTOR puts it at
// the block's head and XSAVE takes it back when the guest's code is left. That is
// done only as long as the guest masks all exceptions; the head of a block of a
// guest that does not leads to the interpreter, which raises them.
//
// Instruction and operand addresses, which FNSTENV and FXSAVE tell, are the
// host's and not kept: they read as zero.

// hostXSAVE reports whether the host can save the x87 state alone.
var hostXSAVE = cpu.X86.HasOSXSAVE

// The control word with all exceptions masked, and the bits that say so: those
// of the masks, and those that are always zero or one.
const (
	fcwMasked     = 0x7f
	fcwMaskedBits = 0xe0ff
)

// MXCSR with all exceptions masked, and the bits that may have any value.
const (
	mxcsrMasked = 0x1f80
	mxcsrFree   = 0xe07f
)

// x87Masked reports whether x87 code may run on the host.
func (c *CPU) x87Masked() bool {
	return c.s.CR0&(cr0EM|cr0TS) == 0 && c.fcw()&fcwMaskedBits == fcwMasked
}

// loadsControl reports whether t loads a control word, which the host must not see
// unless all exceptions are masked: FLDCW and LDMXCSR.
func (t *tinst) loadsControl() bool {
	return t.in.Op == decode.LDMXCSR || t.in.Op == decode.X87 && t.in.Opcode == 0xd9 && t.in.RegField() == 5 && t.in.MemMod()
}

// storesStatus reports whether t is FNSTSW AX.
func (t *tinst) storesStatus() bool {
	return t.in.Op == decode.X87 && t.in.Opcode == 0xdf && t.in.ModRM == 0xe0
}

// x87Class is classify for x87 instructions. Environments are left to the
// interpreter.
func (t *tinst) x87Class() {
	in := &t.in
	if !hostXSAVE || in.Mode != decode.Mode64 {
		t.refuse()
		return
	}
	t.x87 = true
	if in.Op == decode.FWAIT {
		t.class = tcNop // nothing is pending
		return
	}
	op, reg := in.Opcode-0xd8, in.RegField()
	t.class = tcX87
	if in.MemMod() {
		t.mem = true
		t.size = x87Size[op][reg]
		t.write = x87Store[op]>>reg&1 != 0
		switch {
		case t.size != 0:
			if reg == 1 && op&1 != 0 && !cpu.X86.HasSSE3 { // FISTTP
				t.refuse()
			}
		case op == 1 && reg == 5: // FLDCW
			t.size = 2
		case op == 1 && reg == 7, op == 5 && reg == 7: // FNSTCW, FNSTSW
			t.size, t.write = 2, true
		default:
			t.refuse()
		}
		return
	}
	m := in.ModRM & 63
	switch {
	case op == 3 && (m == 0x22 || m == 0x23), t.storesStatus(): // FNCLEX, FNINIT, FNSTSW AX
	case x87Valid[op]>>m&1 == 0:
		t.refuse()
	case op == 2 && m < 0x20, op == 3 && m < 0x20: // FCMOVcc, in the order B, E, BE, U
		t.flags.reads = [4]uint16{flagCF, flagZF, flagCF | flagZF, flagPF}[m>>3]
	case op == 3 && m >= 0x28, op == 7: // FCOMI and its kin
		t.flags = writesAll
	}
}

// mxcsrClass is classify for LDMXCSR and STMXCSR without VEX.
func (t *tinst) mxcsrClass() {
	t.vec, t.mem, t.size = vecXMM, true, 4
	if t.write = t.in.Op == decode.STMXCSR; t.write {
		t.class = tcSame
		return
	}
	t.class = tcX87
}

// x87 emits an x87 instruction, or LDMXCSR.
func (e *emitter) x87(t *tinst) {
	h := e.h
	if t.mem {
		e.access(t)
	}
	e.flags(t)
	switch {
	case t.loadsControl():
		e.loadControl(t)
	case t.mem:
		h.rm(false, t.in.Opcode, t.in.RegField(), hT1, e.offset(t))
	default:
		h.put(t.in.Opcode, t.in.ModRM)
	}
	e.wrote(t)
}

// loadControl emits FLDCW and LDMXCSR from where no other CPU can change the value
// behind the look at it.
func (e *emitter) loadControl(t *tinst) {
	h, tmp := e.h, e.j.ctx(jxTmp)
	ignored, want := ^int32(fcwMaskedBits), int32(fcwMasked)
	if t.in.Op == decode.LDMXCSR {
		h.rm(false, 0x8b, hT1, hT1, 0)
		ignored, want = mxcsrFree, mxcsrMasked
	} else {
		h.rex(false, hT1, 0, hT1)
		h.put(0x0f, 0xb7) // movzx
		h.modrm(hT1, hT1, 0)
		// Bit 6 is always set.
		h.alui(false, 1, hT1, 0x40)
	}
	h.ra(false, 0x89, hT1, tmp)
	h.alui(false, 4, hT1, ^ignored)
	h.alui(false, 7, hT1, want)
	h.jcc(ccNE, e.slowPath())
	e.clobber()
	e.forget()
	if t.in.Op == decode.LDMXCSR {
		h.put(0x0f, 0xae, 2<<3|4, 0x25)
	} else {
		h.put(0xd9, 5<<3|4, 0x25)
	}
	h.u32(uint32(tmp))
}

// needX87 emits the check that the x87 state is in the host's registers, at a
// block's head.
func (e *emitter) needX87() {
	j, h, k := e.j, e.h, e.k
	h.aluai(7, j.ctx(jxX87), 0)
	h.jcc(ccE, k.pc())
	k.call(j.loadX87)
	k.jcc(ccNE, h.pc())
	if j.counting { // the block will not run, here
		k.put(0x48, 0x83, 5<<3|4, 0x25) // sub qword [count], imm8
		k.u32(uint32(j.state(offCount)))
		k.put(byte(e.t.insts))
	}
	j.exitCode(k, xEvent, 0, e.t.index)
}

// commonX87 emits loadX87, a subroutine that loads the state if all exceptions are
// masked, and leaves ZF set if it does not. It clobbers hT1 and hT2.
func (j *translator) commonX87(a *asm) {
	j.loadX87 = a.pc()
	a.rex(false, hT2, 0, 0)
	a.put(0x0f, 0xb7, hT2&7<<3|4, 0x25) // movzx r15d, word [FCW]
	a.u32(uint32(j.state(offFX) + fxFCW))
	a.alui(false, 4, hT2, fcwMaskedBits)
	a.alui(false, 7, hT2, fcwMasked)
	unmasked := a.jccForward(ccNE)
	a.put(0xf7, 4, 0x25) // test dword [CR0], EM|TS
	a.u32(uint32(j.state(offCRs[0])))
	a.u32(cr0EM | cr0TS)
	off := a.jccForward(ccNE)
	a.mov(hT1, hAX)
	a.mov(hT2, hDX)
	j.moveX87(a, 5) // xrstor64
	a.mov(hAX, hT1)
	a.mov(hDX, hT2)
	j.setX87(a, 1)
	a.bind(unmasked, a.pc())
	a.bind(off, a.pc())
	a.aluai(7, j.ctx(jxX87), 0)
	a.put(0xc3)
}

// saveX87 emits the way back, where RAX and RDX are saved already.
func (j *translator) saveX87(a *asm) {
	a.aluai(7, j.ctx(jxX87), 0)
	none := a.jccForward(ccE)
	j.moveX87(a, 4) // xsave64
	a.put(0x66, 0xc7, 4, 0x25)
	a.u32(uint32(j.state(offFX) + fxFOP))
	a.put(0, 0)
	for _, at := range [...]uint64{fxFIP, fxFDP} {
		a.put(0x48, 0xc7, 4, 0x25)
		a.u32(uint32(j.state(offFX) + at))
		a.u32(0)
	}
	j.setX87(a, 0)
	a.bind(none, a.pc())
}

// moveX87 emits XSAVE64 or XRSTOR64, by ModRM.reg, of the x87 state and nothing
// else; it clobbers RAX and RDX.
func (j *translator) moveX87(a *asm, reg uint8) {
	const x87 = 1
	a.put(0xc7, 4, 0x25) // mov dword [XSTATE_BV], x87: no initial state instead
	a.u32(uint32(j.state(offXHead)))
	a.u32(x87)
	a.imm(hAX, x87)
	a.imm(hDX, 0)
	a.put(0x48, 0x0f, 0xae, reg<<3|4, 0x25)
	a.u32(uint32(j.state(offFX)))
}

// setX87 emits whether the guest's state is in the host's registers.
func (j *translator) setX87(a *asm, v uint32) {
	a.put(0xc7, 4, 0x25)
	a.u32(uint32(j.ctx(jxX87)))
	a.u32(v)
}
