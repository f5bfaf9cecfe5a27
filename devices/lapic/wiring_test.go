package lapic_test

import (
	"testing"

	"github.com/gvmspawn/gvmspawn/devices/ioapic"
	"github.com/gvmspawn/gvmspawn/devices/lapic"
	"github.com/gvmspawn/gvmspawn/devices/pic"
	"github.com/gvmspawn/gvmspawn/vmm/bus"
)

// platform is the interrupt hardware of a PC, wired as an engine wires it.
type platform struct {
	cluster *lapic.Cluster
	ioapic  *ioapic.IOAPIC
	pic     *pic.Pair
}

func newPlatform(t *testing.T, cpus int) *platform {
	p := &platform{}
	var ids []uint32
	for i := range cpus {
		ids = append(ids, uint32(i))
	}
	var err error
	p.cluster, err = lapic.NewCluster(lapic.Config{
		IDs: ids, Clock: bus.NewHostClock(),
		FromTSC: func(_ int, tsc uint64) uint64 { return tsc },
		EOI:     func(v uint8) { p.ioapic.EOI(v) },
	})
	if err != nil {
		t.Fatal(err)
	}
	p.ioapic = ioapic.New(ioapic.Config{Send: func(addr uint64, data uint32) { p.cluster.Deliver(addr, data) }})
	p.pic = pic.New(func(level bool) { p.cluster.APIC(0).SetPin(0, level) })
	for i := range cpus {
		p.cluster.APIC(i).Write(0xf0, 4, 0x1ff)
	}
	return p
}

// TestLevelThroughIOAPIC: line, I/O APIC, local APIC, EOI broadcast, and again
// as long as the line is high.
func TestLevelThroughIOAPIC(t *testing.T) {
	p := newPlatform(t, 2)
	p.ioapic.Write(0, 4, 0x10+2*9+1)
	p.ioapic.Write(0x10, 4, 1<<24) // CPU 1
	p.ioapic.Write(0, 4, 0x10+2*9)
	p.ioapic.Write(0x10, 4, 0x8055)
	line := p.ioapic.NewLine(9)
	a := p.cluster.APIC(1)
	line.Set(true)
	for range 3 {
		v, ok := a.Interrupt()
		if !ok || v != 0x55 {
			t.Fatalf("vector %#x, %v", v, ok)
		}
		a.Ack(v)
		if _, ok := a.Interrupt(); ok {
			t.Fatal("interrupts again before EOI")
		}
		a.Write(0xb0, 4, 0)
	}
	v, _ := a.Interrupt()
	a.Ack(v)
	line.Set(false)
	a.Write(0xb0, 4, 0)
	if _, ok := a.Interrupt(); ok || a.Events() != 0 {
		t.Error("interrupts with the line low")
	}
	if p.cluster.APIC(0).Events() != 0 {
		t.Error("the wrong CPU was told")
	}
}

// TestPICThroughLINT0: the 8259 asks through LINT0 and tells the vector.
func TestPICThroughLINT0(t *testing.T) {
	p := newPlatform(t, 1)
	a := p.cluster.APIC(0)
	for _, w := range [][2]uint64{{0, 0x11}, {1, 8}, {1, 4}, {1, 1}, {1, 0}} {
		p.pic.Ports(0).Write(w[0], 1, w[1])
	}
	a.Write(0x350, 4, 0x700) // ExtINT
	p.pic.Line(0).Set(true)
	p.pic.Line(0).Set(false)
	p.pic.Line(1).Set(true)
	for _, want := range []uint8{8, 9} {
		if !a.Take(lapic.EventExtINT) {
			t.Fatalf("no request for vector %d", want)
		}
		if v := p.pic.Ack(); v != want {
			t.Fatalf("vector %d, want %d", v, want)
		}
		p.pic.Ports(0).Write(0, 1, 0x20)
	}
	if a.Events() != 0 {
		t.Errorf("events %#x", a.Events())
	}
}
