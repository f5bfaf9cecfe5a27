package fs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Window is the shared memory region of the device in guest physical memory;
// *mem.Region of kind mem.Window is one.
type Window interface {
	Size() uint64
	MapFile(at uint64, fd int, off int64, length uint64, prot int) error
	UnmapFile(at, length uint64) error
}

// daxWindow is what is mapped in the window. Where a file shrinks under its
// mapping, vmm/mem puts zeros for software CPUs and devices; for KVM see
// [Device.RepairWindow].
type daxWindow struct {
	mu       sync.Mutex // guards the rest and serialises changes of the mappings
	win      Window
	zero     int                  // memfd of the window's size that stands in for lost pages, or 0
	repaired map[uint64]lostPages // ranges (offset/daxRange) with such pages
	files    map[uint64]*daxFile  // what ranges are mapped to
	cut      atomic.Int32         // how many of repaired were behind their file's end
}

// lostPages are a range's pages from an offset in the window on. cut says that the
// file had ended before them: when it grows they are there again.
type lostPages struct {
	first uint64
	cut   bool
}

// daxFile is a mapped file, kept open to see whether it shrank.
type daxFile struct {
	fd   int
	refs int    // ranges
	off  uint64 // file offset minus window offset, modulo 2^64
	size uint64 // when it was mapped
	prot int
}

// SetWindow sets the region that backs the DAX window, before the device is
// activated. Its size is that of Config.DAXSize.
func (d *Device) SetWindow(w Window) error {
	if d.cfg.DAXSize == 0 || w.Size() != d.cfg.DAXSize {
		return fmt.Errorf("virtio-fs %q: DAX window of %d bytes, configured are %d", d.cfg.Tag, w.Size(), d.cfg.DAXSize)
	}
	d.dax.mu.Lock()
	defer d.dax.mu.Unlock()
	d.dax.cut.Store(0)
	d.dax.win, d.dax.repaired, d.dax.files = w, make(map[uint64]lostPages), make(map[uint64]*daxFile)
	return nil
}

// RepairWindow makes the page at byte offset off of the DAX window usable
// again, after a CPU of the guest faulted on it: the file was truncated
// beneath, could not be read, or is mapped read-only. Zeroed memory that
// belongs to no file takes the place of the page and of what follows it in its
// 2 MiB range. An error says that off is outside the window.
func (d *Device) RepairWindow(off uint64) error {
	w := &d.dax
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.win == nil || off >= w.win.Size() {
		return fmt.Errorf("virtio-fs %q: no DAX window at offset %#x", d.cfg.Tag, off)
	}
	d.warn("a file shrank under a DAX mapping, the guest reads zeros", "offset", off)
	return w.repair(off &^ (pageSize - 1))
}

// RepairShrunk is RepairWindow for engines that do not know where a CPU
// faulted (KVM before Linux 6.8): it repairs the ranges whose file is shorter
// now than it was when it was mapped or, if there are none and the caller is sure
// that a CPU did fault, all ranges that end behind their file. It returns how many
// it changed; 0 means that the fault was not this window's.
func (d *Device) RepairShrunk(sure bool) int {
	w := &d.dax
	w.mu.Lock()
	defer w.mu.Unlock()
	n := w.repairEnds(func(f *daxFile, now uint64) bool { return now < f.size })
	if n == 0 && sure {
		n = w.repairEnds(func(*daxFile, uint64) bool { return true })
	}
	if n > 0 {
		d.warn("a file shrank under a DAX mapping, the guest reads zeros", "mappings", uint64(n))
	}
	return n
}

// repairEnds repairs what lies behind the end of chosen files, once.
func (w *daxWindow) repairEnds(choose func(f *daxFile, now uint64) bool) int {
	n := 0
	for i, f := range w.files {
		var st unix.Stat_t
		if unix.Fstat(f.fd, &st) != nil || !choose(f, uint64(st.Size)) {
			continue
		}
		start := f.end(i, uint64(st.Size))
		if lost, ok := w.repaired[i]; start < (i+1)*daxRange && (!ok || lost.first > start) && w.repair(start) == nil {
			n++
		}
	}
	return n
}

