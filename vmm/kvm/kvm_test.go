package kvm

import (
	"encoding/binary"
	"errors"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gvmspawn/gvmspawn/vmm/bus"
	"github.com/gvmspawn/gvmspawn/vmm/layout"
	"github.com/gvmspawn/gvmspawn/vmm/mem"
	"github.com/gvmspawn/gvmspawn/vmm/vcpu"
)

var (
	_ vcpu.VM   = (*VM)(nil)
	_ vcpu.VCPU = (*VCPU)(nil)
	_ vcpu.IO   = (*bus.Bus)(nil)
)

// access is one call of vcpu.IO.
type access struct {
	addr  uint64
	size  int
	value uint64
	write bool
	mmio  bool
}

// recorder notes accesses up to its capacity; reads give next and then next+1, ….
type recorder struct {
	mu   sync.Mutex
	log  []access
	next uint64
	hook func(a access)
}

func (r *recorder) note(a access) uint64 {
	r.mu.Lock()
	if !a.write {
		a.value = r.next
		r.next++
	}
	if len(r.log) < cap(r.log) {
		r.log = append(r.log, a)
	}
	r.mu.Unlock()
	if r.hook != nil {
		r.hook(a)
	}
	return a.value
}

func (r *recorder) PortIn(p uint16, size int) uint32 {
	return uint32(r.note(access{addr: uint64(p), size: size}))
}
func (r *recorder) PortOut(p uint16, size int, v uint32) {
	r.note(access{addr: uint64(p), size: size, value: uint64(v), write: true})
}
func (r *recorder) MMIORead(a uint64, size int) uint64 {
	return r.note(access{addr: a, size: size, mmio: true})
}
func (r *recorder) MMIOWrite(a uint64, size int, v uint64) {
	r.note(access{addr: a, size: size, value: v, write: true, mmio: true})
}

// native reports whether this host's KVM runs guests on the CPU.
var native = sync.OnceValue(func() bool { return Probe(nil) == nil })

// needKVM skips the test on a host without any KVM.
func needKVM(t testing.TB) {
	t.Helper()
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		t.Skipf("needs /dev/kvm: %v", err)
	}
	f.Close()
}

// Guest memory of the tests: RAM, a read-only page, and everything else is MMIO.
const (
	testRAM  = 1 << 20
	testROM  = 0x20_0000
	testMMIO = 0xd000_0000
	codeAt   = 0x1000
	stackTop = 0x9000
)

type guest struct {
	*VM
	mem *mem.Memory
	io  *recorder
}

// newGuest makes a VM with the code at codeAt of its RAM.
func newGuest(t testing.TB, cpus int, code ...byte) *guest {
	t.Helper()
	needKVM(t)
	m := mem.New()
	for _, r := range []struct {
		name string
		base mem.GPA
		size uint64
		kind mem.Kind
	}{{"ram", 0, testRAM, mem.RAM}, {"rom", testROM, 4096, mem.ROM}, {"window", 0x40_0000, 1 << 16, mem.Window}} {
		if _, err := m.Add(r.name, r.base, r.size, r.kind); err != nil {
			t.Fatal(err)
		}
	}
	if err := m.WriteAt(code, codeAt); err != nil {
		t.Fatal(err)
	}
	g := &guest{mem: m, io: &recorder{log: make([]access, 0, 4096), next: 1}}
	vm, err := New(Config{Memory: m, CPUs: cpus, IO: g.io, AllowEmulated: true})
	if err != nil {
		t.Fatal(err)
	}
	g.VM = vm
	t.Cleanup(func() {
		if err := errors.Join(vm.Close(), m.Close()); err != nil {
			t.Error(err)
		}
	})
	return g
}

