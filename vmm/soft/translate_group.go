package soft

import (
	"github.com/gvmspawn/gvmspawn/vmm/soft/decode"
	"github.com/gvmspawn/gvmspawn/vmm/vcpu"
)

// This file translates groups: accesses one behind the other to places near the
// same register, as PUSH and POP, or those to the fields of a structure. One
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
		base, at, g, ok := t.extent()
		if !ok || !t.keepsAddress() {
			continue
		}
		t.at = at
		moved, _ := t.moves(base)
		for k := i + 1; k < len(list) && !list[k-1].changes(base) && list[k].keepsAddress(); k++ {
			m := &list[k]
			if b, at, e, ok := m.extent(); ok {
				e.lo, e.hi = min(g.lo, e.lo+moved), max(g.hi, e.hi+moved)
				if b != base || e.hi-e.lo > groupRange {
					break
				}
				m.at = at + moved
				g = extent{k, e.lo, e.hi, g.write || e.write}
			} else if m.mem {
				break
			}
			n, _ := m.moves(base)
			moved += n
		}
		if g.last != 0 {
			t.group = g
			i = g.last
		}
	}
}

// extent returns the base register of t's access, where it is from there, and
// the group of it alone.
func (t *tinst) extent() (base uint8, at int64, e extent, ok bool) {
	m := &t.in.Mem
	switch {
	case t.pushes():
		return vcpu.RSP, -8, extent{lo: -8, hi: 0, write: true}, true
	case t.class == tcPop, t.class == tcRet:
		return vcpu.RSP, 0, extent{lo: 0, hi: 8}, true
	}
	ok = t.mem && !t.align && m.Base < 16 && m.Index == decode.RegNone && m.Seg < decode.FS && t.in.AddrSize == 8
	return m.Base, m.Disp, extent{lo: m.Disp, hi: m.Disp + int64(t.size), write: t.write}, ok
}

// pushes reports whether t pushes something and accesses no other memory.
func (t *tinst) pushes() bool {
	return t.class == tcPush || t.class == tcCall || t.class == tcCallr && !t.mem
}

// moves reports whether t adds n to guest register r, which makes no other group.
func (t *tinst) moves(r uint8) (n int64, ok bool) {
	in := &t.in
	switch {
	case r != vcpu.RSP:
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
	_, ok := t.moves(r)
	return !ok && t.class != tcNop && !ends(t.class) && t.writes(r)
}

// group emits the group that begins with instruction first, but for the branch of
// a CALL at its end.
func (e *emitter) group(first int) {
	j, list := e.j, e.j.list
	t := &list[first]
	g := t.group
	e.n = first
	e.spill(t)
	inMemory := e.mem
	e.slow = e.apart.pc()
	base, _, _, _ := t.extent()
	e.effective(&tinst{in: decode.Inst{AddrSize: 8, Mem: decode.Mem{Base: base, Index: decode.RegNone, Disp: g.lo}}}, hT1)
	e.check(uint16(g.hi-g.lo), g.write, 0, false)
	e.from, e.grouped, e.slow = g.lo, true, 0
	for i := first; i <= g.last; i++ {
		e.n = i
		e.inst(&list[i])
	}
	e.grouped = false
	host, mem, back := e.host, e.mem, e.h.pc()
	e.h, e.apart = e.apart, e.h
	e.host, e.mem = false, inMemory
	e.forget()
	for i := first; i <= g.last; i++ {
		if i > first {
			e.t.resume[i] = e.resumeAt()
		}
		e.n, e.slow = i, 0
		e.inst(&list[i])
	}
	e.forget()
	e.n = g.last
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
