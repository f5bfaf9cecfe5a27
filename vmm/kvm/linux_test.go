package kvm_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/u-root/u-root/pkg/cpio"

	"github.com/gvmspawn/gvmspawn/boot/linux"
	"github.com/gvmspawn/gvmspawn/devices/ioapic"
	"github.com/gvmspawn/gvmspawn/devices/power"
	"github.com/gvmspawn/gvmspawn/devices/serial"
	"github.com/gvmspawn/gvmspawn/firmware/acpi"
	"github.com/gvmspawn/gvmspawn/vmm/bus"
	"github.com/gvmspawn/gvmspawn/vmm/guesttest"
	"github.com/gvmspawn/gvmspawn/vmm/kvm"
	"github.com/gvmspawn/gvmspawn/vmm/layout"
	"github.com/gvmspawn/gvmspawn/vmm/mem"
	"github.com/gvmspawn/gvmspawn/vmm/vcpu"
)

// guestDir is where the testbed has the kernel and the initrd.
const guestDir = "/guest"

// guestInit tells what the kernel made of its CPUs and clocks.
const guestInit = `#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sysfs /sys
cd /sys/devices/system
say() { /bin/busybox echo "guest: $*" >/dev/console; }
say cpus $(/bin/busybox grep -c ^processor /proc/cpuinfo)
say cores $(/bin/busybox cat cpu/cpu*/topology/core_id | /bin/busybox sort -n | /bin/busybox uniq | /bin/busybox wc -l)
say packages $(/bin/busybox cat cpu/cpu*/topology/physical_package_id | /bin/busybox sort -n | /bin/busybox uniq | /bin/busybox wc -l)
say siblings $(/bin/busybox cat cpu/cpu0/topology/thread_siblings_list)
say clocksource $(/bin/busybox cat clocksource/clocksource0/current_clocksource)
say clockevent $(/bin/busybox cat clockevents/clockevent0/current_device)
for f in x2apic tsc_deadline_timer hypervisor svm vmx; do say flag $f $(/bin/busybox grep -m1 -c -w $f /proc/cpuinfo); done
/bin/busybox dmesg -r | /bin/busybox grep '^<[0-4]>' | while read l; do say warn "$l"; done
/bin/busybox dmesg | /bin/busybox grep -iE 'kvm|tsc:|x2apic|smp:|hypervisor' | while read l; do say info "$l"; done
/bin/busybox sleep 0.1
say slept
up() { /bin/busybox cut -d ' ' -f 1 /proc/uptime; }
a=$(up)
/bin/busybox yes ............... | /bin/busybox head -c 16384 >/dev/console
b=$(up)
say interrupts $(/bin/busybox grep ttyS0 /proc/interrupts)
say uptimes $a $b
/bin/busybox poweroff -f
`

// sink collects a serial console.
type sink struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (s *sink) Put(b byte) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.buf.WriteByte(b)
	return true
}

// splitChip is the Go I/O APIC on KVM's split interrupt controller.
type splitChip struct{ *ioapic.IOAPIC }

func (c splitChip) NewLine(gsi uint32) bus.Line { return c.IOAPIC.NewLine(int(gsi)) }

func newSplitChip(b *bus.Bus) func(kvm.SplitWires) kvm.IOAPIC {
	return func(w kvm.SplitWires) kvm.IOAPIC {
		chip := ioapic.New(ioapic.Config{Send: w.Send, Routed: func(pin int, m ioapic.Message) { w.Route(pin, m.Addr, m.Data, m.Masked) }})
		if err := b.MMIO.Map("I/O APIC", layout.IOAPIC, layout.IOAPICSize, chip); err != nil {
			panic(err)
		}
		return splitChip{chip}
	}
}