// start sets CPU 0 to real mode at codeAt.
func (g *guest) start(t testing.TB, change func(*vcpu.Registers)) *VCPU {
	t.Helper()
	c := g.cpus[0]
	var r vcpu.Registers
	if err := c.Registers(&r); err != nil {
		t.Fatal(err)
	}
	r.Seg[vcpu.CS].Selector, r.Seg[vcpu.CS].Base = 0, 0
	r.RIP, r.GPR[vcpu.RSP] = codeAt, stackTop
	if change != nil {
		change(&r)
	}
	if err := c.SetRegisters(&r); err != nil {
		t.Fatal(err)
	}
	return c
}

// flat32 changes real mode to 32-bit protected mode with flat segments.
func flat32(r *vcpu.Registers) {
	data := vcpu.Segment{Selector: 16, Limit: ^uint32(0), Attr: 0xc093}
	code := vcpu.Segment{Selector: 8, Limit: ^uint32(0), Attr: 0xc09b}
	r.Seg = [6]vcpu.Segment{vcpu.ES: data, vcpu.CS: code, vcpu.SS: data, vcpu.DS: data, vcpu.FS: data, vcpu.GS: data}
	r.CR0 |= 1
}

// onThread runs f on a locked thread of its own and waits, a minute at most.
func onThread(t testing.TB, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		runtime.LockOSThread()
		defer close(done)
		f()
	}()
	select {
	case <-done:
	case <-time.After(time.Minute):
		t.Fatal("the guest's CPU does not come back")
	}
}

// runUntil runs the CPU until its exit has the reason, with kicks in between allowed.
func runOnce(t testing.TB, c *VCPU, want vcpu.Reason) (exit vcpu.Exit) {
	t.Helper()
	var err error
	onThread(t, func() { exit, err = c.Run() })
	if err != nil {
		t.Fatal(err)
	}
	if exit.Reason != want {
		t.Fatalf("Run ended with %v (%s), want %v", exit.Reason, exit.Detail, want)
	}
	return exit
}

// stopOn makes the guest's write to port 0x80 kick its CPU.
func (g *guest) stopOn() {
	g.io.hook = func(a access) {
		if a.addr == 0x80 && a.write && !a.mmio {
			g.cpus[0].Kick()
		}
	}
}

// stop is the code for it.
var stop = []byte{0xe6, 0x80, 0xf4} // out 0x80, al; hlt

func (g *guest) wantLog(t *testing.T, want ...access) {
	t.Helper()
	got := g.io.log
	if n := len(got); n > 0 && got[n-1].addr == 0x80 {
		got = got[:n-1]
	}
	if len(got) != len(want) {
		t.Fatalf("%d accesses %+v, want %+v", len(got), got, want)
	}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("access %d is %+v, want %+v", i, got[i], want[i])
		}
	}
}

func code(parts ...[]byte) (all []byte) {
	for _, p := range parts {
		all = append(all, p...)
	}
	return all
}

func TestPort(t *testing.T) {
	g := newGuest(t, 1, code([]byte{
		0xb0, 0x5a, // mov al, 0x5a
		0xe6, 0x10, // out 0x10, al
		0xe5, 0x12, // in ax, 0x12
		0xba, 0xf8, 0x03, // mov dx, 0x3f8
		0x66, 0xb8, 0x78, 0x56, 0x34, 0x12, // mov eax, 0x12345678
		0x66, 0xef, // out dx, eax
		0xec, // in al, dx
	}, stop)...)
	g.stopOn()
	c := g.start(t, nil)
	runOnce(t, c, vcpu.ExitKick)
	g.wantLog(t,
		access{addr: 0x10, size: 1, value: 0x5a, write: true},
		access{addr: 0x12, size: 2, value: 1},
		access{addr: 0x3f8, size: 4, value: 0x12345678, write: true},
		access{addr: 0x3f8, size: 1, value: 2},
	)
	var r vcpu.Registers
	if err := c.Registers(&r); err != nil {
		t.Fatal(err)
	}
	if r.GPR[vcpu.RAX] != 0x12345602 {
		t.Errorf("RAX = %#x after in al, dx: want 12345602", r.GPR[vcpu.RAX])
	}
}

