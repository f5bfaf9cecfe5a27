package soft

import (
	"math/bits"
	"sync/atomic"

	"github.com/gvmspawn/gvmspawn/vmm/mem"
)

// Cached code and the memory it was made from
//
// Each CPU caches code of its own. Stores by any CPU and writes by devices must
// reach every cache before the code that they changed can run again. All
// stores go through write tags of the TLBs (fast) or storeSlow, so:
//
//   - A CPU sets its bit in pageInfo.coders before it reads a page's bytes to
//     decode them. While that set is not empty, no write tag for the page is
//     given out, and slow stores post a notice to its members, after the store.
//   - A CPU sets its bit in pageInfo.writers before it looks at coders to give
//     itself a write tag. A new coder asks the writers to drop their tags; a
//     writer that did so answers with a notice for the whole page, because it
//     may have stored through the tag until then.
//
// Both sides set their own bit with a locked instruction before they read the
// other's, so one of them sees the other. Notices are taken at block heads:
// between a store and the storing CPU's next interprocessor interrupt, or next
// store, the other CPU's State.Exit is set already.
type pageInfo struct {
	coders  atomic.Uint64 // CPUs that may have cached code of the page
	writers atomic.Uint64 // CPUs that may have a write tag for it
}

// notice is something that another thread changed.
type notice struct {
	gpa  uint64
	n    uint32
	kind uint8
	from uint8
}

const (
	noticeCode  = iota // memory that may hold code was written
	noticeTag          // CPU from wants no write tag for the page to exist
	noticeOwn          // tell the others of our own store, which is done by now
	noticeEvery        // drop all code
	noticeTrim         // return what can be made again

	// noticeWake is from how many notices on a halted CPU is woken for them.
	noticeWake = 64
	// maxNotices bounds the queue; behind it everything is dropped.
	maxNotices = 1 << 14
)

// page is the state of the page at gpa, nil if there is no memory.
func (vm *VM) page(gpa uint64) *pageInfo {
	for i := range vm.regions {
		r := &vm.regions[i]
		if off := gpa - r.base; off < r.size {
			return r.pages.at(uint32(off >> 12))
		}
	}
	return nil
}

// mayWrite reports whether a write tag for the page at gpa may exist, and
// notes that there is one.
func (c *CPU) mayWrite(gpa uint64) bool {
	p := c.vm.page(gpa)
	if p.writers.Load()&c.bit == 0 {
		p.writers.Or(c.bit)
	}
	return p.coders.Load() == 0
}

// codePage returns what the CPU knows of the page at gpa, whose code it is
// about to decode.
func (c *CPU) codePage(gpa uint64) *codePage {
	p := c.pages[gpa>>12]
	if p != nil {
		return p
	}
	p = c.newPage()
	*p = codePage{pfn: gpa >> 12}
	c.pages[p.pfn] = p
	info := c.vm.page(gpa)
	info.coders.Or(c.bit)
	c.vm.mem.SetWatched(mem.GPA(gpa&^0xfff), true)
	w := info.writers.Load()
	if w&c.bit != 0 {
		c.dropTags(gpa, info)
	}
	for w &^= c.bit; w != 0; w &= w - 1 {
		c.vm.cpus[bits.TrailingZeros64(w)].post(notice{gpa: gpa &^ 0xfff, kind: noticeTag, from: uint8(c.id)})
	}
	return p
}

// forgetPage is the end of codePage's watch.
func (c *CPU) forgetPage(pfn uint64) { c.vm.page(pfn << 12).coders.And(^c.bit) }

// dropTags drops the CPU's own write tags of a page.
func (c *CPU) dropTags(gpa uint64, info *pageInfo) {
	h, _ := c.vm.host(gpa &^ 0xfff)
	c.dropWriteTags(h)
	info.writers.And(^c.bit)
}

