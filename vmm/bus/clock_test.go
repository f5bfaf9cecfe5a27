package bus

import (
	"testing"
	"time"
)

func TestHostClock(t *testing.T) {
	c := NewHostClock()
	fired := make(chan uint64, 10)
	tm := c.NewTimer(func() { fired <- c.Now() })
	at := c.Now() + 2e6
	tm.Arm(at)
	if got := <-fired; got < at {
		t.Errorf("fired at %d, before %d", got, at)
	}
	tm.Arm(0) // in the past
	<-fired
	tm.Arm(c.Now() + 5e6)
	tm.Arm(Never)
	select {
	case <-fired:
		t.Error("a disarmed timer fired")
	case <-time.After(10 * time.Millisecond):
	}
}

// TestHostClockPause: time and timers stand still together and go on together.
func TestHostClockPause(t *testing.T) {
	c := NewHostClock()
	fired := make(chan uint64, 10)
	tm := c.NewTimer(func() { fired <- c.Now() })
	late := c.NewTimer(func() { fired <- c.Now() })
	at := c.Now() + 3e6
	tm.Arm(at)
	c.Pause()
	c.Pause()
	late.Arm(at)
	before := c.Now()
	select {
	case <-fired:
		t.Error("fired while paused")
	case <-time.After(10 * time.Millisecond):
	}
	if c.Now() != before {
		t.Error("a paused clock runs")
	}
	c.Resume()
	c.Resume()
	for range 2 {
		if got := <-fired; got < at || got > at+1e9 {
			t.Errorf("fired at %d, deadline %d", got, at)
		}
	}
	if now := c.Now(); now < before || now > before+1e9 {
		t.Errorf("clock jumped from %d to %d", before, now)
	}
}

func TestHostClockNoAllocations(t *testing.T) {
	c := NewHostClock()
	tm := c.NewTimer(func() {})
	if n := testing.AllocsPerRun(100, func() { tm.Arm(c.Now() + 1e12) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
	tm.Arm(Never)
}
