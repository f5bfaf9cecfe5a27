package soft

import (
	"slices"

	"github.com/gvmspawn/gvmspawn/vmm/soft/decode"
	"github.com/gvmspawn/gvmspawn/vmm/vcpu"
)

// This file translates groups: accesses to places near the same registers, as PUSH and
// POP, or those to the fields of a structure. One lookup covers all of them, and
// the host's address stays in hT1, or in memory if others come between. The
// instructions from the first of a group to the last, and of those that it meets, are
// a span. Where a lookup of a span fails, because of the end of a page or a missing tag,
// the span is gone on with apart, by code in a place of its own in which each access has
// its own lookup.

const (
	// groupRange is how many bytes a group may span.
	groupRange = 256
	// maxGroups is how many groups of a span have an address at the same time.
	maxGroups = 4
)

// origin is the registers of an address.
type origin struct{ base, index, scale uint8 }

// extent is what a group accesses: bytes [lo, hi) from its origin.
type extent struct {
	lo, hi int64
	write  bool
}

// group is one under construction.
type group struct {
	origin
	extent
	first, last int   // instructions
	moved       int64 // what was added to the base since the first
	open        bool
}

// findSpans notes at the first instruction of each span where it ends, and what groups
// it has.
func (j *translator) findSpans() {
	list := j.list
	for i := 0; i < len(list); {
		end := i
		for end < len(list) && list[end].keepsAddress() {
			end++
		}
		if end > i+1 {
			j.findGroups(i, end)
		}
		i = end + 1
	}
}

// findGroups finds the groups and spans of j.list[from:end], all of which keep addresses.
func (j *translator) findGroups(from, end int) {
	list := j.list
	j.groups = j.groups[:0]
	for i := from; i < end; i++ {
		t := &list[i]
		if p, at, e, ok := t.extentOf(); ok {
			j.join(i, p, at, e)
		}
		for k := range j.groups {
			g := &j.groups[k]
			if n, ok := t.moves(g.origin); ok {
				g.moved += n
			} else if t.changes(g.base) || t.changes(g.index) {
				g.open = false
			}
		}
	}
	j.groups = slices.DeleteFunc(j.groups, func(g group) bool { return g.last == g.first })
	var slots [maxGroups]int // the last instructions of their groups
	first, last := 0, -1
	for k := range j.groups {
		g := &j.groups[k]
		s := 0
		for s < maxGroups && slots[s] > g.first {
			s++
		}
		if s == maxGroups {
			continue
		}
		slots[s] = g.last
		for i := g.first; i <= g.last; i++ {
			if p, _, _, ok := list[i].extentOf(); ok && p == g.origin && list[i].group == 0 {
				list[i].group = uint8(s) + 1
			}
		}
		list[g.first].leads, list[g.first].extent = true, g.extent
		if g.first > last {
			first = g.first
		}
		last = max(last, g.last)
		list[first].span = last
	}
}

// join adds the access of instruction i, e at at from p, to a group, or begins one.
func (j *translator) join(i int, p origin, at int64, e extent) {
	for k := range j.groups {
		g := &j.groups[k]
		if !g.open || g.origin != p {
			continue
		}
		lo, hi := min(g.lo, e.lo+g.moved), max(g.hi, e.hi+g.moved)
		if hi-lo > groupRange {
			g.open = false
			continue
		}
		g.extent = extent{lo, hi, g.write || e.write}
		g.last = i
		j.list[i].at = at + g.moved
		return
	}
	j.list[i].at = at
	j.groups = append(j.groups, group{origin: p, extent: e, first: i, last: i, open: true})
}

// extentOf returns the registers of t's access, where it is from there, and the group of
// it alone.
func (t *tinst) extentOf() (p origin, at int64, e extent, ok bool) {
	m := &t.in.Mem
	switch {
	case t.pushes():
		return origin{vcpu.RSP, decode.RegNone, 0}, -8, extent{-8, 0, true}, true
	case t.class == tcPop, t.class == tcRet:
		return origin{vcpu.RSP, decode.RegNone, 0}, 0, extent{0, 8, false}, true
	}
	ok = t.mem && !t.align && m.Base < 16 && m.Seg < decode.FS && t.in.AddrSize == 8
	p = origin{m.Base, m.Index, m.Scale}
	if m.Index == decode.RegNone {
		p.scale = 0
	}
	return p, m.Disp, extent{m.Disp, m.Disp + int64(t.size), t.write}, ok
}

// pushes reports whether t pushes something and accesses no other memory.
func (t *tinst) pushes() bool {
	return t.class == tcPush || t.class == tcCall || t.class == tcCallr && !t.mem
}

// moves reports whether t adds n to the stack pointer, if that is p, which makes no other
// group.
func (t *tinst) moves(p origin) (n int64, ok bool) {
	in := &t.in
	r := uint8(vcpu.RSP)
	switch {
	case p.base != r || p.index != decode.RegNone:
		return 0, false
	case t.class == tcPush:
		return -8, true
	case t.class == tcPop:
		return 8, true
	case t.class != tcSame || in.Op != decode.ADD && in.Op != decode.SUB || in.Args[1].Kind != decode.KImm ||
		in.Args[0].Kind != decode.KReg || in.Args[0].Reg != r || in.Args[0].Size != 8:
		return 0, false
	case in.Op == decode.SUB:
		return -int64(in.Imm), true
	}
	return int64(in.Imm), true
}