// wrote is told of a slow store of n bytes, on one page, after it was done.
func (c *CPU) wrote(gpa, n uint64) {
	hostFence()
	info := c.vm.page(gpa)
	who := info.coders.Load()
	if who&c.bit != 0 {
		if p := c.pages[gpa>>12]; p != nil {
			c.codeWrite(p, gpa, n)
		}
	}
	c.vm.tell(who&^c.bit, gpa, n)
}

// willWrite is told of an atomic store of n bytes, on one page, before it is
// done. This CPU's code goes at once; the others are told at the block's end.
func (c *CPU) willWrite(gpa, n uint64) {
	who := c.vm.page(gpa).coders.Load()
	if who&c.bit != 0 {
		if p := c.pages[gpa>>12]; p != nil {
			c.codeWrite(p, gpa, n)
		}
	}
	if who != 0 && len(c.vm.cpus) > 1 {
		c.post(notice{gpa: gpa, n: uint32(n), kind: noticeOwn})
	}
}

// tell posts to the CPUs of a set that n bytes at gpa, on one page, were written.
func (vm *VM) tell(who, gpa, n uint64) {
	for ; who != 0; who &= who - 1 {
		vm.cpus[bits.TrailingZeros64(who)].post(notice{gpa: gpa, n: uint32(n), kind: noticeCode})
	}
}

// deviceWrote is told by mem.Memory of device writes to watched pages.
func (vm *VM) deviceWrote(at mem.GPA, n uint64) {
	for gpa, end := uint64(at), uint64(at)+n; gpa < end; {
		k := min(end-gpa, 4096-gpa&0xfff)
		if info := vm.page(gpa); info != nil {
			vm.tell(info.coders.Load(), gpa, k)
		}
		gpa += k
	}
}

// post hands the CPU a notice. A CPU that executes takes it at the next block
// head; a halted one when it wakes, or when there are many.
func (c *CPU) post(n notice) {
	c.noticeMu.Lock()
	k := len(c.notices)
	switch {
	case n.kind == noticeCode && k > 0 && c.notices[k-1].covers(n):
	case k < maxNotices:
		c.notices = append(c.notices, n)
	default:
		c.tooMany = true
		if n.kind == noticeTag {
			c.tooManyFrom |= 1 << n.from
		}
	}
	c.noticeMu.Unlock()
	if k >= noticeWake {
		c.notify(exitFlush)
		return
	}
	atomic.OrUint32(&c.s.Exit, exitFlush)
}

// covers reports whether o says nothing that n does not say.
func (n notice) covers(o notice) bool {
	return n.kind == o.kind && o.gpa >= n.gpa && o.gpa+uint64(o.n) <= n.gpa+uint64(n.n)
}

// takeNotices does what was posted. It runs between blocks, on the CPU's thread.
func (c *CPU) takeNotices() {
	c.noticeMu.Lock()
	todo := c.notices
	c.notices, c.noticesDone = c.noticesDone[:0], todo
	all, from := c.tooMany, c.tooManyFrom
	c.tooMany, c.tooManyFrom = false, 0
	c.noticeMu.Unlock()
	for _, n := range todo {
		c.takeNotice(n)
	}
	if all {
		c.dropCode() // with the TLBs, and so all write tags
		for ; from != 0; from &= from - 1 {
			c.vm.cpus[bits.TrailingZeros64(from)].post(notice{kind: noticeEvery})
		}
	}
}

func (c *CPU) takeNotice(n notice) {
	switch n.kind {
	case noticeCode:
		if p := c.pages[n.gpa>>12]; p != nil {
			c.codeWrite(p, n.gpa, uint64(n.n))
		}
	case noticeTag:
		info := c.vm.page(n.gpa)
		c.dropTags(n.gpa, info)
		if info.coders.Load()>>n.from&1 != 0 {
			c.vm.tell(1<<n.from, n.gpa, 4096)
		}
	case noticeOwn:
		hostFence()
		c.vm.tell(c.vm.page(n.gpa).coders.Load()&^c.bit, n.gpa, uint64(n.n))
	case noticeEvery:
		c.dropCode()
	case noticeTrim:
		c.forgetOps()
	}
}
