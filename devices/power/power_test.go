package power

import (
	"testing"

	"github.com/gvmspawn/gvmspawn/firmware/acpi"
	"github.com/gvmspawn/gvmspawn/vmm/bus"
	"github.com/gvmspawn/gvmspawn/vmm/layout"
)

type line struct {
	level bool
	edges int
}

func (l *line) Set(v bool) { l.level = v; l.edges++ }

// TestTablesAgree: the tables describe this chip.
func TestTablesAgree(t *testing.T) {
	if acpi.SleepControlPort != layout.PortPM+SleepControl || acpi.SleepStatusPort != layout.PortPM+SleepStatus ||
		acpi.ResetPort != layout.PortPM+ResetControl || acpi.ResetValue != ResetValue ||
		acpi.SleepTypeS5 != SleepTypeS5 || acpi.PowerButtonEvent != PowerButton ||
		ControlSize > layout.PortPMSize || EventsSize > layout.GEDSize {
		t.Error("firmware/acpi and devices/power disagree")
	}
}

// TestControl: row 26 of the hostile guest, each value in each register.
func TestControl(t *testing.T) {
	var off, reset int
	c := &Control{PowerOff: func() { off++ }, Reset: func() { reset++ }}
	for v := range uint64(256) {
		// ACPI 6.5 §4.8.3.7: SLP_TYP in bits 2 to 4, SLP_EN in bit 5.
		wantOff := v&0x20 != 0 && v>>2&7 == 5
		off, reset = 0, 0
		c.Write(SleepControl, 1, v)
		if (off == 1) != wantOff || reset != 0 {
			t.Errorf("sleep control %#x: %d power-offs, %d resets", v, off, reset)
		}
		off, reset = 0, 0
		c.Write(SleepStatus, 1, v)
		if off+reset != 0 {
			t.Errorf("sleep status %#x did something", v)
		}
		c.Write(ResetControl, 1, v)
		if (reset == 1) != (v == 1) || off != 0 {
			t.Errorf("reset %#x: %d power-offs, %d resets", v, off, reset)
		}
	}
	if c.Read(SleepStatus, 1) != 0 {
		t.Error("WAK_STS without a wake-up")
	}
}

// TestEvents: the line follows the register, reading takes the events, and an
// event from before the driver came is still there.
func TestEvents(t *testing.T) {
	l := &line{}
	e := NewEvents(l)
	e.Raise(PowerButton)
	e.Raise(PowerButton)
	e.Raise(2)
	if !l.level || l.edges != 1 {
		t.Errorf("line %+v", l)
	}
	for _, a := range [][2]uint64{{0, 1}, {0, 2}, {0, 8}, {1, 1}, {2, 2}, {4, 4}} {
		if e.Read(a[0], int(a[1])) != 0 {
			t.Errorf("%d bytes at %d took events", a[1], a[0])
		}
	}
	e.Write(0, 4, 3)
	if got := e.Read(0, 4); got != 3 || l.level || e.Read(0, 4) != 0 {
		t.Errorf("events %#x, line %+v", got, l)
	}
	e.Raise(1)
	e.Reset()
	if l.level || e.Read(0, 4) != 0 {
		t.Error("an event survived reset")
	}
}

func TestLegacyResets(t *testing.T) {
	n := 0
	r := &ResetRegister{Func: func() { n++ }}
	r.Write(0, 1, 2)
	if n != 0 || r.Read(0, 1) != 2 {
		t.Error("0xcf9: SYS_RST alone")
	}
	r.Write(0, 1, 6)
	r.Write(0, 1, 6)
	if n != 2 || r.Read(0, 1) != 2 {
		t.Errorf("0xcf9: %d resets", n)
	}
	n = 0
	p := &PortA{Func: func() { n++ }}
	for _, v := range []uint64{2, 3, 3, 2, 0xff} {
		p.Write(0, 1, v)
	}
	if n != 2 || p.Read(0, 1) != 3 {
		t.Errorf("0x92: %d resets, reads %#x", n, p.Read(0, 1))
	}
}

// TestEveryAccess: row 1 of the hostile guest.
func TestEveryAccess(t *testing.T) {
	nop := func() {}
	devices := []struct {
		dev  bus.Device
		size uint64
	}{
		{&Control{nop, nop}, ControlSize},
		{NewEvents(&line{}), layout.GEDSize},
		{&ResetRegister{Func: nop}, 1},
		{&PortA{Func: nop}, 1},
		{&PMTimer{bus.NewHostClock()}, 4},
	}
	for _, d := range devices {
		for _, size := range []int{1, 2, 4, 8} {
			for off := uint64(0); off+uint64(size) <= d.size; off++ {
				for _, v := range []uint64{0, 0x5a, ^uint64(0)} {
					d.dev.Write(off, size, v)
					d.dev.Read(off, size)
				}
			}
		}
	}
}

type fixed uint64

func (f fixed) Now() uint64               { return uint64(f) }
func (f fixed) NewTimer(func()) bus.Timer { return nil }

// TestPMTimer: 3.579545 MHz, 32 bits, no overflow on the way.
func TestPMTimer(t *testing.T) {
	for ns, want := range map[uint64]uint32{0: 0, 1e9: 3579545, 2e9 + 1e6: 7159090 + 3579, 1e18: uint32(3579545 * 1_000_000_000 & 0xffff_ffff)} {
		if got := (&PMTimer{fixed(ns)}).Read(0, 4); uint32(got) != want {
			t.Errorf("%d ns: %d, want %d", ns, got, want)
		}
	}
}

func FuzzAccess(f *testing.F) {
	f.Add([]byte{0, 0x34, 2, 1})
	f.Fuzz(func(t *testing.T, ops []byte) {
		l := &line{}
		e := NewEvents(l)
		for ; len(ops) >= 2; ops = ops[2:] {
			if ops[0]&1 != 0 {
				e.Raise(uint32(ops[1]))
			} else {
				e.Read(uint64(ops[0]&0xc), 4)
			}
			if l.level != (e.pending != 0) {
				t.Fatal("line and register disagree")
			}
		}
	})
}
