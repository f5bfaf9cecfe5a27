package soft

import (
	"sync"
	"sync/atomic"

	"github.com/gvmspawn/gvmspawn/vmm/bus"
)

// A CPU's thread waits in the kernel while its guest is halted, and its local
// APIC's timer is a POSIX timer that signals that thread: timerSignal sets
// exitTimer in State.Exit, which translated code polls, and wakes the thread.
// Go's timers and channels would take three to five switches of threads for
// each of the guest's ticks, these take one or two.

// sleep waits until State.Exit is not zero.
func (c *CPU) sleep() {
	c.asleep.Store(true)
	if atomic.LoadUint32(&c.s.Exit) == 0 {
		futexWait(&c.s.Exit)
	}
	c.asleep.Store(false)
}

// notify sets reasons to leave the loop and wakes a halted CPU.
func (c *CPU) notify(reason uint32) {
	atomic.OrUint32(&c.s.Exit, reason)
	if c.asleep.CompareAndSwap(true, false) {
		futexWake(&c.s.Exit)
	}
}

// apicClock is the clock of the local APICs: the machine's, with a timer of its
// own for each CPU, made in their order.
type apicClock struct {
	bus.Clock
	vm *VM
}

// NewTimer implements bus.Clock.
func (a apicClock) NewTimer(expired func()) bus.Timer {
	t := &cpuTimer{clock: a.Clock, expired: expired, deadline: bus.Never}
	a.vm.timers = append(a.vm.timers, t)
	return t
}

// cpuTimer is one deadline on a CPU's thread. It may expire too early: what it
// calls looks at the clock.
type cpuTimer struct {
	clock   bus.Clock
	expired func()

	mu       sync.Mutex // guards the rest
	deadline uint64
	armed    bool
	thread   int       // that the kernel's timer signals; 0 before there is one
	id       int32     // of the kernel's timer
	host     bus.Timer // where the kernel has no timer for us
}

// Arm implements bus.Timer.
func (t *cpuTimer) Arm(deadline uint64) {
	t.mu.Lock()
	t.deadline = deadline
	t.set()
	t.mu.Unlock()
}

// set tells the kernel of the deadline. Preconditions: mu is held.
func (t *cpuTimer) set() {
	switch {
	case t.host != nil:
		t.host.Arm(t.deadline)
	case t.thread == 0 || t.deadline == bus.Never && !t.armed:
	case t.deadline == bus.Never:
		t.armed = false
		setTimer(t.id, 0)
	default:
		t.armed = true
		now := t.clock.Now()
		setTimer(t.id, max(t.deadline, now+1)-now)
	}
}

// attach makes t signal the calling thread, on which c runs.
func (t *cpuTimer) attach(c *CPU) {
	thread := threadID()
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.thread == thread || t.host != nil {
		return
	}
	t.detach()
	id, err := newTimer(thread, &c.s.Exit)
	if err != nil {
		t.host = t.clock.NewTimer(func() { c.vm.expire(c.id) })
	} else {
		t.id, t.thread = id, thread
	}
	t.set()
}

// expire is the end of a timer that the kernel does not keep.
func (vm *VM) expire(cpu int) {
	vm.life.RLock()
	defer vm.life.RUnlock()
	if cpu < len(vm.cpus) {
		vm.cpus[cpu].notify(exitTimer)
	}
}

// timerExpired takes the reason back and tells the local APIC. A signal of an
// earlier machine's timer may come late: then there may be no timer.
func (c *CPU) timerExpired() {
	c.clearExit(exitTimer)
	if c.vm.timers != nil {
		c.vm.timers[c.id].expired()
	}
}

// detach deletes the kernel's timer. Preconditions: mu is held.
func (t *cpuTimer) detach() {
	if t.thread != 0 {
		deleteTimer(t.id)
		t.thread, t.armed = 0, false
	}
	if t.host != nil {
		t.host.Arm(bus.Never)
	}
}

// close ends the timer for good.
func (t *cpuTimer) close() {
	t.mu.Lock()
	t.detach()
	t.mu.Unlock()
}
