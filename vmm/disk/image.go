// Package disk is what a guest's disks are made of on the host: images, and
// the engines that read and write them while their requests may wait.
package disk

import "errors"

// Image is what a disk is made of. Its methods may be called from several
// goroutines at once. Offsets and lengths are in bytes and multiples of
// SectorSize, and the caller has checked that they lie inside Size.
type Image interface {
	// ReadAt fills all of bufs from byte off on.
	ReadAt(bufs [][]byte, off uint64) error
	// WriteAt writes all of bufs from byte off on.
	WriteAt(bufs [][]byte, off uint64) error
	// Flush makes all completed writes durable.
	Flush() error
	// Discard tells that [off, off+n) is not needed; it may read as anything.
	Discard(off, n uint64) error
	// WriteZeroes makes [off, off+n) read as zero; with unmap its storage
	// may be given back.
	WriteZeroes(off, n uint64, unmap bool) error
	// Size is the disk's length, a multiple of SectorSize.
	Size() uint64
	// ReadOnly reports whether writes are refused.
	ReadOnly() bool
	// Geometry gives hints about good request sizes.
	Geometry() Geometry
	// Close flushes and releases the image. Nothing is in flight.
	Close() error
}

// Geometry is a disk's hints, in bytes; each a power of two.
type Geometry struct {
	BlockSize     uint32 // logical block: 512 or 4096
	PhysicalBlock uint32 // what is written without read-modify-write
	Cluster       uint32 // what is discarded as a whole
}

// Errors of a TryImage.
var (
	ErrWouldBlock = errors.New("disk: would block")
	ErrCannotTry  = errors.New("disk: cannot try")
)

// TryImage is an Image that can tell quickly what it cannot do at once. A Queue
// tries these in its owner's goroutine and hands to others only what would
// block.
type TryImage interface {
	Image
	// TryReadAt is ReadAt, or ErrWouldBlock with bufs in an undefined state,
	// or ErrCannotTry if nobody knows whether it would block.
	TryReadAt(bufs [][]byte, off uint64) error
	// TryWriteAt is WriteAt, or one of these errors after writing any part.
	TryWriteAt(bufs [][]byte, off uint64) error
}

// SectorSize is the unit of an image's size and of requests, in bytes.
const SectorSize = 512