// TestStringPort: more than a page of rep outsb and rep insw, one call an element
// (hostile guest, row 27).
func TestStringPort(t *testing.T) {
	const n = 5000
	g := newGuest(t, 1, code([]byte{
		0xfc,             // cld
		0xba, 0x00, 0x01, // mov dx, 0x100
		0xb9, n & 0xff, n >> 8, // mov cx, n
		0xbe, 0x00, 0x20, // mov si, 0x2000
		0xf3, 0x6e, // rep outsb
		0xb9, 0x03, 0x00, // mov cx, 3
		0xbf, 0x00, 0x80, // mov di, 0x8000
		0xf3, 0x6d, // rep insw
	}, stop)...)
	data := make([]byte, n)
	for i := range data {
		data[i] = byte(i * 7)
	}
	if err := g.mem.WriteAt(data, 0x2000); err != nil {
		t.Fatal(err)
	}
	g.io.log = make([]access, 0, n+8)
	g.stopOn()
	runOnce(t, g.start(t, nil), vcpu.ExitKick)
	var want []access
	for _, b := range data {
		want = append(want, access{addr: 0x100, size: 1, value: uint64(b), write: true})
	}
	for i := range 3 {
		want = append(want, access{addr: 0x100, size: 2, value: uint64(1 + i)})
	}
	g.wantLog(t, want...)
	got := make([]byte, 6)
	if err := g.mem.ReadAt(got, 0x8000); err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		if v := binary.LittleEndian.Uint16(got[2*i:]); v != uint16(1+i) {
			t.Errorf("insw %d stored %d", i, v)
		}
	}
}

func TestMMIO(t *testing.T) {
	g := newGuest(t, 1, code([]byte{
		0xbb, 0x00, 0x00, 0x00, 0xd0, // mov ebx, testMMIO
		0xb8, 0x78, 0x56, 0x34, 0x12, // mov eax, 0x12345678
		0x89, 0x03, // mov [ebx], eax
		0x88, 0x43, 0x05, // mov [ebx+5], al
		0x66, 0x8b, 0x4b, 0x08, // mov cx, [ebx+8]
		0x89, 0x83, 0xfd, 0x0f, 0x00, 0x00, // mov [ebx+0xffd], eax
		0xbb, 0x00, 0x00, 0x20, 0x00, // mov ebx, testROM
		0x89, 0x03, // mov [ebx], eax
	}, stop)...)
	g.stopOn()
	runOnce(t, g.start(t, flat32), vcpu.ExitKick)
	g.wantLog(t,
		access{testMMIO, 4, 0x12345678, true, true},
		access{testMMIO + 5, 1, 0x78, true, true},
		access{testMMIO + 8, 2, 1, false, true},
		access{testMMIO + 0xffd, 1, 0x78, true, true}, // across the page:
		access{testMMIO + 0xffe, 2, 0x3456, true, true},
		access{testMMIO + 0x1000, 1, 0x12, true, true},
		access{testROM, 4, 0x12345678, true, true},
	)
}

// TestShutdown: a triple fault, by an exception with an empty IDT (hostile guest, row 27).
func TestShutdown(t *testing.T) {
	g := newGuest(t, 1, 0x0f, 0x0b) // ud2
	runOnce(t, g.start(t, func(r *vcpu.Registers) { flat32(r); r.IDT = vcpu.Table{} }), vcpu.ExitShutdown)
}

// TestInternalError: code in MMIO space cannot be emulated; the message says where.
func TestInternalError(t *testing.T) {
	g := newGuest(t, 1, 0xb8, 0, 0, 0, 0xd0, 0xff, 0xe0) // mov eax, testMMIO; jmp eax
	exit := runOnce(t, g.start(t, flat32), vcpu.ExitInternal)
	if !strings.Contains(exit.Detail, "RIP 0xd0000000") {
		t.Errorf("detail %q lacks the place", exit.Detail)
	}
}

