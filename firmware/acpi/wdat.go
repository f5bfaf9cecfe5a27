package acpi

import (
	"encoding/binary"
	"time"

	"github.com/gvmspawn/gvmspawn/firmware/acpi/aml"
	"github.com/gvmspawn/gvmspawn/vmm/layout"
	"github.com/gvmspawn/gvmspawn/vmm/mem"
)

// Watchdog is a countdown with three registers of four bytes, one after the
// other: control (bit 0 runs it), period, and count (what is left; writing
// restarts it).
type Watchdog struct {
	Base               mem.GPA
	Tick               time.Duration
	MinCount, MaxCount uint32
}

// Actions and instructions of the WDAT (Microsoft, "Hardware Watchdog Timers
// Design Specification", 2006).
const (
	watchdogReset           = 0x01
	watchdogQueryCountdown  = 0x04
	watchdogQueryPeriod     = 0x05
	watchdogSetPeriod       = 0x06
	watchdogQueryRunning    = 0x08
	watchdogSetRunning      = 0x09
	watchdogQueryStopped    = 0x0a
	watchdogSetStopped      = 0x0b
	watchdogReadValue       = 0
	watchdogReadCountdown   = 1
	watchdogWriteValue      = 2
	watchdogWriteCountdown  = 3
	watchdogEnabled         = 1 << 0
	watchdogHeaderLength    = 32
	watchdogNoPCI           = 0xff
	watchdogControlRegister = 0
	watchdogPeriodRegister  = 4
	watchdogCountRegister   = 8
)

// Table is the Watchdog Action Table: what to read and write for each action.
func (w Watchdog) Table() Table {
	actions := []struct {
		action, instruction byte
		register            uint64
		value, mask         uint32
	}{
		{watchdogReset, watchdogWriteValue, watchdogCountRegister, 1, 0xffff_ffff},
		{watchdogQueryCountdown, watchdogReadCountdown, watchdogCountRegister, 0, 0xffff_ffff},
		{watchdogQueryPeriod, watchdogReadCountdown, watchdogPeriodRegister, 0, 0xffff_ffff},
		{watchdogSetPeriod, watchdogWriteCountdown, watchdogPeriodRegister, 0, 0xffff_ffff},
		{watchdogQueryRunning, watchdogReadValue, watchdogControlRegister, 1, 1},
		{watchdogSetRunning, watchdogWriteValue, watchdogControlRegister, 1, 1},
		{watchdogQueryStopped, watchdogReadValue, watchdogControlRegister, 0, 1},
		{watchdogSetStopped, watchdogWriteValue, watchdogControlRegister, 0, 1},
	}
	le := binary.LittleEndian
	b := le.AppendUint32(nil, watchdogHeaderLength)
	b = append(b, watchdogNoPCI, 0, watchdogNoPCI, watchdogNoPCI, watchdogNoPCI, 0, 0, 0)
	b = le.AppendUint32(b, uint32(w.Tick.Milliseconds()))
	b = le.AppendUint32(b, w.MaxCount)
	b = le.AppendUint32(b, w.MinCount)
	b = append(b, watchdogEnabled, 0, 0, 0)
	b = le.AppendUint32(b, uint32(len(actions)))
	for _, a := range actions {
		b = append(b, a.action, a.instruction, 0, 0)
		b = append(b, 0, 32, 0, 3) // system memory, 32 bits at bit 0, dword access
		b = le.AppendUint64(b, uint64(w.Base)+a.register)
		b = le.AppendUint32(b, a.value)
		b = le.AppendUint32(b, a.mask)
	}
	return Table{Signature: "WDAT", Revision: 1, Body: b}
}

// PanicDevice declares the port by which the guest reports a panic, for
// Config.Devices.
func PanicDevice() aml.Term {
	return aml.Device("PEVT",
		aml.Name("_HID", aml.String("QEMU0001")),
		aml.Name("_UID", aml.Integer(0)),
		aml.Name("_CRS", aml.ResourceTemplate(aml.IO(layout.PortPVPanic, 1))),
	)
}
