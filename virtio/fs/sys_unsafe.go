package fs

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// The system calls of the request path. golang.org/x/sys takes Go strings and
// copies them to the heap; these take NUL-terminated bytes that live in the
// request, and repeat after EINTR where a repeat is harmless.

// empty is the path of calls with AT_EMPTY_PATH.
var empty [1]byte

// dot is the path of a directory's own descriptor.
var dot = [2]byte{'.'}

func ptr(b []byte) unsafe.Pointer { return unsafe.Pointer(unsafe.SliceData(b)) }

func sysOpenat2(dir int, name []byte, how *unix.OpenHow) (int, unix.Errno) {
	for {
		fd, _, e := unix.Syscall6(unix.SYS_OPENAT2, uintptr(dir), uintptr(ptr(name)),
			uintptr(unsafe.Pointer(how)), unsafe.Sizeof(*how), 0, 0)
		if e != unix.EINTR {
			return int(fd), e
		}
	}
}

func sysOpenat(dir int, name []byte, flags int, mode uint32) (int, unix.Errno) {
	for {
		fd, _, e := unix.Syscall6(unix.SYS_OPENAT, uintptr(dir), uintptr(ptr(name)), uintptr(flags|unix.O_CLOEXEC), uintptr(mode), 0, 0)
		if e != unix.EINTR {
			return int(fd), e
		}
	}
}

func sysClose(fd int) {
	if fd >= 0 {
		_, _, _ = unix.Syscall(unix.SYS_CLOSE, uintptr(fd), 0, 0)
	}
}

const statMask = unix.STATX_BASIC_STATS | unix.STATX_MNT_ID

// sysStatx stats name in dir without following it.
func sysStatx(dir int, name []byte, flags, mask int, st *unix.Statx_t) unix.Errno {
	_, _, e := unix.Syscall6(unix.SYS_STATX, uintptr(dir), uintptr(ptr(name)),
		uintptr(flags|unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT), uintptr(mask), uintptr(unsafe.Pointer(st)), 0)
	return e
}

// sysFstatx stats fd itself, which may be an O_PATH descriptor.
func sysFstatx(fd int, st *unix.Statx_t) unix.Errno {
	return sysStatx(fd, empty[:], unix.AT_EMPTY_PATH, statMask, st)
}

// sysFstat is sysFstatx without the mount's ID. It takes no path, for which the kernel
// would get and clear a page.
func sysFstat(fd int, st *unix.Stat_t) unix.Errno {
	_, _, e := unix.Syscall(unix.SYS_FSTAT, uintptr(fd), uintptr(unsafe.Pointer(st)), 0)
	return e
}

func sysMkdirat(dir int, name []byte, mode uint32) unix.Errno {
	_, _, e := unix.Syscall(unix.SYS_MKDIRAT, uintptr(dir), uintptr(ptr(name)), uintptr(mode))
	return e
}

func sysMknodat(dir int, name []byte, mode uint32, dev uint64) unix.Errno {
	_, _, e := unix.Syscall6(unix.SYS_MKNODAT, uintptr(dir), uintptr(ptr(name)), uintptr(mode), uintptr(dev), 0, 0)
	return e
}

func sysSymlinkat(target []byte, dir int, name []byte) unix.Errno {
	_, _, e := unix.Syscall(unix.SYS_SYMLINKAT, uintptr(ptr(target)), uintptr(dir), uintptr(ptr(name)))
	return e
}

func sysUnlinkat(dir int, name []byte, flags int) unix.Errno {
	_, _, e := unix.Syscall(unix.SYS_UNLINKAT, uintptr(dir), uintptr(ptr(name)), uintptr(flags))
	return e
}

func sysRenameat2(olddir int, oldname []byte, newdir int, newname []byte, flags uint32) unix.Errno {
	_, _, e := unix.Syscall6(unix.SYS_RENAMEAT2, uintptr(olddir), uintptr(ptr(oldname)),
		uintptr(newdir), uintptr(ptr(newname)), uintptr(flags), 0)
	return e
}