// bootLinux boots the kernel and returns its console and how it ended.
func bootLinux(t *testing.T, dir string, cpus int, split bool) (string, string) {
	t.Helper()
	m := mem.New()
	defer m.Close()
	if _, err := m.Add("ram", 0, 256<<20, mem.RAM); err != nil {
		t.Fatal(err)
	}
	var b bus.Bus
	cfg := kvm.Config{Memory: m, CPUs: cpus, IO: &b, NoPIT: true}
	if split {
		cfg.Split = newSplitChip(&b)
	}
	vm, err := kvm.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer vm.Close()
	var ended atomic.Bool
	var how atomic.Value
	stop := func(why string) {
		how.CompareAndSwap(nil, why)
		ended.Store(true)
		for i := range cpus {
			vm.VCPU(i).Kick()
		}
	}
	out := &sink{}
	chips := []struct {
		base, size uint64
		dev        bus.Device
	}{
		{layout.PortCOM1, 8, serial.New(vm.NewLine(layout.GSICOM1), out, func() {})},
		{layout.PortPM, power.ControlSize, &power.Control{PowerOff: func() { stop("power-off") }, Reset: func() { stop("reset") }}},
	}
	for _, c := range chips {
		if err := b.Port.Map("chip", c.base, c.size, c.dev); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.MMIO.Map("ged", layout.GED, power.EventsSize, power.NewEvents(vm.NewLine(layout.GSIGED))); err != nil {
		t.Fatal(err)
	}
	regs, err := loadLinux(m, dir, cpus)
	if err != nil {
		t.Fatal(err)
	}
	if err := vm.VCPU(0).SetRegisters(&regs); err != nil {
		t.Fatal(err)
	}
	timeout := time.AfterFunc(4*time.Minute, func() { stop("timeout") })
	defer timeout.Stop()
	runtime.GOMAXPROCS(max(runtime.GOMAXPROCS(0), cpus+runtime.NumCPU()+4))
	var wg sync.WaitGroup
	for i := range cpus {
		wg.Go(func() {
			runtime.LockOSThread()
			for !ended.Load() {
				if exit, err := vm.VCPU(i).Run(); err != nil || exit.Reason != vcpu.ExitKick {
					stop(fmt.Sprintf("CPU %d: %v %s %v", i, exit.Reason, exit.Detail, err))
				}
			}
		})
	}
	wg.Wait()
	if how.Load() != "power-off" {
		for i := range cpus {
			var r vcpu.Registers
			err := vm.VCPU(i).Registers(&r)
			t.Logf("CPU %d: RIP %#x RFLAGS %#x CR0 %#x CR3 %#x RSP %#x %v", i, r.RIP, r.RFLAGS, r.CR0, r.CR3, r.GPR[vcpu.RSP], err)
		}
	}
	return out.buf.String(), how.Load().(string)
}

func loadLinux(m *mem.Memory, dir string, cpus int) (vcpu.Registers, error) {
	rsdp, err := acpi.Write(m, acpi.Config{CPUs: cpus, RAMEnd: m.RAMEnd(), NoRTC: true})
	if err != nil {
		return vcpu.Registers{}, err
	}
	img, err := linux.Open(filepath.Join(dir, "vmlinuz"))
	if err != nil {
		return vcpu.Registers{}, err
	}
	defer img.Close()
	initrd, err := os.ReadFile(filepath.Join(dir, "initrd"))
	if err != nil {
		return vcpu.Registers{}, err
	}
	return linux.Load(linux.Boot{Memory: m, Image: img, RSDP: rsdp,
		Initrds:     []linux.Initrd{{Name: "initrd", Size: int64(len(initrd)), Data: bytes.NewReader(initrd)}},
		CommandLine: "console=ttyS0 reboot=t panic=-1 " + os.Getenv("GVMSPAWN_GUEST_CMDLINE")})
}

// TestInTestbedLinux boots the testbed's kernel on its genuine KVM.
func TestInTestbedLinux(t *testing.T) {
	if !guesttest.InTestbed() {
		t.Skip("runs in the testbed, by TestBootTestbed")
	}
	if _, err := os.Stat(guestDir); err != nil {
		t.Skip("the testbed has no kernel for it: this is another test's")
	}
	for _, c := range []struct {
		cpus  int
		split bool
	}{{1, false}, {1, true}, {4, false}} {
		cpus := c.cpus
		t.Run(fmt.Sprintf("%d CPUs, split %v", c.cpus, c.split), func(t *testing.T) {
			start := time.Now()
			console, how := bootLinux(t, guestDir, c.cpus, c.split)
			t.Logf("%v", time.Since(start))
			console = strings.ReplaceAll(strings.ReplaceAll(console, "\r", ""), "...............\n", "")
			if how != "power-off" {
				t.Fatalf("ended by %s; console:\n%s", how, console)
			}
			for _, want := range []string{
				fmt.Sprintf("cpus %d", cpus), fmt.Sprintf("cores %d", cpus), "packages 1", "siblings 0", "clockevent lapic-deadline",
				"flag x2apic 1", "flag tsc_deadline_timer 1", "flag hypervisor 1", "flag svm 0", "flag vmx 0", "slept",
			} {
				if !strings.Contains(console, "guest: "+want+"\n") {
					t.Errorf("no line %q", want)
				}
			}
			t.Log(console)
		})
	}
}

// guestInitrd writes busybox and guestInit as an initrd and returns its name.
func guestInitrd(t *testing.T) string {
	t.Helper()
	busybox, err := os.ReadFile(guesttest.Busybox(t))
	if err != nil {
		t.Fatal(err)
	}
	var archive bytes.Buffer
	w := cpio.Newc.Writer(&archive)
	for _, r := range []cpio.Record{
		cpio.Directory("bin", 0o755), cpio.Directory("dev", 0o755), cpio.CharDev("dev/console", 0o600, 5, 1),
		cpio.StaticFile("bin/busybox", string(busybox), 0o755), cpio.StaticFile("init", guestInit, 0o755),
	} {
		if err := w.WriteRecord(r); err != nil {
			t.Fatal(err)
		}
	}
	if err := cpio.WriteTrailer(w); err != nil {
		t.Fatal(err)
	}
	initrd := filepath.Join(t.TempDir(), "initrd")
	if err := os.WriteFile(initrd, archive.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	return initrd
}
