package kvm

import (
	"encoding/binary"
	"testing"

	"github.com/gvmspawn/gvmspawn/vmm/guesttest"
	"github.com/gvmspawn/gvmspawn/vmm/mem"
	"github.com/gvmspawn/gvmspawn/vmm/vcpu"
)

var _ vcpu.Debugger = (*VCPU)(nil)

// debugGuest is a guest in 32-bit mode with a handler of #BP that writes to port 0x70.
func debugGuest(t *testing.T) (*guest, *VCPU) {
	t.Helper()
	g := newGuest(t, 1, code([]byte{
		0x90,                // 0x1000: nop
		0x40,                // 0x1001: inc eax
		0xa3, 0, 0x50, 0, 0, // 0x1002: mov [0x5000], eax
		0xa1, 4, 0x50, 0, 0, // 0x1007: mov eax, [0x5004]
		0xcc, // 0x100c: int3
		0x90, // 0x100d: nop
	}, stop)...)
	g.stopOn()
	gate := uint64(3)<<3 | 0x6000
	put := func(at, v uint64) { g.mem.WriteAt(binary.LittleEndian.AppendUint64(nil, v), mem.GPA(at)) }
	put(0x7008, 0x00cf9b000000ffff)
	put(0x7010, 0x00cf93000000ffff)
	put(gate, 8<<16|0x8e<<40|0x1100)
	g.mem.WriteAt([]byte{0xe6, 0x70, 0xcf}, 0x1100) // out 0x70, al; iret
	c := g.start(t, func(r *vcpu.Registers) {
		flat32(r)
		r.GPR[vcpu.RAX] = 0
		r.GDT, r.IDT = vcpu.Table{Base: 0x7000, Limit: 0x17}, vcpu.Table{Base: 0x6000, Limit: 0x7ff}
	})
	return g, c
}

// debugOnce runs until the debugger's stop, for what d asks.
func debugOnce(t *testing.T, c *VCPU, d *vcpu.Debug, want vcpu.Stop, addr, rip uint64) {
	t.Helper()
	if err := c.SetDebug(d); err != nil {
		t.Fatal(err)
	}
	exit := runOnce(t, c, vcpu.ExitDebug)
	var r vcpu.Registers
	if err := c.Registers(&r); err != nil {
		t.Fatal(err)
	}
	if exit.Stop != want || exit.Address != addr || r.RIP != rip {
		t.Errorf("stop %d at %#x, RIP %#x; want %d, %#x, %#x", exit.Stop, exit.Address, r.RIP, want, addr, rip)
	}
}

// inTestbed: QEMU's TCG has neither debug registers in a nested guest nor an
// intercept of INT3.
func inTestbed() bool { return guesttest.InTestbed() }

// TestDebug: steps, breakpoints and watchpoints stop where they should.
func TestDebug(t *testing.T) {
	_, c := debugGuest(t)
	point := func(kind vcpu.PointKind, addr uint64, n uint8) *vcpu.Debug {
		return &vcpu.Debug{Points: []vcpu.Point{{Address: 0xdead}, {Kind: kind, Address: addr, Len: n}}}
	}
	debugOnce(t, c, &vcpu.Debug{Step: true}, vcpu.StopStep, 0x1001, 0x1001)
	if inTestbed() {
		debugOnce(t, c, &vcpu.Debug{Step: true}, vcpu.StopStep, 0x1002, 0x1002)
		debugOnce(t, c, &vcpu.Debug{Step: true}, vcpu.StopStep, 0x1007, 0x1007)
		return
	}
	debugOnce(t, c, point(vcpu.BreakExec, 0x1002, 0), vcpu.StopBreak, 0x1002, 0x1002)
	if native() { // the instruction emulator of kvm_pvm has no watchpoints
		debugOnce(t, c, point(vcpu.BreakWrite, 0x5000, 4), vcpu.StopWatch, 0x5000, 0x1007)
		debugOnce(t, c, point(vcpu.BreakAccess, 0x5004, 4), vcpu.StopWatch, 0x5004, 0x100c)
	}
	five := &vcpu.Debug{Points: make([]vcpu.Point, 5)}
	if err := c.SetDebug(five); err != vcpu.ErrTooManyPoints {
		t.Errorf("five points: %v", err)
	}
}

// TestDebugTrap: an INT3 stops, and is delivered to the guest if it is the
// guest's own; without a debugger it always is.
func TestDebugTrap(t *testing.T) {
	if !native() {
		t.Skip("kvm_pvm does not emulate INT3")
	}
	g, c := debugGuest(t)
	if !inTestbed() {
		debugOnce(t, c, &vcpu.Debug{}, vcpu.StopTrap, 0x100c, 0x100c)
		if err := c.SetDebug(&vcpu.Debug{Trap: true}); err != nil {
			t.Fatal(err)
		}
		runOnce(t, c, vcpu.ExitKick)
		g.wantLog(t, access{addr: 0x70, size: 1, write: true})
		g, c = debugGuest(t)
	}
	if err := c.SetDebug(&vcpu.Debug{Step: true}); err != nil {
		t.Fatal(err)
	}
	if err := c.SetDebug(nil); err != nil {
		t.Fatal(err)
	}
	runOnce(t, c, vcpu.ExitKick)
	g.wantLog(t, access{addr: 0x70, size: 1, write: true})
}

func TestFPU(t *testing.T) {
	_, c := debugGuest(t)
	var want, got vcpu.FPU
	if err := c.FPU(&want); err != nil {
		t.Fatal(err)
	}
	want[fxXMM+16*5+3], want[fxST+16+2], want[0] = 7, 9, 0x7f
	if err := c.SetFPU(&want); err != nil {
		t.Fatal(err)
	}
	if err := c.FPU(&got); err != nil || got != want {
		t.Errorf("%v, got\n%x\nwant\n%x", err, got, want)
	}
}

// TestGuestDebug: what the kernel is asked for (Intel SDM vol. 3B §17.2.4).
func TestGuestDebug(t *testing.T) {
	g := guestDebug(&vcpu.Debug{Step: true, Points: []vcpu.Point{
		{Address: 1}, {Kind: vcpu.BreakWrite, Address: 2, Len: 2}, {Kind: vcpu.BreakAccess, Address: 8, Len: 8}, {Kind: vcpu.BreakWrite, Address: 4, Len: 4}}})
	const dr7 = 0x700 | 0xaa | 0x0<<16 | 0x5<<20 | 0xb<<24 | 0xd<<28
	if g.debugreg != [8]uint64{1, 2, 8, 4, 7: dr7} {
		t.Errorf("registers %#x, want DR7 %#x", g.debugreg, uint64(dr7))
	}
	const control = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP | KVM_GUESTDBG_BLOCKIRQ | KVM_GUESTDBG_USE_HW_BP | KVM_GUESTDBG_USE_SW_BP
	if g.control != control {
		t.Errorf("control %#x, want %#x", g.control, control)
	}
}
