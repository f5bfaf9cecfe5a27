package pci

import (
	"fmt"
	"math/bits"
	"sync"
)

// Registers of [Hotplug], a dword each, a bit a slot.
const (
	hotplugUp    = 0 // slots with a new device; reading clears them
	hotplugDown  = 4 // slots whose device is to go; reading clears them
	hotplugEject = 8 // a write takes the devices of slots away
	// HotplugSize is the size of the register block in bytes.
	HotplugSize = 12
)

// Hotplug is the registers through which the machine's ACPI tables serve the
// slots of bus 0 whose devices may come and go while the guest runs. It
// implements bus.Device.
//
// The host asks, and the guest decides: a device leaves when the guest ejects
// its slot.
type Hotplug struct {
	host *Host
	// raise tells the guest to look: it raises an event, from any goroutine.
	raise func()
	// ejected is told on a CPU's thread of a function that has left the bus.
	ejected func(*Function)

	mu       sync.Mutex // guards the rest; raise and ejected are called without it
	slots    uint32     // under the control of the guest's driver
	up, down uint32
}

// NewHotplug returns the registers of the slots in the mask. raise and ejected
// must not block.
func NewHotplug(h *Host, slots uint32, raise func(), ejected func(*Function)) *Hotplug {
	return &Hotplug{host: h, slots: slots &^ 1, raise: raise, ejected: ejected}
}

// Slots is the mask of slots whose devices may come and go.
func (p *Hotplug) Slots() uint32 { return p.slots }

// Add puts a function into a free slot and tells the guest.
func (p *Hotplug) Add(f *Function) error {
	p.mu.Lock()
	err := fmt.Errorf("pci %s: all %d slots for devices that come and go are taken", f.name, bits.OnesCount32(p.slots))
	for s := p.slots; s != 0; s &= s - 1 {
		slot := uint8(bits.TrailingZeros32(s))
		if p.host.At(Address{Slot: slot}) != nil {
			continue
		}
		if err = p.host.AddAt(f, Address{Slot: slot}); err == nil {
			p.up |= 1 << slot
			p.down &^= 1 << slot
		}
		break
	}
	p.mu.Unlock()
	if err == nil {
		p.raise()
	}
	return err
}

// Remove asks the guest to let go of a function. It reports whether it is in
// one of the slots.
func (p *Hotplug) Remove(f *Function) bool {
	p.mu.Lock()
	slot, found := p.slot(f)
	if found {
		p.down |= 1 << slot
	}
	p.mu.Unlock()
	if found {
		p.raise()
	}
	return found
}

// slot finds the slot of a function.
func (p *Hotplug) slot(f *Function) (slot uint8, found bool) {
	for s := p.slots; s != 0; s &= s - 1 {
		slot = uint8(bits.TrailingZeros32(s))
		if p.host.At(Address{Slot: slot}) == f {
			return slot, true
		}
	}
	return 0, false
}

// Read implements bus.Device. Only aligned dwords, which the tables use, are
// registers.
func (p *Hotplug) Read(off uint64, size int) uint64 {
	if size != 4 {
		return 0
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	var v uint32
	switch off {
	case hotplugUp:
		v, p.up = p.up, 0
	case hotplugDown:
		v, p.down = p.down, 0
	}
	return uint64(v)
}

// Write implements bus.Device.
func (p *Hotplug) Write(off uint64, size int, v uint64) {
	if off != hotplugEject || size != 4 {
		return
	}
	for s := uint32(v) & p.slots; s != 0; s &= s - 1 {
		a := Address{Slot: uint8(bits.TrailingZeros32(s))}
		if f := p.host.At(a); f != nil && p.host.Remove(f) {
			p.ejected(f)
		}
	}
}