func sysLinkat(olddir int, oldname []byte, newdir int, newname []byte, flags int) unix.Errno {
	_, _, e := unix.Syscall6(unix.SYS_LINKAT, uintptr(olddir), uintptr(ptr(oldname)),
		uintptr(newdir), uintptr(ptr(newname)), uintptr(flags), 0)
	return e
}

// sysReadlink reads the target of the symlink fd, an O_PATH descriptor.
func sysReadlink(fd int, buf []byte) (int, unix.Errno) {
	n, _, e := unix.Syscall6(unix.SYS_READLINKAT, uintptr(fd), uintptr(ptr(empty[:])), uintptr(ptr(buf)), uintptr(len(buf)), 0, 0)
	return int(n), e
}

// sysFchown changes the owner of fd itself, which may be an O_PATH descriptor.
func sysFchown(fd int, uid, gid uint32) unix.Errno {
	_, _, e := unix.Syscall6(unix.SYS_FCHOWNAT, uintptr(fd), uintptr(ptr(empty[:])), uintptr(uid), uintptr(gid),
		unix.AT_EMPTY_PATH|unix.AT_SYMLINK_NOFOLLOW, 0)
	return e
}

func sysFchmodat(dir int, name []byte, mode uint32) unix.Errno {
	_, _, e := unix.Syscall(unix.SYS_FCHMODAT, uintptr(dir), uintptr(ptr(name)), uintptr(mode))
	return e
}

// sysUtimens sets the times of fd itself, which may be an O_PATH descriptor.
func sysUtimens(fd int, ts *[2]unix.Timespec) unix.Errno {
	_, _, e := unix.Syscall6(unix.SYS_UTIMENSAT, uintptr(fd), uintptr(ptr(empty[:])), uintptr(unsafe.Pointer(ts)), unix.AT_EMPTY_PATH, 0, 0)
	return e
}

func sysFaccess(fd int, mask uint32) unix.Errno {
	_, _, e := unix.Syscall6(unix.SYS_FACCESSAT2, uintptr(fd), uintptr(ptr(empty[:])), uintptr(mask), unix.AT_EMPTY_PATH|unix.AT_EACCESS, 0, 0)
	return e
}

func sysGetxattr(path, name, buf []byte) (int, unix.Errno) {
	n, _, e := unix.Syscall6(unix.SYS_GETXATTR, uintptr(ptr(path)), uintptr(ptr(name)), uintptr(ptr(buf)), uintptr(len(buf)), 0, 0)
	return int(n), e
}

func sysSetxattr(path, name, value []byte, flags uint32) unix.Errno {
	_, _, e := unix.Syscall6(unix.SYS_SETXATTR, uintptr(ptr(path)), uintptr(ptr(name)), uintptr(ptr(value)), uintptr(len(value)), uintptr(flags), 0)
	return e
}

func sysListxattr(path, buf []byte) (int, unix.Errno) {
	n, _, e := unix.Syscall(unix.SYS_LISTXATTR, uintptr(ptr(path)), uintptr(ptr(buf)), uintptr(len(buf)))
	return int(n), e
}

func sysRemovexattr(path, name []byte) unix.Errno {
	_, _, e := unix.Syscall(unix.SYS_REMOVEXATTR, uintptr(ptr(path)), uintptr(ptr(name)), 0)
	return e
}

func sysPreadv2(fd int, iov []unix.Iovec, off uint64, flags int) (int, unix.Errno) {
	return sysRW(unix.SYS_PREADV2, fd, iov, off, flags)
}

func sysPwritev2(fd int, iov []unix.Iovec, off uint64, flags int) (int, unix.Errno) {
	return sysRW(unix.SYS_PWRITEV2, fd, iov, off, flags)
}

