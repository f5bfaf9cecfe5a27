package vsock

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// iovec describes p, which is not empty.
func iovec(p []byte) unix.Iovec {
	return unix.Iovec{Base: unsafe.SliceData(p), Len: uint64(len(p))}
}

// readv is readv(2) without the copy of the vector that x/sys makes.
func readv(fd int, iov []unix.Iovec) (int, error) {
	return rwv(unix.SYS_READV, fd, iov)
}

// writev is writev(2).
func writev(fd int, iov []unix.Iovec) (int, error) {
	return rwv(unix.SYS_WRITEV, fd, iov)
}

func rwv(nr uintptr, fd int, iov []unix.Iovec) (int, error) {
	n, _, errno := unix.Syscall(nr, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(iov))), uintptr(len(iov)))
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}
