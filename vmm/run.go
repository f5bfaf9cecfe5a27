package vmm

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gvmspawn/gvmspawn/vmm/bus"
	"github.com/gvmspawn/gvmspawn/vmm/mem"
	"github.com/gvmspawn/gvmspawn/vmm/vcpu"
)

// runner drives the CPUs of one VM: one locked OS thread each. The inner loop
// runs guest code; the outer one, gate, pauses and stops.
type runner struct {
	vm   vcpu.VM
	cpus int
	// repair deals with an ExitFault at an address (0: unknown) and reports
	// whether the CPU can go on; nil repairs nothing.
	repair func(mem.GPA) bool
	// debug is told of an exit that a debugger may want, and reports whether it
	// does: then all CPUs are held. nil without a debugger.
	debug func(cpu int, exit vcpu.Exit) bool
	// trim is called when the start is over, and again when the boot is.
	trim func()
	// hostClock, if not nil, stands still with the guest's.
	hostClock *bus.HostClock

	// attention is set while gate must look at the fields below; a CPU that
	// finds it clear runs on without a lock.
	attention atomic.Bool

	mu      sync.Mutex // guards the fields below; cond is signalled when one changes
	cond    *sync.Cond
	pausing bool
	stills  int    // calls of still under way
	held    []bool // CPUs that the debugger holds; nil without one
	stopped bool
	parked  int // CPUs waiting in gate
	ended   int // CPUs whose loop is over
	end     End
	err     error
	done    chan struct{} // closed when stopped becomes true

	isReady  bool        // ready was called
	lastTrim *time.Timer // nil before run
}

func newRunner(vm vcpu.VM, cpus int) *runner {
	r := &runner{vm: vm, cpus: cpus, done: make(chan struct{})}
	r.trim = r.trimAll
	r.cond = sync.NewCond(&r.mu)
	return r
}

// run starts all CPUs, waits for the end of the machine and for all CPUs.
func (r *runner) run(ctx context.Context) (End, error) {
	// A CPU that comes back from KVM_RUN needs a P at once: with all of
	// them busy it would wait for a scheduler tick, 10 ms or more.
	if want := r.cpus + runtime.NumCPU() + 4; runtime.GOMAXPROCS(0) < want {
		runtime.GOMAXPROCS(want)
	}
	var wg sync.WaitGroup
	for i := range r.cpus {
		wg.Go(func() { r.cpu(i) })
	}
	stop := context.AfterFunc(ctx, func() { r.finish(EndKilled, nil) })
	first := time.AfterFunc(settled, r.trim)
	r.mu.Lock()
	r.lastTrim = time.AfterFunc(booted, r.trim)
	r.mu.Unlock()
	<-r.done
	first.Stop()
	r.lastTrim.Stop() // nobody resets it any more
	stop()
	wg.Wait()
	return r.end, r.err
}

// ready is told that the guest has booted, once or more.
func (r *runner) ready() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.stopped && !r.isReady && r.lastTrim != nil {
		r.isReady = true
		r.lastTrim.Reset(settled)
	}
}

// cpu is the life of one virtual CPU. The thread stays locked and dies with it.
func (r *runner) cpu(i int) {
	runtime.LockOSThread()
	cpu := r.vm.VCPU(i)
	for r.gate(i) {
		exit, err := cpu.Run()
		switch {
		case err != nil:
			r.finish(EndCrash, fmt.Errorf("CPU %d: %w", i, err))
		case exit.Reason == vcpu.ExitKick:
		case exit.Reason == vcpu.ExitHalt:
			// Nothing but an NMI or the end can wake it, and both kick.
		case exit.Reason == vcpu.ExitReset:
			r.finish(EndReboot, nil)
		case exit.Reason == vcpu.ExitPowerOff:
			r.finish(EndPowerOff, nil)
		case r.debug != nil && debuggable(exit.Reason) && r.debug(i, exit):
		case exit.Reason == vcpu.ExitFault && r.repair != nil && r.repair(mem.GPA(exit.Address)):
		default:
			r.finish(EndCrash, crash(i, cpu, exit))
		}
	}
	r.mu.Lock()
	r.ended++
	r.cond.Broadcast()
	r.mu.Unlock()
}

// debuggable reports whether an exit is one for a debugger.
func debuggable(r vcpu.Reason) bool {
	return r == vcpu.ExitDebug || r == vcpu.ExitShutdown || r == vcpu.ExitInternal
}

