// Package ioapic is the I/O APIC: 24 pins, each with a redirection entry that
// says which message an interrupt becomes (Intel 82093AA datasheet, May 1996;
// version 0x20 with an EOI register as in the ICH9 datasheet §13.5).
package ioapic

import (
	"sync"

	"github.com/gvmspawn/gvmspawn/vmm/bus"
	"github.com/gvmspawn/gvmspawn/vmm/layout"
)

// Pins is the number of interrupt inputs.
const Pins = layout.GSIPins

// Memory-mapped registers.
const (
	regSelect = 0x00
	regWindow = 0x10
	regEOI    = 0x40
)

// Indirect registers, 82093AA §3.2.
const (
	indexID          = 0x00
	indexVersion     = 0x01
	indexArbitration = 0x02
	indexRedirection = 0x10 // two for each pin

	version = 0x20 | (Pins-1)<<16
)

// entry is a redirection table entry (82093AA §3.2.4).
type entry uint64

const (
	entryVector    entry = 0xff
	entryModeShift       = 8
	entryLogical   entry = 1 << 11
	entryStatus    entry = 1 << 12 // delivery status: always idle
	entryRemoteIRR entry = 1 << 14
	entryLevel     entry = 1 << 15
	entryMasked    entry = 1 << 16
	entryDestShift       = 56

	entryReadOnly = entryStatus | entryRemoteIRR
	entryReserved = entry(1<<56-1) &^ (1<<17 - 1)

	modeExtINT = 7
)

// Message is what an interrupt of a pin becomes: a write of Data to Addr. While
// the pin is masked nothing is sent.
type Message struct {
	Addr   uint64
	Data   uint32
	Masked bool
}

// message translates the entry (Intel SDM vol. 3A §11.11).
func (e entry) message() Message {
	const destinationLogical, assert = 1 << 2, 1 << 14
	m := Message{
		Addr:   layout.LocalAPIC | uint64(e>>entryDestShift)<<12,
		Data:   uint32(e&entryVector) | uint32(e>>entryModeShift&7)<<8,
		Masked: e&entryMasked != 0,
	}
	if e&entryLogical != 0 {
		m.Addr |= destinationLogical
	}
	if e&entryLevel != 0 {
		m.Data |= uint32(entryLevel) | assert
	}
	return m
}

// Config is what the chip is made with. The functions are called with the
// chip's lock held, from any goroutine: they must neither block for long nor
// call the chip.
type Config struct {
	// Send delivers an interrupt: a write of data to addr.
	Send func(addr uint64, data uint32)
	// Routed, if not nil, is told of a pin's new message, for engines
	// whose kernel delivers interrupts itself and must know the vectors.
	Routed func(pin int, m Message)
}

// IOAPIC is the chip. It implements bus.Device.
//
// Interrupts are asserted by a high level whatever the polarity bit says: who
// drives a line knows what assertion is.
type IOAPIC struct {
	config Config

	mu      sync.Mutex // guards all below
	index   uint8
	id      uint32
	entries [Pins]entry
	asserts [Pins]int // how many lines of the pin are asserted
}

// New returns the chip with all pins masked.
func New(c Config) *IOAPIC {
	io := &IOAPIC{config: c}
	io.Reset()
	return io
}

// Reset masks all pins. Lines keep their levels.
func (io *IOAPIC) Reset() {
	io.mu.Lock()
	defer io.mu.Unlock()
	io.index, io.id = 0, 0
	for pin := range io.entries {
		io.entries[pin] = entryMasked
		io.routed(pin)
	}
}

// Read implements bus.Device: whole registers only, the rest reads 0.
func (io *IOAPIC) Read(off uint64, size int) uint64 {
	if size < 4 {
		// The select register is 8 bits wide, and some read it so.
		if off == regSelect {
			io.mu.Lock()
			defer io.mu.Unlock()
			return uint64(io.index)
		}
		return 0
	}
	io.mu.Lock()
	defer io.mu.Unlock()
	switch off {
	case regSelect:
		return uint64(io.index)
	case regWindow:
		return uint64(io.get())
	}
	return 0
}

