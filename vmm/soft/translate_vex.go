package soft

import "github.com/gvmspawn/gvmspawn/vmm/soft/decode"

// This file translates VEX-encoded instructions: the same instruction on the
// host with general registers and memory operands redirected. YMM registers
// are the host's of the same number.

// mulx is the opcode of MULX in map 2, with two destinations.
const mulx = 0xf6

// vexClass is classify for VEX-encoded instructions. Gathers and the moves of
// MXCSR are left to the interpreter.
func (t *tinst) vexClass(as assumptions) {
	in := &t.in
	f := in.Form
	vector := f == nil || f.Reg == 'v' || f.Rm == 'v' || f.Vvvv == 'v'
	if vector && as&asAVX == 0 {
		t.refuse()
		return
	}
	if vector {
		t.vec = vecYMM
	}
	switch in.Op {
	case decode.VZEROUPPER:
	case decode.VMASKMOV: // outside of one page each element counts, which the slow path knows
		t.mem, t.write, t.size = true, in.Imm != 0, 16<<in.VexL
	case decode.VEX:
		if t.mem = in.MemMod(); t.mem {
			t.size = in.Args[0].Size
			t.write = f.Dst == 'W' || f.Dst == 'E'
			t.align = f.Aligned
		}
		switch {
		case f.Flags && vector:
			t.flags = writesAll
		case f.Flags && in.Opcode == 0xf7: // BEXTR, which leaves SF, AF and PF undefined
			t.flags = writing(0, flagCF|flagZF|flagOF)
		case f.Flags: // AF and PF undefined
			t.flags = writing(0, flagCF|flagZF|flagSF|flagOF)
		}
	default:
		t.refuse()
		return
	}
	t.class = tcVex
}

// vex emits a VEX-encoded instruction.
func (e *emitter) vex(t *tinst) {
	in, h := &t.in, e.h
	if in.Op == decode.VZEROUPPER {
		h.put(0xc5, 0xf8|in.VexL<<2, 0x77)
		return
	}
	if t.mem {
		e.access(t)
	}
	e.flags(t)
	f := in.Form
	if f == nil {
		f = &maskMoveForm
	}
	var stores [2]struct{ guest, host uint8 }
	n := 0
	write := func(guest, host uint8) uint8 {
		if !evicted(guest) {
			return hostReg(guest)
		}
		stores[n].guest, stores[n].host = guest, host
		n++
		return host
	}
	read := func(guest, host uint8) uint8 {
		if !evicted(guest) {
			return hostReg(guest)
		}
		h.ra(true, 0x8b, host, e.j.reg(guest))
		return host
	}
	reg, vvvv, rm := in.Reg(), in.Vvvv, in.RM()
	both := in.Map == 2 && in.Opcode == mulx
	switch {
	case t.mem:
		rm = hT1
	case f.Rm == 'g' && f.Dst == 'E':
		rm = write(rm, hT1)
	case f.Rm == 'g':
		rm = read(rm, hT1)
	}
	if f.Vvvv == 'g' {
		if both || f.Dst == 'B' {
			vvvv = write(vvvv, hT2)
		} else {
			vvvv = read(vvvv, hT2)
		}
	}
	switch {
	case f.Reg == 0: // a part of the opcode
		reg = in.RegField()
	case f.Reg == 'g' && both && reg != in.Vvvv:
		reg = write(reg, hT1) // what the source needs no more by then
	case f.Reg == 'g':
		reg = write(reg, hT2)
	}
	e.emitVex(t, f, reg, vvvv, rm)
	for _, s := range stores[:n] {
		h.ra(true, 0x89, s.host, e.j.reg(s.guest))
	}
	e.wrote(t)
}

// maskMoveForm is the operands of VMASKMOVPS and its kin.
var maskMoveForm = decode.VexForm{Reg: 'v', Vvvv: 'v', Rm: 'v'}

// emitVex emits the instruction with other registers. With a memory operand rm
// is the register that holds its address.
func (e *emitter) emitVex(t *tinst, f *decode.VexForm, reg, vvvv, rm uint8) {
	in, h := &t.in, e.h
	h.put(0xc4, (^reg&8)<<4|0x40|(^rm&8)<<2|in.Map, in.REX&8<<4|(^vvvv&15)<<3|in.VexL<<2|vexPP(in), in.Opcode)
	if t.mem {
		h.modrm(reg, rm, e.offset(t))
	} else {
		h.put(0xc0 | reg&7<<3 | rm&7)
	}
	if f.Imm {
		h.put(byte(in.Imm))
	}
}
