package soft

import (
	"testing"

	"github.com/gvmspawn/gvmspawn/vmm/vcpu"
)

var _ vcpu.Debugger = (*CPU)(nil)

// loopCode is: mov ecx, 1000; at 0x8005: inc eax; inc edx; at 0x8009: mov [rbx+0x10], eax;
// loop to 0x8005; out portEnd, al; jmp to itself.
const (
	loopCode  = "b9e8030000" + "ffc0" + "ffc2" + "894310" + "e2f7" + "e6f4" + "ebfe"
	loopTop   = 0x8005
	loopStore = 0x8009
	loopBack  = 0x800c
	loopData  = 0x9000
)

// debugGuest is a guest about to run loopCode in 64-bit mode.
func debugGuest(t *testing.T, cfg Config) (*guest, *CPU) {
	cfg.CPUs = 1
	g := newGuest(t, cfg)
	g.put(0x8000, loopCode)
	c := g.start(0, 3, 0x8000)
	c.s.R[vcpu.RAX], c.s.R[vcpu.RBX] = 0, loopData
	return g, c
}

// runUntil runs to the next exit for the debugger.
func runUntil(t *testing.T, c *CPU) vcpu.Exit {
	t.Helper()
	ex, err := c.Run()
	if err != nil || ex.Reason != vcpu.ExitDebug {
		t.Fatalf("exit %+v, %v", ex, err)
	}
	return ex
}

// TestDebugBreaks: a breakpoint stops before its instruction each time that the
// guest comes there, in the midst of what was one block, translated or not,
// and without it the guest runs on.
func TestDebugBreaks(t *testing.T) {
	for name, cfg := range map[string]Config{"interpreter": {NoTranslator: true}, "translator": {}} {
		t.Run(name, func(t *testing.T) {
			g, c := debugGuest(t, cfg)
			point := &vcpu.Debug{Points: []vcpu.Point{{Address: loopStore}}}
			for i := range 100 {
				if err := c.SetDebug(point); err != nil {
					t.Fatal(err)
				}
				ex := runUntil(t, c)
				if ex.Stop != vcpu.StopBreak || ex.Address != loopStore || c.s.RIP != loopStore || c.s.R[vcpu.RAX] != uint64(i+1) {
					t.Fatalf("stop %d at %#x, RIP %#x RAX %d", ex.Stop, ex.Address, c.s.RIP, c.s.R[vcpu.RAX])
				}
				if got := uint32(g.word(loopData + 0x10)); got != uint32(i) {
					t.Fatalf("the instruction was executed: %d in memory at %d", got, i)
				}
				c.SetDebug(&vcpu.Debug{Step: true, Points: point.Points})
				if ex := runUntil(t, c); ex.Stop != vcpu.StopStep || c.s.RIP != loopBack {
					t.Fatalf("step to %#x", c.s.RIP)
				}
			}
			c.SetDebug(nil)
			g.run()
			if c.s.R[vcpu.RAX] != 1000 || c.cuts != nil {
				t.Errorf("RAX %d at the end, cuts %v", c.s.R[vcpu.RAX], c.cuts)
			}
		})
	}
}

// TestDebugBreaksInHotCode: a breakpoint is met in code that was translated
// before it was set.
func TestDebugBreaksInHotCode(t *testing.T) {
	g, c := debugGuest(t, Config{})
	c.SetDebug(&vcpu.Debug{Points: []vcpu.Point{{Address: 0x800e}}})
	runUntil(t, c)
	if c.jit != nil && c.jit.trs.next == 1 {
		t.Error("nothing was translated")
	}
	c.SetDebug(nil)
	c.s.RIP = 0x8000
	c.SetDebug(&vcpu.Debug{Points: []vcpu.Point{{Address: loopTop + 0x1000}, {Address: loopTop}}})
	if ex := runUntil(t, c); ex.Address != loopTop || c.s.R[vcpu.RAX] != 1000 {
		t.Errorf("stop at %#x, RAX %d", ex.Address, c.s.R[vcpu.RAX])
	}
	c.SetDebug(nil)
	g.run()
}

// TestDebugWatches: a watchpoint stops behind the instruction that meets it.
func TestDebugWatches(t *testing.T) {
	const at = loopData + 0x10
	for _, tt := range []struct {
		name string
		p    vcpu.Point
		met  bool
	}{
		{"write", vcpu.Point{Kind: vcpu.BreakWrite, Address: at, Len: 4}, true},
		{"write of a byte within", vcpu.Point{Kind: vcpu.BreakWrite, Address: at + 3, Len: 1}, true},
		{"access", vcpu.Point{Kind: vcpu.BreakAccess, Address: at, Len: 8}, true},
		{"beside", vcpu.Point{Kind: vcpu.BreakAccess, Address: at + 4, Len: 4}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			g, c := debugGuest(t, Config{})
			c.SetDebug(&vcpu.Debug{Points: []vcpu.Point{tt.p, {Address: 0x800e}}})
			ex := runUntil(t, c)
			if tt.met != (ex.Stop == vcpu.StopWatch) || tt.met && (ex.Address != tt.p.Address || c.s.RIP != loopBack || g.word(at) != 1) {
				t.Errorf("stop %d at %#x, RIP %#x, %d in memory", ex.Stop, ex.Address, c.s.RIP, g.word(at))
			}
		})
	}
}

// TestDebugStepHoldsInterruptsOff: a single-step is one of the program's instructions,
// whatever waits; a halted CPU wakes.
func TestDebugStepHoldsInterruptsOff(t *testing.T) {
	_, c := debugGuest(t, Config{})
	c.SetDebug(&vcpu.Debug{Step: true})
	c.NMI()
	if runUntil(t, c); c.s.RIP != loopTop {
		t.Errorf("RIP %#x, want the next instruction", c.s.RIP)
	}
}

// TestDebugFPU: what SetFPU writes is what FPU and the guest read.
func TestDebugFPU(t *testing.T) {
	_, c := debugGuest(t, Config{})
	var want, got vcpu.FPU
	c.FPU(&want)
	for i := range 16 {
		want[fxXMM+16*i+15] = byte(i + 1)
	}
	want[fxST+9] = 0x40
	c.SetFPU(&want)
	c.FPU(&got)
	if got != want || c.s.XMM[3][1]>>56 != 4 {
		t.Errorf("got %x\nwant %x", got, want)
	}
}

// TestDebugCostsNothingWhenOff: without a debugger blocks are as long as ever, no
// access is slow, and running allocates nothing.
func TestDebugCostsNothingWhenOff(t *testing.T) {
	_, c := debugGuest(t, Config{NoTranslator: true})
	c.lookup()
	length := func() int {
		c.s.RIP = loopTop
		return int(c.lookup().n)
	}
	want := length()
	c.SetDebug(&vcpu.Debug{Points: []vcpu.Point{{Address: loopStore}, {Kind: vcpu.BreakWrite, Address: 0x7000, Len: 8}}})
	if length() >= want || !c.dataBreaks {
		t.Fatal("the breakpoint cuts no block")
	}
	c.SetDebug(nil)
	if length() != want || c.dataBreaks || c.stepping() {
		t.Error("something is left of the debugger")
	}
	allocs := testing.AllocsPerRun(10, func() {
		c.s.RIP = 0x8000
		c.Kick()
		c.Run()
		c.exec(c.lookup())
	})
	if allocs != 0 {
		t.Errorf("%v allocations", allocs)
	}
}