// sysRW transfers at most IOV_MAX pieces. The kernel takes the offset as two
// longs, of which a 64-bit machine ignores the second.
func sysRW(trap uintptr, fd int, iov []unix.Iovec, off uint64, flags int) (int, unix.Errno) {
	if len(iov) == 0 {
		return 0, 0
	}
	for {
		n, _, e := unix.Syscall6(trap, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(iov))),
			uintptr(min(len(iov), iovMax)), uintptr(off), 0, uintptr(flags))
		if e != unix.EINTR {
			return int(n), e
		}
	}
}

const iovMax = 1024

// iovec describes b, which stays where it is: guest memory is outside the Go
// heap, and heap objects do not move.
func iovec(b []byte) unix.Iovec {
	return unix.Iovec{Base: unsafe.SliceData(b), Len: uint64(len(b))}
}

// advance drops the first n bytes of the iovecs, in place.
func advance(iov []unix.Iovec, n int) []unix.Iovec {
	for len(iov) > 0 && uint64(n) >= iov[0].Len {
		n -= int(iov[0].Len)
		iov = iov[1:]
	}
	if n > 0 {
		iov[0].Base = (*byte)(unsafe.Add(unsafe.Pointer(iov[0].Base), n))
		iov[0].Len -= uint64(n)
	}
	return iov
}

func sysGetdents(fd int, buf []byte) (int, unix.Errno) {
	n, _, e := unix.Syscall(unix.SYS_GETDENTS64, uintptr(fd), uintptr(ptr(buf)), uintptr(len(buf)))
	return int(n), e
}

func sysLseek(fd int, off int64, whence int) (int64, unix.Errno) {
	n, _, e := unix.Syscall(unix.SYS_LSEEK, uintptr(fd), uintptr(off), uintptr(whence))
	return int64(n), e
}

func sysCopyFileRange(in int, offIn *int64, out int, offOut *int64, n uint64) (int, unix.Errno) {
	w, _, e := unix.Syscall6(unix.SYS_COPY_FILE_RANGE, uintptr(in), uintptr(unsafe.Pointer(offIn)),
		uintptr(out), uintptr(unsafe.Pointer(offOut)), uintptr(n), 0)
	return int(w), e
}

// sysCall runs a call that takes an fd and up to three plain numbers.
func sysCall(trap uintptr, fd int, a, b, c uint64) unix.Errno {
	_, _, e := unix.Syscall6(trap, uintptr(fd), uintptr(a), uintptr(b), uintptr(c), 0, 0)
	return e
}

func sysFlock(fd int, lk *unix.Flock_t, cmd int) unix.Errno {
	_, _, e := unix.Syscall(unix.SYS_FCNTL, uintptr(fd), uintptr(cmd), uintptr(unsafe.Pointer(lk)))
	return e
}

// sysSetfsid changes the file system uid or gid of this thread and returns the
// former one. The kernel reports no failure: ask again to know.
func sysSetfsid(trap uintptr, id uint32) uint32 {
	old, _, _ := unix.RawSyscall(trap, uintptr(id), 0, 0)
	return uint32(old)
}

// sysCapset sets the capabilities of this thread.
func sysCapset(c *capData) unix.Errno {
	h := capHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	_, _, e := unix.RawSyscall(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&h)), uintptr(unsafe.Pointer(c)), 0)
	return e
}

// sysCapget reads the capabilities of this thread.
func sysCapget(c *capData) unix.Errno {
	h := capHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	_, _, e := unix.RawSyscall(unix.SYS_CAPGET, uintptr(unsafe.Pointer(&h)), uintptr(unsafe.Pointer(c)), 0)
	return e
}

type capHeader = unix.CapUserHeader

type capData [2]unix.CapUserData

// kernelSigaction is struct kernel_sigaction of rt_sigaction(2).
type kernelSigaction struct {
	Handler, Flags, Restorer uintptr
	Mask                     uint64
}

// sysSigaction reads old and, if new is given, sets the action of a signal.
func sysSigaction(sig int, new, old *kernelSigaction) unix.Errno {
	_, _, e := unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(sig), uintptr(unsafe.Pointer(new)),
		uintptr(unsafe.Pointer(old)), unsafe.Sizeof(new.Mask), 0, 0)
	return e
}
