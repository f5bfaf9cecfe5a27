// Package i8042 is the PC's keyboard controller with nothing plugged in, or
// with a keyboard on which nobody types (Intel 8042 with the command set of the
// IBM PS/2 Technical Reference).
//
// It is here because its output port resets the machine, which is how much
// software does it. The rest answers just enough that a driver finds a working
// controller without devices at once, instead of waiting for time-outs. There
// is no interrupt. The keyboard is for firmware, which waits two seconds for one
// that does not answer.
package i8042

import (
	"sync"

	"github.com/gvmspawn/gvmspawn/vmm/bus"
)

// status is the register at port 0x64.
type status uint8

const (
	statusOBF     status = 1 << 0 // a byte waits at port 0x60
	statusSYS     status = 1 << 2 // self-test passed
	statusCommand status = 1 << 3 // the last write was a command
	statusUnlock  status = 1 << 4
	statusTimeout status = 1 << 6 // the byte is no answer: the device is silent
)

// Commands written to port 0x64.
const (
	cmdReadConfig   = 0x20
	cmdWriteConfig  = 0x60
	cmdDisableAux   = 0xa7
	cmdEnableAux    = 0xa8
	cmdTestAux      = 0xa9
	cmdSelfTest     = 0xaa
	cmdTestKeyboard = 0xab
	cmdDisableKbd   = 0xad
	cmdEnableKbd    = 0xae
	cmdReadInput    = 0xc0
	cmdReadOutput   = 0xd0
	cmdWriteOutput  = 0xd1
	cmdPulse        = 0xf0 // to 0xff: the low bits that are 0 are pulsed

	outputReset = 1 << 0 // active low
	outputA20   = 1 << 1

	testPassed   = 0x55
	testNoDevice = 0x01 // clock line stuck low
	resend       = 0xfe

	configNoKbd = 1 << 4
	configNoAux = 1 << 5
)

// Controller is the chip. Its two ports are not neighbours: [Controller.Data]
// and [Controller.Command] are the devices to map.
type Controller struct {
	reset func()

	mu      sync.Mutex
	config  uint8
	out     uint8 // the byte at port 0x60
	status  status
	pending uint8 // the command whose parameter comes next, or 0

	keyboard bool
	waiting  [2]uint8 // what the keyboard says after the byte at port 0x60
	left     int      // how much of waiting, from its end, is left
}

// New returns the chip after reset. reset is called, on the CPU's thread and
// without a lock held, when the guest resets the machine; it must not block.
func New(reset func()) *Controller {
	c := &Controller{reset: reset}
	c.Reset()
	return c
}

// PlugKeyboard gives the controller a keyboard. It is called before the machine
// runs.
func (c *Controller) PlugKeyboard() { c.keyboard = true }

// Reset puts the chip into its state after power-on.
func (c *Controller) Reset() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.config, c.out, c.pending = configNoKbd|configNoAux, 0, 0
	c.status = statusUnlock
	c.left = 0
}

// Data is port 0x60, one byte.
func (c *Controller) Data() bus.Device { return (*data)(c) }

// Command is port 0x64, one byte: commands on write, status on read.
func (c *Controller) Command() bus.Device { return (*command)(c) }

type data Controller

// Read takes the answer.
func (d *data) Read(uint64, int) uint64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.status &^= statusOBF | statusTimeout
	v := d.out
	if d.left > 0 {
		(*Controller)(d).answer(d.waiting[len(d.waiting)-d.left])
		d.left--
	}
	return uint64(v)
}

// Write gives a command's parameter, or a byte for the keyboard.
func (d *data) Write(_ uint64, _ int, v uint64) {
	c := (*Controller)(d)
	if c.parameter(uint8(v)) {
		c.reset()
	}
}

type command Controller

// Read gives the status.
func (d *command) Read(uint64, int) uint64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return uint64(d.status)
}

// Write gives a command.
func (d *command) Write(_ uint64, _ int, v uint64) {
	c := (*Controller)(d)
	if c.command(uint8(v)) {
		c.reset()
	}
}

// answer puts a byte at port 0x60.
func (c *Controller) answer(b uint8) {
	c.out = b
	c.status |= statusOBF
}

// command runs one and reports whether it resets the machine.
func (c *Controller) command(v uint8) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.status |= statusCommand
	c.status &^= statusOBF | statusTimeout
	c.pending, c.left = 0, 0
	switch v {
	case cmdReadConfig:
		c.answer(c.config)
	case cmdWriteConfig, cmdWriteOutput, cmdWriteOutput + 1, cmdWriteOutput + 2, cmdWriteOutput + 3:
		c.pending = v
	case cmdDisableAux:
		c.config |= configNoAux
	case cmdEnableAux:
		c.config &^= configNoAux
	case cmdDisableKbd:
		c.config |= configNoKbd
	case cmdEnableKbd:
		c.config &^= configNoKbd
	case cmdTestKeyboard:
		if c.keyboard {
			c.answer(0)
			break
		}
		c.answer(testNoDevice)
	case cmdTestAux:
		c.answer(testNoDevice)
	case cmdSelfTest:
		c.status |= statusSYS
		c.answer(testPassed)
	case cmdReadInput:
		c.answer(0)
	case cmdReadOutput:
		c.answer(outputReset | outputA20)
	}
	return v >= cmdPulse && v&outputReset == 0
}

// parameter takes a byte from port 0x60 and reports whether it resets the machine.
func (c *Controller) parameter(v uint8) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.status &^= statusCommand
	cmd := c.pending
	c.pending = 0
	switch cmd {
	case cmdWriteConfig:
		c.config = v
	case cmdWriteOutput:
		return v&outputReset == 0
	case cmdWriteOutput + 1: // as if from the keyboard
		c.answer(v)
	default:
		if c.keyboard {
			c.toKeyboard(v)
			break
		}
		// For a device that is not there.
		c.answer(resend)
		c.status |= statusTimeout
	}
	return false
}

// What a keyboard is asked, and says (IBM PS/2 Technical Reference, keyboards).
const (
	keyboardIdentify = 0xf2
	keyboardReset    = 0xff
	keyboardACK      = 0xfa
	keyboardTested   = 0xaa
	keyboardID       = 0xab // then 0x83: MF2
	keyboardID2      = 0x83
)

// toKeyboard sends the keyboard a byte, which it acknowledges whatever it is.
func (c *Controller) toKeyboard(v uint8) {
	c.left = 0
	switch v {
	case keyboardReset:
		c.waiting, c.left = [2]uint8{0, keyboardTested}, 1
	case keyboardIdentify:
		c.waiting, c.left = [2]uint8{keyboardID, keyboardID2}, 2
	}
	c.answer(keyboardACK)
}
