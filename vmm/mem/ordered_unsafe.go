package mem

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// load16 and store16 are in ordered_amd64.s; the package comment says why.
//
//go:noescape
func load16(p *uint16) uint16

//go:noescape
func store16(p *uint16, v uint16)

// Fence orders every earlier store before every later load (MFENCE, Intel SDM
// vol. 3A §9.2.5). A device needs it between publishing used entries and
// reading the driver's suppression state (virtio 1.2 §2.7.7.1, §2.7.10).
func Fence()

// Ordered is 16-bit-aligned RAM for ring fields, checked once when it is made.
type Ordered []byte

// OrderedSlice returns n bytes of RAM at gpa for ordered access. gpa must be even.
func (m *Memory) OrderedSlice(gpa GPA, n uint64) (Ordered, error) {
	if gpa&1 != 0 {
		return nil, fmt.Errorf("%w: odd address %#x", ErrOutOfRange, gpa)
	}
	b, err := m.Slice(gpa, n)
	return Ordered(b), err
}

// LoadUint16 loads the little-endian field at byte offset off, an even number,
// with acquire ordering.
func (o Ordered) LoadUint16(off uint64) uint16 {
	_ = o[off+1]
	return load16((*uint16)(unsafe.Pointer(&o[off])))
}

// StoreUint16 stores the little-endian field at byte offset off, an even
// number, with release ordering.
func (o Ordered) StoreUint16(off uint64, v uint16) {
	_ = o[off+1]
	store16((*uint16)(unsafe.Pointer(&o[off])), v)
}

// HostAddr is the address of the region's first byte in this process.
func (r *Region) HostAddr() uintptr { return uintptr(hostAddr(r.bytes)) }

// hostAddr is the address of b's first byte.
func hostAddr(b []byte) uint64 { return uint64(uintptr(unsafe.Pointer(unsafe.SliceData(b)))) }

// MapFile maps length bytes of fd from file offset off at byte offset at of a
// Window, replacing what was there. prot is PROT_READ and, for shared writable
// mappings, PROT_WRITE. All three numbers are multiples of the page size.
func (r *Region) MapFile(at uint64, fd int, off int64, length uint64, prot int) error {
	return r.remap(at, length, prot, unix.MAP_SHARED|unix.MAP_FIXED, fd, off)
}

// MapPrivate is MapFile for a copy of the file, readable and writable: what the
// guest writes stays in memory.
func (r *Region) MapPrivate(at uint64, fd int, off int64, length uint64) error {
	return r.remap(at, length, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_NORESERVE|unix.MAP_FIXED, fd, off)
}

// MapZero maps zeroed memory that belongs to no file at [at, at+length) of a Window.
func (r *Region) MapZero(at, length uint64) error {
	return r.remap(at, length, unix.PROT_READ|unix.PROT_WRITE,
		unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE|unix.MAP_FIXED, -1, 0)
}

// UnmapFile takes the file mapping at [at, at+length) of a Window away; the
// range is reserved and inaccessible again.
func (r *Region) UnmapFile(at, length uint64) error {
	return r.remap(at, length, unix.PROT_NONE,
		unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE|unix.MAP_FIXED, -1, 0)
}

func (r *Region) remap(at, length uint64, prot, flags, fd int, off int64) error {
	const mask = 1<<pageShift - 1
	if r.Kind != Window || length == 0 || at&mask != 0 || length&mask != 0 || !r.contains(r.Base+GPA(at), length) || r.Base+GPA(at) < r.Base {
		return ErrOutOfRange
	}
	_, err := unix.MmapPtr(fd, off, unsafe.Pointer(&r.bytes[at]), uintptr(length), prot, flags)
	if err != nil {
		return fmt.Errorf("map file into %s at %#x: %w", r.Name, at, err)
	}
	if r.mem.onWrite != nil {
		r.mem.mark(r, r.Base+GPA(at), length)
	}
	return nil
}
