package soft

import (
	"fmt"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// timerSignalNumber is the signal of the CPUs' timers: a real-time signal that
// nobody else uses.
const timerSignalNumber = 52

// sigaction is struct sigaction of rt_sigaction(2).
type sigaction struct{ handler, flags, restorer, mask uint64 }

// sigevent is struct sigevent of timer_create(2).
type sigevent struct {
	value  uint64
	signal int32
	notify int32
	thread int32
	_      [11]int32
}

const sigevThreadID = 4 // SIGEV_THREAD_ID of asm-generic/siginfo.h

// futex calls futex(2) with FUTEX_PRIVATE_FLAG; it is in halt_amd64.s, as are
// timerSignal and its address.
//
//go:noescape
func futex(addr *uint32, op, val uint32)

func timerSignalAddr() uint64

//go:linkname entersyscallblock runtime.entersyscallblock
func entersyscallblock()

// futexWait waits while *addr is 0, or shorter.
//
//go:nosplit
func futexWait(addr *uint32) {
	entersyscallblock()
	futex(addr, 0, 0)
	exitsyscall()
}

func futexWake(addr *uint32) { futex(addr, 1, 1) }

func threadID() int { return unix.Gettid() }

// catchTimers installs timerSignal, once, with the flags of Go's handler.
var catchTimers = sync.OnceValue(func() error {
	var a sigaction
	for _, to := range []bool{false, true} {
		var set, get *sigaction = nil, &a
		if to {
			a.handler = timerSignalAddr()
			set, get = &a, nil
		}
		_, _, e := unix.RawSyscall6(unix.SYS_RT_SIGACTION, timerSignalNumber, uintptr(unsafe.Pointer(set)), uintptr(unsafe.Pointer(get)), 8, 0, 0)
		if e != 0 {
			return fmt.Errorf("handler of the CPUs' timers: %w", e)
		}
	}
	return nil
})

// newTimer makes a timer that sets exitTimer in *exit, which lies in an arena,
// and signals thread.
func newTimer(thread int, exit *uint32) (id int32, err error) {
	if err := catchTimers(); err != nil {
		return 0, err
	}
	ev := sigevent{value: uint64(uintptr(unsafe.Pointer(exit))), signal: timerSignalNumber, notify: sigevThreadID, thread: int32(thread)}
	_, _, e := unix.RawSyscall(unix.SYS_TIMER_CREATE, unix.CLOCK_MONOTONIC, uintptr(unsafe.Pointer(&ev)), uintptr(unsafe.Pointer(&id)))
	if e != 0 {
		return 0, e
	}
	return id, nil
}

// setTimer makes a timer expire in n nanoseconds, or never if n is 0. It cannot
// fail for a timer that exists.
func setTimer(id int32, n uint64) {
	const second = 1_000_000_000
	spec := [4]uint64{2: n / second, 3: n % second}
	_, _, _ = unix.RawSyscall6(unix.SYS_TIMER_SETTIME, uintptr(id), 0, uintptr(unsafe.Pointer(&spec)), 0, 0, 0)
}

func deleteTimer(id int32) { _, _, _ = unix.RawSyscall(unix.SYS_TIMER_DELETE, uintptr(id), 0, 0) }
