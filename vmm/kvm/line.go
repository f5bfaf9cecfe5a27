package kvm

import (
	"sync"

	"github.com/gvmspawn/gvmspawn/vmm/bus"
)

// pin is a global system interrupt: an input of the interrupt controllers,
// high while any of its lines is high.
type pin struct {
	vm  *VM
	gsi uint32

	mu     sync.Mutex // guards the fields below and the order of level changes
	high   int
	closed bool
}

// line is one wire to a pin.
type line struct {
	pin   *pin
	level bool // guarded by pin.mu
}

// NewLine returns a wire to a GSI, low at first. Wires to the same one are ORed.
func (vm *VM) NewLine(gsi uint32) bus.Line {
	if vm.split != nil {
		return vm.split.chip.NewLine(gsi)
	}
	vm.mu.Lock()
	defer vm.mu.Unlock()
	p := vm.pins[gsi]
	if p == nil {
		p = &pin{vm: vm, gsi: gsi, closed: vm.closed}
		vm.pins[gsi] = p
	}
	return &line{pin: p}
}

// Set drives the wire.
func (l *line) Set(level bool) {
	p := l.pin
	p.mu.Lock()
	defer p.mu.Unlock()
	if l.level == level {
		return
	}
	l.level = level
	if level {
		p.high++
	} else {
		p.high--
	}
	if edge := level && p.high == 1 || p.high == 0; !edge || p.closed {
		return
	}
	e := kvmIRQLevel{irq: p.gsi}
	if level {
		e.level = 1
	}
	// It fails only for a GSI that is not wired to anything.
	_ = ioctlQuick(p.vm.fd, KVM_IRQ_LINE, &e)
}

// Close cuts the pin off.
func (p *pin) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	return nil
}
