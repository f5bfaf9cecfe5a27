package pci

import (
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/gvmspawn/gvmspawn/vmm/bus"
)

// Window is a range of guest physical addresses, or of ports, End exclusive.
type Window struct{ Start, End uint64 }

func (w Window) holds(addr, size uint64) bool {
	return addr >= w.Start && addr < w.End && size <= w.End-addr
}

// Config is what a host bridge needs to know of the machine.
type Config struct {
	// Low, below 4 GiB, is for 32-bit BARs, High for 64-bit ones.
	Low, High Window
	// Ports is for BARs of I/O space, which appear in PortSpace.
	Ports     Window
	PortSpace *bus.Space
	// ECAM is the address of the memory-mapped configuration space, which
	// the host bridge reports in its PCIEXBAR register. 0 means that firmware
	// puts it somewhere in Low by that register, and that there is none before.
	ECAM uint64
	// HideSMRAM, if set, is told whether TSEG, SMRAMSize bytes below the end of
	// RAM below 4 GiB, is hidden from CPUs that are not in System Management
	// Mode. It is called on a CPU's thread.
	HideSMRAM func(hide bool)
	SMRAMSize uint64
	// Reset, if set, gets single-byte accesses to port 0xcf9, which lies
	// inside the address register at 0xcf8, at offset 0.
	Reset bus.Device
}

// Address is a function's place on bus 0.
type Address struct{ Slot, Function uint8 }

// String prints the address as lspci does.
func (a Address) String() string { return fmt.Sprintf("0000:00:%02x.%d", a.Slot, a.Function) }

// Host is the host bridge and bus 0. Functions may come and go while the
// machine runs; see [Hotplug].
type Host struct {
	cfg       Config
	space     *bus.Space
	functions [slotCount][functionCount]atomic.Pointer[Function]
	address   atomic.Uint32

	mu    sync.Mutex  // guards the state of all BARs, changes of functions, and the rest
	order []*Function // in the order of Add
	low   uint64      // next free address of each window
	high  uint64
	ports uint64
	ecam  uint64 // where ECAM is, if firmware put it there
}

// NewHost returns the host bridge, itself at slot 0. BARs of memory appear in space.
func NewHost(space *bus.Space, cfg Config) (*Host, error) {
	h := &Host{cfg: cfg, space: space, low: cfg.Low.Start, high: cfg.High.Start, ports: cfg.Ports.Start}
	f := h.newBridge()
	if err := h.AddAt(f, Address{}); err != nil {
		return nil, err
	}
	return h, nil
}

// Add puts a function into the next free slot and gives its BARs addresses.
// After 31 devices, functions 1 to 7 of the slots are used.
func (h *Host) Add(f *Function) (Address, error) {
	for fn := range uint8(functionCount) {
		for slot := uint8(1); slot < slotCount; slot++ {
			if h.functions[slot][fn].Load() == nil {
				a := Address{slot, fn}
				return a, h.AddAt(f, a)
			}
		}
	}
	return Address{}, fmt.Errorf("pci %s: all %d places on the bus are taken", f.name, (slotCount-1)*functionCount)
}

// AddAt is Add with a chosen place. A function other than 0 needs function 0
// of its slot to be there.
func (h *Host) AddAt(f *Function, a Address) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if a.Slot >= slotCount || a.Function >= functionCount || h.functions[a.Slot][a.Function].Load() != nil {
		return fmt.Errorf("pci %s: %v is not free", f.name, a)
	}
	first := h.functions[a.Slot][0].Load()
	if a.Function > 0 && first == nil {
		return fmt.Errorf("pci %s: %v has no function 0", f.name, a)
	}
	for _, b := range f.bars {
		if err := h.assign(f, b); err != nil {
			return err
		}
	}
	if a.Function > 0 {
		first.cfg[regHeaderType] |= headerMulti
		first.initial[regHeaderType] |= headerMulti
	}
	f.initial = f.cfg
	f.host = h
	h.functions[a.Slot][a.Function].Store(f)
	h.order = append(h.order, f)
	return nil
}

// At is the function at an address, or nil.
func (h *Host) At(a Address) *Function {
	return h.functions[a.Slot%slotCount][a.Function%functionCount].Load()
}

