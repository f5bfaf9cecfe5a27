// Package vmm assembles a virtual machine from a [Config] and runs it.
//
// A [Machine] lives from New over one Run to Close: one boot of the guest. A
// reboot is a new Machine from the same Config, so that no state of the old
// one can survive by mistake.
package vmm

import (
	"context"
	"errors"
	"net"
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

// Machine is a virtual machine.
type Machine struct {
	cfg Config
}

// New assembles a machine. Errors name the file or the setting at fault.
func New(cfg Config) (*Machine, error) {
	return nil, errors.New("not yet")
}

// Run runs the guest to its end. A nil error comes with EndPowerOff, EndReboot
// and EndKilled only.
func (m *Machine) Run(ctx context.Context) (End, error) { return EndCrash, ErrNotRunning }

// Engine is "kvm" or "soft", and Why is, for AccelAuto that did not take KVM, the
// reason in one sentence, else empty.
func (m *Machine) Engine() (name, why string) { return "", "" }

// PowerButton presses the ACPI power button.
func (m *Machine) PowerButton() error { return ErrNotRunning }

// Kill ends Run with EndKilled.
func (m *Machine) Kill() {}

// Pause stops all CPUs and the guest's clock; it returns when they stand still.
func (m *Machine) Pause() error { return ErrNotRunning }

// Resume undoes Pause.
func (m *Machine) Resume() error { return ErrNotRunning }

// NMI sends a non-maskable interrupt to the boot CPU.
func (m *Machine) NMI() error { return ErrNotRunning }

// Resize tells the guest the new size of its console.
func (m *Machine) Resize(columns, rows uint16) {}

// DialVsock connects to a port of the guest.
func (m *Machine) DialVsock(ctx context.Context, port uint32) (net.Conn, error) {
	return nil, ErrNotRunning
}

// Close frees everything. Run has returned before.
func (m *Machine) Close() error { return nil }
