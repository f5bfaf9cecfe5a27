package kvm

import (
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ioctl calls fd with an integer argument, again if a signal interrupts it.
func ioctl(fd int, req, arg uintptr) (int, error) {
	for {
		r, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), req, arg)
		if errno == 0 {
			return int(r), nil
		}
		if errno != unix.EINTR {
			return int(r), errno
		}
	}
}

// ioctlPtr calls fd with a structure, again if a signal interrupts it. The
// pointer becomes a number in the call itself, so p may be on the stack.
func ioctlPtr[T any](fd int, req uintptr, p *T) (int, error) {
	for {
		r, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), req, uintptr(unsafe.Pointer(p)))
		if errno == 0 {
			return int(r), nil
		}
		if errno != unix.EINTR {
			return int(r), errno
		}
	}
}

// ioctlQuick is ioctlPtr for calls that never sleep: it keeps the P.
func ioctlQuick[T any](fd int, req uintptr, p *T) error {
	_, _, errno := unix.RawSyscall(unix.SYS_IOCTL, uintptr(fd), req, uintptr(unsafe.Pointer(p)))
	if errno != 0 {
		return errno
	}
	return nil
}

// ioctlRun is KVM_RUN. It sleeps for as long as the guest runs and hands EINTR
// to the caller.
func ioctlRun(fd int) unix.Errno {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), KVM_RUN, 0)
	return errno
}

// setGSIRouting replaces the routing table.
func setGSIRouting(fd int, entries []kvmIRQRoutingEntry) error {
	const head, each = 2, unsafe.Sizeof(kvmIRQRoutingEntry{}) / 4
	table := make([]uint32, head+len(entries)*int(each))
	table[0] = uint32(len(entries))
	for i := range entries {
		*(*kvmIRQRoutingEntry)(unsafe.Pointer(&table[head+i*int(each)])) = entries[i]
	}
	_, err := ioctlPtr(fd, KVM_SET_GSI_ROUTING, &table[0])
	return err
}

// attrCall is a kvm_device_attr with its value.
type attrCall struct {
	attr  kvmDeviceAttr
	value uint64
}

// deviceAttr gets or sets an attribute of a CPU.
//
// Preconditions: c is on the heap. The kernel follows attr.addr, which is a
// plain number to Go, so the value must not move.
func deviceAttr(fd int, req uintptr, c *attrCall) error {
	c.attr.addr = uint64(uintptr(unsafe.Pointer(&c.value)))
	_, err := ioctlPtr(fd, req, &c.attr)
	runtime.KeepAlive(c)
	return err
}

// runOf is the kvm_run structure at the head of a CPU's shared pages.
func runOf(shared []byte) *kvmRun { return (*kvmRun)(unsafe.Pointer(unsafe.SliceData(shared))) }

// Members of the union, valid for the exit reason that their name says.

func (r *kvmRun) io() *exitIO               { return (*exitIO)(unsafe.Pointer(&r.exit)) }
func (r *kvmRun) mmio() *exitMMIO           { return (*exitMMIO)(unsafe.Pointer(&r.exit)) }
func (r *kvmRun) internal() *exitInternal   { return (*exitInternal)(unsafe.Pointer(&r.exit)) }
func (r *kvmRun) emulation() *exitEmulation { return (*exitEmulation)(unsafe.Pointer(&r.exit)) }
func (r *kvmRun) failEntry() *exitFailEntry { return (*exitFailEntry)(unsafe.Pointer(&r.exit)) }
func (r *kvmRun) debug() *exitDebug         { return (*exitDebug)(unsafe.Pointer(&r.exit)) }
func (r *kvmRun) systemEvent() *exitSystemEvent {
	return (*exitSystemEvent)(unsafe.Pointer(&r.exit))
}
func (r *kvmRun) eoi() *exitEOI { return (*exitEOI)(unsafe.Pointer(&r.exit)) }
func (r *kvmRun) memoryFault() *exitMemoryFault {
	return (*exitMemoryFault)(unsafe.Pointer(&r.exit))
}
