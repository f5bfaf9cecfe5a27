package kvm

import (
	"encoding/binary"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gvmspawn/gvmspawn/vmm/bus"
	"github.com/gvmspawn/gvmspawn/vmm/layout"
	"github.com/gvmspawn/gvmspawn/vmm/mem"
	"github.com/gvmspawn/gvmspawn/vmm/vcpu"
)

// Machine code of 32-bit guests.

// movMem is mov dword [addr], v.
func movMem(addr, v uint32) []byte {
	b := binary.LittleEndian.AppendUint32([]byte{0xc7, 0x05}, addr)
	return binary.LittleEndian.AppendUint32(b, v)
}

// Registers of the local APIC (Intel SDM vol. 3A, table 11-1).
const (
	apicEOI = layout.LocalAPIC + 0xb0
	apicSVR = layout.LocalAPIC + 0xf0
	apicICR = layout.LocalAPIC + 0x300
)

// Interrupt vectors of interruptGuest.
const (
	vectorNMI = 2
	vectorMSI = 0x40
	vectorPin = 0x41
	pinGSI    = 20
)

// interruptGuest enables APIC and IOAPIC, writes to port 0x70, and sleeps. The
// handler of a vector writes it to port 0x71.
func interruptGuest(t *testing.T) (*guest, <-chan uint64) {
	t.Helper()
	g := newGuest(t, 1, code(
		movMem(apicSVR, 0x1ff),
		movMem(layout.IOAPIC, 0x10+2*pinGSI), movMem(layout.IOAPIC+0x10, vectorPin), // edge, to APIC 0
		movMem(layout.IOAPIC, 0x11+2*pinGSI), movMem(layout.IOAPIC+0x10, 0),
		[]byte{0xfb, 0xe6, 0x70, 0xf4, 0xeb, 0xfd}, // sti; out 0x70, al; hlt; jmp
	)...)
	const gdtAt, idtAt, handlersAt = 0x500, 0x2000, 0x3000
	gdt := []uint64{0, 0x00cf9b000000ffff, 0x00cf93000000ffff}
	for i, d := range gdt {
		_ = g.mem.WriteAt(binary.LittleEndian.AppendUint64(nil, d), gdtAt+8*mem.GPA(i))
	}
	iret := []byte{0xcf}
	if !native() { // which KVM's emulator lacks in protected mode
		iret = []byte{0x58, 0x59, 0x9d, 0xff, 0xe0} // pop eax; pop ecx; popf; jmp eax
	}
	for _, v := range []byte{vectorNMI, vectorMSI, vectorPin} {
		handler := code([]byte{0xb0, v, 0xe6, 0x71}, movMem(apicEOI, 0), iret) // mov al, v; out; EOI
		at := handlersAt + 32*uint32(v)
		_ = g.mem.WriteAt(handler, mem.GPA(at))
		gate := uint64(at&0xffff) | 8<<16 | 0x8e00<<32 | uint64(at>>16)<<48
		_ = g.mem.WriteAt(binary.LittleEndian.AppendUint64(nil, gate), idtAt+8*mem.GPA(v))
	}
	seen := make(chan uint64, 64)
	g.io.log = nil
	g.io.hook = func(a access) {
		if a.addr == 0x70 || a.addr == 0x71 {
			seen <- a.addr<<8 | a.value
		}
	}
	g.start(t, func(r *vcpu.Registers) {
		flat32(r)
		r.GDT = vcpu.Table{Base: gdtAt, Limit: 23}
		r.IDT = vcpu.Table{Base: idtAt, Limit: 0x7ff}
	})
	g.background(t, 0)
	await(t, seen, 0x7000, 0xff00)
	return g, seen
}

// background runs a CPU until the end of the test.
func (g *guest) background(t *testing.T, i int) {
	var stop atomic.Bool
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		for !stop.Load() {
			if exit, err := g.cpus[i].Run(); err != nil || exit.Reason != vcpu.ExitKick {
				t.Errorf("CPU %d: %+v, %v", i, exit, err)
				return
			}
		}
	}()
	t.Cleanup(func() {
		stop.Store(true)
		g.cpus[i].Kick()
		<-done
	})
}

// await waits for a value, under a mask.
func await(t *testing.T, seen <-chan uint64, want, mask uint64) {
	t.Helper()
	select {
	case got := <-seen:
		if got&mask != want {
			t.Fatalf("the guest reports %#x, want %#x", got, want)
		}
	case <-time.After(20 * time.Second):
		t.Fatalf("the guest does not report %#x", want)
	}
}