// TestUnknownExit: reasons that no kernel has today (hostile guest, row 27).
func TestUnknownExit(t *testing.T) {
	g := newGuest(t, 1, 0x0f, 0x0b)
	c := g.start(t, nil)
	for _, reason := range []uint32{0, 1, 3, 7, 12, 99, 1 << 31} {
		c.run.exitReason = reason
		if exit := c.otherExit(); exit.Reason != vcpu.ExitInternal || !strings.Contains(exit.Detail, "unknown exit") ||
			!strings.Contains(exit.Detail, "instruction bytes 0f 0b") {
			t.Errorf("exit %d: %+v", reason, exit)
		}
	}
}

func TestOtherExits(t *testing.T) {
	g := newGuest(t, 1, 0x0f, 0x0b)
	c := g.start(t, nil)
	c.run.exitReason = KVM_EXIT_SYSTEM_EVENT
	for typ, want := range map[uint32]vcpu.Reason{
		KVM_SYSTEM_EVENT_SHUTDOWN: vcpu.ExitPowerOff, KVM_SYSTEM_EVENT_RESET: vcpu.ExitReset,
		KVM_SYSTEM_EVENT_CRASH: vcpu.ExitInternal, 77: vcpu.ExitInternal,
	} {
		c.run.systemEvent().typ = typ
		if got := c.otherExit(); got.Reason != want {
			t.Errorf("system event %d: %v, want %v", typ, got.Reason, want)
		}
	}
	c.run.exitReason = KVM_EXIT_INTERNAL_ERROR
	*c.run.internal() = exitInternal{suberror: 3, ndata: 1 << 30}
	if got := c.otherExit(); got.Reason != vcpu.ExitInternal || !strings.Contains(got.Detail, "delivering") {
		t.Errorf("internal error: %+v", got)
	}
	*c.run.emulation() = exitEmulation{suberror: 1, ndata: 3, flags: 1, insnSize: 200, insnBytes: [15]uint8{0xf0, 0x48}}
	if got := c.otherExit(); !strings.Contains(got.Detail, "instruction bytes f0 48 00") {
		t.Errorf("emulation failure: %+v", got)
	}
	c.run.exitReason = KVM_EXIT_MEMORY_FAULT
	c.run.memoryFault().gpa = 0x5000
	if got := c.otherExit(); got.Reason != vcpu.ExitFault || got.Address != 0x5000 {
		t.Errorf("memory fault: %+v", got)
	}
}

// TestFault: a window without a file behind it.
func TestFault(t *testing.T) {
	needKVM(t)
	if !native() {
		t.Skip("KVM's instruction emulator takes memory that it cannot read for MMIO")
	}
	g := newGuest(t, 1, 0xa1, 0, 0, 0x40, 0) // mov eax, [0x400000]
	exit := runOnce(t, g.start(t, flat32), vcpu.ExitFault)
	if exit.Address&^0xfff != 0 && exit.Address&^0xfff != 0x40_0000 || !strings.Contains(exit.Detail, "instruction bytes a1") {
		t.Errorf("exit %+v", exit)
	}
}

func TestWindowOverFile(t *testing.T) {
	f, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.Write(make([]byte, 8192)); err != nil {
		t.Fatal(err)
	}
	g := newGuest(t, 1, code([]byte{0xb0, 0x42, 0xa2, 1, 0, 0x40, 0}, stop)...) // mov al, 'B'; mov [0x400001], al
	if err := g.mem.Find(0x40_0000).MapFile(0, int(f.Fd()), 0, 8192, unix.PROT_READ|unix.PROT_WRITE); err != nil {
		t.Fatal(err)
	}
	g.stopOn()
	runOnce(t, g.start(t, flat32), vcpu.ExitKick)
	b := make([]byte, 2)
	if _, err := f.ReadAt(b, 0); err != nil || b[1] != 0x42 {
		t.Errorf("the file has % x, %v", b, err)
	}
	// The file shrinks under the mapping: the guest stops, the VMM does not.
	if err := f.Truncate(0); err != nil {
		t.Fatal(err)
	}
	if native() {
		runOnce(t, g.start(t, flat32), vcpu.ExitFault)
	} else {
		runOnce(t, g.start(t, flat32), vcpu.ExitKick)
	}
}

