package mem

import (
	"fmt"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// BlockSize is the size in bytes of the blocks of a Pluggable region: a huge
// page, so that unplugging splits none.
const (
	BlockSize  = 1 << blockShift
	blockShift = 21
)

// blocks returns the first block of [off, off+n) and the one behind the last.
func blocks(off, n uint64) (first, end uint64) {
	return off >> blockShift, (off + n + BlockSize - 1) >> blockShift
}

// Plugged reports whether all blocks that [off, off+n) touches are plugged.
// The range lies in the region, which is Pluggable.
func (r *Region) Plugged(off, n uint64) bool {
	for i, end := blocks(off, n); i < end; i++ {
		if atomic.LoadUint64(&r.plugged[i/64])>>(i%64)&1 == 0 {
			return false
		}
	}
	return true
}

// Unplugged reports whether none of them is.
func (r *Region) Unplugged(off, n uint64) bool {
	for i, end := blocks(off, n); i < end; i++ {
		if atomic.LoadUint64(&r.plugged[i/64])>>(i%64)&1 != 0 {
			return false
		}
	}
	return true
}

// SetPlugged plugs or unplugs the whole blocks of [off, off+n) of a Pluggable
// region. What is unplugged goes back to the host, and devices do not reach it
// any more. The CPUs still do: a guest that writes where it has no memory gets
// some that is counted as the machine's, up to the region's size.
func (r *Region) SetPlugged(off, n uint64, on bool) error {
	if r.Kind != Pluggable || (off|n)%BlockSize != 0 || !r.contains(r.Base+GPA(off), n) {
		return fmt.Errorf("%w: blocks at %#x+%#x of %s", ErrOutOfRange, off, n, r.Name)
	}
	for i, end := blocks(off, n); i < end; i++ {
		if on {
			atomic.OrUint64(&r.plugged[i/64], 1<<(i%64))
		} else {
			atomic.AndUint64(&r.plugged[i/64], ^(uint64(1) << (i % 64)))
		}
	}
	if on || n == 0 {
		return nil
	}
	err := unix.Madvise(r.bytes[off:off+n], unix.MADV_DONTNEED)
	if r.mem.onWrite != nil {
		r.mem.mark(r, r.Base+GPA(off), n)
	}
	return err
}
