package bus

import (
	"math"
	"sync"
	"sync/atomic"
	"time"
)

// Never is the deadline that does not come.
const Never = math.MaxUint64

// Clock is the machine's time: nanoseconds that pass while the machine runs.
// [HostClock] follows the host's monotonic clock; a deterministic engine has
// its own, made of executed instructions. All methods may be called from any
// goroutine.
type Clock interface {
	// Now is the time since the machine was made.
	Now() uint64
	// NewTimer returns a timer that calls expired, on some goroutine and
	// without any lock held, when its deadline has come.
	NewTimer(expired func()) Timer
}

// Timer is one deadline of a [Clock].
type Timer interface {
	// Arm replaces the deadline; Never disarms. A deadline in the past
	// expires at once, but not inside Arm. An earlier deadline that is just
	// expiring may still call expired: the callee looks at the clock.
	Arm(deadline uint64)
}

// HostClock is a Clock on the host's monotonic clock that can be paused. A
// timer costs nothing while it is not armed.
type HostClock struct {
	start  time.Time
	paused atomic.Bool

	frozen atomic.Int64 // Now while paused
	missed atomic.Int64 // nanoseconds spent paused

	mu     sync.Mutex // serialises Pause and Resume, guards timers
	timers []*hostTimer
}

// NewHostClock returns a running clock at 0.
func NewHostClock() *HostClock { return &HostClock{start: time.Now()} }

// Now implements Clock.
func (c *HostClock) Now() uint64 {
	if c.paused.Load() {
		return uint64(c.frozen.Load())
	}
	return uint64(int64(time.Since(c.start)) - c.missed.Load())
}

// Pause stops the clock. It has no effect on a paused clock.
func (c *HostClock) Pause() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.paused.Load() {
		c.frozen.Store(int64(c.Now()))
		c.paused.Store(true)
	}
}

// Resume lets the clock go on from where it stopped, and its timers with it.
func (c *HostClock) Resume() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.paused.Load() {
		return
	}
	c.missed.Store(int64(time.Since(c.start)) - c.frozen.Load())
	c.paused.Store(false)
	for _, t := range c.timers {
		t.mu.Lock()
		t.start()
		t.mu.Unlock()
	}
}

// NewTimer implements Clock. The timer lives as long as the clock.
func (c *HostClock) NewTimer(expired func()) Timer {
	t := &hostTimer{clock: c, expired: expired, deadline: Never}
	t.host = time.AfterFunc(math.MaxInt64, t.fire)
	t.host.Stop()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.timers = append(c.timers, t)
	return t
}

// hostTimer is a HostClock's timer. Lock order: HostClock.mu, then mu.
type hostTimer struct {
	clock   *HostClock
	expired func()
	host    *time.Timer

	mu       sync.Mutex
	deadline uint64
}

// Arm implements Timer.
func (t *hostTimer) Arm(deadline uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	was := t.deadline
	t.deadline = deadline
	if deadline != Never {
		t.start()
	} else if was != Never {
		t.host.Stop()
	}
}

// start sets the host's timer for the deadline, if there is one and the clock
// runs; else Resume will. Preconditions: mu is held.
func (t *hostTimer) start() {
	if t.deadline == Never || t.clock.paused.Load() {
		return
	}
	var d time.Duration
	if now := t.clock.Now(); t.deadline > now {
		d = time.Duration(min(t.deadline-now, math.MaxInt64))
	}
	t.host.Reset(d)
}

// fire is called by the host's timer: perhaps early, or while paused.
func (t *hostTimer) fire() {
	t.mu.Lock()
	due := t.deadline != Never && !t.clock.paused.Load() && t.clock.Now() >= t.deadline
	if due {
		t.deadline = Never
	} else {
		t.start()
	}
	t.mu.Unlock()
	if due {
		t.expired()
	}
}