// Remove takes a function off the bus: its BARs decode no longer, and its
// configuration space reads as ones. It reports whether it was there. A CPU
// may still be inside the function's device.
func (h *Host) Remove(f *Function) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	i := slices.Index(h.order, f)
	if i < 0 {
		return false
	}
	h.order = slices.Delete(h.order, i, i+1)
	for slot := range h.functions {
		for fn := range h.functions[slot] {
			h.functions[slot][fn].CompareAndSwap(f, nil)
		}
	}
	for _, b := range f.bars {
		b.wantOn = false
		if b.mapped {
			h.unmap(b)
		}
	}
	f.gone = true
	h.remap() // what it was in the way of
	return true
}

// assign gives a BAR the address that it asks for, or the next naturally
// aligned one of its window.
//
// Preconditions: h.mu is held.
func (h *Host) assign(f *Function, b *bar) error {
	w, next := h.cfg.Low, &h.low
	switch {
	case b.Ports:
		w, next = h.cfg.Ports, &h.ports
	case b.Wide:
		w, next = h.cfg.High, &h.high
	}
	addr := (*next + b.Size - 1) &^ (b.Size - 1)
	if b.Address != 0 {
		if o := h.owner(b.Ports, b.Address, b.Size); o != nil || b.Address&(b.Size-1) != 0 {
			return fmt.Errorf("pci %s: BAR %d of %#x bytes cannot be at %#x", f.name, b.index, b.Size, b.Address)
		}
		addr = b.Address
	} else if addr < *next || !w.holds(addr, b.Size) {
		addr = h.gap(b.Ports, w, b.Size)
	}
	if !w.holds(addr, b.Size) {
		return fmt.Errorf("pci %s: no room for BAR %d of %#x bytes in the window %#x-%#x",
			f.name, b.index, b.Size, w.Start, w.End)
	}
	*next = max(*next, addr+b.Size)
	b.assigned = addr
	b.put(f.cfg[:], addr)
	return nil
}

// gap is the first naturally aligned address of a window that nobody was
// given, such as one that a function left behind.
//
// Preconditions: h.mu is held.
func (h *Host) gap(ports bool, w Window, size uint64) uint64 {
	addr := (w.Start + size - 1) &^ (size - 1)
	for w.holds(addr, size) {
		o := h.owner(ports, addr, size)
		if o == nil {
			return addr
		}
		addr = (o.assigned + o.Size + size - 1) &^ (size - 1)
	}
	return w.End
}

// owner returns a BAR that was given a part of [addr, addr+size) of memory or of the
// ports, or nil.
//
// Preconditions: h.mu is held.
func (h *Host) owner(ports bool, addr, size uint64) *bar {
	for _, f := range h.order {
		for _, b := range f.bars {
			if b.Ports == ports && addr < b.assigned+b.Size && b.assigned < addr+size {
				return b
			}
		}
	}
	return nil
}

// remap makes the bus follow what the guest wants: first it takes away every
// BAR that moved or was switched off, then it tries to map every one that is
// wanted and not there. An address that is taken or outside the windows stays
// unmapped until something moves.
//
// Preconditions: h.mu is held.
func (h *Host) remap() {
	for _, f := range h.order {
		for _, b := range f.bars {
			if b.mapped && (!b.wantOn || b.want != b.at) {
				h.unmap(b)
			}
		}
	}
	for _, f := range h.order {
		for _, b := range f.bars {
			if b.wantOn && !b.mapped {
				h.mapBAR(f, b)
			}
		}
	}
}

// spaceOf is where a BAR appears.
func (h *Host) spaceOf(b *bar) *bus.Space {
	if b.Ports {
		return h.cfg.PortSpace
	}
	return h.space
}

func (h *Host) unmap(b *bar) {
	b.mapped = false
	if b.Device != nil {
		h.spaceOf(b).Unmap(b.at)
	}
	if b.Moved != nil {
		b.Moved(0, false)
	}
}

func (h *Host) mapBAR(f *Function, b *bar) {
	if b.Ports && !h.cfg.Ports.holds(b.want, b.Size) ||
		!b.Ports && !h.cfg.Low.holds(b.want, b.Size) && !h.cfg.High.holds(b.want, b.Size) {
		return
	}
	if b.Device != nil && h.spaceOf(b).Map(f.name, b.want, b.Size, b.Device) != nil {
		return // overlaps another device: neither of real hardware's answers is useful
	}
	b.at, b.mapped = b.want, true
	if b.Moved != nil {
		b.Moved(b.at, true)
	}
}

