package vmm

import (
	"errors"

	"github.com/gvmspawn/gvmspawn/devices/pvpanic"
	"github.com/gvmspawn/gvmspawn/devices/watchdog"
	"github.com/gvmspawn/gvmspawn/firmware/acpi"
	"github.com/gvmspawn/gvmspawn/vmm/layout"
)

// errPanicked is the end of a guest that reported its panic by pvpanic.
var errPanicked = errors.New("the guest's kernel panicked")

// addHealth maps what tells that the guest is not well: the device by which
// its kernel reports a panic, and a watchdog. A watchdog that expires resets
// the machine, as a real one does.
func (m *Machine) addHealth() error {
	panicked := &pvpanic.Device{Func: func() { m.runner.finish(EndCrash, errPanicked) }}
	if err := m.bus.Port.Map("panic device", layout.PortPVPanic, pvpanic.Size, panicked); err != nil {
		return err
	}
	timer := watchdog.New(m.clock(), func() {
		m.log.Warn("The guest's watchdog has expired, the machine is reset")
		m.guestReset()
	})
	return m.bus.MMIO.Map("watchdog", layout.Watchdog, watchdog.Size, timer)
}

// watchdogTable tells the guest of the watchdog.
func watchdogTable() acpi.Table {
	return acpi.Watchdog{Base: layout.Watchdog, Tick: watchdog.Tick, MinCount: watchdog.MinCount, MaxCount: watchdog.MaxCount}.Table()
}

// generationOffset is where the generation identifier is in the page that
// firmware loads. Firmware looks for tables where pointers point to, so the
// page does not begin with it.
const generationOffset = 40

// generation is the generation identifier as the guest sees it ("Virtual Machine
// Generation ID", Microsoft 2012): a GUID whose first three fields are
// little-endian.
func (m *Machine) generation() []byte {
	g := m.cfg.Generation
	return []byte{g[3], g[2], g[1], g[0], g[5], g[4], g[7], g[6], g[8], g[9], g[10], g[11], g[12], g[13], g[14], g[15]}
}

// generationPage is the page for firmware.
func (m *Machine) generationPage() []byte {
	p := make([]byte, layout.PageSize)
	copy(p[generationOffset:], m.generation())
	return p
}
