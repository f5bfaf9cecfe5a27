package soft

import "github.com/gvmspawn/gvmspawn/vmm/soft/decode"

// This file translates groups: accesses one behind the other to places near the
// same register, as those to a stack frame or the fields of a structure. One
// lookup covers all of them, and hT1 keeps the host's address. Where that fails,
// because of the end of a page or a missing tag, the same instructions are run
// apart, each with a lookup of its own, by code in a place of its own.

// groupRange is how many bytes a group may span.
const groupRange = 256

// extent is what a group accesses: bytes [lo, hi) from its base register.
type extent struct {
	last   int // number of the last instruction; 0 for no group
	lo, hi int64
	write  bool
}

// findGroups notes at the first instruction of each group what belongs to it.
func findGroups(list []tinst) {
	for i := 0; i < len(list); i++ {
		t := &list[i]
		if !t.groups() {
			continue
		}
		base := t.in.Mem.Base
		g := extent{lo: t.in.Mem.Disp, hi: t.in.Mem.Disp + int64(t.size), write: t.write}
		for k := i + 1; k < len(list) && !list[k-1].changes(base) && list[k].keepsAddress(); k++ {
			m := &list[k]
			if !m.mem {
				continue
			}
			lo, hi := min(g.lo, m.in.Mem.Disp), max(g.hi, m.in.Mem.Disp+int64(m.size))
			if !m.groups() || m.in.Mem.Base != base || hi-lo > groupRange {
				break
			}
			g = extent{k, lo, hi, g.write || m.write}
		}
		if g.last != 0 {
			t.group = g
			i = g.last
		}
	}
}

// groups reports whether t's access can be one of a group.
func (t *tinst) groups() bool {
	m := &t.in.Mem
	return t.mem && t.keepsAddress() && !t.align && m.Base < 16 && m.Index == decode.RegNone && m.Seg < decode.FS && t.in.AddrSize == 8
}

// keepsAddress reports whether t's own code leaves hT1 alone and changes no other
// registers than those of its operands.
func (t *tinst) keepsAddress() bool {
	in := &t.in
	if t.high || in.Lock {
		return false
	}
	switch t.class {
	case tcNop:
		return true
	case tcVex:
		f := in.Form
		return f == nil || f.Reg != 'g' && f.Vvvv != 'g' && (f.Rm != 'g' || t.mem)
	case tcLea:
		m := &in.Mem
		return in.OpSize == 8 && !evicted(in.Args[0].Reg) && !evicted(m.Base) && !evicted(m.Index) && m.Base != decode.RegRIP
	case tcSame:
	default:
		return false
	}
	if t.sse {
		return in.Attrs&decode.AttrStr == 0 && (t.mem || !t.rmG || !evicted(in.ModRM&7|in.REX&1<<3))
	}
	switch in.Op {
	case decode.MOV, decode.MOVZX, decode.MOVSX, decode.MOVSXD, decode.ADD, decode.ADC, decode.SUB, decode.SBB, decode.AND, decode.OR,
		decode.XOR, decode.CMP, decode.TEST, decode.INC, decode.DEC, decode.NEG, decode.NOT, decode.SHL, decode.SHR, decode.SAR,
		decode.ROL, decode.ROR, decode.IMUL2, decode.IMUL3, decode.SETCC, decode.CMOVCC:
	default:
		return false
	}
	if t.mem || !t.rmG {
		return true
	}
	reg, rm := in.ModRM>>3&7|in.REX&4<<1, in.ModRM&7|in.REX&1<<3
	return !evicted(rm) || t.inSlot(reg, rm)
}

// changes reports whether t, which keepsAddress, changes guest register r.
func (t *tinst) changes(r uint8) bool { return t.class != tcNop && t.writes(r) }

// group emits the group that begins with instruction first.
func (e *emitter) group(first int) {
	j, list := e.j, e.j.list
	t := &list[first]
	g := t.group
	e.n = first
	e.spill(t)
	inMemory := e.mem
	e.slow = e.apart.pc()
	one := *t
	one.in.Mem.Disp = g.lo
	e.effective(&one, hT1)
	e.check(uint16(g.hi-g.lo), g.write, 0, false)
	e.from = g.lo
	e.grouped = true
	for i := first; i <= g.last; i++ {
		e.n = i
		e.inst(&list[i])
	}
	e.grouped = false
	host, mem, back := e.host, e.mem, e.h.pc()
	e.h, e.apart = e.apart, e.h
	e.host, e.mem = false, inMemory
	for i := first; i <= g.last; i++ {
		e.n, e.slow = i, 0
		if i > first {
			e.t.resume[i] = uint32(e.h.pc() - e.t.base)
		}
		e.inst(&list[i])
	}
	needed := j.behind
	if g.last+1 < len(list) {
		needed = list[g.last+1].live
	}
	if needed != 0 && mem && !e.mem {
		j.saveFlags(e.h)
	}
	if needed != 0 && host && !e.host {
		j.restoreFlags(e.h)
	}
	e.h.jmp(back)
	e.h, e.apart = e.apart, e.h
	e.host, e.mem = host, mem
}
