package vmm

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/gvmspawn/gvmspawn/vmm/vcpu"
)

// TestRunnerHolds: a debugger's exit holds all CPUs and stops the clock; CPUs go
// on alone, and a pause in between neither frees them nor starts the clock.
func TestRunnerHolds(t *testing.T) {
	f := newFakeVM(3)
	r := newRunner(f, 3)
	r.held = make([]bool, 3)
	stops := make(chan int, 3)
	r.debug = func(cpu int, exit vcpu.Exit) bool {
		if exit.Reason != vcpu.ExitDebug {
			return false
		}
		r.hold()
		stops <- cpu
		return true
	}
	r.hold()
	ended := make(chan error)
	go func() {
		_, err := r.run(context.Background())
		ended <- err
	}()
	held := func(clock int) {
		t.Helper()
		if err := r.settle(); err != nil {
			t.Fatal(err)
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.parked != 3 || f.paused < clock {
			t.Fatalf("%d CPUs parked, clock paused %d times", r.parked, f.paused)
		}
	}
	held(1)
	r.release(func(i int) bool { return i == 1 })
	f.cpus[1].exit <- vcpu.Exit{Reason: vcpu.ExitDebug}
	if cpu := <-stops; cpu != 1 {
		t.Errorf("CPU %d stopped", cpu)
	}
	held(1)
	before := f.paused
	if err := r.pause(); err != nil {
		t.Fatal(err)
	}
	if err := r.resume(); err != nil {
		t.Fatal(err)
	}
	r.mu.Lock()
	if r.parked != 3 || f.paused < before {
		t.Errorf("a pause freed what the debugger holds: %d parked, clock paused %d times", r.parked, f.paused)
	}
	r.mu.Unlock()
	r.release(func(int) bool { return true })
	f.cpus[2].exit <- vcpu.Exit{Reason: vcpu.ExitShutdown}
	select {
	case err := <-ended:
		if err == nil || !strings.Contains(err.Error(), "triple fault") {
			t.Errorf("the end is %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("run does not return")
	}
	if r.settle() != ErrNotRunning {
		t.Error("settle after the end")
	}
}
