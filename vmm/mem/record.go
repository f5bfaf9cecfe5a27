package mem

import (
	"bytes"
	"errors"
	"fmt"
	"math/bits"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// ErrNoRecord says that the host cannot tell who wrote which page.
var ErrNoRecord = errors.New("the host's kernel cannot record writes to the guest's memory (userfaultfd with UFFD_FEATURE_WP_ASYNC, and PAGEMAP_SCAN: Linux 6.7)")

// Record knows which pages of RAM anyone may have written since it began, and drops
// those that the guest says were free at some time since and that nobody wrote, or that
// hold zeros, as they do when they are dropped.
//
// The host's kernel write-protects all pages that there are, and a write by whomever
// (a CPU of either engine, this process, vhost, a system call) takes the protection
// away from its page, which goes on without a stop. What devices of ours are about to
// write is not in the page tables yet: every page that they are given since is lent,
// and stays.
type Record struct {
	m             *Memory
	uffd, pagemap int
	parts         []part

	mu    sync.Mutex // guards the parts' free and next, and found; before standing
	found [128]pageRegion

	// While Discard looks and drops, no device is given memory: lend first says
	// which, then looks at frozen; Discard sets frozen, then looks at what is lent.
	frozen   atomic.Bool
	standing sync.RWMutex
}

// part is a region's share of a Record: bitmaps of its pages.
type part struct {
	r    *Region
	free []uint64 // the guest said so
	lent []uint64 // devices were given it; atomic
	next uint64   // the first page that Discard has not looked at
}

// Record begins a record. There is one at a time; Close ends it, before that of the memory.
func (m *Memory) Record() (*Record, error) {
	w := &Record{m: m, uffd: -1, pagemap: -1}
	for _, r := range m.regions {
		if r.Kind == RAM || r.Kind == Pluggable {
			w.parts = append(w.parts, part{r: r, free: make([]uint64, len(r.watched)), lent: make([]uint64, len(r.watched))})
		}
	}
	if !m.record.CompareAndSwap(nil, w) {
		return nil, errors.New("writes to the guest's memory are being recorded already")
	}
	if err := w.protect(); err != nil {
		_ = w.Close()
		return nil, fmt.Errorf("%w: %w", ErrNoRecord, err)
	}
	return w, nil
}

// protect makes the kernel record writes from now on.
func (w *Record) protect() (err error) {
	if w.pagemap, err = unix.Open("/proc/self/pagemap", unix.O_RDONLY|unix.O_CLOEXEC, 0); err != nil {
		return fmt.Errorf("/proc/self/pagemap: %w", err)
	}
	if w.uffd, err = userfaultfd(UFFD_FEATURE_WP_ASYNC); err != nil {
		return fmt.Errorf("userfaultfd: %w", err)
	}
	for i := range w.parts {
		b := w.parts[i].r.bytes
		if err := register(w.uffd, b); err != nil {
			return fmt.Errorf("UFFDIO_REGISTER: %w", err)
		}
		// Only what there is: for a page that there is not, a mark would need a page table.
		if err := scanAll(w.pagemap, b, &pageScan{flags: PM_SCAN_WP_MATCHING | PM_SCAN_CHECK_WPASYNC, anyOf: PAGE_IS_PRESENT | PAGE_IS_SWAPPED}, nil, nil); err != nil {
			return fmt.Errorf("PAGEMAP_SCAN: %w", err)
		}
	}
	return nil
}

// Close ends the record.
func (w *Record) Close() error {
	w.m.record.CompareAndSwap(w, nil)
	var errs []error
	for _, fd := range []int{w.uffd, w.pagemap} { // closed, the first protects nothing any more
		if fd >= 0 {
			errs = append(errs, unix.Close(fd))
		}
	}
	return errors.Join(errs...)
}

// Free notes that the guest says that [gpa, gpa+n) was free at some time since the record
// began. Only whole pages count, and only RAM.
func (w *Record) Free(gpa GPA, n uint64) {
	const mask = 1<<pageShift - 1
	w.mu.Lock()
	defer w.mu.Unlock()
	for i := range w.parts {
		p := &w.parts[i]
		if !p.r.contains(gpa, n) || !p.r.dma(gpa, n) {
			continue
		}
		off := uint64(gpa - p.r.Base)
		if first, end := (off+mask)>>pageShift, (off+n)>>pageShift; first < end {
			eachWord(first, end, func(i, bits uint64) { p.free[i] |= bits })
		}
	}
}

// eachWord calls f for every word of a bitmap that has some of [first, end).
func eachWord(first, end uint64, f func(i, bits uint64)) {
	for first < end {
		bits := ^uint64(0) << (first % 64)
		next := (first/64 + 1) * 64
		if end < next {
			bits &= 1<<(end%64) - 1
		}
		f(first/64, bits)
		first = next
	}
}

// lend notes that n bytes at off of a region are a device's to write, and waits
// while Discard is at work.
func (w *Record) lend(r *Region, off, n uint64) {
	if n == 0 {
		return
	}
	for i := range w.parts {
		if p := &w.parts[i]; p.r == r {
			eachWord(off>>pageShift, (off+n-1)>>pageShift+1, func(i, bits uint64) { atomic.OrUint64(&p.lent[i], bits) })
		}
	}
	if w.frozen.Load() {
		w.standing.RLock()
		defer w.standing.RUnlock()
	}
}

// Discard looks at up to most bytes of what is said to be free and gives those pages back
// to the host that nobody wrote, or that hold zeros; n is how many bytes. more says that some have not been looked
// at. Preconditions: no CPU runs guest code, or another one could write
// a page between the look and the drop.
func (w *Record) Discard(most uint64) (n uint64, more bool, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, lend := range w.m.lenders {
		if err := lend(); err != nil {
			return 0, false, err
		}
	}
	w.standing.Lock()
	defer w.standing.Unlock()
	w.frozen.Store(true)
	defer w.frozen.Store(false)
	left := most >> pageShift
	for i := range w.parts {
		p := &w.parts[i]
		for {
			if left == 0 {
				return n, true, nil
			}
			first, count := p.take(left)
			if count == 0 {
				break
			}
			left -= count
			dropped, err := w.drop(p.r, first<<pageShift, count<<pageShift)
			n += dropped
			if err != nil {
				return n, false, err
			}
		}
	}
	return n, false, nil
}

// take returns the next pages that are free and not lent, at most limit; n is 0 behind the last.
func (p *part) take(limit uint64) (first, n uint64) {
	for end := p.r.Size() >> pageShift; p.next < end && n < limit; {
		word := (p.free[p.next/64] &^ atomic.LoadUint64(&p.lent[p.next/64])) >> (p.next % 64)
		if zeros := min(uint64(bits.TrailingZeros64(word)), 64-p.next%64); zeros > 0 {
			if n > 0 {
				return first, n
			}
			p.next += zeros
			continue
		}
		if n == 0 {
			first = p.next
		}
		ones := min(uint64(bits.TrailingZeros64(^word)), limit-n)
		n += ones
		p.next += ones
	}
	return first, n
}

// drop gives the pages of [off, off+n) back that nobody wrote, and those of zeros: a
// guest that clears pages when they are taken, as Linux with init_on_alloc=1, has written all that it
// says to be free.
func (w *Record) drop(r *Region, off, n uint64) (dropped uint64, err error) {
	// There, and not the zeros that the kernel shares among those who only read.
	s := pageScan{flags: PM_SCAN_CHECK_WPASYNC, inverted: PAGE_IS_PFNZERO, mask: PAGE_IS_PFNZERO,
		anyOf: PAGE_IS_PRESENT | PAGE_IS_SWAPPED, result: PAGE_IS_WRITTEN | PAGE_IS_SWAPPED}
	base := uint64(r.HostAddr())
	err = scanAll(w.pagemap, r.bytes[off:off+n], &s, w.found[:], func(p pageRegion) error {
		for at, end := p.start-base, p.end-base; at < end; {
			first := at
			for at < end && (p.categories&PAGE_IS_WRITTEN == 0 || p.categories&PAGE_IS_SWAPPED == 0 && zeros(r.bytes[at:at+1<<pageShift])) {
				at += 1 << pageShift
			}
			if at > first {
				if err := r.mem.discard(r, first, at-first); err != nil {
					return err
				}
				dropped += at - first
			}
			at += 1 << pageShift // what stays
		}
		return nil
	})
	return dropped, err
}

var zeroPage [1 << pageShift]byte

func zeros(page []byte) bool { return bytes.Equal(page, zeroPage[:]) }

// OnRecord adds a function that is called while the guest's CPUs stand still in a [Record]'s
// Discard. For all memory that somebody but this process may write for a device it has
// to call Slice or DMA. It must be added before the machine runs.
func (m *Memory) OnRecord(lend func() error) { m.lenders = append(m.lenders, lend) }
