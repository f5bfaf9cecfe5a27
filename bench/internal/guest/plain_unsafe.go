package main

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// plainFile is a descriptor that is read and written as by a C program. To Go's runtime
// a call of more than 20 µs is one that blocks: its monitor thread wakes, takes the
// processor away from the caller, arms timers, and all of that on the guest's one CPU
// is as much work as the request.
type plainFile int

func (f plainFile) readAt(p []byte, off int64) (int, error) { return f.do(unix.SYS_PREAD64, p, off) }

func (f plainFile) writeAt(p []byte, off int64) (int, error) { return f.do(unix.SYS_PWRITE64, p, off) }

func (f plainFile) do(trap uintptr, p []byte, off int64) (int, error) {
	n, _, e := unix.RawSyscall6(trap, uintptr(f), uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)), uintptr(off), 0, 0)
	if e != 0 {
		return 0, e
	}
	return int(n), nil
}
