package soft

import "github.com/gvmspawn/gvmspawn/vmm/soft/decode"

// This file makes translations longer than a block: behind a branch within the page
// the path goes on with the block that runs more often there. The other side is an
// exit in the middle. So lookups, copies and flags last for longer, and a branch that
// is not taken is one instruction.
//
// A path only goes forward, so that every loop still comes by an entry that looks at
// events. It depends on the code behind its block as on its own, as neededAt does. It
// is for one CPU without a counter of instructions: others make code in the middle of
// it, or want to stop there.

const (
	// maxPath is how many instructions a translation has; an exit's number has six bits.
	maxPath = 62
	// maxSides is how many conditional branches lie within it. With those of groups
	// apart, and two at the end, their links have six bits as well.
	maxSides = 16
	// warmRuns is after how many runs a block that is not yet translated is worth it.
	warmRuns = hotRuns / 2
)

// offset is where pos of b, from its start, lies in its page.
func (j *translator) offset(b *block, pos int) uint64 { return b.host&0xfff + uint64(pos) }

// end is where t ends, from the start of its block.
func (t *tinst) end() int { return t.pos + int(t.in.Len) }

// aside is where the exit of t leads, from the start of its block.
func (t *tinst) aside() int {
	if t.taken {
		return t.end()
	}
	return t.end() + int(int64(t.in.Imm))
}

// extend makes j.list, of b, longer.
func (j *translator) extend(b *block) {
	j.own = len(j.list)
	c := j.c
	if !j.forward || c.cuts != nil || b.cross != 0 {
		return
	}
	for sides := 0; sides < maxSides && j.follow(b); sides++ {
		if !j.straight(b) {
			return
		}
	}
}

// follow makes the last of j.list lead on to what runs behind it more often, at j.toward,
// if that may belong to the path.
func (j *translator) follow(b *block) bool {
	last := &j.list[len(j.list)-1]
	end := last.end()
	to := end + int(int64(last.in.Imm))
	switch {
	case last.class == tcJmp && to >= end && j.warm(b, to) > 0:
		last.class, j.toward = tcNop, to
		return true
	case last.class == tcEnd && j.warm(b, last.pos) > 0:
		j.list = j.list[:len(j.list)-1]
		j.own--
		j.toward = last.pos
		return len(j.list) > 0
	case last.class != tcJcc || to < end:
		return false
	}
	next, target := j.warm(b, end), j.warm(b, to)
	switch {
	case next >= warmRuns && next >= target:
		j.toward = end
	case target >= warmRuns && target > next:
		last.taken, j.toward = true, to
	default:
		return false
	}
	last.goesOn = true
	return true
}

// warm is how often the block at pos of b's page has run, as far as that is known.
func (j *translator) warm(b *block, pos int) uint8 {
	off := j.offset(b, pos)
	if off >= 4096 {
		return 0
	}
	c, k := j.c, blockKey{b.host&^0xfff + off, b.mode}
	for n := c.bucket(k); n != nil; n = c.chained(n) {
		if !n.is(k) || n.cross != 0 {
			continue
		}
		if n.tr != 0 {
			return hotRuns
		}
		return n.runs
	}
	return 0
}

// straight appends the instructions from j.toward on up to a branch. It returns false if
// the path ends before one.
func (j *translator) straight(b *block) bool {
	c := j.c
	page := hostBytes(b.host&^0xfff, 4096)
	for len(j.list) < maxPath {
		off := j.offset(b, j.toward)
		t := tinst{pos: j.toward}
		if off >= 4096 || decode.Decode(&t.in, page[off:min(off+decode.MaxLen, 4096)], b.decodeMode()) != nil ||
			generic[t.in.Op] == nil || c.vm.features.lacks(&t.in) {
			break
		}
		n := uint64(t.in.Len)
		t.code = page[off : off+n]
		t.classify(c.s.CPL, j.as)
		if t.class == tcInterp || (t.vec != vecNone || t.x87) && c.s.CPL == 0 {
			break
		}
		m := chunks(off, n)
		j.looked |= m
		c.pageSlab.at(b.page).mask |= m
		j.list = append(j.list, t)
		j.toward += int(n)
		if endsBlock(&t.in) {
			return true
		}
	}
	j.list = append(j.list, tinst{class: tcEnd, pos: j.toward})
	return false
}

// interpPath is interp for instruction n, which is behind those of t's block: it is the
// first one of a block of its own.
func (j *translator) interpPath(t *translation, n int) int {
	c, s, x := j.c, j.c.s, j.x
	la := j.at(t)&^0xfff | j.offsetOf(t, n)
	s.RIP = la
	epoch := j.epoch
	b := c.lookup()
	if b == nil {
		return stFault
	}
	ops := c.opsOf(b)
	if ops == nil || j.epoch != epoch || t.is(trDead) {
		return stIndirect
	}
	s.R[regBlock] = la
	c.blk = b
	o := &ops[0]
	switch st := o.fn(c, o); st {
	case stNext:
		s.RIP = la + uint64(o.len)
		if t.is(trDead) || b.dead || !j.holds(t) {
			return stExit
		}
		x.Flags = packFlags(s.arith())
		x.Resume = j.resumeAt(t, n+1)
		x.Want, x.WantX87 = uint32(t.vec()), uint32(boolBit(t.is(trX87)))
		return stNext
	case stFault:
		s.RIP = la
		return st
	case stTaken, stFall:
		return stIndirect
	default:
		j.indirect = st == stIndirect
		return st
	}
}
