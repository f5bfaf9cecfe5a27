package vmm

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/gvmspawn/gvmspawn/devices/fwcfg"
	"github.com/gvmspawn/gvmspawn/devices/pci"
	"github.com/gvmspawn/gvmspawn/devices/pflash"
	"github.com/gvmspawn/gvmspawn/devices/power"
	"github.com/gvmspawn/gvmspawn/vmm/bus"
	"github.com/gvmspawn/gvmspawn/vmm/layout"
	"github.com/gvmspawn/gvmspawn/vmm/mem"
	"github.com/gvmspawn/gvmspawn/vmm/vcpu"
)

// smm reports whether the machine has System Management Mode.
func (m *Machine) smm() bool { return m.cfg.Firmware != nil && m.cfg.Firmware.SMM }

// checkSMM reports why a machine cannot have System Management Mode.
func (c *Config) checkSMM() error {
	if c.lowRAM() < 8*layout.SMRAMSize {
		return fmt.Errorf("firmware %s needs System Management Mode, for which %d MiB of RAM are too little: at least %d MiB are needed",
			c.Firmware.Code, c.RAM>>20, 8*layout.SMRAMSize>>20)
	}
	return nil
}

// smmIO is what a CPU in System Management Mode reaches: everything, and the flash
// with its commands. It implements vcpu.IO.
type smmIO struct {
	*bus.Bus
	flash      *pflash.Flash // nil: none
	base, size uint64
}

// MMIORead implements vcpu.IO.
func (s *smmIO) MMIORead(addr uint64, size int) uint64 {
	if off := addr - s.base; s.flash != nil && off < s.size && uint64(size) <= s.size-off {
		return s.flash.Read(off, size)
	}
	return s.Bus.MMIORead(addr, size)
}

// MMIOWrite implements vcpu.IO.
func (s *smmIO) MMIOWrite(addr uint64, size int, v uint64) {
	if off := addr - s.base; s.flash != nil && off < s.size && uint64(size) <= s.size-off {
		s.flash.Write(off, size, v)
		return
	}
	s.Bus.MMIOWrite(addr, size, v)
}

// managed is who takes the accesses of CPUs in System Management Mode, or nil without it.
func (m *Machine) managed() vcpu.IO {
	if !m.smm() {
		return nil
	}
	m.smmIO.Bus = &m.bus
	return &m.smmIO
}

// guardSMRAM lets the host bridge hide SMRAM.
func (m *Machine) guardSMRAM(cfg *pci.Config) {
	e, ok := m.vm.(vcpu.SMM)
	if !m.smm() || !ok {
		return
	}
	cfg.SMRAMSize = layout.SMRAMSize
	ram := m.mem.Find(mem.GPA(m.cfg.lowRAM() - layout.SMRAMSize))
	cfg.HideSMRAM = func(hide bool) {
		ram.SetHidden(hide)
		if err := e.HideSMRAM(hide); err != nil {
			m.runner.finish(EndCrash, fmt.Errorf("hide the memory of System Management Mode: %w", err))
		}
	}
}

// raiseSMIs makes writes to the APM command port raise SMIs, on all CPUs, when
// firmware has enabled that (Intel ICH9 datasheet §13.8.3.8), and lets it lock
// the enable.
func (m *Machine) raiseSMIs(lpc *pci.Function, pm *power.ICH9, apm *power.APM) {
	e, ok := m.vm.(vcpu.SMM)
	if !ok {
		return
	}
	apm.Command = func(uint8) {
		if pm.APMRaisesSMI() {
			e.SMI()
		}
	}
	lpc.OnWrite(func(cfg []byte, _, _ int) {
		if cfg[lpcGenPMCon]&lpcSMILocked != 0 {
			lpc.Freeze(lpcGenPMCon, lpcSMILocked)
			pm.LockSMI()
		}
	})
}

// smiBroadcast is the one feature of SMIs that there is: a write to the APM command
// port reaches all CPUs (QEMU, hw/isa/lpc_ich9.c).
const smiBroadcast = 1 << 0

// offerSMIFeatures lets firmware negotiate features of SMIs, as QEMU does.
func (m *Machine) offerSMIFeatures(d *fwcfg.Device) error {
	if !m.smm() {
		return nil
	}
	var requested [8]byte
	return errors.Join(
		d.AddFile("etc/smi/supported-features", binary.LittleEndian.AppendUint64(nil, smiBroadcast)),
		d.AddWritable("etc/smi/requested-features", len(requested), func(off int64, p []byte) { copy(requested[off:], p) }),
		d.AddBuilt("etc/smi/features-ok", 1, func() []byte {
			if binary.LittleEndian.Uint64(requested[:])&^smiBroadcast != 0 {
				return []byte{0}
			}
			return []byte{1}
		}))
}