func TestRegisters(t *testing.T) {
	g := newGuest(t, 1)
	c := g.cpus[0]
	var want, got vcpu.Registers
	if err := c.Registers(&want); err != nil {
		t.Fatal(err)
	}
	flat32(&want)
	for i := range want.GPR {
		want.GPR[i] = 0x0101010101010101 * uint64(i+1)
	}
	want.RIP, want.RFLAGS = 0x123456, 0x246
	want.GDT, want.IDT = vcpu.Table{Base: 0x500, Limit: 31}, vcpu.Table{Base: 0x600, Limit: 0xfff}
	want.Seg[vcpu.FS].Base = 0x7000
	want.TR = vcpu.Segment{Selector: 24, Base: 0x800, Limit: 0x67, Attr: 0x8b}
	want.LDTR = vcpu.Segment{Attr: 1 << 16}
	want.CR2, want.CR3, want.CR8 = 0xdead000, 0x9000, 5
	if err := c.SetRegisters(&want); err != nil {
		t.Fatal(err)
	}
	if err := c.Registers(&got); err != nil {
		t.Fatal(err)
	}
	if got.LDTR.Attr&(1<<16) != 0 {
		got.LDTR = want.LDTR // what else an unusable segment has does not matter
	}
	if got != want {
		t.Errorf("registers are\n%+v, want\n%+v", got, want)
	}
}

// TestCloseReleases: no file and no mapping stays behind.
func TestCloseReleases(t *testing.T) {
	needKVM(t)
	files := func() int {
		d, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Skip(err)
		}
		return len(d)
	}
	before := files()
	m := mem.New()
	if _, err := m.Add("ram", 0, 1<<20, mem.RAM); err != nil {
		t.Fatal(err)
	}
	vm, err := New(Config{Memory: m, CPUs: 4, IO: &recorder{}, AllowEmulated: true})
	if err != nil {
		t.Fatal(err)
	}
	msi, _ := vm.NewMSI()
	bell, _ := vm.NewDoorbell()
	line := vm.NewLine(5)
	if msi.FD() < 0 || bell.FD() < 0 {
		t.Error("no eventfds")
	}
	if err := errors.Join(vm.Close(), vm.Close(), m.Close()); err != nil {
		t.Error(err)
	}
	if after := files(); after != before {
		t.Errorf("%d files open, %d before", after, before)
	}
	// Everything may still be called.
	msi.Trigger()
	bell.Ring()
	line.Set(true)
	vm.VCPU(1).Kick()
	if bell.Wait() || bell.FD() != -1 || msi.FD() != -1 || bell.Bind(testMMIO) == nil || msi.Route(msiAddress, 1) == nil {
		t.Error("a closed wire works")
	}
	if err := errors.Join(bell.Close(), msi.Close(), bell.Unbind()); err != nil {
		t.Error(err)
	}
	if _, err := vm.VCPU(0).Run(); !errors.Is(err, ErrClosed) {
		t.Errorf("Run after Close: %v", err)
	}
	if vm.VCPU(2).NMI() == nil {
		t.Error("an NMI after Close")
	}
	if _, err := vm.NewMSI(); err == nil {
		t.Error("a new MSI after Close")
	}
	if _, err := vm.NewDoorbell(); err == nil {
		t.Error("a new doorbell after Close")
	}
}

func TestBadConfig(t *testing.T) {
	for _, n := range []int{-1, 0, layout.MaxVCPUs + 1} {
		if _, err := New(Config{CPUs: n}); err == nil || !strings.Contains(err.Error(), "1 to 64") {
			t.Errorf("%d CPUs: %v", n, err)
		}
	}
}
