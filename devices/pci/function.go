// Package pci is a PCI bus without a firmware: a host bridge with both ways to
// reach configuration space, functions with base address registers (BARs) and
// capabilities, and MSI-X. Documents: PCI Local Bus Specification 3.0, PCI
// Express Base Specification 5.0 §7.2.2 (ECAM).
//
// All functions sit on domain 0, bus 0. BARs are given addresses when a
// function is added; an operating system keeps or changes them. A BAR decodes
// only inside the windows of the host bridge, as behind a real one, so that
// no guest can lay a device over RAM, the interrupt controllers or firmware.
//
// Lock order: Function.mu, Host.mu, then whatever a device's handlers take.
// Handlers of accesses, of moved BARs and of capabilities are called with
// Function.mu held and must not touch configuration space.
package pci

import (
	"encoding/binary"
	"fmt"
	"io"
	"sync"

	"github.com/gvmspawn/gvmspawn/vmm/bus"
)

// ID is what a function says it is (PCI 3.0 §6.2.1).
type ID struct {
	Vendor, Device       uint16
	SubVendor, Subsystem uint16
	Revision             uint8
	Class                uint32 // base class, subclass and interface: 24 bits
}

// BAR describes a base address register (PCI 3.0 §6.2.5.1).
type BAR struct {
	// Size is in bytes, a power of two of at least 16, below 2^31 unless Wide; of
	// Ports 4 to 256.
	Size uint64
	// Ports is a BAR of I/O space, else it is one of memory.
	Ports bool
	// Wide is a 64-bit BAR, which occupies two registers.
	Wide bool
	// Address is where Host.Add puts the BAR; 0 leaves it to the host. It is
	// a multiple of Size, in a window of the host and free.
	Address uint64
	// Prefetchable memory has no side effects on reads.
	Prefetchable bool
	// Device gets the accesses. Without one the BAR is only an address: the
	// machine backs it with a memory slot, which does not move.
	Device bus.Device
	// Moved, if set, is told where the BAR decodes now, or that it stopped.
	// It is called with locks of this package held and must not call back.
	Moved func(addr uint64, on bool)
}

// Capability is an entry of the capability list (PCI 3.0 §6.7).
type Capability struct {
	ID uint8
	// Body is what follows the ID and the next pointer.
	Body []byte
	// Writable has a one for each bit of Body that the guest may change;
	// bytes beyond its end are read-only.
	Writable []byte
	// Reading, if set, is called before the guest reads body[off:off+n] and
	// may change body. Written is called after a write there.
	Reading, Written func(body []byte, off, n int)
}

// placed is a capability in configuration space.
type placed struct {
	Capability
	start, end int // of Body in configuration space
}

// bar is a BAR with its state. Everything below Host.mu's line is guarded by it.
type bar struct {
	BAR
	index int

	assigned uint64 // address given by Add
	want     uint64 // where the guest wants it, if wantOn
	wantOn   bool
	at       uint64 // where it is, if mapped
	mapped   bool
}

// Function is one function of a device.
type Function struct {
	name string
	host *Host // set by Host.Add
	bars []*bar
	gone bool // guarded by Host.mu: it has left the bus

	// OnReset, if set before the function is added, is called by Host.Reset
	// to bring the device itself into its power-on state.
	OnReset func()
	// Description, if set before the function is added, writes the device's
	// state for people.
	Description func(io.Writer)

	// onWrite, if not nil, is called with mu held after configuration space
	// was written.
	onWrite func(off, size int)

	mu       sync.Mutex // guards the rest
	cfg      [configSize]byte
	writable [configSize]byte
	initial  [configSize]byte // cfg at power-on
	caps     []placed
	nextCap  int
	lastCap  int // where the next capability's offset goes
	msix     *MSIX
}

// MSIX is the function's MSI-X, or nil.
func (f *Function) MSIX() *MSIX {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.msix
}

