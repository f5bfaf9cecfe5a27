// Package watchdog is a countdown that resets a machine whose system does not
// restart it in time: registers of our own, which the ACPI table WDAT explains
// to the system in terms of reads and writes (Microsoft, "Hardware Watchdog
// Timers Design Specification", 2006; firmware/acpi makes the table). Every
// Linux has a driver for that, unlike for any one real watchdog.
package watchdog

import (
	"sync"
	"time"

	"github.com/gvmspawn/gvmspawn/vmm/bus"
)

// Registers, four bytes each.
const (
	// Control runs the countdown with bit 0. It starts at the period.
	Control = 0x0
	// Period is the countdown's length in ticks, MinCount to MaxCount; others
	// are taken as the nearest of these.
	Period = 0x4
	// Count is what is left of the countdown; any write restarts it.
	Count = 0x8

	// Size is the size of the registers in bytes.
	Size = 0xc

	// Run is the bit of Control.
	Run = 1 << 0

	// Tick is the unit of counts.
	Tick     = 100 * time.Millisecond
	MinCount = 10
	MaxCount = 0xffff
)

// Timer is the countdown. It implements bus.Device.
type Timer struct {
	clock   bus.Clock
	timer   bus.Timer
	expired func()

	mu       sync.Mutex // guards the fields below
	running  bool
	period   uint64 // ticks
	deadline uint64 // of the clock, while running
}

// New returns a timer that stands still. When it expires, once at most, it
// calls the function on some goroutine.
func New(c bus.Clock, expired func()) *Timer {
	t := &Timer{clock: c, expired: expired, period: MaxCount}
	t.timer = c.NewTimer(t.fire)
	return t
}

// Read implements bus.Device. An access that is not to the whole of a register
// reads as ones.
func (t *Timer) Read(off uint64, size int) uint64 {
	if size != 4 {
		return bus.Ones(size)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	switch off {
	case Control:
		if t.running {
			return Run
		}
		return 0
	case Period:
		return t.period
	case Count:
		return t.left()
	}
	return bus.Ones(size)
}

// left is the countdown, rounded up. Preconditions: mu is held.
func (t *Timer) left() uint64 {
	if !t.running {
		return t.period
	}
	now := t.clock.Now()
	if now >= t.deadline {
		return 0
	}
	return (t.deadline - now + uint64(Tick) - 1) / uint64(Tick)
}

// Write implements bus.Device. An access that is not to the whole of a register
// does nothing.
func (t *Timer) Write(off uint64, size int, v uint64) {
	if size != 4 {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	switch off {
	case Control:
		t.running = v&Run != 0
	case Period:
		t.period = min(max(v, MinCount), MaxCount)
	case Count:
	default:
		return
	}
	t.restart()
}

// restart begins the countdown anew, if it runs. Preconditions: mu is held.
func (t *Timer) restart() {
	t.deadline = bus.Never
	if t.running {
		t.deadline = t.clock.Now() + t.period*uint64(Tick)
	}
	t.timer.Arm(t.deadline)
}

// fire is called by the clock's timer, perhaps for a deadline that has moved.
func (t *Timer) fire() {
	t.mu.Lock()
	due := t.running && t.clock.Now() >= t.deadline
	if due {
		t.running = false
	}
	t.mu.Unlock()
	if due {
		t.expired()
	}
}
