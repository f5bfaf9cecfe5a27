package mem

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// linux/userfaultfd.h.
const (
	UFFD_API                = 0xaa
	UFFD_USER_MODE_ONLY     = 1
	UFFD_FEATURE_WP_ASYNC   = 1 << 15
	UFFDIO_REGISTER_MODE_WP = 1 << 1
	UFFDIO_API              = 0xc018aa3f // _IOWR(0xaa, 0x3f, struct uffdio_api)
	UFFDIO_REGISTER         = 0xc020aa00 // _IOWR(0xaa, 0x00, struct uffdio_register)
	PAGEMAP_SCAN            = 0xc0606610 // linux/fs.h: _IOWR('f', 16, struct pm_scan_arg)
	PM_SCAN_WP_MATCHING     = 1 << 0
	PM_SCAN_CHECK_WPASYNC   = 1 << 1
	PAGE_IS_WRITTEN         = 1 << 1
	PAGE_IS_PRESENT         = 1 << 3
	PAGE_IS_SWAPPED         = 1 << 4
	PAGE_IS_PFNZERO         = 1 << 5
)

// uffdioAPI is struct uffdio_api.
type uffdioAPI struct {
	api, features uint64
	_             uint64 // ioctls
}

// uffdioRegister is struct uffdio_register.
type uffdioRegister struct {
	start, len, mode uint64
	_                uint64 // ioctls
}

// pageScan is struct pm_scan_arg.
type pageScan struct {
	size, flags, start, end, walkEnd, vec, vecLen, maxPages uint64
	inverted, mask, anyOf, result                           uint64 // PAGE_IS_*
}

// pageRegion is struct page_region.
type pageRegion struct{ start, end, categories uint64 }

// userfaultfd makes a userfaultfd with a feature. It takes no faults, so
// whoever writes needs no permission.
func userfaultfd(feature uint64) (int, error) {
	fd, _, e := unix.Syscall(unix.SYS_USERFAULTFD, unix.O_CLOEXEC|unix.O_NONBLOCK|UFFD_USER_MODE_ONLY, 0, 0)
	if e != 0 {
		return -1, e
	}
	if err := request(int(fd), UFFDIO_API, &uffdioAPI{api: UFFD_API, features: feature}); err != nil {
		_ = unix.Close(int(fd))
		return -1, err
	}
	return int(fd), nil
}

// register makes b's pages the userfaultfd's to write-protect.
func register(uffd int, b []byte) error {
	return request(uffd, UFFDIO_REGISTER, &uffdioRegister{start: hostAddr(b), len: uint64(len(b)), mode: UFFDIO_REGISTER_MODE_WP})
}

// scanAll does a PAGEMAP_SCAN over b and calls f for each piece found, which f may change.
// found is room on the heap, which does not move: the kernel writes there. It may be
// empty, for a scan without an answer.
func scanAll(pagemap int, b []byte, s *pageScan, found []pageRegion, f func(pageRegion) error) error {
	s.size, s.start, s.end = uint64(unsafe.Sizeof(*s)), hostAddr(b), hostAddr(b)+uint64(len(b))
	for s.start < s.end {
		s.vec, s.vecLen = uint64(uintptr(unsafe.Pointer(unsafe.SliceData(found)))), uint64(len(found))
		n, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(pagemap), PAGEMAP_SCAN, uintptr(unsafe.Pointer(s)))
		switch {
		case e == unix.EINTR:
			continue
		case e != 0:
			return e
		}
		for _, r := range found[:min(int(n), len(found))] {
			if err := f(r); err != nil {
				return err
			}
		}
		if s.walkEnd <= s.start {
			return unix.EIO
		}
		s.start = s.walkEnd
	}
	return nil
}

// request is an ioctl with a pointer.
func request[T any](fd int, code uintptr, arg *T) error {
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), code, uintptr(unsafe.Pointer(arg))); e != 0 {
		return e
	}
	return nil
}
