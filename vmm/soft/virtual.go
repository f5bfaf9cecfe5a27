package soft

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/gvmspawn/gvmspawn/vmm/bus"
)

// virtualClock is the time of a deterministic machine: one nanosecond an
// instruction, and a halted CPU goes straight to the next deadline. Its timers
// expire on the CPU's thread, at the first block head at or behind their
// deadline. It implements bus.Clock.
//
// Other threads may read the clock, but what they see depends on the host.
type virtualClock struct {
	vm      *VM
	skipped atomic.Uint64 // time that passed while the CPU was halted

	check *checkpoints // nil: none

	mu     sync.Mutex // guards timers and their deadlines
	timers []*virtualTimer
}

type virtualTimer struct {
	clock    *virtualClock
	expired  func()
	deadline uint64
}

// cpu is the machine's only CPU, nil before it is made and after it is gone.
func (v *virtualClock) cpu() *CPU {
	if len(v.vm.cpus) == 0 {
		return nil
	}
	return v.vm.cpus[0]
}

// Now implements bus.Clock. Within a block of code it stands still.
func (v *virtualClock) Now() uint64 {
	t := v.skipped.Load()
	if c := v.cpu(); c != nil {
		t += c.s.Count
	}
	return t
}

// NewTimer implements bus.Clock.
func (v *virtualClock) NewTimer(expired func()) bus.Timer {
	v.mu.Lock()
	defer v.mu.Unlock()
	t := &virtualTimer{v, expired, bus.Never}
	v.timers = append(v.timers, t)
	return t
}

// Arm implements bus.Timer.
func (t *virtualTimer) Arm(deadline uint64) {
	v := t.clock
	v.mu.Lock()
	defer v.mu.Unlock()
	t.deadline = deadline
	v.update()
}

// next is the timer that expires first, the older one of two. Preconditions:
// mu is held.
func (v *virtualClock) next() *virtualTimer {
	var first *virtualTimer
	for _, t := range v.timers {
		if t.deadline != bus.Never && (first == nil || t.deadline < first.deadline) {
			first = t
		}
	}
	return first
}

// update tells the CPU after which instruction it must look at the timers.
// Preconditions: mu is held.
func (v *virtualClock) update() {
	c := v.cpu()
	if c == nil {
		return
	}
	c.s.Deadline = bus.Never
	if t := v.next(); t != nil {
		c.s.Deadline = t.deadline - min(t.deadline, v.skipped.Load())
	}
	if k := v.check; k != nil {
		c.s.Deadline = min(c.s.Deadline, k.at)
	}
}

// expire calls what is due, in the order of the deadlines.
func (v *virtualClock) expire() {
	for {
		v.mu.Lock()
		t := v.next()
		if t == nil || t.deadline > v.Now() {
			v.update()
			v.mu.Unlock()
			return
		}
		t.deadline = bus.Never
		v.mu.Unlock()
		t.expired()
	}
}

// skip goes to the next deadline; false means that there is none.
func (v *virtualClock) skip() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	t := v.next()
	if t == nil {
		return false
	}
	if now := v.Now(); t.deadline > now {
		v.skipped.Add(t.deadline - now)
	}
	v.update()
	return true
}

// bellPatience is how long a deterministic machine's CPU waits for a device that
// is at work, on a slow disk or a busy host. One that takes longer goes on beside
// the CPU, and the run may not be repeatable.
const bellPatience = 10 * time.Second

// syncBell is the doorbell of a deterministic machine: Ring returns when the
// device's worker is back in Wait, so that all it did happened between two
// instructions. It implements bus.Doorbell.
type syncBell struct {
	mu      sync.Mutex // guards the fields below; cond is signalled when one changes
	cond    *sync.Cond
	rung    bool
	waiting int // workers in Wait
	away    bool
	closed  bool
}

func newSyncBell() *syncBell {
	b := &syncBell{}
	b.cond = sync.NewCond(&b.mu)
	return b
}

// Bind does nothing.
func (b *syncBell) Bind(uint64) error { return nil }

// Unbind does nothing.
func (b *syncBell) Unbind() error { return nil }

// Ring wakes the worker and waits for it.
func (b *syncBell) Ring() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.rung = true
	b.cond.Broadcast()
	b.await(func() bool { return b.away || !b.rung && b.waiting > 0 })
}

// Settle returns when a worker is in Wait, or away: when Ring would not wait.
func (b *syncBell) Settle() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.await(func() bool { return b.away || b.waiting > 0 })
}

// Away says that the worker waits for something else.
func (b *syncBell) Away() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.away = true
	b.cond.Broadcast()
}

// await returns when done says so, the bell is closed or the time is up.
// Preconditions: mu is held.
func (b *syncBell) await(done func() bool) {
	if done() || b.closed {
		return
	}
	late := false
	t := time.AfterFunc(bellPatience, func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		late = true
		b.cond.Broadcast()
	})
	defer t.Stop()
	for !b.closed && !late && !done() {
		b.cond.Wait()
	}
}

// Wait blocks until the bell has rung; false means that it is closed.
func (b *syncBell) Wait() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.waiting++
	b.away = false
	b.cond.Broadcast()
	for !b.rung && !b.closed {
		b.cond.Wait()
	}
	b.rung = false
	b.waiting--
	return !b.closed
}

// FD is -1.
func (b *syncBell) FD() int { return -1 }

// Close makes every Wait return false.
func (b *syncBell) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	b.cond.Broadcast()
	return nil
}
