package soft

import "encoding/binary"

// This file is what is kept of translations, of which there are a hundred thousand:
// records without pointers, and a map of its instructions behind the code of each.

// translation is a block's host code for one address.
type translation struct {
	la    uint64 // see draft
	ahead uint64 // chunks of the page, beside those of its block, that the code depends on
	block uint32 // number of its block, another one's once it is dead
	next  uint32 // of the block's translations
	// hot, cold and apart are where its parts of the code begin, from the start of the
	// code cache.
	hot, cold, apart uint32
	stamp            uint32 // of its far entries, 0: none
	in               uint32 // the first of the links that lead here, 0: none
	out              uint32 // the first of its links; the others lie behind

	entry, entryH, near, nearH spot
	steps                      spot // see stepSize
	insts                      uint8
	own                        uint8 // how many of the steps are the block's; the others are its path
	flags                      trFlags
}

type trFlags uint8

// Flags of a translation.
const (
	trDead trFlags = 1 << iota
	trAnywhere
	trX87 // the x87 state must be in the host's

	trVecShift = 4 // vecNone, vecXMM or vecYMM
)

// link is a direct branch to another block.
type link struct {
	t    uint32 // number of its translation
	rel  int32  // the target, from the start of the branch's page
	next uint32 // of those that lead to the same translation
	site spot   // of the branch's displacement
	stub uint16 // where it goes while not linked, in the cold part; with linkHost the flags are in the host's
}

const linkHost = 1 << 15

// farCode is the entries from other pages.
type farCode struct {
	entry, entryH uint32 // from the start of the code cache
	site, miss    uint32 // see draft
}

// spot is where something in a translation's code is: part<<partShift plus the distance
// from the start of the part.
type spot uint16

const (
	partHot = iota
	partCold
	partApart

	partShift = 14
)

func (t *translation) is(f trFlags) bool { return t.flags&f != 0 }

// vec is what t wants in the host's vector registers.
func (t *translation) vec() uint8 { return uint8(t.flags >> trVecShift) }

// address is where p is.
func (j *translator) address(t *translation, p spot) uint64 {
	part := [...]uint32{t.hot, t.cold, t.apart, 0}[p>>partShift]
	return j.mem.rx + uint64(part) + uint64(p&(1<<partShift-1))
}

// spotOf is the reverse. It returns false if a lies too far from the part's start.
func (j *translator) spotOf(t *translation, a uint64) (p spot, ok bool) {
	off := uint32(a - j.mem.rx)
	from, part := t.hot, partHot
	switch {
	case off >= uint32(j.apartAt):
		from, part = t.apart, partApart
	case off >= uint32(j.coldFrom):
		from, part = t.cold, partCold
	}
	return spot(part<<partShift) | spot((off-from)&(1<<partShift-1)), off-from < 1<<partShift
}

// keep makes a record of the draft, whose code begins at hot, cold and apart, and writes
// its steps behind the cold code. It returns nil if the code is too large for that.
func (j *translator) keep(d *draft, hot, cold, apart int) *translation {
	t := j.trs.take()
	*t = translation{la: d.la, ahead: j.looked, block: j.c.blocks.index(d.b), next: d.b.tr, hot: uint32(hot), cold: uint32(cold),
		apart: uint32(apart), stamp: d.stamp, out: j.links.next, insts: uint8(d.insts), own: uint8(j.own), flags: trFlags(d.vec) << trVecShift}
	good := true
	at := func(a uint64) spot {
		p, ok := j.spotOf(t, a)
		good = good && ok
		return p
	}
	t.entry, t.entryH, t.near, t.nearH = at(d.entry), at(d.entryH), at(d.near), at(d.nearH)
	if d.anywhere {
		t.flags |= trAnywhere
	}
	if d.x87 {
		t.flags |= trX87
	}
	for _, o := range j.out {
		l := link{t: uint32(d.index), rel: int32(o.rel), site: at(o.site), stub: uint16(at(o.stub) & (1<<partShift - 1))}
		if o.inHost {
			l.stub |= linkHost
		}
		*j.links.take() = l
		good = good && o.rel == uint64(int64(l.rel))
	}
	t.steps = at(j.mem.rx + uint64(j.cold))
	j.keepSteps(d, at)
	if !good {
		j.trs.next--
		j.links.next = t.out
		return nil
	}
	if d.stamp != 0 {
		j.keepFar(d)
	}
	d.b.tr = uint32(d.index)
	return t
}

