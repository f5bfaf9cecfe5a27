// Package power is the machine's switches: the registers with which a guest
// powers it off or resets it, and the button with which the host asks it to.
//
// The register blocks are those of hardware-reduced ACPI (ACPI 6.5 §4.8.3.7
// sleep registers, §4.8.3.6 reset register, §5.6.9 Generic Event Device) as
// firmware/acpi describes them, and two older ways to reset a PC: the reset
// control register (Intel ICH9 datasheet §13.7.5) and system control port A.
package power

import (
	"sync"

	"github.com/gvmspawn/gvmspawn/vmm/bus"
)

// Offsets and values of the [Control] block.
const (
	SleepControl = 0
	SleepStatus  = 1
	ResetControl = 2
	ControlSize  = 3

	// SleepTypeS5 is the SLP_TYP of the soft-off state.
	SleepTypeS5 = 5
	// ResetValue is what the reset register wants.
	ResetValue = 1

	sleepTypeShift = 2
	sleepTypeMask  = 7
	sleepEnable    = 1 << 5
)

// Control is SLEEP_CONTROL_REG, SLEEP_STATUS_REG and RESET_REG, a byte each.
// It implements bus.Device and has no state. Its functions are called on the
// CPU's thread, any number of times; they must not block.
type Control struct {
	PowerOff func()
	Reset    func()
}

// Read implements bus.Device: nothing reads back, and WAK_STS is never set
// because no sleep state but off exists.
func (c *Control) Read(uint64, int) uint64 { return 0 }

// Write implements bus.Device.
func (c *Control) Write(off uint64, size int, v uint64) { bus.WriteBytes(c, off, size, v) }

// ReadByteAt implements bus.ByteChip.
func (c *Control) ReadByteAt(uint64) uint8 { return 0 }

// WriteByteAt implements bus.ByteChip.
func (c *Control) WriteByteAt(off uint64, v uint8) {
	switch {
	case off == SleepControl && v&sleepEnable != 0 && v>>sleepTypeShift&sleepTypeMask == SleepTypeS5:
		c.PowerOff()
	case off == ResetControl && v == ResetValue:
		c.Reset()
	}
}

// The event device's register and its bit for the button.
const (
	// PowerButton is the event of a pressed button, PCIHotplug of devices
	// that came or are to go.
	PowerButton = 1 << 0
	PCIHotplug  = 1 << 3
	// EventsSize is the size of the register block in bytes.
	EventsSize = 4
)

// Events is the Generic Event Device's register: reading its four bytes gives
// the pending events and clears them. The line is high while there are any.
// It implements bus.Device.
type Events struct {
	line bus.Line

	mu      sync.Mutex // held while line is called
	pending uint32
}

// NewEvents returns the register with no event pending.
func NewEvents(line bus.Line) *Events { return &Events{line: line} }

// Raise makes the events in mask pending, such as PowerButton. It may be
// called from any goroutine; an event raised twice before the guest looks
// counts once.
func (e *Events) Raise(mask uint32) {
	e.mu.Lock()
	defer e.mu.Unlock()
	was := e.pending
	e.pending |= mask
	if was == 0 && e.pending != 0 {
		e.line.Set(true)
	}
}

// Reset forgets pending events.
func (e *Events) Reset() { e.take() }

// Read implements bus.Device. Only the access that the tables describe, four
// bytes at 0, takes the events.
func (e *Events) Read(off uint64, size int) uint64 {
	if off != 0 || size != EventsSize {
		return 0
	}
	return uint64(e.take())
}

func (e *Events) take() uint32 {
	e.mu.Lock()
	defer e.mu.Unlock()
	v := e.pending
	e.pending = 0
	if v != 0 {
		e.line.Set(false)
	}
	return v
}

// Write implements bus.Device: the register is read-only.
func (e *Events) Write(uint64, int, uint64) {}
