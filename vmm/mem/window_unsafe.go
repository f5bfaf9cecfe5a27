package mem

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// sigaction is struct sigaction of rt_sigaction(2).
type sigaction struct{ handler, flags, restorer, mask uint64 }

// oldHandler has Go's handlers of SIGBUS and SIGSEGV, by signal; windowFault goes
// there with all faults that are none of its business.
var oldHandler [12]uint64

// windowFaultAddr is the address of windowFault in window_amd64.s.
func windowFaultAddr() uint64

// catchFault puts windowFault before the handler of SIGBUS or SIGSEGV, once and
// for good. It keeps the flags, with them the alternate stack.
func catchFault(sig unix.Signal) error {
	if oldHandler[sig] != 0 {
		return nil
	}
	var a sigaction
	err := rtSigaction(sig, nil, &a)
	if err != nil {
		return err
	}
	oldHandler[sig] = a.handler
	a.handler = windowFaultAddr()
	return rtSigaction(sig, &a, nil)
}

func rtSigaction(sig unix.Signal, to, from *sigaction) error {
	_, _, e := unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(sig), uintptr(unsafe.Pointer(to)), uintptr(unsafe.Pointer(from)), 8, 0, 0)
	if e != 0 {
		return fmt.Errorf("windows of guest memory: handler of %v: %w", sig, e)
	}
	return nil
}