// end is the offset in the window behind the last page of range i that a file of
// this size has.
func (f *daxFile) end(i, size uint64) uint64 {
	start := i * daxRange
	eof := (size + pageSize - 1) &^ (pageSize - 1)
	if mapped := start + f.off; eof > mapped {
		start += min(eof-mapped, daxRange)
	}
	return start
}

// regain maps files again that have grown to where pages were lost. It is called
// before the guest learns a size.
func (w *daxWindow) regain() {
	if w.cut.Load() == 0 {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for i, lost := range w.repaired {
		f := w.files[i]
		var st unix.Stat_t
		if !lost.cut || f == nil || unix.Fstat(f.fd, &st) != nil || f.end(i, uint64(st.Size)) <= lost.first {
			continue
		}
		at := i * daxRange
		if w.win.MapFile(at, f.fd, int64(at+f.off), daxRange, f.prot) == nil {
			w.drop(i)
			f.size = max(f.size, uint64(st.Size))
		}
	}
}

// repair puts zeroed memory at the page off and what follows in its range.
// Preconditions: mu is held, off is the offset of a page in the window.
func (w *daxWindow) repair(off uint64) error {
	if w.zero == 0 {
		fd, err := unix.MemfdCreate("virtio-fs-lost", unix.MFD_CLOEXEC)
		if err != nil {
			return fmt.Errorf("memory for lost pages: %w", err)
		}
		if err := unix.Ftruncate(fd, int64(w.win.Size())); err != nil {
			sysClose(fd)
			return fmt.Errorf("memory for lost pages: %w", err)
		}
		w.zero = fd
	}
	i := off / daxRange
	if lost, ok := w.repaired[i]; !ok || off < lost.first {
		cut := w.isCut(i, off)
		if lost.cut {
			w.cut.Add(-1)
		}
		if cut {
			w.cut.Add(1)
		}
		w.repaired[i] = lostPages{first: off, cut: cut}
	}
	return w.win.MapFile(off, w.zero, int64(off), (i+1)*daxRange-off, unix.PROT_READ|unix.PROT_WRITE)
}

// unmap takes the mappings of whole ranges away. Preconditions: mu is held,
// the ranges are inside the window.
func (w *daxWindow) unmap(off, n uint64) error {
	for i := off / daxRange; i < (off+n)/daxRange; i++ {
		w.forget(i)
	}
	return w.win.UnmapFile(off, n)
}

// isCut reports whether the file of range i ends at offset off of the window.
func (w *daxWindow) isCut(i, off uint64) bool {
	f := w.files[i]
	var st unix.Stat_t
	return f != nil && unix.Fstat(f.fd, &st) == nil && f.end(i, uint64(st.Size)) <= off
}

// drop drops the memory of the lost pages of range i.
func (w *daxWindow) drop(i uint64) {
	lost, ok := w.repaired[i]
	if !ok {
		return
	}
	if lost.cut {
		w.cut.Add(-1)
	}
	delete(w.repaired, i)
	_ = unix.Fallocate(w.zero, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, int64(i*daxRange), daxRange)
}

// forget drops what is known of range i.
func (w *daxWindow) forget(i uint64) {
	w.drop(i)
	if f := w.files[i]; f != nil {
		delete(w.files, i)
		if f.refs--; f.refs == 0 {
			sysClose(f.fd)
			fdsInUse.Add(-1)
		}
	}
}

// clear takes all mappings away.
func (w *daxWindow) clear() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.win != nil {
		// It can only fail for want of memory, and then the old mapping stays:
		// the guest keeps seeing a file that it was allowed to see.
		_ = w.unmap(0, w.win.Size())
	}
}

func (w *daxWindow) close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.zero != 0 {
		sysClose(w.zero)
		w.zero = 0
	}
	w.win = nil
	return nil
}

func (w *daxWindow) ready() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.win != nil
}

