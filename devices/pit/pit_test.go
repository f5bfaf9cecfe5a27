package pit

import (
	"testing"

	"github.com/gvmspawn/gvmspawn/vmm/bus"
)

// rig is a PIT with a clock by hand.
type rig struct {
	*PIT
	ns, at  uint64
	expired func()
	pulses  int
}

func (r *rig) Now() uint64                 { return r.ns }
func (r *rig) NewTimer(f func()) bus.Timer { r.expired = f; r.at = bus.Never; return r }
func (r *rig) Arm(at uint64)               { r.at = at }
func (r *rig) Set(level bool) {
	if level {
		r.pulses++
	}
}

func newRig() *rig {
	r := &rig{}
	r.PIT = New(r, r)
	return r
}

// clocks advances to n more input clocks and returns the pulses on the way.
func (r *rig) clocks(n uint64) int {
	before := r.pulses
	end := nanoseconds(ticks(r.ns) + n)
	for r.at <= end {
		r.ns, r.at = max(r.ns, r.at), bus.Never
		r.expired()
	}
	r.ns = end
	return r.pulses - before
}

func (r *rig) out(off uint64, v uint8) { r.Write(off, 1, uint64(v)) }
func (r *rig) in(off uint64) uint8     { return uint8(r.Read(off, 1)) }

// load programs channel ch with a two-byte count.
func (r *rig) load(ch, mode uint8, n uint16) {
	r.out(3, ch<<6|0x30|mode<<1)
	r.out(uint64(ch), uint8(n))
	r.out(uint64(ch), uint8(n>>8))
}

func (r *rig) count(ch uint8) int {
	r.out(3, ch<<6)
	return int(r.in(uint64(ch))) | int(r.in(uint64(ch)))<<8
}

func TestTicks(t *testing.T) {
	for _, n := range []uint64{0, 1, 2, Hz - 1, Hz, 1e15} {
		ns := nanoseconds(n)
		if ticks(ns) != n || n > 0 && ticks(ns-1) >= n {
			t.Errorf("tick %d at %d ns: %d", n, ns, ticks(ns))
		}
	}
	if nanoseconds(^uint64(0)) != bus.Never {
		t.Error("overflow")
	}
}

// TestTerminalCount: mode 0 interrupts once, and goes on counting.
func TestTerminalCount(t *testing.T) {
	r := newRig()
	r.load(0, 0, 1000)
	if r.count(0) != 1000 || r.clocks(999) != 0 || r.count(0) != 1 {
		t.Errorf("count %d", r.count(0))
	}
	if r.clocks(1) != 1 || r.clocks(10) != 0 || r.count(0) != 65536-10 {
		t.Errorf("%d pulses, count %d", r.pulses, r.count(0))
	}
}

// TestPeriodic: modes 2 and 3.
func TestPeriodic(t *testing.T) {
	for _, mode := range []uint8{2, 3, 6, 7} {
		r := newRig()
		r.load(0, mode, 1193)
		if n := r.clocks(Hz); n != 1000 {
			t.Errorf("mode %d: %d pulses a second", mode, n)
		}
		r.out(3, 0x30) // a new control word stops it
		if n := r.clocks(Hz); n != 0 || r.at != bus.Never {
			t.Errorf("mode %d: %d pulses without a count", mode, n)
		}
	}
	r := newRig()
	r.load(0, 2, 0) // 65536: the BIOS tick
	if n := r.clocks(65536*18 + 10); n != 18 {
		t.Errorf("%d pulses", n)
	}
	r.clocks(90)
	if got := r.count(0); got != 65536-100 {
		t.Errorf("count %d", got)
	}
	r.load(0, 3, 1000)
	r.clocks(100)
	if got := r.count(0); got != 800 {
		t.Errorf("mode 3 counts by two: %d", got)
	}
}

// TestStorm: row 26 of the hostile guest: the shortest period.
func TestStorm(t *testing.T) {
	r := newRig()
	r.load(0, 2, 1)
	if n := r.clocks(Hz); n > 1e9/minPeriod+1 {
		t.Errorf("%d pulses a second", n)
	}
}

