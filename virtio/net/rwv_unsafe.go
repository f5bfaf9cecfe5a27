package net

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// rwv is readv(2) or writev(2) without the copies that x/sys makes of long
// vectors.
func rwv(nr uintptr, fd int, iov []unix.Iovec) (int, error) {
	n, _, errno := unix.Syscall(nr, uintptr(fd), uintptr(unsafe.Pointer(&iov[0])), uintptr(len(iov)))
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}
