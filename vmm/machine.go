// Package vmm assembles a virtual machine from a [Config] and runs it.
//
// A [Machine] lives from New over one Run to Close: one boot of the guest. A
// reboot is a new Machine from the same Config, so that no state of the old
// one can survive by mistake.
package vmm

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"

	"github.com/gvmspawn/gvmspawn/boot/initrd"
	"github.com/gvmspawn/gvmspawn/devices/pci"
	"github.com/gvmspawn/gvmspawn/virtio/balloon"
	"github.com/gvmspawn/gvmspawn/virtio/console"
	"github.com/gvmspawn/gvmspawn/virtio/memdev"
	vnet "github.com/gvmspawn/gvmspawn/virtio/net"
	"github.com/gvmspawn/gvmspawn/virtio/virtiommio"
	"github.com/gvmspawn/gvmspawn/virtio/vsock"
	"github.com/gvmspawn/gvmspawn/vmm/bus"
	"github.com/gvmspawn/gvmspawn/vmm/mem"
	"github.com/gvmspawn/gvmspawn/vmm/vcpu"
)

// End says how a guest's run ended.
type End uint8

const (
	// EndPowerOff: the guest powered itself off.
	EndPowerOff End = iota
	// EndReboot: the guest asked for a reset.
	EndReboot
	// EndKilled: Kill was called or the context ended.
	EndKilled
	// EndCrash: a triple fault, an internal error of the engine or a kernel
	// panic; the error of Run describes it.
	EndCrash
)

// ErrNotRunning is returned for a request to a machine that has ended.
var ErrNotRunning = errors.New("the machine is not running")

// Machine is a virtual machine. Its methods may be called from any goroutine.
type Machine struct {
	cfg Config
	log *slog.Logger

	mem     *mem.Memory
	windows map[string]*mem.Region // DAX windows by tag
	slots   *mem.Region            // what the memory device plugs, or nil
	memdev  *memdev.Device         // nil without slots
	balloon *balloon.Device
	reclaim reclaim
	pmem    []*pmemDisk
	nics    []*vnet.Device
	dax     []daxShare
	bus     bus.Bus
	pci     *pci.Host            // nil in a machine without PCI
	mmio    []*virtiommio.Device // of a machine without PCI
	flash   flash                // of a machine with firmware
	smmIO   smmIO                // what CPUs in System Management Mode reach
	// bootOrder are the Open Firmware paths of what firmware boots from.
	bootOrder []string
	// diskPlaces are the disks' places in the guest's sysfs, by Disk.ID.
	diskPlaces map[string]string
	vm         vcpu.VM
	why        string // why AccelAuto did not take KVM
	runner     *runner
	// handOver are the credentials that the initrd hands over, nil for none.
	handOver []initrd.Credential
	inFWCfg  []int // numbers of credentials that the firmware configuration device has

	hostClock *bus.HostClock
	tap       consoleTap
	fallback  fallback
	term      *console.Device // nil without a virtio console
	serialOut struct {        // of the serial port; no CPU runs when it ends
		end     func() // no more comes; what has come goes out
		drained chan struct{}
	}
	feed      func(context.Context, []byte) error
	vsock     *vsock.Device // nil without a vsock of our own
	dialVsock func(context.Context, uint32) (net.Conn, error)
	button    func()       // presses the power button
	raise     func(uint32) // raises events of the event device
	disks     disks

	closers []func() error // undone in reverse order by Close
}

// New assembles a machine. Errors name the file or the setting at fault.
func New(cfg Config) (*Machine, error) {
	m := &Machine{cfg: cfg, log: cfg.Log, hostClock: bus.NewHostClock(), windows: map[string]*mem.Region{}, diskPlaces: map[string]string{}}
	m.fallback.tap = &m.tap
	if m.log == nil {
		m.log = slog.New(slog.DiscardHandler)
	}
	m.tap.onISA = func() { m.log.Warn(m.missingFeatures()) }
	if err := m.assemble(); err != nil {
		return nil, errors.Join(err, m.Close())
	}
	return m, nil
}

// Engine is "kvm" or "soft", and why is, for AccelAuto that did not take KVM, the
// reason in one sentence, else empty.
func (m *Machine) Engine() (name, why string) { return m.vm.Name(), m.why }

// Run runs the guest to its end. A nil error comes with EndPowerOff, EndReboot
// and EndKilled only.
func (m *Machine) Run(ctx context.Context) (End, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if m.cfg.Console.In != nil && m.feed != nil {
		go m.cfg.Console.In.feed(ctx, m.feed)
	}
	detach := m.attachDebugger()
	unwatch := m.watchLostPages()
	end, err := m.runner.run(ctx)
	unwatch()
	detach()
	m.flushConsole()
	// A kernel that panics resets the machine, or stops where it is.
	if line := m.tap.panicked(); line != "" && (end == EndReboot || end == EndCrash) {
		err = fmt.Errorf("the guest's kernel panicked: %s", line)
		if m.tap.newerCPU() != "" {
			err = fmt.Errorf("%w; %s", err, m.missingFeatures())
		}
		return EndCrash, err
	}
	if end == EndCrash {
		if last := m.tap.lastLine(); last != "" {
			err = &lastLineError{err, last}
		}
	}
	return end, err
}

// lastLineError is a crash with what the guest said before. A crash may go on with
// registers on further lines, to which that does not belong.
type lastLineError struct {
	error
	line string
}

func (e *lastLineError) Error() string {
	head, more, dump := strings.Cut(e.error.Error(), "\n")
	head += "; the last line on its console: " + e.line
	if dump {
		head += "\n" + more
	}
	return head
}

func (e *lastLineError) Unwrap() error { return e.error }

// PowerButton presses the ACPI power button.
func (m *Machine) PowerButton() error {
	if m.runner.over() {
		return ErrNotRunning
	}
	m.button()
	return nil
}

// Kill ends Run with EndKilled.
func (m *Machine) Kill() { m.runner.finish(EndKilled, nil) }

// Ready tells the machine that its guest has booted: what only the boot needed goes
// back to the host. Only the first call counts.
func (m *Machine) Ready() { m.runner.ready() }

// Pause stops all CPUs and the guest's clock; it returns when they stand still.
func (m *Machine) Pause() error { return m.runner.pause() }

// Resume undoes Pause.
func (m *Machine) Resume() error { return m.runner.resume() }

// NMI sends a non-maskable interrupt to the boot CPU.
func (m *Machine) NMI() error {
	if m.runner.over() {
		return ErrNotRunning
	}
	return m.vm.VCPU(0).NMI()
}

// Resize tells the guest the new size of its console.
func (m *Machine) Resize(columns, rows uint16) {
	if m.term != nil {
		m.term.Resize(columns, rows)
	}
}

// Close frees everything, backwards from how it was made. Run has returned
// before, or was never called.
func (m *Machine) Close() error {
	var errs []error
	for i := len(m.closers) - 1; i >= 0; i-- {
		errs = append(errs, m.closers[i]())
	}
	m.closers = nil
	return errors.Join(errs...)
}

// onClose adds a step to Close.
func (m *Machine) onClose(f func() error) { m.closers = append(m.closers, f) }