// Behind its cold code a translation has a step for each of its instructions and one for
// the end: the spot of its code, and with stepInterp where it lies in the page.
const (
	stepSize   = 4
	stepInterp = 1 << 15 // only the interpreter can run it
)

// keepSteps writes the steps of the draft.
func (j *translator) keepSteps(d *draft, at func(uint64) spot) {
	m := j.mem.rw[j.cold:]
	for i, to := range d.resume {
		pos := 0
		if i < len(j.list) {
			pos = int(j.offset(d.b, j.list[i].pos))
			if d.interp>>i&1 != 0 {
				pos |= stepInterp
			}
		}
		binary.LittleEndian.PutUint16(m[i*stepSize:], uint16(at(d.base+uint64(to))))
		binary.LittleEndian.PutUint16(m[i*stepSize+2:], uint16(pos))
	}
	j.cold += len(d.resume) * stepSize
}

// step is what is kept of instruction n.
func (j *translator) step(t *translation, n int) (code spot, pos uint16) {
	m := j.mem.rw[j.address(t, t.steps)-j.mem.rx+uint64(n)*stepSize:][:stepSize]
	return spot(binary.LittleEndian.Uint16(m)), binary.LittleEndian.Uint16(m[2:])
}

// resumeAt is the code of instruction n.
func (j *translator) resumeAt(t *translation, n int) uint64 {
	code, _ := j.step(t, n)
	return j.address(t, code)
}

// offsetOf is where instruction n lies in its page.
func (j *translator) offsetOf(t *translation, n int) uint64 {
	_, pos := j.step(t, n)
	return uint64(pos &^ stepInterp)
}

// interpOnly reports whether only the interpreter can run instruction n.
func (j *translator) interpOnly(t *translation, n int) bool {
	_, pos := j.step(t, n)
	return pos&stepInterp != 0
}

// fits reports whether the operations of b are where they were when it was translated.
func (j *translator) fits(b *block, ops []op) bool {
	if b.tr == 0 {
		return true
	}
	t := j.trs.at(b.tr)
	for i := range int(t.own) {
		if b.host&0xfff+uint64(ops[i].pos) != j.offsetOf(t, i) {
			return false
		}
	}
	return true
}

// keepFar notes the far entries of the draft.
func (j *translator) keepFar(d *draft) {
	from := j.mem.rx
	*j.fars.at(d.stamp) = farCode{uint32(d.far - from), uint32(d.farH - from), uint32(d.farSite - from), uint32(d.farMiss - from)}
}

// farEntries are t's far entries, which it has, with the flags in memory and in the host's.
func (j *translator) farEntries(t *translation) (entry, entryH uint64) {
	f := j.fars.at(t.stamp)
	return j.mem.rx + uint64(f.entry), j.mem.rx + uint64(f.entryH)
}

// connect makes a link's branch go to to, an entry of next.
func (j *translator) connect(l *link, next *translation, to uint64) {
	j.patch(j.address(j.trs.at(l.t), l.site), to)
	l.next, next.in = next.in, j.links.index(l)
}

// drop takes t out of use: nothing leads there any more.
func (j *translator) drop(t *translation) {
	t.flags |= trDead
	for i := t.in; i != 0; {
		l := j.links.at(i)
		if from := j.trs.at(l.t); !from.is(trDead) {
			j.patch(j.address(from, l.site), j.mem.rx+uint64(from.cold)+uint64(l.stub&^linkHost))
		}
		i = l.next
	}
	t.in = 0
	if t.stamp != 0 { // jump tables may lead there
		f := j.fars.at(t.stamp)
		j.patch(j.mem.rx+uint64(f.site), j.mem.rx+uint64(f.miss))
		j.x.Stamps[t.stamp] = 0
	}
}

// kill takes b's translations out of use.
func (j *translator) kill(b *block) {
	for i := b.tr; i != 0; {
		t := j.trs.at(i)
		j.drop(t)
		i = t.next
	}
	b.tr = 0
}

// dropOldest makes room for another translation of b.
func (j *translator) dropOldest(b *block) {
	at := &b.tr
	for n := 1; *at != 0; n++ {
		t := j.trs.at(*at)
		if n == maxTranslations {
			j.drop(t)
			*at = 0
			return
		}
		at = &t.next
	}
}

// ahead is the chunks of b's page that its translations depend on.
func (j *translator) ahead(b *block) (mask uint64) {
	for i := b.tr; i != 0; {
		t := j.trs.at(i)
		mask |= t.ahead
		i = t.next
	}
	return mask
}
