package kvm

import (
	"fmt"
	"sync"

	"github.com/gvmspawn/gvmspawn/vmm/bus"
	"github.com/gvmspawn/gvmspawn/vmm/layout"
)

// SplitWires is what a caller's I/O APIC needs of KVM.
type SplitWires interface {
	// Send delivers an interrupt: a write of data to addr.
	Send(addr uint64, data uint32)
	// Route tells KVM a pin's message, so that it knows which vectors' ends it
	// has to report. A masked pin has none.
	Route(pin int, addr uint64, data uint32, masked bool)
}

// IOAPIC is an I/O APIC of the caller's.
type IOAPIC interface {
	// NewLine returns a wire to a global system interrupt.
	NewLine(gsi uint32) bus.Line
	// EOI is told that a CPU ended a level-triggered interrupt.
	EOI(vector uint8)
}

// split is KVM's part of a split interrupt controller (KVM API §7.5).
type split struct {
	vm   *VM
	make func(SplitWires) IOAPIC
	chip IOAPIC

	mu   sync.Mutex // guards pins; VM.routeMu may be held
	pins [layout.GSIPins]kvmIRQRoutingEntry
}

// enable asks for local APICs alone.
func (s *split) enable() error {
	pins := kvmEnableCap{cap: KVM_CAP_SPLIT_IRQCHIP, args: [4]uint64{layout.GSIPins}}
	if _, err := ioctlPtr(s.vm.fd, KVM_ENABLE_CAP, &pins); err != nil {
		return fmt.Errorf("create the local APICs (KVM_CAP_SPLIT_IRQCHIP): %w", err)
	}
	s.chip = s.make(s)
	return nil
}

// Send implements SplitWires.
func (s *split) Send(addr uint64, data uint32) {
	m := kvmMSI{addressLo: uint32(addr), addressHi: uint32(addr >> 32), data: data}
	_ = ioctlQuick(s.vm.fd, KVM_SIGNAL_MSI, &m) // fails if the guest's APICs are off
}

// Route implements SplitWires.
func (s *split) Route(pin int, addr uint64, data uint32, masked bool) {
	e := kvmIRQRoutingEntry{gsi: uint32(pin), typ: KVM_IRQ_ROUTING_MSI, u: [8]uint32{uint32(addr), uint32(addr >> 32), data}}
	if masked {
		e = kvmIRQRoutingEntry{}
	}
	s.mu.Lock()
	changed := s.pins[pin] != e
	s.pins[pin] = e
	s.mu.Unlock()
	if !changed {
		return
	}
	s.vm.routeMu.Lock()
	defer s.vm.routeMu.Unlock()
	_ = s.vm.writeRoutes() // a guest's message that KVM refuses is not routed
}

// routes appends the pins' messages.
func (s *split) routes(list []kvmIRQRoutingEntry) []kvmIRQRoutingEntry {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.pins {
		if e.typ != 0 {
			list = append(list, e)
		}
	}
	return list
}
