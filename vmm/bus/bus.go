// Package bus connects CPUs to chips: the port and memory-mapped I/O spaces,
// and the wires of a chip: interrupt lines, message-signalled interrupts and
// doorbells. An engine implements the wires, a machine hands them to the chips.
package bus

import (
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
)

// Device is a chip's register block. off is relative to where it is mapped,
// size is 1, 2, 4 or 8, and the access lies wholly inside the mapping. off may
// be misaligned and registers may be crossed: a device must survive both. A
// device is called from several CPUs at once and guards its own state. Calls
// never allocate.
type Device interface {
	// Read returns the value in the low size bytes.
	Read(off uint64, size int) uint64
	// Write takes the value from the low size bytes of v.
	Write(off uint64, size int, v uint64)
}

// Line is a level-triggered or edge-triggered interrupt wire into the
// interrupt controller. It may be called from any goroutine.
type Line interface {
	// Set drives the wire. An edge is Set(true), then Set(false).
	Set(level bool)
}

// MSI is one message-signalled interrupt source (PCI 3.0 §6.8). Its methods
// may be called from any goroutine.
type MSI interface {
	// Route sets the message that Trigger sends.
	Route(addr uint64, data uint32) error
	// Trigger sends the message; without a route it does nothing.
	Trigger()
	// FD is an eventfd that triggers it from the kernel (irqfd), or -1.
	FD() int
	Close() error
}

// Doorbell wakes the worker of a virtqueue. The guest rings it with a write
// to its address; where the engine can it does so without leaving the CPU
// (ioeventfd), otherwise the chip's Write handler calls Ring.
type Doorbell interface {
	// Bind makes guest writes of any value and size to the MMIO address
	// addr ring the bell; an earlier binding is undone. Engines without
	// such a short cut do nothing.
	Bind(addr uint64) error
	// Unbind undoes Bind; without a binding it does nothing.
	Unbind() error
	// Ring wakes one present or future Wait. It never blocks. On a closed
	// bell it does nothing: a guest notifies while another CPU resets.
	Ring()
	// Wait blocks until the bell has rung since the last Wait; several rings
	// count once. It returns false for good once the bell is closed.
	Wait() bool
	// FD is an eventfd that the bell rings (for vhost), or -1.
	FD() int
	// Close makes every Wait return false. It is idempotent.
	Close() error
}

// Wires is what a chip may ask of a machine. An engine implements it.
type Wires interface {
	// NewLine returns the wire of a global system interrupt.
	NewLine(gsi uint32) Line
	// NewMSI returns a new message source without a route.
	NewMSI() (MSI, error)
	// NewDoorbell returns a new, unbound bell.
	NewDoorbell() (Doorbell, error)
}

// mapping is one device in a space.
type mapping struct {
	base, end uint64 // end is inclusive, so that the last address can be mapped
	name      string
	dev       Device
}

// Space is an address space of devices: I/O ports or MMIO. Look-ups are
// lock-free and see either the old or the new state of a change. No lock is
// held while a device is called. The zero value is an empty space.
type Space struct {
	mu   sync.Mutex // serialises writers of maps
	maps atomic.Pointer[[]mapping]

	// Unclaimed, if set before the machine runs, is told of accesses that no
	// device claims. They read as ones and are ignored on write.
	Unclaimed func(addr uint64, size int, write bool)
}

// Map puts a device at [base, base+size). Overlap is an error naming both.
func (s *Space) Map(name string, base, size uint64, dev Device) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if size == 0 || base+size-1 < base {
		return fmt.Errorf("map %s: bad range %#x+%#x", name, base, size)
	}
	n := mapping{base, base + size - 1, name, dev}
	old := s.load()
	i, _ := slices.BinarySearchFunc(old, base, func(m mapping, b uint64) int {
		if m.end < b {
			return -1
		}
		return 1
	})
	if i < len(old) && old[i].base <= n.end {
		return fmt.Errorf("map %s at %#x-%#x: overlaps %s at %#x-%#x", name, n.base, n.end, old[i].name, old[i].base, old[i].end)
	}
	maps := slices.Insert(slices.Clone(old), i, n)
	s.maps.Store(&maps)
	return nil
}

// Unmap takes away the device at base, if there is one. A CPU that looked it
// up before may still be inside it.
func (s *Space) Unmap(base uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	maps := slices.DeleteFunc(slices.Clone(s.load()), func(m mapping) bool { return m.base == base })
	s.maps.Store(&maps)
}

// Each calls f for every device, in order of address. End is inclusive.
func (s *Space) Each(f func(base, end uint64, name string)) {
	for _, m := range s.load() {
		f(m.base, m.end, m.name)
	}
}

func (s *Space) load() []mapping {
	if p := s.maps.Load(); p != nil {
		return *p
	}
	return nil
}

// find returns the mapping that holds [addr, addr+size), or nil.
func (s *Space) find(addr uint64, size int) *mapping {
	maps := s.load()
	lo, hi := 0, len(maps)
	for lo < hi {
		if mid := int(uint(lo+hi) >> 1); maps[mid].end < addr {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	if lo == len(maps) || addr < maps[lo].base || maps[lo].end-addr < uint64(size)-1 {
		return nil
	}
	return &maps[lo]
}

// Ones is what size unclaimed bytes read as.
func Ones(size int) uint64 { return ^uint64(0) >> (64 - 8*uint(size)) }

// Read reads size (1, 2, 4 or 8) bytes at addr.
func (s *Space) Read(addr uint64, size int) uint64 {
	m := s.find(addr, size)
	if m == nil {
		if s.Unclaimed != nil {
			s.Unclaimed(addr, size, false)
		}
		return Ones(size)
	}
	return m.dev.Read(addr-m.base, size) & Ones(size)
}

// Write writes size (1, 2, 4 or 8) bytes at addr.
func (s *Space) Write(addr uint64, size int, v uint64) {
	m := s.find(addr, size)
	if m == nil {
		if s.Unclaimed != nil {
			s.Unclaimed(addr, size, true)
		}
		return
	}
	m.dev.Write(addr-m.base, size, v&Ones(size))
}

// Bus is the two spaces that a CPU reaches; it is the CPU's vcpu.IO.
type Bus struct {
	Port Space
	MMIO Space
}

// PortIn reads size (1, 2 or 4) bytes from a port.
func (b *Bus) PortIn(port uint16, size int) uint32 { return uint32(b.Port.Read(uint64(port), size)) }

// PortOut writes size (1, 2 or 4) bytes to a port.
func (b *Bus) PortOut(port uint16, size int, v uint32) {
	b.Port.Write(uint64(port), size, uint64(v))
}

// MMIORead reads size (1, 2, 4 or 8) bytes at a guest physical address.
func (b *Bus) MMIORead(addr uint64, size int) uint64 { return b.MMIO.Read(addr, size) }

// MMIOWrite writes size (1, 2, 4 or 8) bytes at a guest physical address.
func (b *Bus) MMIOWrite(addr uint64, size int, v uint64) { b.MMIO.Write(addr, size, v) }
