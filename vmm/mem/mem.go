// Package mem is guest physical memory: RAM, read-only firmware, and windows
// onto host files, with checked access by guest physical address.
//
// # Guest memory and Go's memory model
//
// The guest's CPUs write this memory at any time, unseen by the Go compiler
// and by the race detector. Three rules keep that safe:
//
//   - The memory is mapped with mmap(2), outside the Go heap, so no garbage
//     collector looks at it, and it holds no Go pointer.
//   - Data is read once into a Go variable and the copy is checked, because a
//     second read may give another value (hostile guest, TOCTOU).
//   - Ring indices go through [Ordered.LoadUint16] and [Ordered.StoreUint16],
//     which are assembly functions. The compiler can neither split, repeat,
//     merge nor move memory accesses across such a call, an aligned MOVW is
//     single-copy atomic (Intel SDM vol. 3A §9.1.1), and x86-TSO (§9.2) orders
//     loads after loads and stores after stores: a load is an acquire, a store
//     a release. Only a store followed by a load needs [Fence].
package mem

import (
	"errors"
	"fmt"
	"math/bits"
	"slices"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// GPA is a guest physical address.
type GPA uint64

// ErrOutOfRange is returned for an access that is not wholly inside one region
// of the kind asked for.
var ErrOutOfRange = errors.New("guest address out of range")

// Kind says how the guest and the devices may use a region.
type Kind uint8

const (
	// RAM is readable and writable by the guest and by device DMA.
	RAM Kind = iota
	// ROM is readable by the guest; guest writes leave the CPU as MMIO.
	ROM
	// Window is guest-writable host files (virtio-fs DAX, pmem). A page that
	// its file lost is zeros to this process: see window.go.
	Window
	// Pluggable is RAM of a memory device (virtio-mem), whose blocks come and
	// go: see [Region.SetPlugged]. Device DMA reaches plugged blocks only.
	Pluggable
	// Flash is a ROM that an engine can take away from the guest while it runs,
	// so that reads leave the CPU as MMIO, too. An engine that cannot
	// never shows it.
	Flash
	// SMRAM is RAM that an engine can hide from CPUs that are not in System
	// Management Mode. Device DMA does not reach it while [Region.SetHidden].
	SMRAM
)

// String returns the kind's name.
func (k Kind) String() string {
	return [...]string{"RAM", "ROM", "window", "pluggable RAM", "flash", "SMRAM"}[k]
}

// pageShift is log2 of the tracking granularity: 4 KiB pages.
const pageShift = 12

// Region is a contiguous piece of guest physical memory, backed by one host
// mapping, which becomes one memory slot of the engine.
type Region struct {
	Name string
	Base GPA
	Kind Kind

	bytes   []byte
	mem     *Memory
	dirty   []uint64    // page bitmap, nil while the log is off
	watched []uint64    // page bitmap, see SetWatched
	plugged []uint64    // bitmap of blocks of a Pluggable
	guard   *guarded    // of a Window
	hidden  atomic.Bool // SMRAM that devices do not reach
}

// Size is the region's length in bytes.
func (r *Region) Size() uint64 { return uint64(len(r.bytes)) }

// End is the first address behind the region.
func (r *Region) End() GPA { return r.Base + GPA(len(r.bytes)) }

// Bytes is the whole region in host memory.
func (r *Region) Bytes() []byte { return r.bytes }

// contains reports whether [gpa, gpa+n) lies inside the region, without overflow.
func (r *Region) contains(gpa GPA, n uint64) bool {
	off := uint64(gpa - r.Base) // huge if gpa is below
	return off <= r.Size() && n <= r.Size()-off
}

// Memory is the guest physical address space. Regions are added before the
// machine runs and stay until Close; lookups need no lock.
type Memory struct {
	regions []*Region
	logging atomic.Bool
	onWrite func(gpa GPA, n uint64)
	record  atomic.Pointer[Record] // nil without one
	lenders []func() error         // see OnRecord
}

// New returns an empty address space.
func New() *Memory { return &Memory{} }

// Add maps size bytes of zeroed memory at base. RAM is reserved without swap
// accounting (MAP_NORESERVE) and advised to use huge pages; none of it is
// touched. A Window is reserved with no access, to be filled by [Region.MapFile].
// base and size are multiples of the page size; an overlap is an error naming
// both regions.
func (m *Memory) Add(name string, base GPA, size uint64, kind Kind) (*Region, error) {
	r := &Region{Name: name, Base: base, Kind: kind, mem: m}
	if err := m.checkFree(name, base, size); err != nil {
		return nil, err
	}
	prot := unix.PROT_READ | unix.PROT_WRITE
	if kind == Window {
		prot = unix.PROT_NONE
	}
	b, err := reserve(base, size, prot)
	if err != nil {
		return nil, fmt.Errorf("reserve %d MiB of guest memory for %s: %w", size>>20, name, err)
	}
	if kind == RAM || kind == Pluggable {
		// Both are hints: a host without huge pages still works.
		_ = unix.Madvise(b, unix.MADV_HUGEPAGE)
		_ = unix.Madvise(b, unix.MADV_DONTDUMP)
	}
	if kind == Window {
		if r.guard, err = guardWindow(hostAddr(b), size); err != nil {
			_ = release(b)
			return nil, err
		}
	}
	r.bytes = b
	r.watched = make([]uint64, (size>>pageShift+63)/64)
	if kind == Pluggable {
		r.plugged = make([]uint64, (size>>blockShift+63)/64)
	}
	m.regions = append(m.regions, r)
	slices.SortFunc(m.regions, func(a, b *Region) int {
		if a.Base < b.Base {
			return -1
		}
		return 1
	})
	return r, nil
}

// checkFree reports what is wrong with a new region at [base, base+size).
func (m *Memory) checkFree(name string, base GPA, size uint64) error {
	const mask = 1<<pageShift - 1
	if size == 0 || uint64(base)&mask != 0 || size&mask != 0 || size > 1<<52 || uint64(base) > 1<<52 {
		return fmt.Errorf("guest memory %s: bad range %#x+%#x", name, base, size)
	}
	for _, r := range m.regions {
		if base < r.End() && r.Base < base+GPA(size) {
			return fmt.Errorf("guest memory %s at %#x-%#x overlaps %s at %#x-%#x",
				name, base, base+GPA(size), r.Name, r.Base, r.End())
		}
	}
	return nil
}

// Regions lists all regions by rising address. The slice must not be changed.
func (m *Memory) Regions() []*Region { return m.regions }

// RAMSize is the sum of all RAM regions in bytes.
func (m *Memory) RAMSize() uint64 {
	var n uint64
	for _, r := range m.regions {
		if r.Kind == RAM {
			n += r.Size()
		}
	}
	return n
}

// RAMEnd is the first address behind the highest RAM region.
func (m *Memory) RAMEnd() GPA {
	var end GPA
	for _, r := range m.regions {
		if r.Kind == RAM {
			end = r.End()
		}
	}
	return end
}

// Find returns the region that holds gpa, or nil.
func (m *Memory) Find(gpa GPA) *Region {
	for _, r := range m.regions {
		if r.contains(gpa, 1) {
			return r
		}
	}
	return nil
}

// SetHidden takes SMRAM away from devices, or gives it to them, as at first.
func (r *Region) SetHidden(hidden bool) { r.hidden.Store(hidden) }

// dma reports whether devices may reach [gpa, gpa+n), which this region contains, as
// RAM.
func (r *Region) dma(gpa GPA, n uint64) bool {
	return r.Kind == RAM || r.dmaNow(gpa, n)
}

// dmaNow is dma for what changes while the machine runs.
func (r *Region) dmaNow(gpa GPA, n uint64) bool {
	switch r.Kind {
	case Pluggable:
		return r.Plugged(uint64(gpa-r.Base), n)
	case SMRAM:
		return !r.hidden.Load()
	}
	return false
}

// Slice returns the n bytes of RAM at gpa, wholly inside one region, else
// ErrOutOfRange. n = 0 gives an empty slice for any address in RAM or at its end.
// After writing to it, call MarkWritten.
func (m *Memory) Slice(gpa GPA, n uint64) ([]byte, error) {
	for _, r := range m.regions {
		if r.contains(gpa, n) && r.dma(gpa, n) {
			return m.lend(r, gpa, n), nil
		}
	}
	return nil, ErrOutOfRange
}

// lend returns bytes of a region, which is on record if there is one.
func (m *Memory) lend(r *Region, gpa GPA, n uint64) []byte {
	off := uint64(gpa - r.Base)
	if w := m.record.Load(); w != nil {
		w.lend(r, off, n)
	}
	return r.bytes[off : off+n : off+n]
}

// DMA is Slice for a device's data, which may also lie in a Window: a driver
// passes pages of mapped files on to other devices, and to the one they are of.
// The bytes of a Window change with its file, too.
func (m *Memory) DMA(gpa GPA, n uint64) ([]byte, error) {
	for _, r := range m.regions {
		if r.contains(gpa, n) && (r.dma(gpa, n) || r.Kind == Window) {
			return m.lend(r, gpa, n), nil
		}
	}
	return nil, ErrOutOfRange
}

// Address is DMA for a device that wants to know only that there is such memory: it
// reads and writes none of the bytes.
func (m *Memory) Address(gpa GPA, n uint64) ([]byte, error) {
	for _, r := range m.regions {
		if r.contains(gpa, n) && (r.dma(gpa, n) || r.Kind == Window) {
			off := uint64(gpa - r.Base)
			return r.bytes[off : off+n : off+n], nil
		}
	}
	return nil, ErrOutOfRange
}

// ReadAt copies RAM at gpa into p.
func (m *Memory) ReadAt(p []byte, gpa GPA) error {
	b, err := m.Slice(gpa, uint64(len(p)))
	if err != nil {
		return err
	}
	copy(p, b)
	return nil
}

// WriteAt copies p into RAM at gpa.
func (m *Memory) WriteAt(p []byte, gpa GPA) error {
	b, err := m.Slice(gpa, uint64(len(p)))
	if err != nil {
		return err
	}
	copy(b, p)
	m.MarkWritten(gpa, uint64(len(p)))
	return nil
}

// SetDirtyLog turns the log of device writes on (all pages clean) or off.
// It must not be called while devices run.
func (m *Memory) SetDirtyLog(on bool) {
	for _, r := range m.regions {
		r.dirty = nil
		if on && (r.Kind == RAM || r.Kind == Pluggable) {
			r.dirty = make([]uint64, len(r.watched))
		}
	}
	m.logging.Store(on)
}

// TakeDirty calls f for every page that devices wrote since the last call and
// marks it clean. The engine keeps its own log of the CPUs' writes.
func (m *Memory) TakeDirty(f func(page GPA)) {
	for _, r := range m.regions {
		for i := range r.dirty {
			for w := atomic.SwapUint64(&r.dirty[i], 0); w != 0; w &= w - 1 {
				f(r.Base + GPA(i*64+bits.TrailingZeros64(w))<<pageShift)
			}
		}
	}
}

// OnWatchedWrite sets the function that is called after a device wrote to a
// page marked by SetWatched. A software CPU drops its translations there.
// It must be set before the machine runs.
func (m *Memory) OnWatchedWrite(f func(gpa GPA, n uint64)) { m.onWrite = f }

// SetWatched marks or unmarks the page at gpa, which must be in a region, for
// OnWatchedWrite.
func (m *Memory) SetWatched(gpa GPA, on bool) {
	r := m.Find(gpa)
	if r == nil {
		return
	}
	page := uint64(gpa-r.Base) >> pageShift
	if on {
		atomic.OrUint64(&r.watched[page/64], 1<<(page%64))
	} else {
		atomic.AndUint64(&r.watched[page/64], ^(uint64(1) << (page % 64)))
	}
}

// MarkWritten tells that a device wrote the n bytes at gpa: it feeds the dirty
// log and the watch. A range outside RAM and windows is ignored.
func (m *Memory) MarkWritten(gpa GPA, n uint64) {
	if n == 0 || (m.onWrite == nil && !m.logging.Load()) {
		return
	}
	for _, r := range m.regions {
		if r.contains(gpa, n) && (r.dma(gpa, n) || r.Kind == Window) {
			m.mark(r, gpa, n)
			return
		}
	}
}

func (m *Memory) mark(r *Region, gpa GPA, n uint64) {
	first, last := uint64(gpa-r.Base)>>pageShift, (uint64(gpa-r.Base)+n-1)>>pageShift
	hit := false
	if m.onWrite != nil {
		Fence() // the data is visible before the watch is looked at
	}
	for p := first; p <= last; p++ {
		bit := uint64(1) << (p % 64)
		hit = hit || atomic.LoadUint64(&r.watched[p/64])&bit != 0
		if r.dirty != nil {
			atomic.OrUint64(&r.dirty[p/64], bit)
		}
	}
	if hit && m.onWrite != nil {
		m.onWrite(gpa, n)
	}
}

// Discard gives the pages of [gpa, gpa+n) back to the host; they read as zero
// afterwards. It serves balloon reporting. Only whole pages inside are dropped.
func (m *Memory) Discard(gpa GPA, n uint64) error {
	const mask = 1<<pageShift - 1
	for _, r := range m.regions {
		if !r.contains(gpa, n) || !r.dma(gpa, n) {
			continue
		}
		off := uint64(gpa - r.Base)
		if lo, hi := (off+mask)&^mask, (off+n)&^mask; lo < hi {
			return m.discard(r, lo, hi-lo)
		}
		return nil
	}
	return ErrOutOfRange
}

// discard gives whole pages of a region back.
func (m *Memory) discard(r *Region, off, n uint64) error {
	err := unix.Madvise(r.bytes[off:off+n], unix.MADV_DONTNEED)
	m.MarkWritten(r.Base+GPA(off), n)
	return err
}

// Close unmaps everything. No CPU and no device may use the memory any more.
func (m *Memory) Close() error {
	var errs []error
	for _, r := range m.regions {
		r.guard.free()
		errs = append(errs, release(r.bytes))
	}
	m.regions = nil
	return errors.Join(errs...)
}
