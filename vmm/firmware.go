package vmm

import (
	"io"
	"os"
	"sync"

	"github.com/gvmspawn/gvmspawn/devices/fwcfg"
	"github.com/gvmspawn/gvmspawn/devices/pci"
	"github.com/gvmspawn/gvmspawn/devices/pflash"
	"github.com/gvmspawn/gvmspawn/devices/power"
	"github.com/gvmspawn/gvmspawn/firmware/uefi"
	"github.com/gvmspawn/gvmspawn/vmm/bus"
	"github.com/gvmspawn/gvmspawn/vmm/layout"
	"github.com/gvmspawn/gvmspawn/vmm/mem"
)

// flash is what a machine with firmware has below 4 GiB.
type flash struct {
	vars   *uefi.Vars  // nil without a variable store
	region *mem.Region // the store as the guest sees it
}

// addFlash puts the firmware's image, and below it its variable store, into
// guest memory.
func (m *Machine) addFlash() error {
	f := m.cfg.Firmware
	if f == nil {
		return nil
	}
	code, err := uefi.ReadImage(f.Code)
	if err != nil {
		return err
	}
	base := mem.GPA(layout.FirmwareEnd - len(code))
	rom, err := m.mem.Add("firmware", base, uint64(len(code)), mem.ROM)
	if err != nil {
		return err
	}
	copy(rom.Bytes(), code)
	if f.BIOS {
		low := code[max(0, len(code)-layout.BIOSSize):]
		if err := m.mem.WriteAt(low, mem.GPA(layout.BIOSEnd-len(low))); err != nil {
			return err
		}
	}
	if f.Vars == "" {
		return nil
	}
	vars, err := uefi.OpenVars(f.Vars)
	if err != nil {
		return err
	}
	m.onClose(vars.Close)
	size := len(vars.Content)
	if err := uefi.CheckPair(f.Code, len(code), f.Vars, size); err != nil {
		return err
	}
	region, err := m.mem.Add("firmware variables", base-mem.GPA(size), uint64(size), mem.Flash)
	if err != nil {
		return err
	}
	copy(region.Bytes(), vars.Content)
	m.flash = flash{vars, region}
	return nil
}

// physBits is the width of physical addresses to tell of, 0 for the engine's
// own. Firmware maps all that there is, some builds of OVMF in 2 MiB pages: with
// 46 bits these are 32 million. 40, as QEMU tells, is a number that OVMF
// doubts; it then maps what the machine needs.
func (m *Machine) physBits() int {
	const bits = 40
	if m.cfg.Firmware == nil || uint64(m.memoryEnd()) > 1<<(bits-1) {
		return 0
	}
	return bits
}

// flashShower is an engine that can show flash to the guest and take it away.
type flashShower interface {
	ShowFlash(r *mem.Region, on bool) error
}

// addFlashChip makes the chip that holds the variables.
func (m *Machine) addFlashChip() error {
	r := m.flash.region
	if r == nil {
		return nil
	}
	cfg := pflash.Config{Content: r.Bytes(), File: m.flash.vars, Failed: func(err error) {
		m.log.Error("the guest's firmware variables are lost", "error", err)
	}}
	if e, ok := m.vm.(flashShower); ok {
		cfg.Direct = func(on bool) {
			if err := e.ShowFlash(r, on); err != nil {
				m.log.Error("the firmware's flash does not work", "error", err)
			}
		}
	}
	chip, err := pflash.New(cfg)
	if err != nil {
		return err
	}
	m.onClose(chip.Close)
	if m.smm() {
		m.smmIO.flash, m.smmIO.base, m.smmIO.size = chip, uint64(r.Base), r.Size()
		return m.bus.MMIO.Map("firmware variables", uint64(r.Base), r.Size(), chip.ReadOnly())
	}
	return m.bus.MMIO.Map("firmware variables", uint64(r.Base), r.Size(), chip)
}