// NewFunction returns a function without BARs and capabilities. name is for
// people.
func NewFunction(name string, id ID) *Function {
	f := &Function{name: name, nextCap: regFirstCap, lastCap: regCapPointer}
	le := binary.LittleEndian
	le.PutUint16(f.cfg[regVendorID:], id.Vendor)
	le.PutUint16(f.cfg[regDeviceID:], id.Device)
	le.PutUint32(f.cfg[regRevision:], id.Class<<8|uint32(id.Revision))
	le.PutUint16(f.cfg[regSubVendor:], id.SubVendor)
	le.PutUint16(f.cfg[regSubsystem:], id.Subsystem)
	le.PutUint16(f.writable[regCommand:], commandWritable)
	f.writable[regCacheLine] = 0xff
	f.writable[regIntLine] = 0xff // scratch for software; the pin reads 0
	return f
}

// Name is the function's name.
func (f *Function) Name() string { return f.name }

// AddBAR adds a BAR in register i, 0 to 5. It must be called before Host.Add.
func (f *Function) AddBAR(i int, b BAR) error {
	last := i
	if b.Wide {
		last++
	}
	if i < 0 || last >= barCount || !b.possible() {
		return fmt.Errorf("pci %s: BAR %d of %#x bytes is not possible", f.name, i, b.Size)
	}
	for _, o := range f.bars {
		if i <= o.last() && o.index <= last {
			return fmt.Errorf("pci %s: BAR %d is taken by BAR %d", f.name, i, o.index)
		}
	}
	n := &bar{BAR: b, index: i}
	flags := uint32(0)
	if b.Ports {
		flags = barPorts
		f.writable[regCommand] |= CommandIO
	}
	if b.Prefetchable {
		flags |= barPrefetch
	}
	// The bits below the size are hard-wired to zero, so that writing ones
	// and reading back shows the size.
	mask := ^(b.Size - 1)
	binary.LittleEndian.PutUint32(f.writable[n.reg():], uint32(mask)&^n.flags())
	if b.Wide {
		flags |= barWide
		binary.LittleEndian.PutUint32(f.writable[n.reg()+4:], uint32(mask>>32))
	}
	binary.LittleEndian.PutUint32(f.cfg[n.reg():], flags)
	f.bars = append(f.bars, n)
	return nil
}

// possible reports whether there are BARs like this.
func (b *BAR) possible() bool {
	least, most := uint64(barMinimumSize), uint64(1<<30)
	switch {
	case b.Ports && (b.Wide || b.Prefetchable):
		return false
	case b.Ports:
		least, most = portMinimum, portMaximum
	case b.Wide:
		most = 1 << 63
	}
	return b.Size >= least && b.Size <= most && b.Size&(b.Size-1) == 0
}

// flags are the bits of the register that are not of the address.
func (b *bar) flags() uint32 {
	if b.Ports {
		return barPortFlags
	}
	return barFlags
}

func (b *bar) reg() int { return regBAR0 + 4*b.index }

func (b *bar) last() int {
	if b.Wide {
		return b.index + 1
	}
	return b.index
}

// put writes the address into configuration space.
func (b *bar) put(cfg []byte, addr uint64) {
	lo := binary.LittleEndian.Uint32(cfg[b.reg():]) & b.flags()
	binary.LittleEndian.PutUint32(cfg[b.reg():], uint32(addr)|lo)
	if b.Wide {
		binary.LittleEndian.PutUint32(cfg[b.reg()+4:], uint32(addr>>32))
	}
}

// get reads the address from configuration space.
func (b *bar) get(cfg []byte) uint64 {
	addr := uint64(binary.LittleEndian.Uint32(cfg[b.reg():]) &^ b.flags())
	if b.Wide {
		addr |= uint64(binary.LittleEndian.Uint32(cfg[b.reg()+4:])) << 32
	}
	return addr
}

// BARAddress is the address that Host.Add gave to BAR i; 0 if there is none.
func (f *Function) BARAddress(i int) uint64 {
	for _, b := range f.bars {
		if b.index == i {
			return b.assigned
		}
	}
	return 0
}

