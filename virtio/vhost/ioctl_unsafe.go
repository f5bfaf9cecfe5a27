package vhost

import (
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/gvmspawn/gvmspawn/vmm/mem"
)

// ioctl passes a pointer.
func ioctl[T any](fd int, request uintptr, arg *T) error {
	for {
		_, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(unsafe.Pointer(arg)))
		switch e {
		case 0:
			return nil
		case unix.EINTR:
		default:
			return e
		}
	}
}

// hostAddress is where n bytes of guest RAM at gpa are in this process.
func hostAddress(m *mem.Memory, gpa mem.GPA, n uint64) (uint64, error) {
	b, err := m.Slice(gpa, n)
	return uint64(uintptr(unsafe.Pointer(unsafe.SliceData(b)))), err
}
