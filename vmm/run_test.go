package vmm

import (
	"context"
	"errors"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/gvmspawn/gvmspawn/vmm/bus"
	"github.com/gvmspawn/gvmspawn/vmm/mem"
	"github.com/gvmspawn/gvmspawn/vmm/vcpu"
)

// fakeVM has CPUs that do nothing until kicked or told to exit.
type fakeVM struct {
	cpus   []*fakeCPU
	paused int
}

type fakeCPU struct {
	kick chan struct{}
	exit chan vcpu.Exit
	fail chan error
}

func newFakeVM(n int) *fakeVM {
	vm := &fakeVM{}
	for range n {
		vm.cpus = append(vm.cpus, &fakeCPU{make(chan struct{}, 1), make(chan vcpu.Exit, 1), make(chan error, 1)})
	}
	return vm
}

func (f *fakeVM) NewLine(uint32) bus.Line            { return nil }
func (f *fakeVM) NewMSI() (bus.MSI, error)           { return nil, nil }
func (f *fakeVM) NewDoorbell() (bus.Doorbell, error) { return nil, nil }
func (f *fakeVM) Name() string                       { return "fake" }
func (f *fakeVM) VCPU(i int) vcpu.VCPU               { return f.cpus[i] }
func (f *fakeVM) PauseClock() error                  { f.paused++; return nil }
func (f *fakeVM) ResumeClock() error                 { f.paused--; return nil }
func (f *fakeVM) Close() error                       { return nil }

func (c *fakeCPU) Run() (vcpu.Exit, error) {
	select {
	case <-c.kick:
		return vcpu.Exit{Reason: vcpu.ExitKick}, nil
	case e := <-c.exit:
		return e, nil
	case err := <-c.fail:
		return vcpu.Exit{}, err
	}
}

func (c *fakeCPU) Kick() {
	select {
	case c.kick <- struct{}{}:
	default:
	}
}
func (c *fakeCPU) NMI() error { return nil }
func (c *fakeCPU) Registers(r *vcpu.Registers) error {
	r.RIP = 0x1234
	return nil
}
func (c *fakeCPU) SetRegisters(*vcpu.Registers) error { return nil }

func TestRunnerEnds(t *testing.T) {
	for _, tt := range []struct {
		name string
		do   func(*fakeVM, *runner, context.CancelFunc)
		end  End
		err  string
	}{
		{"power-off exit", func(f *fakeVM, _ *runner, _ context.CancelFunc) {
			f.cpus[1].exit <- vcpu.Exit{Reason: vcpu.ExitPowerOff}
		}, EndPowerOff, ""},
		{"reset exit", func(f *fakeVM, _ *runner, _ context.CancelFunc) {
			f.cpus[0].exit <- vcpu.Exit{Reason: vcpu.ExitReset}
		}, EndReboot, ""},
		{"triple fault", func(f *fakeVM, _ *runner, _ context.CancelFunc) {
			f.cpus[2].exit <- vcpu.Exit{Reason: vcpu.ExitShutdown}
		}, EndCrash, "CPU 2: shutdown (triple fault) (RIP 0x1234"},
		{"unknown exit", func(f *fakeVM, _ *runner, _ context.CancelFunc) {
			f.cpus[0].exit <- vcpu.Exit{Reason: 200, Detail: "odd"}
		}, EndCrash, "reason 200: odd"},
		{"memory fault", func(f *fakeVM, _ *runner, _ context.CancelFunc) {
			f.cpus[0].exit <- vcpu.Exit{Reason: vcpu.ExitFault, Address: 0xabc}
		}, EndCrash, "memory fault at guest address 0xabc"},
		{"repaired memory fault", func(f *fakeVM, _ *runner, _ context.CancelFunc) {
			f.cpus[0].exit <- vcpu.Exit{Reason: vcpu.ExitFault, Address: 0xdaff}
			f.cpus[0].exit <- vcpu.Exit{Reason: vcpu.ExitPowerOff}
		}, EndPowerOff, ""},
		{"engine error", func(f *fakeVM, _ *runner, _ context.CancelFunc) { f.cpus[0].fail <- errors.New("broken") }, EndCrash, "CPU 0: broken"},
		{"context", func(_ *fakeVM, _ *runner, cancel context.CancelFunc) { cancel() }, EndKilled, ""},
		{"killed while paused", func(_ *fakeVM, r *runner, _ context.CancelFunc) {
			if err := r.pause(); err != nil {
				t.Error(err)
			}
			r.finish(EndKilled, nil)
		}, EndKilled, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := newFakeVM(3)
			r := newRunner(f, 3)
			r.repair = func(gpa mem.GPA) bool { return gpa == 0xdaff }
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			go tt.do(f, r, cancel)
			end, err := r.run(ctx)
			if end != tt.end {
				t.Errorf("end %v, want %v", end, tt.end)
			}
			if (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
				t.Errorf("error %v, want %q", err, tt.err)
			}
		})
	}
}