// Reset brings every function into its power-on state, in the order of Add.
// No CPU runs.
func (h *Host) Reset() {
	h.address.Store(0)
	for _, f := range h.Functions() {
		f.reset()
	}
}

// BARs lists the memory that the guest's BARs decode now, by window: the 32-bit
// one, the 64-bit one, in no order.
func (h *Host) BARs() (low, high []Window) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, f := range h.order {
		for _, b := range f.bars {
			switch w := (Window{b.at, b.at + b.Size}); {
			case !b.mapped || b.Ports:
			case h.cfg.Low.holds(b.at, b.Size):
				low = append(low, w)
			default:
				high = append(high, w)
			}
		}
	}
	return low, high
}

// Functions lists all functions in the order of Add; the first is the bridge.
func (h *Host) Functions() []*Function {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.order)
}

// read and write access a function's configuration space; bytes beyond its
// 4 KiB, and functions that are not there, read as ones (PCI 3.0 §6.1).
func (h *Host) read(slot, fn, off uint64, size int) uint64 {
	f := h.functions[slot%slotCount][fn%functionCount].Load()
	if f == nil || off+uint64(size) > ecamSize {
		return bus.Ones(size)
	}
	return f.ReadConfig(int(off), size)
}

func (h *Host) write(slot, fn, off uint64, size int, v uint64) {
	f := h.functions[slot%slotCount][fn%functionCount].Load()
	if f != nil && off+uint64(size) <= ecamSize {
		f.WriteConfig(int(off), size, v)
	}
}

// ECAM is the memory-mapped configuration space: 1 MiB a bus, 4 KiB a function
// (PCI Express 5.0 §7.2.2).
func (h *Host) ECAM() bus.Device { return ecam{h} }

type ecam struct{ h *Host }

func (e ecam) Read(off uint64, size int) uint64 {
	if off>>20 != 0 { // another bus
		return bus.Ones(size)
	}
	return e.h.read(off>>15, off>>12, off&(ecamSize-1), size)
}

func (e ecam) Write(off uint64, size int, v uint64) {
	if off>>20 == 0 {
		e.h.write(off>>15, off>>12, off&(ecamSize-1), size, v)
	}
}

// AddressPort is CONFIG_ADDRESS, the four ports at 0xcf8.
func (h *Host) AddressPort() bus.Device { return addressPort{h} }

type addressPort struct{ h *Host }

func (p addressPort) Read(off uint64, size int) uint64 {
	switch {
	case off == 0 && size == 4:
		return uint64(p.h.address.Load())
	case off == resetPort && size == 1 && p.h.cfg.Reset != nil:
		return p.h.cfg.Reset.Read(0, 1)
	}
	return bus.Ones(size) // only dwords are the bridge's (§3.2.2.3.2)
}

func (p addressPort) Write(off uint64, size int, v uint64) {
	switch {
	case off == 0 && size == 4:
		p.h.address.Store(uint32(v))
	case off == resetPort && size == 1 && p.h.cfg.Reset != nil:
		p.h.cfg.Reset.Write(0, 1, v)
	}
}

// DataPort is CONFIG_DATA, the four ports at 0xcfc.
func (h *Host) DataPort() bus.Device { return dataPort{h} }

type dataPort struct{ h *Host }

// target splits CONFIG_ADDRESS; ok is false if it selects nothing on bus 0.
func (p dataPort) target(off uint64) (slot, fn, reg uint64, ok bool) {
	a := uint64(p.h.address.Load())
	return a >> 11, a >> 8, a&0xfc + off, a&addressEnable != 0 && a>>16&0xff == 0
}

func (p dataPort) Read(off uint64, size int) uint64 {
	slot, fn, reg, ok := p.target(off)
	if !ok {
		return bus.Ones(size)
	}
	return p.h.read(slot, fn, reg, size)
}

func (p dataPort) Write(off uint64, size int, v uint64) {
	if slot, fn, reg, ok := p.target(off); ok {
		p.h.write(slot, fn, reg, size, v)
	}
}