func quiet(t *testing.T, seen <-chan uint64) {
	t.Helper()
	select {
	case got := <-seen:
		t.Fatalf("the guest reports %#x, want nothing", got)
	case <-time.After(50 * time.Millisecond):
	}
}

func TestMSI(t *testing.T) {
	g, seen := interruptGuest(t)
	m, err := g.NewMSI()
	if err != nil {
		t.Fatal(err)
	}
	m.Trigger()
	quiet(t, seen) // no route yet
	if err := m.Route(msiAddress, vectorMSI); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		m.Trigger()
		await(t, seen, 0x7100|vectorMSI, ^uint64(0))
	}
	// The same by eventfd, as the kernel's vhost does it, with the route made before,
	fd := m.FD()
	if fd < 0 {
		t.Fatal("no eventfd")
	}
	ring := (&doorbell{fd: fd}).signal
	ring()
	await(t, seen, 0x7100|vectorMSI, ^uint64(0))
	// and changed after the eventfd was made,
	if err := m.Route(msiAddress, vectorPin); err != nil {
		t.Fatal(err)
	}
	ring()
	await(t, seen, 0x7100|vectorPin, ^uint64(0))
	// and taken away by an address that is no interrupt (hostile guest, row 9).
	for _, addr := range []uint64{0, 0x1000, 0xfed00000, 0x1_fee00000, ^uint64(0)} {
		if err := m.Route(addr, vectorMSI); err != nil {
			t.Fatal(err)
		}
		m.Trigger()
		ring()
	}
	quiet(t, seen)
	// A second source has a route of its own.
	m2, err := g.NewMSI()
	if err != nil {
		t.Fatal(err)
	}
	_ = m2.Route(msiAddress, vectorMSI)
	(&doorbell{fd: m2.FD()}).signal()
	await(t, seen, 0x7100|vectorMSI, ^uint64(0))
	if err := m2.Close(); err != nil {
		t.Fatal(err)
	}
	if len(g.routes) != 0 || len(g.usedGSI) != 1 {
		t.Errorf("routes %v, GSIs %v are left", g.routes, g.usedGSI)
	}
}

func TestLine(t *testing.T) {
	g, seen := interruptGuest(t)
	a, b := g.NewLine(pinGSI), g.NewLine(pinGSI)
	a.Set(true)
	await(t, seen, 0x7100|vectorPin, ^uint64(0))
	a.Set(true)
	b.Set(true)
	a.Set(false)
	quiet(t, seen) // the pin is still high: no edge
	b.Set(false)
	b.Set(true)
	await(t, seen, 0x7100|vectorPin, ^uint64(0))
	// Making the irqfds' routes must not lose the pins.
	m, err := g.NewMSI()
	if err != nil {
		t.Fatal(err)
	}
	_ = m.Route(msiAddress, vectorMSI)
	m.FD()
	b.Set(false)
	b.Set(true)
	await(t, seen, 0x7100|vectorPin, ^uint64(0))
	g.NewLine(4000).Set(true) // not wired to anything
}

func TestNMI(t *testing.T) {
	g, seen := interruptGuest(t)
	n := 3
	if !native() {
		n = 1 // without iret the next one stays blocked
	}
	for range n {
		if err := g.cpus[0].NMI(); err != nil {
			t.Fatal(err)
		}
		await(t, seen, 0x7100|vectorNMI, ^uint64(0))
	}
}

// TestDoorbellInGuest: writes of any size and value ring the bound bell without
// an exit to us; moving and unbinding work.
func TestDoorbellInGuest(t *testing.T) {
	g := newGuest(t, 1, code(
		movMem(testMMIO+0x10, 7),
		[]byte{0xa2, 0x10, 0, 0, 0xd0}, // mov [testMMIO+0x10], al
		movMem(testMMIO+0x20, 8),
		stop)...)
	bell, err := g.NewDoorbell()
	if err != nil {
		t.Fatal(err)
	}
	other, err := g.NewDoorbell()
	if err != nil {
		t.Fatal(err)
	}
	g.stopOn()
	round := func(at uint64, want ...access) {
		t.Helper()
		if at != 0 {
			if err := bell.Bind(at); err != nil {
				t.Fatal(err)
			}
		}
		g.io.log = g.io.log[:0]
		runOnce(t, g.start(t, flat32), vcpu.ExitKick)
		g.wantLog(t, want...)
		if at != 0 && !bell.Wait() {
			t.Fatal("the bell is closed")
		}
	}
	w10, w10b, w20 := access{testMMIO + 0x10, 4, 7, true, true}, access{testMMIO + 0x10, 1, 0, true, true}, access{testMMIO + 0x20, 4, 8, true, true}
	round(testMMIO+0x10, w20)
	round(testMMIO+0x10, w20) // bound twice
	if other.Bind(testMMIO+0x10) == nil {
		t.Error("two bells at one address")
	}
	round(testMMIO+0x20, w10, w10b)
	if err := other.Bind(testMMIO + 0x10); err != nil {
		t.Error(err)
	}
	if err := other.Close(); err != nil {
		t.Error(err)
	}
	if err := bell.Unbind(); err != nil {
		t.Fatal(err)
	}
	if err := bell.Unbind(); err != nil {
		t.Error("unbound twice:", err)
	}
	round(0, w10, w10b, w20)
}