// Registers of the LPC interface bridge (Intel ICH9 datasheet §13.1) that
// firmware looks at.
const (
	lpcCommand  = 0x04
	lpcPMBASE   = 0x40
	lpcACPICtl  = 0x44
	lpcPIRQ     = 0x60 // routing of PIRQA to PIRQD, then at 0x68 to PIRQH
	lpcGenPMCon = 0xa0
	lpcRCBA     = 0xf0

	lpcPMBASEIO  = 1 << 0
	lpcACPIOn    = 1 << 7
	lpcPIRQOff   = 0x8080_8080
	lpcVendor    = 0x8086
	lpcDevice    = 0x2918
	lpcClass     = 0x060100
	lpcSlot      = 31
	lpcRevision  = 2
	lpcSMILocked = 1 << 4
)

// addSouthBridge adds what firmware for a Q35 expects of the ICH9: the bridge
// with the address of its power management block, and that block.
func (m *Machine) addSouthBridge(host *pci.Host) error {
	f := pci.NewFunction("LPC bridge", pci.ID{Vendor: lpcVendor, Device: lpcDevice, Revision: lpcRevision, Class: lpcClass})
	// The ISA devices behind the bridge decode ports, which drivers enable.
	f.SetRegister(lpcCommand, 0, pci.CommandIO|pci.CommandMemory|pci.CommandBusMaster)
	f.SetRegister(lpcPMBASE, layout.PortICH9PM|lpcPMBASEIO, 0)
	f.SetRegister(lpcACPICtl, lpcACPIOn, 0)
	f.SetRegister(lpcPIRQ, lpcPIRQOff, ^uint32(0))
	f.SetRegister(lpcPIRQ+8, lpcPIRQOff, ^uint32(0))
	f.SetRegister(lpcGenPMCon, 0, lpcSMILocked)
	f.SetRegister(lpcRCBA, 0, 0xffff_c001)
	apm := &power.APM{}
	pm := &power.ICH9{Timer: power.PMTimer{Clock: m.clock()}, PowerOff: func() { m.runner.finish(EndPowerOff, nil) }}
	if err := m.bus.Port.Map("power management", layout.PortICH9PM, power.ICH9Size, pm); err != nil {
		return err
	}
	if m.smm() {
		m.raiseSMIs(f, pm, apm)
	} else {
		pm.EnableAPM()
	}
	if err := host.AddAt(f, pci.Address{Slot: lpcSlot}); err != nil {
		return err
	}
	return m.bus.Port.Map("APM", layout.PortAPM, 2, apm)
}

// loadFirmware makes what firmware needs beside the chips: its flash, its debug
// port and its configuration. The CPU is at the reset vector already.
func (m *Machine) loadFirmware() error {
	if err := m.addFlashChip(); err != nil {
		return err
	}
	if err := m.addDebugPort(); err != nil {
		return err
	}
	d := fwcfg.New(m.mem)
	if err := m.fillFWCfg(d); err != nil {
		return err
	}
	return m.bus.Port.Map("firmware configuration", layout.PortFWCfg, fwcfg.PortsSize, d.Ports())
}

// addDebugPort makes the port that firmware writes its messages to.
func (m *Machine) addDebugPort() error {
	d := &debugPort{out: m.cfg.Firmware.Log}
	m.onClose(func() error { d.flush(); return nil })
	return m.bus.Port.Map("debug port", layout.PortDebugcon, 1, d)
}

// debugPort is Bochs' debug console. It implements bus.Device.
type debugPort struct {
	mu  sync.Mutex // guards the rest, held while out is called
	out io.Writer  // nil discards
	buf [256]byte  // a line, or a part of one
	n   int
}

// Read implements bus.Device: the value by which a guest knows the port.
func (d *debugPort) Read(_ uint64, size int) uint64 { return 0xe9 & bus.Ones(size) }

// Write implements bus.Device.
func (d *debugPort) Write(_ uint64, _ int, v uint64) {
	if d.out == nil {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.buf[d.n] = byte(v)
	d.n++
	if d.n == len(d.buf) || byte(v) == '\n' {
		d.put()
	}
}

func (d *debugPort) put() {
	_, _ = d.out.Write(d.buf[:d.n])
	d.n = 0
}

func (d *debugPort) flush() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.n > 0 {
		d.put()
	}
}

// fileSource is a file as an item of the configuration device.
type fileSource struct{ *io.SectionReader }

func newFileSource(f *os.File, off, size int64) fileSource {
	return fileSource{io.NewSectionReader(f, off, size)}
}