// TestSpeakerGate: Linux's and OVMF's calibration: channel 2 in mode 0, gate
// and output through port 0x61.
func TestSpeakerGate(t *testing.T) {
	r := newRig()
	p := r.Port61()
	p.Write(0, 1, 0)
	r.load(2, 0, 1000)
	r.clocks(5000)
	if p.Read(0, 1)&0x20 != 0 || r.count(2) != 1000 {
		t.Error("counts without gate")
	}
	p.Write(0, 1, 1)
	r.clocks(600)
	p.Write(0, 1, 0)
	r.clocks(5000)
	if r.count(2) != 400 {
		t.Errorf("count %d after a pause", r.count(2))
	}
	p.Write(0, 1, 1)
	r.clocks(399)
	if p.Read(0, 1)&0x21 != 0x01 {
		t.Error("output too early")
	}
	r.clocks(1)
	if p.Read(0, 1)&0x20 == 0 {
		t.Error("no output at terminal count")
	}
	if r.pulses != 0 {
		t.Error("channel 2 interrupts")
	}
	seen := map[uint64]bool{}
	for range 10 {
		r.ns += 10_000
		seen[p.Read(0, 1)&0x10] = true
	}
	if len(seen) != 2 {
		t.Error("the refresh bit does not toggle")
	}
}

// TestOneShot: modes 1 and 5 start with the gate's rising edge.
func TestOneShot(t *testing.T) {
	r := newRig()
	p := r.Port61()
	r.load(2, 1, 100)
	r.clocks(1000)
	if p.Read(0, 1)&0x20 == 0 {
		t.Error("mode 1: output low before the trigger")
	}
	p.Write(0, 1, 1)
	r.clocks(50)
	if p.Read(0, 1)&0x20 != 0 {
		t.Error("mode 1: output high after the trigger")
	}
	p.Write(0, 1, 0) // does not stop it
	r.clocks(50)
	if p.Read(0, 1)&0x20 == 0 {
		t.Error("mode 1: output low after the count")
	}
	r.load(0, 1, 100)
	r.load(0, 5, 100)
	if r.clocks(1000) != 0 {
		t.Error("channel 0 has no gate edge")
	}
	r.load(0, 4, 100)
	if r.clocks(100) != 0 || r.clocks(1) != 1 || r.clocks(1000) != 0 {
		t.Error("mode 4: one interrupt after the strobe")
	}
}

// TestReadBack: figures 11 and 12, status before count, and null count.
func TestReadBack(t *testing.T) {
	r := newRig()
	r.out(3, 0x34)
	r.out(3, 0xe2) // status of channel 0
	if s := r.in(0); s != 0xf4 {
		t.Errorf("status %#x without a count", s)
	}
	r.load(0, 2, 0x1234)
	r.out(3, 0xc2)
	if s := r.in(0); s != 0xb4 {
		t.Errorf("status %#x", s)
	}
	r.clocks(0x1000)
	if lo, hi := r.in(0), r.in(0); lo != 0x34 || hi != 0x12 {
		t.Errorf("latched count %#x%02x", hi, lo)
	}
}

// TestAccessModes: one byte only, and BCD.
func TestAccessModes(t *testing.T) {
	r := newRig()
	r.out(3, 0x14) // low byte only
	r.out(0, 100)
	if first, again := r.in(0), r.in(0); first != 100 || again != 100 {
		t.Error("low byte only")
	}
	r.out(3, 0x24)
	r.out(0, 2)
	r.clocks(1)
	if r.in(0) != 1 { // 0x01ff
		t.Error("high byte only")
	}
	r.out(3, 0x35)
	r.out(0, 0x50)
	r.out(0, 0x12)
	r.clocks(1)
	if got := r.count(0); got != 0x1249 {
		t.Errorf("BCD count %#x", got)
	}
}

// TestEveryAccess: rows 1 and 26 of the hostile guest.
func TestEveryAccess(t *testing.T) {
	r := newRig()
	for v := range uint64(256) {
		for _, size := range []int{1, 2, 4} {
			for off := uint64(0); off+uint64(size) <= 4; off++ {
				r.Write(off, size, v*0x01010101)
				r.Read(off, size)
				r.Port61().Write(0, 1, v)
				r.Port61().Read(0, 1)
				r.clocks(v)
			}
		}
	}
}

func TestNoAllocations(t *testing.T) {
	r := newRig()
	if n := testing.AllocsPerRun(100, func() {
		r.load(0, 2, 1000)
		r.count(0)
		r.Port61().Read(0, 1)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func FuzzAccess(f *testing.F) {
	f.Add([]byte{3, 0x34, 0, 1, 0, 0, 4, 1})
	f.Fuzz(func(t *testing.T, ops []byte) {
		r := newRig()
		for ; len(ops) >= 2; ops = ops[2:] {
			d, off := bus.Device(r), uint64(ops[0]&3)
			if ops[0]&4 != 0 {
				d, off = r.Port61(), 0
			}
			d.Write(off, 1, uint64(ops[1]))
			d.Read(off, 1)
			if n := r.clocks(uint64(ops[0]) << 4); n > 40 {
				t.Fatalf("%d pulses in %d clocks", n, int(ops[0])<<4)
			}
		}
	})
}