// inWindow reports whether the range consists of whole 2 MiB ranges inside.
func (w *daxWindow) inWindow(off, n uint64) bool {
	return n != 0 && (off|n)%daxRange == 0 && off < w.win.Size() && n <= w.win.Size()-off
}

// setupmapping serves SETUPMAPPING. The driver sends no handle (fh is ~0): the
// inode is opened for the mapping, which outlives the descriptor.
func (r *request) setupmapping() (int, unix.Errno) {
	in := view[setupmappingIn](r.in)
	i, e := r.node()
	if e != 0 {
		return 0, e
	}
	defer i.put()
	flags, prot, need := unix.O_RDONLY, unix.PROT_READ, uint16(4)
	if in.Flags&setupmappingWrite != 0 {
		flags, prot, need = unix.O_RDWR, unix.PROT_READ|unix.PROT_WRITE, 6
	}
	switch {
	case in.Flags&^(setupmappingRead|setupmappingWrite) != 0:
		return 0, unix.EINVAL
	case !i.isFile():
		return 0, unix.EINVAL
	case in.FOffset%daxRange != 0 || in.Len > maxOffset || in.FOffset > maxOffset-in.Len:
		return 0, unix.EINVAL
	case flags == unix.O_RDWR && r.d.cfg.ReadOnly:
		return 0, unix.EROFS
	}
	if e := r.mayUse(i, need); e != 0 {
		return 0, e
	}
	if e := r.d.takeFD(); e != 0 {
		return 0, e
	}
	fd, e := sysOpenat(r.d.host.proc, r.proc(i.fd), flags|unix.O_NONBLOCK, 0)
	if e != 0 {
		fdsInUse.Add(-1)
		return 0, hideLimit(e)
	}
	return 0, r.d.dax.mapFile(fd, in, prot)
}

// mapFile maps fd, which it owns from now on and for which takeFD was called.
func (w *daxWindow) mapFile(fd int, in *setupmappingIn, prot int) unix.Errno {
	w.mu.Lock()
	defer w.mu.Unlock()
	f := &daxFile{fd: fd, off: in.FOffset - in.MOffset, prot: prot}
	defer func() {
		if f.refs == 0 {
			sysClose(fd)
			fdsInUse.Add(-1)
		}
	}()
	var st unix.Stat_t
	if w.win == nil || !w.inWindow(in.MOffset, in.Len) || unix.Fstat(fd, &st) != nil {
		return unix.EINVAL
	}
	f.size = uint64(st.Size)
	if err := w.win.MapFile(in.MOffset, fd, int64(in.FOffset), in.Len, prot); err != nil {
		return errnoOf(err)
	}
	for i := in.MOffset / daxRange; i < (in.MOffset+in.Len)/daxRange; i++ {
		w.forget(i) // what was there before
		f.refs++
		w.files[i] = f
	}
	return 0
}

// removemapping serves REMOVEMAPPING; it goes by what is there, not by the count.
func (r *request) removemapping() (int, unix.Errno) {
	left := view[removemappingIn](r.in).Count
	if uint64(left)*uint64(sizeOf[removemappingOne]()) != uint64(len(r.in)-sizeOf[removemappingIn]()) {
		return 0, unix.EINVAL
	}
	w := &r.d.dax
	w.mu.Lock()
	defer w.mu.Unlock()
	for b := r.in[sizeOf[removemappingIn]():]; len(b) > 0; b = b[sizeOf[removemappingOne]():] {
		// The entries follow a 4-byte count: they are not aligned.
		one := removemappingOne{MOffset: binary.LittleEndian.Uint64(b), Len: binary.LittleEndian.Uint64(b[8:])}
		if w.win == nil || !w.inWindow(one.MOffset, one.Len) {
			return 0, unix.EINVAL
		}
		if err := w.unmap(one.MOffset, one.Len); err != nil {
			return 0, errnoOf(err)
		}
	}
	return 0, 0
}

// errnoOf finds the system's error in err, or EIO.
func errnoOf(err error) unix.Errno {
	var e unix.Errno
	switch {
	case err == nil:
		return 0
	case errors.As(err, &e):
		return e
	}
	return unix.EIO
}
