package cmos

import (
	"testing"
	"time"

	"github.com/gvmspawn/gvmspawn/vmm/bus"
)

type line struct{ level bool }

func (l *line) Set(v bool) { l.level = v }

// clock is time by hand, for both the time of day and the timer.
type clock struct {
	start   time.Time
	ns      uint64
	at      uint64
	expired func()
}

func (c *clock) Now() uint64                 { return c.ns }
func (c *clock) NewTimer(f func()) bus.Timer { c.expired = f; c.at = bus.Never; return c }
func (c *clock) Arm(at uint64)               { c.at = at }
func (c *clock) wall() time.Time             { return c.start.Add(time.Duration(c.ns)) }
func (c *clock) advance(d time.Duration) (n int) {
	end := c.ns + uint64(d)
	for c.at <= end {
		c.ns, c.at = max(c.at, c.ns), bus.Never
		n++
		c.expired()
	}
	c.ns = end
	return n
}

type rig struct {
	*RTC
	line  line
	clock clock
}

func newRig() *rig {
	r := &rig{clock: clock{start: time.Date(2024, 2, 28, 23, 59, 58, 0, time.UTC)}}
	r.RTC = New(Config{Line: &r.line, Now: r.clock.wall, Clock: &r.clock, RAMBelow4G: 3 << 30, RAMAbove4G: 5 << 30, CPUs: 4})
	return r
}

func (r *rig) get(reg uint8) uint8 { r.Write(0, 1, uint64(reg)); return uint8(r.Read(1, 1)) }
func (r *rig) set(reg, v uint8)    { r.Write(0, 1, uint64(reg)); r.Write(1, 1, uint64(v)) }

func (r *rig) want(t *testing.T, what string, want ...uint8) {
	t.Helper()
	for i, reg := range []uint8{regCentury, regYear, regMonth, regDayOfMonth, regHours, regMinutes, regSeconds} {
		if got := r.get(reg); got != want[i] {
			t.Errorf("%s: register %#x is %#x, want %#x", what, reg, got, want[i])
		}
	}
}

func TestTime(t *testing.T) {
	r := newRig()
	r.want(t, "BCD", 0x20, 0x24, 0x02, 0x28, 0x23, 0x59, 0x58)
	if r.get(regDayOfWeek) != 4 {
		t.Error("2024-02-28 was a Wednesday")
	}
	r.clock.advance(2 * time.Second)
	r.want(t, "leap day", 0x20, 0x24, 0x02, 0x29, 0x00, 0x00, 0x00)
	r.set(regB, uint8(bDM))
	r.want(t, "binary, 12 hours", 20, 24, 2, 29, 12, 0, 0)
	r.clock.advance(13 * time.Hour)
	r.want(t, "afternoon", 20, 24, 2, 29, 0x81, 0, 0)
	if r.get(regD) != 0x80 {
		t.Error("VRT off")
	}
}

// TestSetTime: register B's SET stops the clock; fields are set in any order,
// also through dates that do not exist.
func TestSetTime(t *testing.T) {
	r := newRig()
	r.set(regB, uint8(b24|bSET))
	for _, f := range [][2]uint8{{regDayOfMonth, 0x31}, {regMonth, 0x02}, {regYear, 0x99}, {regCentury, 0x19},
		{regHours, 0x01}, {regMinutes, 0x02}, {regSeconds, 0x03}, {regMonth, 0x12}} {
		r.set(f[0], f[1])
		r.clock.advance(time.Minute)
	}
	r.want(t, "stopped", 0x19, 0x99, 0x12, 0x31, 1, 2, 3)
	r.set(regB, uint8(b24))
	r.clock.advance(time.Minute)
	r.want(t, "running", 0x19, 0x99, 0x12, 0x31, 1, 3, 3)
	r.set(regMinutes, 0x30)
	r.want(t, "set while running", 0x19, 0x99, 0x12, 0x31, 1, 0x30, 3)
}

// TestUIP: table 5, on for the last 244 µs of each second.
func TestUIP(t *testing.T) {
	r := newRig()
	r.clock.advance(time.Second - 245*time.Microsecond)
	if r.get(regA)&0x80 != 0 {
		t.Error("UIP too early")
	}
	r.clock.advance(2 * time.Microsecond)
	if r.get(regA)&0x80 == 0 {
		t.Error("no UIP")
	}
	r.set(regB, uint8(b24|bSET))
	if r.get(regA)&0x80 != 0 {
		t.Error("UIP with SET")
	}
}

