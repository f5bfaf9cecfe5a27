package soft

import (
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gvmspawn/gvmspawn/vmm/bus"
)

// TestTimerSignal: a CPU's timer wakes its halted thread, leaves a running one
// alone but for State.Exit, and may be moved and taken back.
func TestTimerSignal(t *testing.T) {
	g := newGuest(t, Config{CPUs: 1})
	c := g.vm.cpus[0]
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	timer := g.vm.timers[0]
	timer.attach(c)
	if timer.thread == 0 {
		t.Skip("the host has no timers for us")
	}
	atomic.StoreUint32(&c.s.Exit, 0)
	for _, after := range []uint64{0, 1, 2_000_000, 20_000_000} {
		begin := g.vm.now()
		timer.Arm(begin + after)
		for atomic.LoadUint32(&c.s.Exit) == 0 {
			c.sleep()
		}
		if !c.clearExit(exitTimer) || atomic.LoadUint32(&c.s.Exit) != 0 {
			t.Errorf("Exit is %#x", c.s.Exit)
		}
		if d := g.vm.now() - begin; d < after {
			t.Errorf("woken after %d ns, not %d", d, after)
		}
	}
	timer.Arm(g.vm.now() + 1_000_000)
	for end := time.Now().Add(10 * time.Second); atomic.LoadUint32(&c.s.Exit) == 0 && time.Now().Before(end); {
	}
	if !c.clearExit(exitTimer) {
		t.Error("a running CPU is not told")
	}
	timer.Arm(g.vm.now() + 5_000_000)
	timer.Arm(bus.Never)
	time.Sleep(20 * time.Millisecond)
	if atomic.LoadUint32(&c.s.Exit) != 0 {
		t.Error("a timer that was taken back expired")
	}
	// Any other thread wakes it, too.
	go func() {
		for !c.asleep.Load() {
			runtime.Gosched()
		}
		c.notify(exitKick)
	}()
	c.sleep()
	if !c.clearExit(exitKick) {
		t.Error("not woken")
	}
	if n := testing.AllocsPerRun(100, func() { timer.Arm(g.vm.now() + 1<<40) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
