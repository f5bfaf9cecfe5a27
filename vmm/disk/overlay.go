package disk

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// overlayBlock is the overlay's unit of copying in bytes.
const overlayBlock = 4096

// Overlay is a disk whose changes are thrown away on Close: they go to an
// unnamed temporary file, and the base below is only read.
type Overlay struct {
	base Image
	try  TryImage // base, if it is one
	file *Raw
	size uint64
	// present has a bit for each block that the file holds. A bit is set
	// after the block's bytes are in the file and never cleared.
	present []atomic.Uint64

	// mu is held for reading by whoever writes whole blocks or blocks that
	// are present, and for writing by who copies a block up: a copy must
	// not bring old bytes over ones just written.
	mu sync.RWMutex
}

// NewOverlay returns a disk like base that can be written. Changes are kept in
// an unlinked file in dir, or in memory if dir cannot hold one. Close closes
// base as well.
func NewOverlay(base Image, dir string) (*Overlay, error) {
	f, err := tempFile(dir)
	if err != nil {
		return nil, err
	}
	o := &Overlay{base: base, size: base.Size()}
	o.try, _ = base.(TryImage)
	if o.file, err = NewFile(f, false); err == nil {
		err = o.file.Resize(o.size)
	}
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("temporary file of %d bytes for disk changes: %w", o.size, err)
	}
	blocks := (o.size + overlayBlock - 1) / overlayBlock
	o.present = make([]atomic.Uint64, (blocks+63)/64)
	return o, nil
}

// tempFile makes a file without a name.
func tempFile(dir string) (*os.File, error) {
	fd, err := unix.Open(dir, unix.O_RDWR|unix.O_TMPFILE|unix.O_CLOEXEC|unix.O_EXCL, 0o600)
	if err != nil {
		fd, err = unix.MemfdCreate("disk changes", unix.MFD_CLOEXEC)
	}
	if err != nil {
		return nil, fmt.Errorf("temporary file for disk changes: %w", err)
	}
	return os.NewFile(uintptr(fd), dir+"/(disk changes)"), nil
}

func (o *Overlay) has(block uint64) bool { return o.present[block/64].Load()>>(block%64)&1 != 0 }

// run is how many bytes from off on, up to n, are alike present or absent.
func (o *Overlay) run(off, n uint64) (length uint64, present bool) {
	present = o.has(off / overlayBlock)
	end := off + n
	next := off/overlayBlock*overlayBlock + overlayBlock
	for next < end && o.has(next/overlayBlock) == present {
		next += overlayBlock
	}
	return min(next, end) - off, present
}

// mark sets the bits of the blocks wholly or at its end partly in the range.
func (o *Overlay) mark(off, n uint64) {
	for b := off / overlayBlock; b*overlayBlock < off+n; b++ {
		o.present[b/64].Or(1 << (b % 64))
	}
}

// ReadAt implements Image.
func (o *Overlay) ReadAt(bufs [][]byte, off uint64) error {
	return o.read(bufs, off, o.file.ReadAt, o.base.ReadAt)
}

// TryReadAt implements TryImage.
func (o *Overlay) TryReadAt(bufs [][]byte, off uint64) error {
	if o.try == nil {
		return ErrCannotTry
	}
	return o.read(bufs, off, o.file.TryReadAt, o.try.TryReadAt)
}

// read reads what is present from one and the rest from another.
func (o *Overlay) read(bufs [][]byte, off uint64, above, below func([][]byte, uint64) error) error {
	v := NewVector(bufs)
	defer v.Free()
	for n := Length(bufs); n > 0; {
		k, present := o.run(off, n)
		from := below
		if present {
			from = above
		}
		if err := from(v.Take(k), off); err != nil {
			return err
		}
		off, n = off+k, n-k
	}
	return nil
}

// TryWriteAt implements TryImage: what needs no copying is a write to the file.
func (o *Overlay) TryWriteAt(bufs [][]byte, off uint64) error {
	n := Length(bufs)
	if !o.whole(off, n) || !o.mu.TryRLock() {
		return ErrWouldBlock
	}
	defer o.mu.RUnlock()
	err := o.file.TryWriteAt(bufs, off)
	if err == nil {
		o.mark(off, n)
	}
	return err
}

// whole reports whether a write needs no block to be copied up.
func (o *Overlay) whole(off, n uint64) bool {
	end := off + n
	return (off%overlayBlock == 0 || o.has(off/overlayBlock)) &&
		(end%overlayBlock == 0 || end == o.size || o.has((end-1)/overlayBlock))
}

// WriteAt implements Image.
func (o *Overlay) WriteAt(bufs [][]byte, off uint64) error {
	n := Length(bufs)
	if err := o.copyUp(off, n); err != nil {
		return err
	}
	o.mu.RLock()
	defer o.mu.RUnlock()
	if err := o.file.WriteAt(bufs, off); err != nil {
		return err
	}
	o.mark(off, n)
	return nil
}

// copyUp makes the blocks that a write of the range covers in part present.
func (o *Overlay) copyUp(off, n uint64) error {
	first, last := off/overlayBlock, (off+n-1)/overlayBlock
	if off%overlayBlock != 0 {
		if err := o.copyBlock(first); err != nil {
			return err
		}
	}
	if end := off + n; end%overlayBlock != 0 && end != o.size {
		return o.copyBlock(last)
	}
	return nil
}

func (o *Overlay) copyBlock(b uint64) error {
	if o.has(b) {
		return nil
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.has(b) {
		return nil
	}
	off := b * overlayBlock
	buf := make([]byte, min(overlayBlock, o.size-off))
	bufs := [][]byte{buf}
	if err := o.base.ReadAt(bufs, off); err != nil {
		return err
	}
	if err := o.file.WriteAt(bufs, off); err != nil {
		return err
	}
	o.mark(off, 1)
	return nil
}

// Flush does nothing: there is nothing to keep.
func (o *Overlay) Flush() error { return nil }

// Discard gives the storage of changed blocks back.
func (o *Overlay) Discard(off, n uint64) error {
	lo := (off + overlayBlock - 1) / overlayBlock * overlayBlock
	hi := (off + n) / overlayBlock * overlayBlock
	if lo >= hi {
		return nil
	}
	return o.zero(lo, hi-lo)
}

// WriteZeroes implements Image.
func (o *Overlay) WriteZeroes(off, n uint64, _ bool) error {
	if err := o.copyUp(off, n); err != nil {
		return err
	}
	return o.zero(off, n)
}

func (o *Overlay) zero(off, n uint64) error {
	o.mu.RLock()
	defer o.mu.RUnlock()
	if err := o.file.WriteZeroes(off, n, true); err != nil {
		return err
	}
	o.mark(off, n)
	return nil
}

// Size implements Image.
func (o *Overlay) Size() uint64 { return o.size }

// ReadOnly implements Image: an overlay can be written.
func (o *Overlay) ReadOnly() bool { return false }

// Geometry implements Image.
func (o *Overlay) Geometry() Geometry {
	g := o.base.Geometry()
	g.PhysicalBlock, g.Cluster = max(g.PhysicalBlock, overlayBlock), overlayBlock
	return g
}

// Close throws the changes away.
func (o *Overlay) Close() error { return errors.Join(o.file.Close(), o.base.Close()) }