func TestUpdateInterrupt(t *testing.T) {
	r := newRig()
	if r.clock.at != bus.Never {
		t.Error("timer without an enabled interrupt")
	}
	r.get(regC)
	r.set(regB, uint8(b24|bUIE))
	if r.clock.advance(999 * time.Millisecond); r.line.level {
		t.Error("too early")
	}
	if r.clock.advance(time.Millisecond); !r.line.level {
		t.Fatal("no interrupt")
	}
	if n := r.clock.advance(time.Hour); n != 0 {
		t.Errorf("%d timers while the guest does not look", n)
	}
	if c := r.get(regC); c&0x90 != 0x90 || r.line.level || r.get(regC) != 0 {
		t.Errorf("register C %#x, line %v", c, r.line.level)
	}
}

func TestAlarm(t *testing.T) {
	r := newRig()
	r.set(regHoursAlarm, 0x01)
	r.set(regMinutesAlarm, 0xff) // any
	r.set(regSecondsAlarm, 0x30)
	r.set(regB, uint8(b24|bAIE))
	if n := r.clock.advance(time.Hour + 31*time.Second); n != 0 {
		t.Errorf("%d timers before the alarm", n)
	}
	if r.clock.advance(time.Second); !r.line.level {
		t.Error("no alarm at 01:00:30")
	}
	if c := r.get(regC); c&0xa0 != 0xa0 {
		t.Errorf("register C %#x", c)
	}
	r.set(regSecondsAlarm, 0x61) // never
	if r.clock.at != bus.Never {
		t.Error("timer for an alarm that never comes")
	}
}

func TestPeriodic(t *testing.T) {
	r := newRig()
	r.set(regA, uint8(aDVOn)|6) // 1024 Hz
	r.set(regB, uint8(b24|bPIE))
	n := 0
	for end := r.clock.ns + 1e9; r.clock.ns < end; {
		r.clock.advance(100 * time.Microsecond)
		if r.line.level {
			n++
			if c := r.get(regC); c&0xc0 != 0xc0 {
				t.Fatalf("register C %#x", c)
			}
		}
	}
	if n < 1020 || n > 1028 {
		t.Errorf("%d interrupts a second, want 1024", n)
	}
}

func TestMemory(t *testing.T) {
	r := newRig()
	word := func(reg uint8) int { return int(r.get(reg)) | int(r.get(reg+1))<<8 }
	if word(0x15) != 640 || word(0x17) != 0xffff || word(0x30) != 0xffff || word(0x34) != (3<<30-16<<20)>>16 || word(0x5b) != 5<<30>>16&0xffff || r.get(0x5d) != 5<<30>>32 {
		t.Error("memory sizes")
	}
	if r.get(0x5f) != 3 {
		t.Error("CPUs")
	}
	r.set(0x50, 0xab)
	r.Reset()
	if r.get(0x50) != 0xab || r.get(0x80|0x50) != 0xab {
		t.Error("memory lost by reset, or the NMI bit is part of the index")
	}
	if r.Read(0, 1) != 0xff {
		t.Error("the index port reads back")
	}
}

// TestEveryAccess: rows 1 and 26 of the hostile guest: each index 0 to 0xff,
// each offset and width.
func TestEveryAccess(t *testing.T) {
	r := newRig()
	for _, v := range []uint64{0, 0xff, 0xa5, 0x80, 0x7f} {
		for index := range uint64(256) {
			for _, a := range [][2]uint64{{0, 1}, {1, 1}, {0, 2}} {
				r.Write(0, 1, index)
				r.Write(a[0], int(a[1]), v<<8|v)
				r.Read(a[0], int(a[1]))
				r.clock.advance(time.Second)
			}
		}
	}
}

func TestNoAllocations(t *testing.T) {
	r := newRig()
	if n := testing.AllocsPerRun(100, func() {
		r.set(regMinutes, r.get(regMinutes))
		r.get(regC)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func FuzzAccess(f *testing.F) {
	f.Add([]byte{0x0b, 0x70, 5, 0x12, 0x0a, 0x23})
	f.Fuzz(func(t *testing.T, ops []byte) {
		r := newRig()
		for ; len(ops) >= 2; ops = ops[2:] {
			r.set(ops[0], ops[1])
			r.get(ops[0])
			if n := r.clock.advance(time.Duration(ops[1]) * time.Millisecond); n > 10_000 {
				t.Fatalf("%d timers", n)
			}
		}
	})
}
