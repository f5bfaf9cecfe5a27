package kvm

import (
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/gvmspawn/gvmspawn/vmm/bus"
	"github.com/gvmspawn/gvmspawn/vmm/layout"
)

// Message address and data (Intel SDM vol. 3A §11.11).
const (
	msiAddress    = 0xfee00000
	msiAddressTop = 20 // bits below are destination and mode
	msiDestShift  = 12
	msiDeliverNMI = 4 << 8
)

// eventOne is what a write of one to an eventfd looks like.
var eventOne = []byte{1, 0, 0, 0, 0, 0, 0, 0}

// msi is a message-signalled interrupt. Trigger hands the message to the kernel
// itself; eventfd, irqfd and route exist only once FD was called.
type msi struct {
	vm *VM

	mu     sync.Mutex // guards the fields below; VM.routeMu may be taken under it
	msg    kvmMSI
	routed bool
	closed bool
	fd     int    // eventfd, or -1
	gsi    uint32 // of the irqfd, valid with fd
}

// NewMSI returns a new message source.
func (vm *VM) NewMSI() (bus.MSI, error) {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	if vm.closed {
		return nil, ErrClosed
	}
	m := &msi{vm: vm, fd: -1}
	vm.msis[m] = struct{}{}
	return m, nil
}

// Route sets the message. An address that is no interrupt message (outside
// FEExxxxxh) takes the route away: on real hardware it would be a write to memory,
// and nothing here answers there.
func (m *msi) Route(addr uint64, data uint32) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return ErrClosed
	}
	m.routed = addr>>msiAddressTop == msiAddress>>msiAddressTop
	m.msg = kvmMSI{addressLo: uint32(addr), addressHi: uint32(addr >> 32), data: data}
	if m.fd < 0 {
		return nil
	}
	return m.writeRoute()
}

// writeRoute brings the route of the irqfd up to date.
//
// Preconditions: m.mu is held and fd is open.
func (m *msi) writeRoute() error {
	vm := m.vm
	vm.routeMu.Lock()
	defer vm.routeMu.Unlock()
	old, had := vm.routes[m.gsi]
	if had == m.routed && old == m.msg {
		return nil
	}
	delete(vm.routes, m.gsi)
	if m.routed {
		vm.routes[m.gsi] = m.msg
	}
	return vm.writeRoutes()
}

// Trigger sends the message. A guest that masks or breaks its APIC loses it.
func (m *msi) Trigger() {
	m.mu.Lock()
	if m.routed && !m.closed {
		_ = ioctlQuick(m.vm.fd, KVM_SIGNAL_MSI, &m.msg)
	}
	m.mu.Unlock()
}

// FD returns an eventfd that sends the message, or -1 if none can be had.
func (m *msi) FD() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fd < 0 && !m.closed {
		if err := m.attach(); err != nil {
			return -1
		}
	}
	return m.fd
}

// attach makes the eventfd, its route and its irqfd.
//
// Preconditions: m.mu is held.
func (m *msi) attach() error {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return err
	}
	gsi, err := m.vm.takeGSI()
	if err != nil {
		return errors.Join(err, unix.Close(fd))
	}
	m.fd, m.gsi = fd, gsi
	if err = m.writeRoute(); err == nil {
		irqfd := kvmIRQFD{fd: uint32(fd), gsi: gsi}
		_, err = ioctlPtr(m.vm.fd, KVM_IRQFD, &irqfd)
	}
	if err != nil {
		return errors.Join(err, m.detach())
	}
	return nil
}

// detach undoes attach.
//
// Preconditions: m.mu is held and fd is open.
func (m *msi) detach() error {
	irqfd := kvmIRQFD{fd: uint32(m.fd), gsi: m.gsi, flags: KVM_IRQFD_FLAG_DEASSIGN}
	_, err := ioctlPtr(m.vm.fd, KVM_IRQFD, &irqfd)
	err = errors.Join(err, unix.Close(m.fd), m.vm.putGSI(m.gsi))
	m.fd = -1
	return err
}

// Close frees the source. Triggering it afterwards does nothing.
func (m *msi) Close() error {
	m.vm.mu.Lock()
	delete(m.vm.msis, m)
	m.vm.mu.Unlock()
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return nil
	}
	m.closed = true
	if m.fd < 0 {
		return nil
	}
	return m.detach()
}

// takeGSI returns a number of its own for an irqfd.
func (vm *VM) takeGSI() (uint32, error) {
	vm.routeMu.Lock()
	defer vm.routeMu.Unlock()
	for gsi := uint32(layout.GSIMSIMin); gsi < vm.maxGSI; gsi++ {
		if _, taken := vm.routes[gsi]; !taken && !vm.usedGSI[gsi] {
			vm.usedGSI[gsi] = true
			return gsi, nil
		}
	}
	return 0, fmt.Errorf("all %d interrupt routes of KVM are in use", vm.maxGSI)
}

// putGSI gives a number back, with its route.
func (vm *VM) putGSI(gsi uint32) error {
	vm.routeMu.Lock()
	defer vm.routeMu.Unlock()
	delete(vm.usedGSI, gsi)
	if _, routed := vm.routes[gsi]; !routed {
		return nil
	}
	delete(vm.routes, gsi)
	return vm.writeRoutes()
}

// writeRoutes gives KVM the whole routing table: the pins of PIC and IOAPIC,
// then the messages. The PIT raises GSI 0, which is pin 2 of the IOAPIC.
//
// Preconditions: routeMu is held, or nobody else knows the VM yet.
func (vm *VM) writeRoutes() error {
	const picPins, cascade = 8, 2
	list := make([]kvmIRQRoutingEntry, 0, 2*picPins+layout.GSIPins+len(vm.routes))
	chip := func(gsi, chip, pin uint32) {
		list = append(list, kvmIRQRoutingEntry{gsi: gsi, typ: KVM_IRQ_ROUTING_IRQCHIP, u: [8]uint32{chip, pin}})
	}
	for gsi := range uint32(layout.GSIPins) {
		switch {
		case gsi == cascade:
			continue
		case gsi < picPins:
			chip(gsi, KVM_IRQCHIP_PIC_MASTER, gsi)
		case gsi < 2*picPins:
			chip(gsi, KVM_IRQCHIP_PIC_SLAVE, gsi-picPins)
		}
		if gsi == 0 {
			chip(gsi, KVM_IRQCHIP_IOAPIC, layout.GSIPIT)
		} else {
			chip(gsi, KVM_IRQCHIP_IOAPIC, gsi)
		}
	}
	if vm.split != nil {
		list = vm.split.routes(list[:0])
	}
	for gsi, m := range vm.routes {
		list = append(list, kvmIRQRoutingEntry{gsi: gsi, typ: KVM_IRQ_ROUTING_MSI, u: [8]uint32{m.addressLo, m.addressHi, m.data}})
	}
	if err := setGSIRouting(vm.fd, list); err != nil {
		return fmt.Errorf("set the interrupt routes (KVM_SET_GSI_ROUTING): %w", err)
	}
	return nil
}
