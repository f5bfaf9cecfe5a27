package disk

import (
	"io"
	"unsafe"

	"golang.org/x/sys/unix"
)

// maxVector is how many buffers go into one system call.
const maxVector = 64

// transfer is preadv2(2) or pwritev2(2) of all of bufs, repeated until nothing
// is left. The vector lives on the stack. A read that meets the end of the
// file gives io.ErrUnexpectedEOF, a write that stops io.ErrShortWrite. With
// RWF_NOWAIT, EAGAIN may come after a part was done.
func transfer(nr uintptr, fd int, bufs [][]byte, off uint64, flags uintptr) error {
	var vec [maxVector]unix.Iovec
	skip := 0 // bytes of bufs[0] that are done
	for len(bufs) > 0 {
		n := 0
		for _, b := range bufs[:min(len(bufs), maxVector)] {
			b = b[skip:]
			skip = 0
			vec[n] = unix.Iovec{Base: unsafe.SliceData(b), Len: uint64(len(b))}
			n++
		}
		done, _, errno := unix.Syscall6(nr, uintptr(fd), uintptr(unsafe.Pointer(&vec)), uintptr(n), uintptr(off), 0, flags)
		switch {
		case errno == unix.EINTR:
			skip = int(len(bufs[0]) - int(vec[0].Len))
			continue
		case errno != 0:
			return errno
		case done == 0 && nr == unix.SYS_PREADV2:
			return io.ErrUnexpectedEOF
		case done == 0:
			return io.ErrShortWrite
		}
		off += uint64(done)
		first := len(bufs[0]) - int(vec[0].Len)
		bufs, skip = advance(bufs, first+int(done))
	}
	return nil
}

// advance drops n bytes from the front of bufs: whole buffers, and skip bytes
// of the first that is left.
func advance(bufs [][]byte, n int) (rest [][]byte, skip int) {
	for len(bufs) > 0 && n >= len(bufs[0]) {
		n -= len(bufs[0])
		bufs = bufs[1:]
	}
	return bufs, n
}

// aligned reports whether direct I/O can use the buffers where they are.
func aligned(bufs [][]byte, off uint64) bool {
	bits := off
	for _, b := range bufs {
		bits |= uint64(uintptr(unsafe.Pointer(unsafe.SliceData(b)))) | uint64(len(b))
	}
	return bits%directAlign == 0
}