// Write implements bus.Device: the select register takes any width, others
// need 32 bits.
func (io *IOAPIC) Write(off uint64, size int, v uint64) {
	io.mu.Lock()
	defer io.mu.Unlock()
	switch {
	case off == regSelect:
		io.index = uint8(v)
	case size < 4:
	case off == regWindow:
		io.put(uint32(v))
	case off == regEOI:
		io.eoi(uint8(v))
	}
}

func (io *IOAPIC) get() uint32 {
	switch io.index {
	case indexID, indexArbitration:
		return io.id
	case indexVersion:
		return version
	}
	if pin, high, ok := io.redirection(); ok {
		return uint32(io.entries[pin] >> high)
	}
	return 0
}

func (io *IOAPIC) put(v uint32) {
	if io.index == indexID {
		io.id = v & (0xf << 24)
		return
	}
	pin, high, ok := io.redirection()
	if !ok {
		return
	}
	old := io.entries[pin]
	e := old&^(0xffff_ffff<<high) | entry(v)<<high
	e = e&^(entryReadOnly|entryReserved) | old&entryRemoteIRR
	if e&entryLevel == 0 {
		// An edge has no remote IRR. Software ends an interrupt so on
		// chips without the EOI register.
		e &^= entryRemoteIRR
	}
	io.entries[pin] = e
	io.routed(pin)
	io.service(pin)
}

// redirection is the pin and the shift of the half that the index selects.
func (io *IOAPIC) redirection() (pin int, high uint, ok bool) {
	i := int(io.index) - indexRedirection
	return i / 2, uint(i&1) * 32, i >= 0 && i < 2*Pins
}

func (io *IOAPIC) routed(pin int) {
	if io.config.Routed != nil {
		io.config.Routed(pin, io.entries[pin].message())
	}
}

// service sends a level-triggered interrupt that is asserted and not yet
// being handled.
func (io *IOAPIC) service(pin int) {
	e := io.entries[pin]
	if e&(entryLevel|entryMasked|entryRemoteIRR) == entryLevel && io.asserts[pin] > 0 {
		if e>>entryModeShift&7 != modeExtINT {
			io.entries[pin] |= entryRemoteIRR
		}
		io.send(e)
	}
}

func (io *IOAPIC) send(e entry) {
	m := e.message()
	io.config.Send(m.Addr, m.Data)
}

// EOI ends the level-triggered interrupts with this vector: the broadcast of a
// local APIC. A pin that is still asserted interrupts again.
func (io *IOAPIC) EOI(vector uint8) {
	io.mu.Lock()
	defer io.mu.Unlock()
	io.eoi(vector)
}

func (io *IOAPIC) eoi(vector uint8) {
	for pin := range io.entries {
		e := &io.entries[pin]
		if uint8(*e) == vector && *e&entryRemoteIRR != 0 {
			*e &^= entryRemoteIRR
			io.service(pin)
		}
	}
}

// Line is one of the lines of a pin, which is asserted while any of its lines
// is. It implements bus.Line.
type Line struct {
	io    *IOAPIC
	pin   int
	level bool // guarded by io.mu
}

var _ bus.Line = (*Line)(nil)

// NewLine returns a new line of a pin, 0 to Pins-1.
func (io *IOAPIC) NewLine(pin int) *Line {
	if pin < 0 || pin >= Pins {
		panic("ioapic: no such pin")
	}
	return &Line{io: io, pin: pin}
}

// Set implements bus.Line.
func (l *Line) Set(level bool) {
	io := l.io
	io.mu.Lock()
	defer io.mu.Unlock()
	if level == l.level {
		return
	}
	l.level = level
	if !level {
		io.asserts[l.pin]--
		return
	}
	io.asserts[l.pin]++
	// 82093AA §3.2.4: an edge on a masked pin is ignored, not held.
	if e := io.entries[l.pin]; e&(entryLevel|entryMasked) == 0 && io.asserts[l.pin] == 1 {
		io.send(e)
	}
	io.service(l.pin)
}
