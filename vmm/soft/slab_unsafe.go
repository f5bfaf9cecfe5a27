package soft

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// slab is an array of records in memory of its own, which holds no Go pointer.
// So the collector neither looks at it nor keeps as much again in reserve, and a
// record is named by 32 bits. What was never used takes no memory. Of
// records that are taken, 0 is none.
type slab[T any] struct {
	mem  []T
	raw  []byte
	next uint32 // the first record that was never taken
}

// newSlab makes a slab of n records.
func newSlab[T any](n int) (slab[T], error) {
	var t T
	size := (uintptr(n)*unsafe.Sizeof(t) + 4095) &^ 4095
	p, err := unix.MmapPtr(-1, 0, nil, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		return slab[T]{}, fmt.Errorf("reserve memory for a software CPU: %w", err)
	}
	return slab[T]{unsafe.Slice((*T)(p), n), unsafe.Slice((*byte)(p), size), 1}, nil
}

// at is record i.
func (s *slab[T]) at(i uint32) *T { return &s.mem[i] }

// index is the number of a record.
func (s *slab[T]) index(p *T) uint32 {
	return uint32((uintptr(unsafe.Pointer(p)) - uintptr(unsafe.Pointer(unsafe.SliceData(s.mem)))) / unsafe.Sizeof(*p))
}

// left is how many records were never taken.
func (s *slab[T]) left() int { return len(s.mem) - int(s.next) }

// take returns the next record that was never taken. There must be one left.
func (s *slab[T]) take() *T {
	p := &s.mem[s.next]
	s.next++
	return p
}

// reset zeroes the records, and gives their memory back to the host.
func (s *slab[T]) reset() {
	const little = 1 << 16 // is cleared faster than it is got again
	var t T
	used := uintptr(s.next) * unsafe.Sizeof(t)
	if used > little {
		_ = unix.Madvise(s.raw[:min((used+4095)&^4095, uintptr(len(s.raw)))], unix.MADV_DONTNEED) // zeroes it, and cannot fail
	} else {
		clear(s.mem[:s.next])
	}
	s.next = 1
}

func (s *slab[T]) release() {
	freeMap(s.raw)
	*s = slab[T]{}
}
