package soft

import "github.com/gvmspawn/gvmspawn/vmm/soft/decode"

// This file keeps in mind which guest registers that live in memory the scratch
// registers have a copy of, so that one instruction need not load what the one
// before has stored. Memory is always up to date: the copy may be forgotten at
// any time, and must be wherever else the code behind can be reached from.

// copyOf is the scratch register with a copy of r, or noReg.
func (e *emitter) copyOf(r uint8) uint8 {
	switch {
	case !evicted(r):
	case r == e.inT1:
		return hT1
	case r == e.inT2:
		return hT2
	}
	return noReg
}

// forget notes that the scratch registers are lost.
func (e *emitter) forget() { e.inT1, e.inT2 = noReg, noReg }

// holds notes that scratch register s has the only copy of r.
func (e *emitter) holds(s, r uint8) {
	if e.copyOf(r) != noReg {
		e.forget()
	}
	if s == hT1 {
		e.inT1 = r
	} else {
		e.inT2 = r
	}
}

// load brings r into scratch register s. It keeps the flags.
func (e *emitter) load(s, r uint8) {
	e.h.ra(true, 0x8b, s, e.j.reg(r))
	e.holds(s, r)
}

// free is the scratch register for a value that is needed together with that of
// guest register other, which may have a copy.
func (e *emitter) free(other uint8) uint8 {
	if e.copyOf(other) == hT2 {
		return hT1
	}
	return hT2
}

// operand returns the host register of r, an operand of t like other. Unless t
// overwrites it, it is loaded.
func (e *emitter) operand(t *tinst, r, other uint8) uint8 {
	if !evicted(r) {
		return hostReg(r)
	}
	if s := e.copyOf(r); s != noReg {
		return s
	}
	s := e.free(other)
	if t.replaces(r) {
		e.holds(s, r)
	} else {
		e.load(s, r)
	}
	return s
}

// soon reports whether the next instruction uses r.
func (e *emitter) soon(r uint8) bool {
	if e.n+1 >= len(e.j.list) {
		return false
	}
	t := &e.j.list[e.n+1]
	if t.class != tcSame && t.class != tcLea {
		return false
	}
	for _, a := range t.in.Args {
		if a.Kind == decode.KReg && a.Reg == r {
			return true
		}
	}
	return t.in.MemMod() && (t.in.Mem.Base == r || t.in.Mem.Index == r)
}

// resumeAt is where the present instruction is gone on with behind the interpreter,
// as an offset from the block's code: copies are made again first.
func (e *emitter) resumeAt() uint32 {
	at := e.h.pc()
	if e.slow != 0 && (e.inT1 != noReg || e.inT2 != noReg) {
		k := e.k
		at = k.pc()
		if e.inT1 != noReg {
			k.ra(true, 0x8b, hT1, e.j.reg(e.inT1))
		}
		if e.inT2 != noReg {
			k.ra(true, 0x8b, hT2, e.j.reg(e.inT2))
		}
		k.jmp(e.h.pc())
	}
	return uint32(at - e.t.base)
}