func newBell(t *testing.T) bus.Doorbell {
	t.Helper()
	d, err := newGuest(t, 1).NewDoorbell()
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// TestDoorbellRing: a ring before Wait counts, several count once.
func TestDoorbellRing(t *testing.T) {
	d := newBell(t)
	d.Ring()
	d.Ring()
	if !d.Wait() {
		t.Fatal("closed")
	}
	woken := make(chan bool)
	go func() { woken <- d.Wait() }()
	select {
	case <-woken:
		t.Fatal("two rings woke twice")
	case <-time.After(20 * time.Millisecond):
	}
	d.Ring()
	if !<-woken {
		t.Fatal("closed")
	}
}

// TestDoorbellClose: Close wakes all who wait, once and for all, whoever rings meanwhile.
func TestDoorbellClose(t *testing.T) {
	d := newBell(t)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for d.Wait() {
			}
		})
	}
	for range 2 {
		wg.Go(func() {
			for range 1000 {
				d.Ring()
			}
		})
	}
	time.Sleep(10 * time.Millisecond)
	for range 2 {
		wg.Go(func() {
			if err := d.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	d.Ring()
	if d.Wait() {
		t.Error("Wait is true after Close")
	}
}

// TestClock: neither kvmclock nor TSC sees a pause.
func TestClock(t *testing.T) {
	g := newGuest(t, 1, code([]byte{
		0x0f, 0x31, // rdtsc
		0xe7, 0x10, // out 0x10, eax
		0x89, 0xd0, // mov eax, edx
		0xe7, 0x14, // out 0x14, eax
	}, stop)...)
	g.stopOn()
	tsc := func() uint64 {
		g.io.log = g.io.log[:0]
		runOnce(t, g.start(t, flat32), vcpu.ExitKick)
		return g.io.log[0].value | g.io.log[1].value<<32
	}
	clock := func() (d kvmClockData) {
		if _, err := ioctlPtr(g.fd, KVM_GET_CLOCK, &d); err != nil {
			t.Fatal(err)
		}
		return d
	}
	const pause = 500 * time.Millisecond
	khz, err := ioctl(g.cpus[0].fd, KVM_GET_TSC_KHZ, 0)
	if err != nil {
		t.Fatal(err)
	}
	c0, tsc0 := clock(), tsc()
	if err := g.PauseClock(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(pause)
	for range 2 { // the second does nothing
		if err := g.ResumeClock(); err != nil {
			t.Fatal(err)
		}
	}
	c1, tsc1 := clock(), tsc()
	if d := time.Duration(c1.clock - c0.clock); d < 0 || d > pause/2 {
		t.Errorf("kvmclock went on by %v in a pause of %v", d, pause)
	}
	if c0.flags&KVM_CLOCK_HOST_TSC == 0 {
		t.Skip("the host's clock is not its TSC")
	}
	if d := time.Duration(tsc1-tsc0) * time.Millisecond / time.Duration(khz); d < 0 || d > pause/2 {
		t.Errorf("the TSC went on by %v in a pause of %v", d, pause)
	}
}

// TestNoFilesLeft: at the limit of open files, wires are refused with an error
// (hostile guest, row 28), and those there go on working.
func TestNoFilesLeft(t *testing.T) {
	g := newGuest(t, 1)
	m, err := g.NewMSI()
	if err != nil {
		t.Fatal(err)
	}
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	low := unix.Rlimit{Cur: 3, Max: old.Max}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &low); err != nil {
		t.Skip(err)
	}
	_, bellErr := g.NewDoorbell()
	fd := m.FD()
	routeErr := m.Route(msiAddress, vectorMSI)
	_, vmErr := New(Config{Memory: g.mem, CPUs: 1, IO: g.io})
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	if bellErr == nil || fd != -1 || routeErr != nil || vmErr == nil {
		t.Errorf("without files: doorbell %v, MSI fd %d, route %v, VM %v", bellErr, fd, routeErr, vmErr)
	}
	if m.FD() < 0 {
		t.Error("no eventfd although there are files again")
	}
}
