package soft

import (
	"golang.org/x/sys/cpu"

	"github.com/gvmspawn/gvmspawn/vmm/soft/decode"
)

// This file emits addresses and the lookup of translation buffers.

// address emits code that leaves the linear address of t's memory operand in
// hT1. If it is a constant, it returns it with known instead of emitting code.
func (e *emitter) address(t *tinst) (v uint64, known bool) {
	m := &t.in.Mem
	if m.Base == decode.RegRIP && m.Seg < decode.FS && !e.t.anywhere {
		v := e.t.la&^0xfff + e.next(t) + uint64(m.Disp)
		if t.in.AddrSize == 4 {
			v &= 0xffffffff
		}
		return v, true
	}
	e.effective(t, hT1)
	if m.Seg >= decode.FS {
		e.h.ra(true, 0x03, hT1, e.j.reg(regSeg+m.Seg)) // add
	}
	return 0, false
}

// effective emits code that leaves the effective address in dst. It keeps the flags.
func (e *emitter) effective(t *tinst, dst uint8) {
	m, h := &t.in.Mem, e.h
	w := t.in.AddrSize == 8
	if dst == hT1 {
		defer func() { e.inT1 = noReg }()
	}
	if m.Base == decode.RegRIP {
		e.inPage(h, dst, e.next(t)+uint64(m.Disp))
		if !w {
			h.lea(false, dst, dst, noReg, 0, 0)
		}
		return
	}
	base, index := uint8(noReg), uint8(noReg)
	if m.Base != decode.RegNone {
		base = e.part(m.Base, m.Index)
	}
	if m.Index != decode.RegNone {
		index = e.part(m.Index, m.Base)
	}
	switch {
	case base == noReg && index == noReg:
		v := uint64(m.Disp)
		if !w {
			v &= 0xffffffff
		}
		h.imm(dst, v)
	case index == noReg && m.Disp == 0 && w:
		if dst != base {
			h.mov(dst, base)
		}
	default:
		h.lea(w, dst, base, index, m.Scale, int32(m.Disp))
	}
}

// part returns the host register of r, a part of an address like other.
func (e *emitter) part(r, other uint8) uint8 {
	host, inMem := guestReg(r)
	if inMem {
		if host = e.copyOf(r); host == noReg {
			host = e.free(other)
			e.load(host, r)
		}
	}
	return host
}

// check emits the lookup of the linear address in hT1, or of the constant v,
// for an access of size bytes, and leaves the host address in hT1. It clobbers
// the flags and hT2.
func (e *emitter) check(size uint16, write bool, v uint64, known bool) {
	at := e.hit(size, write, v, known)
	e.inTLB(e.h, 0x03, hT1, at, tagHost) // add
	e.forget()
}

// hit is check but for the host address: hT1 is left the offset in the page.
func (e *emitter) hit(size uint16, write bool, v uint64, known bool) tlbPlace {
	h := e.h
	var at tlbPlace
	if known {
		h.imm(hT1, v)
		at = e.knownEntry(h, v)
	} else {
		at = e.tlbEntry(h)
	}
	e.inTLB(h, 0x33, hT1, at, tagOf(write)) // xor
	h.alui(true, 7, hT1, 4096-int32(size))
	h.jcc(ccA, e.slowPath())
	e.clobber()
	e.forget()
	return at
}

// probeOnly emits t, which compares memory with something, without the comparison if
// nothing needs its flags: Go's checks for nil ask only whether the access faults.
func (e *emitter) probeOnly(t *tinst) bool {
	if !t.mem || t.in.Op != decode.TEST && t.in.Op != decode.CMP || e.liveBehind() != 0 {
		return false
	}
	if !e.grouped {
		e.spill(t)
		v, known := e.address(t)
		e.hit(uint16(t.size), false, v, known)
	}
	return true
}

// liveBehind is the flags that are needed behind the present instruction.
func (e *emitter) liveBehind() uint16 {
	if e.n+1 < len(e.j.list) {
		return e.j.list[e.n+1].live
	}
	return e.j.behind
}

func tagOf(write bool) int32 {
	if write {
		return tagWrite
	}
	return tagRead
}

// tlbPlace is where an entry of the present translation buffer lies: behind the
// register base, or noReg, by disp. With translator.gs it is an offset in the
// buffer, which GS addresses.
type tlbPlace struct {
	base uint8
	disp int32
}

// knownEntry is the entry for the address v; without GS it takes hT2.
func (e *emitter) knownEntry(h *asm, v uint64) tlbPlace {
	disp := int32(v >> 12 & (TLBSize - 1) * 32)
	if e.j.gs {
		return tlbPlace{noReg, disp}
	}
	h.ra(true, 0x8b, hT2, e.j.state(offTLB))
	return tlbPlace{hT2, disp}
}

// inTLB emits op of reg, or of its number as part of the opcode, with a field of an entry.
func (e *emitter) inTLB(h *asm, op, reg uint8, at tlbPlace, field int32) {
	if e.j.gs {
		h.put(0x65)
	}
	if at.base == noReg {
		h.ra(true, op, reg, uint64(at.disp+field))
		return
	}
	h.rm(true, op, reg, at.base, at.disp+field)
}

// tlbEntry is the entry for the address in hT1; it takes hT2.
func (e *emitter) tlbEntry(h *asm) tlbPlace {
	if cpu.X86.HasBMI2 {
		h.put(0xc4, 0x43, 0x7b, 0xf0, 0xc0|hT2&7<<3|hT1&7, 7) // rorx r15d, r11d, 7
	} else {
		h.rr(false, 0x89, hT1, hT2) // mov r15d, r11d
		h.rex(false, 0, 0, hT2)
		h.put(0xc1, 0xc0|5<<3|hT2&7, 7) // shr 7
	}
	h.alui(false, 4, hT2, (TLBSize-1)<<5)
	if !e.j.gs {
		h.ra(true, 0x03, hT2, e.j.state(offTLB)) // add
	}
	return tlbPlace{hT2, 0}
}

// access emits address and check of t's memory operand.
func (e *emitter) access(t *tinst) {
	if e.grouped {
		return
	}
	e.spill(t)
	v, known := e.address(t)
	e.check(uint16(t.size), t.write, v, known)
	if t.align {
		e.h.rex(false, 0, 0, hT1)
		e.h.put(0xf6, 0xc0|hT1&7, t.size-1) // test r11b, 15
		e.h.jcc(ccNE, e.slowPath())
	}
}