// keepsAddress reports whether t's own code leaves hT1 alone and changes no other
// registers than those of its operands.
func (t *tinst) keepsAddress() bool {
	in := &t.in
	if t.high || in.Lock {
		return false
	}
	switch t.class {
	case tcNop, tcRet, tcCall:
		return true
	case tcJcc:
		return t.goesOn
	case tcCallr:
		return !t.mem
	case tcPush:
		return in.Args[0].Kind == decode.KImm || in.Args[0].Kind == decode.KReg
	case tcPop:
		return in.Args[0].Reg != vcpu.RSP
	case tcVex:
		f := in.Form
		return f == nil || f.Reg != 'g' && f.Vvvv != 'g' && (f.Rm != 'g' || t.mem)
	case tcLea:
		m := &in.Mem
		return in.OpSize == 8 && !evicted(in.Args[0].Reg) && !evicted(m.Base) && !evicted(m.Index) && m.Base != decode.RegRIP
	case tcX87:
		return !t.loadsControl() && !t.storesStatus()
	case tcSame:
	default:
		return false
	}
	if t.sse {
		return in.Attrs&decode.AttrStr == 0 && (t.mem || !t.rmG || !evicted(in.RM()))
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
	return !evicted(in.RM()) || t.inSlot(in.Reg(), in.RM())
}

// changes reports whether t, which keepsAddress, makes guest register r something
// else than moves says.
func (t *tinst) changes(r uint8) bool {
	if r == vcpu.RSP && (t.class == tcPush || t.class == tcPop) {
		return true
	}
	return t.class != tcNop && t.class != tcJcc && !ends(t.class) && t.writes(r)
}

// looks reports whether t, of a span, has a lookup of its own.
func (t *tinst) looks() bool {
	if t.group != 0 {
		return t.leads
	}
	return t.mem || t.pushes() || t.class == tcPop || t.class == tcRet
}

// span emits the span that begins with instruction first, but for the branch of a CALL
// at its end.
func (e *emitter) span(first int) {
	j, list := e.j, e.j.list
	last := list[first].span
	e.keep(first, last)
	e.n = first
	e.spill(&list[first])
	inMemory := e.mem
	var from [maxGroups + 1]int64
	held := uint8(0) // the group whose address hT1 has
	for i := first; i <= last; i++ {
		t := &list[i]
		e.n, e.slow = i, 0
		if t.looks() {
			e.slow = e.k.pc()
			e.fails[i] = e.k.jmpForward()
			held = 0
		}
		switch {
		case t.leads:
			e.lead(t)
			from[t.group], held = t.extent.lo, t.group
		case t.group != 0 && t.group != held:
			e.h.ra(true, 0x8b, hT1, e.groupSlot(t.group))
			e.inT1 = noReg
			held = t.group
		}
		e.grouped, e.from = held != 0, from[held]
		e.inst(t)
		e.grouped = false
	}
	host, mem, back := e.host, e.mem, e.h.pc()
	e.h, e.apart = e.apart, e.h
	e.host, e.mem, e.slow = false, inMemory, 0
	e.forget()
	for i := first; i <= last; i++ {
		t := &list[i]
		if i > first {
			e.t.resume[i] = e.resumeAt()
		}
		e.n, e.slow = i, 0
		if t.looks() {
			e.spill(t) // as where it comes from
			e.clobber()
			e.forget()
			e.k.bind(e.fails[i], e.h.pc())
		}
		e.inst(t)
	}
	e.forget()
	needed := e.liveBehind()
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

// keep notes which groups of a span lose hT1 in between.
func (e *emitter) keep(first, last int) {
	var leader [maxGroups + 1]*tinst
	held := uint8(0)
	for i := first; i <= last; i++ {
		t := &e.j.list[i]
		switch {
		case t.leads:
			leader[t.group], held = t, t.group
		case t.looks():
			held = 0
		case t.group != 0 && t.group != held:
			leader[t.group].kept, held = true, t.group
		}
	}
}

// lead emits the lookup of t's group.
func (e *emitter) lead(t *tinst) {
	p, _, _, _ := t.extentOf()
	x := t.extent
	e.spill(t)
	e.effective(&tinst{in: decode.Inst{AddrSize: 8, Mem: decode.Mem{Base: p.base, Index: p.index, Scale: p.scale, Disp: x.lo}}}, hT1)
	e.check(uint16(x.hi-x.lo), x.write, 0, false)
	if t.kept {
		e.h.ra(true, 0x89, hT1, e.groupSlot(t.group))
	}
	e.slow = 0
}

// groupSlot is where the host address of group g is kept.
func (e *emitter) groupSlot(g uint8) uint64 { return e.j.ctx(jxGroups) + uint64(g-1)*8 }