// crash describes a final exit: a sentence with the registers that tell where and,
// on further lines, all there is to say about a triple fault.
func crash(i int, cpu vcpu.VCPU, exit vcpu.Exit) error {
	detail, more, _ := strings.Cut(exit.Detail, "\n")
	if detail != "" {
		detail = ": " + detail
	}
	if exit.Reason == vcpu.ExitFault {
		detail = fmt.Sprintf(" at guest address %#x%s", exit.Address, detail)
	}
	var regs vcpu.Registers
	if err := cpu.Registers(&regs); err != nil {
		return fmt.Errorf("CPU %d: %v%s", i, exit.Reason, detail)
	}
	if exit.Reason == vcpu.ExitShutdown && more == "" { // the software CPU tells more itself
		var b strings.Builder
		writeRegisters(&b, i, &regs)
		more = b.String()
	}
	if more != "" {
		more = "\n" + strings.TrimSuffix(more, "\n")
	}
	return fmt.Errorf("CPU %d: %v%s (RIP %#x, RSP %#x, CR0 %#x, CR2 %#x, CR3 %#x)%s",
		i, exit.Reason, detail, regs.RIP, regs.GPR[vcpu.RSP], regs.CR0, regs.CR2, regs.CR3, more)
}

// gate lets CPU i into the guest. It waits while the machine is paused or the
// debugger holds the CPU, and returns false when the machine has ended.
func (r *runner) gate(i int) bool {
	if !r.attention.Load() {
		return true
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for (r.pausing || r.stills > 0 || r.held != nil && r.held[i]) && !r.stopped {
		r.parked++
		r.cond.Broadcast()
		r.cond.Wait()
		r.parked--
	}
	return !r.stopped
}

// finish ends the machine; the first call decides how. It never blocks, and may
// be called from a CPU's thread.
func (r *runner) finish(end End, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.stopped {
		return
	}
	r.end, r.err, r.stopped = end, err, true
	r.attention.Store(true)
	r.cond.Broadcast()
	close(r.done)
	r.kick()
}

// kick makes every CPU pass through gate.
func (r *runner) kick() {
	for i := range r.cpus {
		r.vm.VCPU(i).Kick()
	}
}

// pause returns when no CPU runs guest code and the guest's clock stands still.
// It must not be called from a CPU's thread.
func (r *runner) pause() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.stopped {
		return ErrNotRunning
	}
	if r.pausing {
		return nil
	}
	r.pausing = true
	r.attention.Store(true)
	r.kick()
	for r.parked+r.ended < r.cpus && !r.stopped {
		r.cond.Wait()
	}
	if r.stopped {
		return ErrNotRunning
	}
	return r.stopClock()
}

// stopClock stops the guest's clock, which may stand already. Preconditions: mu
// is held and every CPU is parked.
func (r *runner) stopClock() error {
	err := r.vm.PauseClock()
	if err == nil && r.hostClock != nil {
		r.hostClock.Pause()
	}
	return err
}

// startClock lets the clock go on, unless the machine still stands.
// Preconditions: mu is held.
func (r *runner) startClock() error {
	if r.pausing || r.held != nil && !slices.Contains(r.held, false) {
		return nil
	}
	if r.hostClock != nil {
		r.hostClock.Resume()
	}
	return r.vm.ResumeClock()
}

// isPaused reports whether pause was called last.
func (r *runner) isPaused() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.pausing
}

// resume undoes pause.
func (r *runner) resume() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.stopped {
		return ErrNotRunning
	}
	if !r.pausing {
		return nil
	}
	r.pausing = false
	err := r.startClock()
	r.attend()
	r.cond.Broadcast()
	return err
}

// attend sets attention if gate would not let every CPU go on. Preconditions: mu is held.
func (r *runner) attend() {
	r.attention.Store(r.stopped || r.pausing || r.stills > 0 || slices.Contains(r.held, true))
}

// still calls f while no CPU runs guest code, whether the machine is paused or not, and
// whoever resumes it meanwhile. The clock goes on: the guest sees a host that was busy for a
// moment. It must not be called from a CPU's thread.
func (r *runner) still(f func() error) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.stopped {
		return ErrNotRunning // the engine may be gone
	}
	r.stills++
	r.attention.Store(true)
	r.kick()
	for r.parked+r.ended < r.cpus && !r.stopped {
		r.cond.Wait()
	}
	defer func() {
		r.stills--
		r.attend()
		r.cond.Broadcast()
	}()
	if r.stopped {
		return ErrNotRunning
	}
	r.mu.Unlock()
	defer r.mu.Lock()
	return f()
}

// over reports whether the machine has ended.
func (r *runner) over() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.stopped
}