// AddCapability appends to the capability list and returns the offset of the
// capability in configuration space. It must be called before Host.Add.
func (f *Function) AddCapability(c Capability) (int, error) {
	off := f.nextCap
	end := off + 2 + len(c.Body)
	if end > configSize {
		return 0, fmt.Errorf("pci %s: no room for a capability of %d bytes", f.name, len(c.Body))
	}
	f.cfg[f.lastCap] = byte(off)
	f.cfg[off] = c.ID
	copy(f.cfg[off+2:], c.Body)
	copy(f.writable[off+2:end], c.Writable)
	f.cfg[regStatus] |= statusCapList
	f.caps = append(f.caps, placed{c, off + 2, end})
	f.lastCap, f.nextCap = off+1, (end+3)&^3
	return off, nil
}

// SetRegister gives a device-specific dword its value and writable bits. It
// must be called before Host.Add.
func (f *Function) SetRegister(off int, value, writable uint32) {
	binary.LittleEndian.PutUint32(f.cfg[off:], value)
	binary.LittleEndian.PutUint32(f.writable[off:], writable)
}

// OnWrite has do called behind each write to configuration space, which do sees
// and may change. It must be called before Host.Add.
func (f *Function) OnWrite(do func(cfg []byte, off, size int)) {
	f.onWrite = func(off, size int) { do(f.cfg[:], off, size) }
}

// Freeze makes bits of the byte at off read-only for good. It may be called by
// OnWrite's function only.
func (f *Function) Freeze(off int, bits uint8) { f.writable[off] &^= bits }

// ReadConfig reads size bytes of configuration space at off, 0 to 4095. Bytes
// beyond 255 read as zero: there are no extended capabilities.
func (f *Function) ReadConfig(off, size int) uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := range f.caps {
		if c := &f.caps[i]; c.Reading != nil && off < c.end && c.start < off+size {
			c.Reading(f.cfg[c.start:c.end], max(off-c.start, 0), min(off+size, c.end)-max(off, c.start))
		}
	}
	v := uint64(0)
	for i := range size {
		if off+i < configSize {
			v |= uint64(f.cfg[off+i]) << (8 * i)
		}
	}
	return v
}

// WriteConfig writes the low size bytes of v at off.
func (f *Function) WriteConfig(off, size int, v uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := 0; i < size && off+i < configSize; i++ {
		w := f.writable[off+i]
		f.cfg[off+i] = f.cfg[off+i]&^w | byte(v>>(8*i))&w
	}
	if touches(off, size, regCommand, 2) || touches(off, size, regBAR0, 4*barCount) {
		f.decode()
	}
	if f.onWrite != nil {
		f.onWrite(off, size)
	}
	for i := range f.caps {
		if c := &f.caps[i]; c.Written != nil && off < c.end && c.start < off+size {
			c.Written(f.cfg[c.start:c.end], max(off-c.start, 0), min(off+size, c.end)-max(off, c.start))
		}
	}
}

func touches(off, size, reg, n int) bool { return off < reg+n && reg < off+size }

// decode makes the bus follow command register and BARs.
//
// Preconditions: f.mu is held.
func (f *Function) decode() {
	if f.host == nil {
		return
	}
	memory, ports := f.cfg[regCommand]&CommandMemory != 0, f.cfg[regCommand]&CommandIO != 0
	f.host.mu.Lock()
	defer f.host.mu.Unlock()
	if f.gone {
		return
	}
	for _, b := range f.bars {
		b.want, b.wantOn = b.get(f.cfg[:]), memory
		if b.Ports {
			b.wantOn = ports
		}
	}
	f.host.remap()
}

// reset restores the power-on configuration, with the BARs as Add gave them.
func (f *Function) reset() {
	f.mu.Lock()
	f.cfg = f.initial
	if f.msix != nil {
		f.msix.reset()
	}
	f.decode()
	if f.onWrite != nil {
		f.onWrite(0, configSize)
	}
	f.mu.Unlock()
	if f.OnReset != nil {
		f.OnReset()
	}
}
