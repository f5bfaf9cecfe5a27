package vmm

import (
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"

	"github.com/gvmspawn/gvmspawn/vmm/gdb"
	"github.com/gvmspawn/gvmspawn/vmm/mem"
	"github.com/gvmspawn/gvmspawn/vmm/vcpu"
)

// Debugger lets GDB drive machines. It outlives them, so that a debugger
// survives a reboot.
type Debugger struct{ server *gdb.Server }

// NewDebugger serves GDB on l. Whoever connects has full control of the
// machine; the first one waits for a debugger before it runs.
func NewDebugger(l net.Listener) *Debugger { return &Debugger{gdb.NewServer(l)} }

// Close tells a connected debugger the exit status and closes the listener.
func (d *Debugger) Close(status int) error { return d.server.Close(status) }

// debugged is a machine as its debugger sees it. It implements gdb.Target.
type debugged struct {
	m *Machine
	r *runner
	s *gdb.Server

	mu    sync.Mutex // guards fatal
	fatal map[int]bool
}

// attachDebugger gives the machine to its debugger. The machine has not run yet.
func (m *Machine) attachDebugger() (detach func()) {
	if m.cfg.Debugger == nil {
		return func() {}
	}
	d := &debugged{m: m, r: m.runner, s: m.cfg.Debugger.server, fatal: map[int]bool{}}
	d.r.held = make([]bool, d.r.cpus)
	d.r.debug = d.event
	if d.s.Attach(d) {
		d.r.hold()
	}
	return d.s.Detach
}

// event is told of an exit for the debugger, on the CPU's thread.
func (d *debugged) event(cpu int, exit vcpu.Exit) bool {
	if exit.Reason != vcpu.ExitDebug && !d.first(cpu) {
		return false // it was shown, and the debugger let the CPU go on
	}
	d.r.hold()
	return d.s.Event(cpu, exit)
}

// first reports whether a CPU stops for good for the first time with a
// debugger there to see it.
func (d *debugged) first(cpu int) bool {
	if !d.s.Connected() {
		return false
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	was := d.fatal[cpu]
	d.fatal[cpu] = true
	return !was
}

func (d *debugged) CPUs() int            { return d.r.cpus }
func (d *debugged) CPU(i int) vcpu.VCPU  { return d.r.vm.VCPU(i) }
func (d *debugged) Memory() *mem.Memory  { return d.m.mem }
func (d *debugged) Stop() error          { d.r.hold(); return d.r.settle() }
func (d *debugged) Resume(ms []gdb.Mode) { d.r.release(func(i int) bool { return ms[i] != gdb.Hold }) }
func (d *debugged) Kill()                { d.m.Kill() }

// monitorHelp lists the debugger's commands besides those of Inspections.
const monitorHelp = `info registers|mem|pci  show a part of the machine
nmi                     send an NMI to the boot CPU, once it runs
powerdown               press the power button
reset                   reset the machine
kill                    end the machine
`

// Command implements gdb.Target.
func (d *debugged) Command(line string, w io.Writer) (known bool, err error) {
	if what, ok := strings.CutPrefix(line, "info "); ok && slices.Contains(Inspections, what) {
		return true, d.m.Inspect(what, w)
	}
	switch line {
	case "help":
		_, err = io.WriteString(w, monitorHelp)
	case "nmi":
		err = d.m.NMI()
	case "powerdown":
		err = d.m.PowerButton()
	case "reset":
		d.r.finish(EndReboot, nil)
	case "kill":
		d.m.Kill()
	default:
		return false, nil
	}
	return true, err
}

// hold makes every CPU wait in gate until release, and returns at once.
func (r *runner) hold() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range r.held {
		r.held[i] = true
	}
	r.attention.Store(true)
	r.kick()
}

// settle returns when every CPU waits in gate, and stops the guest's clock.
// It must not be called from a CPU's thread.
func (r *runner) settle() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for r.parked+r.ended < r.cpus && !r.stopped {
		r.cond.Wait()
	}
	if r.stopped {
		return ErrNotRunning
	}
	return r.stopClock()
}

// release lets the CPUs go that which chooses; the others go on waiting.
func (r *runner) release(which func(int) bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range r.held {
		r.held[i] = !which(i)
	}
	if err := r.startClock(); err != nil && r.err == nil {
		r.err = fmt.Errorf("start the guest's clock: %w", err)
	}
	r.attend()
	r.cond.Broadcast()
}
