package lapic

import (
	"testing"

	"github.com/gvmspawn/gvmspawn/vmm/bus"
)

// pending takes the timer's vector and reports whether it was there.
func (r *rig) pending(v uint8) bool {
	a := r.APIC(0)
	got, ok := a.Interrupt()
	if ok {
		a.irr.del(got)
	}
	return ok && got == v
}

// TestOneShot: §11.5.4, down from the initial count, once.
func TestOneShot(t *testing.T) {
	r := newRig(t, 0)
	a := r.APIC(0)
	a.Write(regLVT, 4, 0x40)
	a.Write(regDCR, 4, 0xb) // divide by 1
	a.Write(regTICR, 4, 1000)
	r.clock.advance(400)
	if got := a.Read(regTCCR, 4); got != 600 {
		t.Errorf("current count %d, want 600", got)
	}
	if r.pending(0x40) {
		t.Error("too early")
	}
	r.clock.advance(600)
	if !r.pending(0x40) || a.Read(regTCCR, 4) != 0 {
		t.Error("did not expire")
	}
	if n := r.clock.advance(1e9); n != 0 {
		t.Errorf("expired %d times more", n)
	}
	a.Write(regTICR, 4, 1000)
	a.Write(regTICR, 4, 0)
	if r.clock.advance(1e6); r.pending(0x40) {
		t.Error("an initial count of 0 does not stop")
	}
}

// TestDivide: figure 11-10.
func TestDivide(t *testing.T) {
	for v, want := range map[uint64]uint64{0: 2, 1: 4, 2: 8, 3: 16, 8: 32, 9: 64, 0xa: 128, 0xb: 1} {
		r := newRig(t, 0)
		a := r.APIC(0)
		a.Write(regDCR, 4, v)
		a.Write(regTICR, 4, 1000)
		r.clock.advance(100 * want)
		if got := a.Read(regTCCR, 4); got != 900 {
			t.Errorf("divide configuration %#x: %d left, want 900", v, got)
		}
		a.Write(regDCR, 4, 0xb)
		r.clock.advance(100)
		if got := a.Read(regTCCR, 4); got != 800 {
			t.Errorf("divide configuration %#x changed to 1: %d left, want 800", v, got)
		}
	}
}

// TestPeriodic: §11.5.4; missed periods count once, masked ones not at all.
func TestPeriodic(t *testing.T) {
	r := newRig(t, 0)
	a := r.APIC(0)
	a.Write(regDCR, 4, 0xb)
	a.Write(regLVT, 4, 0x20040)
	a.Write(regTICR, 4, 1_000_000)
	for range 5 {
		if r.clock.advance(999_999); r.pending(0x40) {
			t.Fatal("too early")
		}
		if r.clock.advance(1); !r.pending(0x40) {
			t.Fatal("did not expire")
		}
	}
	a.Write(regLVT, 4, 0x30040)
	if n := r.clock.advance(10_400_000); n != 0 || r.pending(0x40) {
		t.Error("a masked timer uses the host's")
	}
	if got := a.Read(regTCCR, 4); got != 600_000 {
		t.Errorf("current count %d, want 600000", got)
	}
	a.Write(regLVT, 4, 0x20040)
	if r.clock.advance(600_000); !r.pending(0x40) {
		t.Error("did not go on after unmasking")
	}
}

// TestTimerStorm: row 27 of the hostile guest: a period of a nanosecond must
// not keep the host busy.
func TestTimerStorm(t *testing.T) {
	r := newRig(t, 0)
	a := r.APIC(0)
	a.Write(regDCR, 4, 0xb)
	a.Write(regLVT, 4, 0x20040)
	a.Write(regTICR, 4, 1)
	if n := r.clock.advance(1e9); n > 1e9/minPeriod+1 {
		t.Errorf("%d expiries a second", n)
	}
	if got := a.Read(regTCCR, 4); got > 1 {
		t.Errorf("current count %d above the initial count", got)
	}
}

// TestTSCDeadline: §11.5.4.1.
func TestTSCDeadline(t *testing.T) {
	r := newRig(t, 0)
	a := r.APIC(0)
	read := func() uint64 { v, _ := a.ReadMSR(MSRTSCDeadline); return v }
	a.WriteMSR(MSRTSCDeadline, 5000)
	if read() != 0 {
		t.Error("written outside its mode")
	}
	a.Write(regLVT, 4, 0x40040)
	a.Write(regTICR, 4, 100)
	if a.Read(regTICR, 4) != 0 {
		t.Error("initial count written in TSC-deadline mode")
	}
	a.WriteMSR(MSRTSCDeadline, tscOffset+5000)
	if read() != tscOffset+5000 {
		t.Error("deadline does not read back")
	}
	if r.clock.advance(4999); r.pending(0x40) {
		t.Error("too early")
	}
	if r.clock.advance(1); !r.pending(0x40) || read() != 0 {
		t.Error("did not expire, or the MSR stays")
	}
	a.WriteMSR(MSRTSCDeadline, 1) // long ago
	if !r.pending(0x40) {
		t.Error("a deadline in the past does not interrupt at once")
	}
	a.WriteMSR(MSRTSCDeadline, tscOffset+20000)
	a.WriteMSR(MSRTSCDeadline, 0)
	if r.clock.advance(20000); r.pending(0x40) {
		t.Error("0 does not disarm")
	}
	a.WriteMSR(MSRTSCDeadline, tscOffset+60000)
	a.Write(regLVT, 4, 0x40)
	if read() != 0 || r.clock.timers[0].at != bus.Never {
		t.Error("leaving the mode does not disarm")
	}
	a.Write(regLVT, 4, 0x40040)
	a.WriteMSR(MSRTSCDeadline, tscOffset+80000)
	a.Write(regLVT, 4, 0x50040) // masked
	if r.clock.advance(80000); r.pending(0x40) || read() != 0 {
		t.Error("a masked deadline interrupts, or stays")
	}
}
