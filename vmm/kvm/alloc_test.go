package kvm

import (
	"errors"
	"testing"

	"github.com/gvmspawn/gvmspawn/vmm/mem"
	"github.com/gvmspawn/gvmspawn/vmm/vcpu"
)

// raceDetector is true in a test binary with the race detector.
var raceDetector bool

// perRun is how many exits the loops below make in one Run.
const perRun = 200

// countdown kicks CPU 0 at every perRun-th access.
func (g *guest) countdown() {
	g.io.log = nil
	n := 0
	g.io.hook = func(access) {
		if n++; n == perRun {
			n = 0
			g.cpus[0].Kick()
		}
	}
}

var loops = map[string][]byte{
	"port":        {0xe6, 0x10, 0xe5, 0x12, 0xeb, 0xfa},                   // out 0x10, al; in ax, 0x12; jmp
	"mmio":        {0xa3, 0, 0, 0, 0xd0, 0xa0, 4, 0, 0, 0xd0, 0xeb, 0xf4}, // mov [testMMIO], eax; mov al, [testMMIO+4]; jmp
	"string port": {0xfc, 0xba, 0, 1, 0, 0, 0xb9, 8, 0, 0, 0, 0xbe, 0, 0x20, 0, 0, 0xf3, 0x6e, 0xeb, 0xec},
}

// TestExitAllocs: port and memory exits allocate nothing.
func TestExitAllocs(t *testing.T) {
	for name, prog := range loops {
		t.Run(name, func(t *testing.T) {
			g := newGuest(t, 1, prog...)
			g.countdown()
			c := g.start(t, flat32)
			run := func() {
				if exit, err := c.Run(); err != nil || exit.Reason != vcpu.ExitKick {
					t.Errorf("Run: %+v, %v", exit, err)
				}
			}
			onThread(t, func() {
				// On a busy host the runtime allocates now and then, for a thread of its own.
				least := testing.AllocsPerRun(5, run)
				for range 3 {
					least = min(least, testing.AllocsPerRun(5, run))
				}
				if least != 0 {
					t.Errorf("%v allocations in %d exits", least, perRun)
				}
			})
		})
	}
}

// TestWireAllocs: neither interrupts nor doorbells nor kicks allocate.
func TestWireAllocs(t *testing.T) {
	if raceDetector {
		t.Skip("the race detector allocates")
	}
	g := newGuest(t, 1, 0xeb, 0xfe)
	msi, err := g.NewMSI()
	if err != nil {
		t.Fatal(err)
	}
	bell, err := g.NewDoorbell()
	if err != nil {
		t.Fatal(err)
	}
	line := g.NewLine(5)
	for name, f := range map[string]func(){
		"MSI.Route":   func() { _ = msi.Route(msiAddress, 0x41) },
		"MSI.Trigger": msi.Trigger,
		"Line.Set":    func() { line.Set(true); line.Set(false) },
		"Doorbell":    func() { bell.Ring(); bell.Wait() },
		"Bind":        func() { _ = bell.Bind(testMMIO); _ = bell.Unbind() },
		"Kick":        g.VCPU(0).Kick,
	} {
		if n := testing.AllocsPerRun(100, f); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

// BenchmarkExit measures an exit of each kind. On a host that emulates, most of it
// is KVM's.
func BenchmarkExit(b *testing.B) {
	for name, prog := range loops {
		b.Run(name, func(b *testing.B) {
			g := newGuest(b, 1, prog...)
			g.io.log = nil
			n := 0
			g.io.hook = func(access) {
				if n++; n == b.N {
					g.cpus[0].Kick()
				}
			}
			c := g.start(b, flat32)
			b.ReportAllocs()
			b.ResetTimer()
			onThread(b, func() { _, _ = c.Run() })
		})
	}
}

// BenchmarkTrigger compares KVM_SIGNAL_MSI with the irqfd.
func BenchmarkTrigger(b *testing.B) {
	g := newGuest(b, 1, 0xeb, 0xfe)
	msi, err := g.NewMSI()
	if err != nil {
		b.Fatal(err)
	}
	if err := msi.Route(msiAddress, 0x41); err != nil {
		b.Fatal(err)
	}
	b.Run("signal", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			msi.Trigger()
		}
	})
	b.Run("irqfd", func(b *testing.B) {
		d := &doorbell{fd: msi.FD()}
		b.ReportAllocs()
		for b.Loop() {
			d.Ring()
		}
	})
}

// BenchmarkNew measures the assembly of a VM with 1 and with 64 CPUs, without
// Close, which waits for the kernel's RCU.
func BenchmarkNew(b *testing.B) {
	needKVM(b)
	for name, cpus := range map[string]int{"1": 1, "64": 64} {
		b.Run(name, func(b *testing.B) {
			for range b.N {
				b.StopTimer()
				m := mem.New()
				if _, err := m.Add("ram", 0, 512<<20, mem.RAM); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
				vm, err := New(Config{Memory: m, CPUs: cpus, IO: &recorder{}, AllowEmulated: !native()})
				b.StopTimer()
				if err = errors.Join(err, vm.Close(), m.Close()); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
		})
	}
}
