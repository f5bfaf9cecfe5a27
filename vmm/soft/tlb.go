package soft

const (
	// tlbModes are the kinds of access with a translation buffer of their own:
	// supervisor, user, and supervisor without access to user pages (SMAP).
	tlbModes = 3
	tlbSup   = 0
	tlbUser  = 1
	tlbSMAP  = 2
	// tlbSlots is how many PCIDs have live translations.
	tlbSlots = 4

	journalMax = 1024
)

// tlb is the management of one translation buffer.
type tlb struct {
	addr uint64 // of its entries
	// The journals list the entries that hold something, apart for global
	// and other pages, so that a flush touches no more than it must.
	local, global journal
	// large covers all pages filled from mappings above 4 KiB.
	large span
}

// journal lists filled entries; n > journalMax means that the list overflowed.
type journal struct {
	n    int
	list [journalMax]uint16
}

// span is a range of addresses; empty when lo > hi.
type span struct{ lo, hi uint64 }

func (s *span) add(lo, hi uint64) {
	if s.lo > s.hi {
		*s = span{lo, hi}
		return
	}
	s.lo, s.hi = min(s.lo, lo), max(s.hi, hi)
}

func (s *span) has(a uint64) bool { return a >= s.lo && a <= s.hi }

var emptySpan = span{1, 0}

// slot is the translations of one PCID.
type slot struct {
	pcid  uint64
	used  uint64 // time of last use
	modes [tlbModes]tlb
}

// invalidTag is a tag that no address of entry i matches.
func invalidTag(i uint64) uint64 { return (i ^ 1) << 12 }

func (t *tlb) clear(i uint64) {
	e := t.entryAt(i)
	x := invalidTag(i)
	e.Read, e.Write, e.Exec, e.Host = x, x, x, 0
}

func (t *tlb) clearAll() {
	for i := range uint64(TLBSize) {
		t.clear(i)
	}
	t.local.n, t.global.n = 0, 0
	t.large = emptySpan
}

// note records that entry i was filled.
func (t *tlb) note(i uint64, global bool) {
	j := &t.local
	if global {
		j = &t.global
	}
	if j.n < journalMax {
		j.list[j.n] = uint16(i)
	}
	j.n++
}

// flushLocal drops all translations of pages that are not global.
func (t *tlb) flushLocal() {
	if t.local.n > journalMax {
		t.clearAll()
		return
	}
	for _, i := range t.local.list[:t.local.n] {
		t.clear(uint64(i))
	}
	t.local.n = 0
}

func (t *tlb) flushAll() {
	if t.local.n > journalMax || t.global.n > journalMax {
		t.clearAll()
		return
	}
	t.flushLocal()
	for _, i := range t.global.list[:t.global.n] {
		t.clear(uint64(i))
	}
	t.global.n = 0
	t.large = emptySpan
}

// flushPage drops the translation of va.
func (t *tlb) flushPage(va uint64) {
	if t.large.has(va) {
		t.flushAll()
		return
	}
	t.clear(va >> 12 & (TLBSize - 1))
}

// initTLBs lays the translation buffers out behind the State.
func (c *CPU) initTLBs() {
	at := c.s.addr() + uint64(stateSize)
	for i := range c.slots {
		c.slots[i].pcid = ^uint64(0)
		for m := range c.slots[i].modes {
			c.slots[i].modes[m].addr = at
			c.slots[i].modes[m].large = emptySpan
			at += tlbBytes
		}
	}
	empty := tlb{addr: at, large: emptySpan}
	empty.clearAll()
	c.emptyTLB = at
	c.useSlot(0, false)
}

// useSlot makes pcid's translations current; keep says that old ones of that
// PCID are still good.
func (c *CPU) useSlot(pcid uint64, keep bool) {
	c.slotTime++
	best := 0
	for i := range c.slots {
		sl := &c.slots[i]
		if sl.pcid == pcid {
			best = i
			break
		}
		if sl.used < c.slots[best].used {
			best = i
		}
	}
	sl := &c.slots[best]
	sl.used = c.slotTime
	if sl.pcid != pcid {
		fresh := sl.pcid == ^uint64(0)
		sl.pcid = pcid
		for m := range sl.modes {
			if fresh {
				sl.modes[m].clearAll()
			} else {
				sl.modes[m].flushLocal()
			}
		}
	} else if !keep {
		for m := range sl.modes {
			sl.modes[m].flushLocal()
		}
	}
	c.slot = sl
	c.localGen++
	c.setTLBMode()
}

// setTLBMode points State.TLB at the buffer for CPL, CR4.SMAP and AC. While
// accesses are checked for alignment, or by data breakpoints, all of them are slow.
func (c *CPU) setTLBMode() {
	m := tlbSup
	s := c.s
	if s.CPL == 3 {
		m = tlbUser
	} else if s.CR4&cr4SMAP != 0 && s.Flags&flagAC == 0 {
		m = tlbSMAP
	}
	c.tlbMode = m
	c.aligning = m == tlbUser && s.CR0&cr0AM != 0 && s.Flags&flagAC != 0
	s.TLB = c.slot.modes[m].addr
	if c.dataBreaks || c.aligning {
		s.TLB = c.emptyTLB
	}
}

// flushTLB drops all translations, global ones too, of all PCIDs.
func (c *CPU) flushTLB() {
	for i := range c.slots {
		if c.slots[i].pcid != ^uint64(0) {
			for m := range c.slots[i].modes {
				c.slots[i].modes[m].flushAll()
			}
		}
	}
	c.localGen++
	c.globalGen++
}

// flushLocal drops the non-global translations of all PCIDs.
func (c *CPU) flushLocal() {
	for i := range c.slots {
		if c.slots[i].pcid != ^uint64(0) {
			for m := range c.slots[i].modes {
				c.slots[i].modes[m].flushLocal()
			}
		}
	}
	c.localGen++
}

// flushPage drops the translations of va in all PCIDs: INVLPG must drop the
// current PCID's and global ones, and dropping more is allowed (SDM vol. 3A §4.10.4.1).
func (c *CPU) flushPage(va uint64) {
	for i := range c.slots {
		if c.slots[i].pcid != ^uint64(0) {
			for m := range c.slots[i].modes {
				c.slots[i].modes[m].flushPage(va)
			}
		}
	}
	c.localGen++
	c.globalGen++
}

// dropWriteTags makes the next store to each page whose memory lies at host
// take the slow path, because code of that page is cached.
func (c *CPU) dropWriteTags(host uint64) {
	for i := range c.slots {
		if c.slots[i].pcid == ^uint64(0) {
			continue
		}
		for m := range c.slots[i].modes {
			c.slots[i].modes[m].dropWriteTags(host)
		}
	}
}

func (t *tlb) dropWriteTags(host uint64) {
	if t.local.n > journalMax || t.global.n > journalMax {
		for j := range uint64(TLBSize) {
			t.dropWriteTag(j, host)
		}
		return
	}
	for _, j := range t.local.list[:t.local.n] {
		t.dropWriteTag(uint64(j), host)
	}
	for _, j := range t.global.list[:t.global.n] {
		t.dropWriteTag(uint64(j), host)
	}
}

func (t *tlb) dropWriteTag(j, host uint64) {
	if e := t.entryAt(j); e.Host == host {
		e.Write = invalidTag(j)
	}
}