func TestRunnerPausesAndResumes(t *testing.T) {
	f := newFakeVM(4)
	r := newRunner(f, 4)
	ended := make(chan End)
	go func() {
		end, _ := r.run(context.Background())
		ended <- end
	}()
	for range 200 {
		if err := r.pause(); err != nil {
			t.Fatal(err)
		}
		r.mu.Lock()
		if r.parked != 4 || f.paused != 1 {
			t.Fatalf("%d CPUs parked, clock paused %d times", r.parked, f.paused)
		}
		r.mu.Unlock()
		if err := r.resume(); err != nil {
			t.Fatal(err)
		}
	}
	r.finish(EndKilled, nil)
	select {
	case end := <-ended:
		if end != EndKilled {
			t.Errorf("end %v", end)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("run does not return")
	}
	if err := r.pause(); err != ErrNotRunning {
		t.Errorf("pause after the end: %v", err)
	}
	if runtime.GOMAXPROCS(0) < 4 {
		t.Error("GOMAXPROCS was not raised")
	}
}

// TestRunnerStill: no CPU runs in still, whoever pauses and resumes the machine meanwhile, and
// it leaves a paused machine paused.
func TestRunnerStill(t *testing.T) {
	f := newFakeVM(3)
	r := newRunner(f, 3)
	ended := make(chan End)
	go func() {
		end, _ := r.run(context.Background())
		ended <- end
	}()
	parked := func() int {
		r.mu.Lock()
		defer r.mu.Unlock()
		return r.parked
	}
	broken := errors.New("f's own")
	for i := range 100 {
		err := r.still(func() error {
			if parked() != 3 || f.paused != 0 {
				t.Errorf("%d CPUs parked, clock paused %d times", parked(), f.paused)
			}
			if i%2 == 0 {
				return errors.Join(r.pause(), r.resume())
			}
			return broken
		})
		if i%2 == 0 && err != nil || i%2 == 1 && err != broken {
			t.Fatal(err)
		}
		for end := time.Now().Add(10 * time.Second); parked() != 0; runtime.Gosched() {
			if time.Now().After(end) {
				t.Fatalf("%d CPUs are still parked", parked())
			}
		}
	}
	if err := r.pause(); err != nil {
		t.Fatal(err)
	}
	if err := r.still(func() error { return nil }); err != nil {
		t.Error(err)
	}
	time.Sleep(10 * time.Millisecond)
	if parked() != 3 || !r.attention.Load() || !r.isPaused() {
		t.Errorf("%d CPUs of a paused machine are parked", parked())
	}
	if err := r.resume(); err != nil {
		t.Error(err)
	}
	if err := r.still(func() error { r.finish(EndKilled, nil); return nil }); err != nil {
		t.Error(err)
	}
	if end := <-ended; end != EndKilled {
		t.Errorf("end %v", end)
	}
	if err := r.still(func() error { t.Error("called"); return nil }); err != ErrNotRunning {
		t.Errorf("after the end: %v", err)
	}
}

// TestConsoleTapFindsNewerCPU: whatever asks for a newer CPU is noticed, once.
func TestConsoleTapFindsNewerCPU(t *testing.T) {
	for _, line := range []string{
		"/bin/true: CPU ISA level is lower than required",
		"Fatal glibc error: CPU does not support x86-64-v3",
		"This program can only be run on AMD64 processors with v3 microarchitecture support.",
	} {
		told := 0
		c := consoleTap{onISA: func() { told++ }}
		for _, s := range []string{"starting\n", line[:20], line[20:] + "\r\n", line + "\n"} {
			_, _ = c.Write([]byte(s))
		}
		if told != 1 || c.newerCPU() != line {
			t.Errorf("%q is told of %d times as %q", line, told, c.newerCPU())
		}
	}
}

func TestConsoleTapFindsPanicAndLastLine(t *testing.T) {
	var c consoleTap
	for _, s := range []string{"hello\r\nwor", "ld\n\n", "[    1.0] Kernel panic - not sync", "ing: no init\r\n", "---[ end ]---\n", "  \r\n"} {
		if n, err := c.Write([]byte(s)); n != len(s) || err != nil {
			t.Fatal(n, err)
		}
	}
	if got := c.panicked(); !strings.HasSuffix(got, "not syncing: no init") {
		t.Errorf("panic line %q", got)
	}
	if _, _ = c.Write([]byte("[ 2.0] reboot: Restarting system\n---[ end ]---\n")); c.panicked() != "" {
		t.Error("an orderly restart is a panic")
	}
	if got := c.lastLine(); got != "---[ end ]---" {
		t.Errorf("last line %q", got)
	}
	long := strings.Repeat("x", 10000)
	_, _ = c.Write([]byte(long))
	if len(c.lastLine()) != tapLine || cap(c.line) > 4*tapLine {
		t.Errorf("a long line is kept: %d bytes", len(c.lastLine()))
	}
}
