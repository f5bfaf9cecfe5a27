package mem

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// hugePage is the larger page of x86-64 that transparent huge pages have.
const hugePage = 2 << 20

// reserve maps size bytes of zeroed anonymous memory for a region at base. The
// mapping lies as its addresses in the guest do within a huge page: KVM can only
// then use huge pages in the second-level page tables (Linux, Documentation/virt/kvm/api.rst,
// KVM_SET_USER_MEMORY_REGION: "the lower 21 bits of guest_phys_addr and
// userspace_addr be identical").
func reserve(base GPA, size uint64, prot int) ([]byte, error) {
	const flags = unix.MAP_PRIVATE | unix.MAP_ANONYMOUS | unix.MAP_NORESERVE
	if size < hugePage {
		p, err := unix.MmapPtr(-1, 0, nil, uintptr(size), prot, flags)
		return unsafe.Slice((*byte)(p), size), err
	}
	all, err := unix.MmapPtr(-1, 0, nil, uintptr(size)+hugePage, prot, flags)
	if err != nil {
		return nil, err
	}
	// What is too much is cut off before and behind.
	before := (uintptr(base) - uintptr(all)) % hugePage
	p := unsafe.Add(all, before)
	if before > 0 {
		err = unix.MunmapPtr(all, before)
	}
	if err == nil {
		err = unix.MunmapPtr(unsafe.Add(p, size), hugePage-before)
	}
	return unsafe.Slice((*byte)(p), size), err
}

// release unmaps what reserve mapped.
func release(b []byte) error {
	return unix.MunmapPtr(unsafe.Pointer(unsafe.SliceData(b)), uintptr(len(b)))
}
