package soft

import (
	"errors"
	"sync"

	"github.com/gvmspawn/gvmspawn/vmm/bus"
	"github.com/gvmspawn/gvmspawn/vmm/layout"
)

// errClosed is returned by wires of a closed doorbell or message source.
var errClosed = errors.New("closed")

// noLine is the wire of a global system interrupt without a pin.
type noLine struct{}

// Set does nothing.
func (noLine) Set(bool) {}

// NewLine returns the wire to an I/O APIC pin.
func (vm *VM) NewLine(gsi uint32) bus.Line {
	if gsi >= layout.GSIPins {
		return noLine{}
	}
	return vm.ioapic.NewLine(int(gsi))
}

// msi is a message source: a write that the local APICs take.
type msi struct {
	vm *VM

	mu     sync.Mutex // guards all below
	addr   uint64
	data   uint32
	routed bool
	closed bool
}

// NewMSI returns a message source without a route.
func (vm *VM) NewMSI() (bus.MSI, error) { return &msi{vm: vm}, nil }

// Route sets the message.
func (m *msi) Route(addr uint64, data uint32) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return errClosed
	}
	m.addr, m.data, m.routed = addr, data, true
	return nil
}

// Trigger sends the message. An address that is no APIC's is the guest's
// mistake and is ignored.
func (m *msi) Trigger() {
	m.mu.Lock()
	addr, data, routed := m.addr, m.data, m.routed && !m.closed
	m.mu.Unlock()
	if routed {
		m.vm.apics.Deliver(addr, data)
	}
}

// FD is -1: there is no kernel to trigger it.
func (m *msi) FD() int { return -1 }

// Close makes Trigger do nothing.
func (m *msi) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed = true
	return nil
}

// doorbell is a channel of one element.
type doorbell struct {
	rung chan struct{}
	done chan struct{}
	once sync.Once
}

// NewDoorbell returns a new bell. There is no short cut to bind: the chip's
// write handler runs on the CPU's thread and calls Ring. In a deterministic
// machine Ring returns when the device is done.
func (vm *VM) NewDoorbell() (bus.Doorbell, error) {
	if vm.virtual != nil {
		return newSyncBell(), nil
	}
	return &doorbell{rung: make(chan struct{}, 1), done: make(chan struct{})}, nil
}

// Bind does nothing.
func (d *doorbell) Bind(uint64) error { return nil }

// Unbind does nothing.
func (d *doorbell) Unbind() error { return nil }

// Ring wakes one present or future Wait.
func (d *doorbell) Ring() {
	select {
	case d.rung <- struct{}{}:
	default:
	}
}

// Wait blocks until the bell has rung; false means that it is closed.
func (d *doorbell) Wait() bool {
	select {
	case <-d.done:
		return false
	default:
	}
	select {
	case <-d.rung:
		return true
	case <-d.done:
		return false
	}
}

// FD is -1.
func (d *doorbell) FD() int { return -1 }

// Close makes every Wait return false.
func (d *doorbell) Close() error {
	d.once.Do(func() { close(d.done) })
	return nil
}
