package watchdog

import (
	"testing"
	"time"

	"github.com/gvmspawn/gvmspawn/vmm/bus"
)

// clock is time by hand.
type clock struct {
	ns, at uint64
	fire   func()
}

func (c *clock) Now() uint64                 { return c.ns }
func (c *clock) NewTimer(f func()) bus.Timer { c.fire, c.at = f, bus.Never; return c }
func (c *clock) Arm(at uint64)               { c.at = at }

// advance moves the clock and fires the timer on its way; it reports how often.
func (c *clock) advance(d time.Duration) (n int) {
	end := c.ns + uint64(d)
	for c.at <= end {
		c.ns, c.at = max(c.ns, c.at), bus.Never
		n++
		c.fire()
	}
	c.ns = end
	return n
}

// rig is a timer with its clock and how often it expired.
type rig struct {
	*Timer
	clock
	expired int
}

func newRig() *rig {
	r := &rig{}
	r.Timer = New(&r.clock, func() { r.expired++ })
	return r
}

func TestCountdown(t *testing.T) {
	r := newRig()
	if r.advance(24*time.Hour) != 0 || r.Timer.Read(Control, 4) != 0 {
		t.Error("it runs by itself")
	}
	r.Write(Period, 4, 20)
	r.Write(Control, 4, Run)
	if r.Timer.Read(Control, 4) != Run || r.Timer.Read(Count, 4) != 20 || r.Timer.Read(Period, 4) != 20 {
		t.Error("it does not run")
	}
	r.advance(1850 * time.Millisecond)
	if got := r.Timer.Read(Count, 4); got != 2 || r.expired != 0 {
		t.Errorf("count %d, expired %d", got, r.expired)
	}
	r.Write(Count, 4, 1)
	if n := r.advance(1900 * time.Millisecond); r.expired != 0 || n != 0 {
		t.Error("a restart does not count")
	}
	if r.advance(100 * time.Millisecond); r.expired != 1 {
		t.Error("it did not expire")
	}
	if r.advance(time.Hour); r.expired != 1 || r.Timer.Read(Control, 4) != 0 {
		t.Errorf("expired %d times", r.expired)
	}
}

func TestStopAndLimits(t *testing.T) {
	r := newRig()
	r.Write(Control, 4, Run)
	r.Write(Control, 4, 0)
	if r.advance(3 * time.Hour); r.expired != 0 || r.at != bus.Never {
		t.Error("it cannot be stopped")
	}
	for v, want := range map[uint64]uint64{0: MinCount, 5: MinCount, 300: 300, 1 << 31: MaxCount} {
		if r.Write(Period, 4, v); r.Timer.Read(Period, 4) != want {
			t.Errorf("period %d becomes %d", v, r.Timer.Read(Period, 4))
		}
	}
	r.Write(Control, 4, Run)
	r.Write(Control, 1, 0)
	r.Write(Control+2, 4, 0)
	r.Write(Size-4, 8, 0)
	if r.Timer.Read(Control, 4) != Run || r.Timer.Read(Control, 1) != 0xff || r.Timer.Read(2, 4) != 0xffffffff {
		t.Error("parts of registers")
	}
	r.clock.fire() // early
	if r.expired != 0 {
		t.Error("expired early")
	}
}

func FuzzAccess(f *testing.F) {
	f.Add([]byte{0x14, 20, 0x10, 1, 0x18, 1, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, ops []byte) {
		r := newRig()
		for ; len(ops) >= 2; ops = ops[2:] {
			off, size := uint64(ops[0]&0xf), []int{1, 4, 2, 8}[ops[0]>>4&3]
			switch {
			case ops[0]&0x80 != 0:
				r.advance(time.Duration(ops[1]) * time.Second)
			case off+uint64(size) > Size:
			case ops[0]&0x40 != 0:
				r.Timer.Read(off, size)
			default:
				r.Write(off, size, uint64(ops[1]))
			}
			if left := r.Timer.Read(Count, 4); left > MaxCount {
				t.Fatalf("%d ticks left", left)
			}
		}
	})
}
