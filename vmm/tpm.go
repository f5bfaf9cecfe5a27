package vmm

import (
	"github.com/gvmspawn/gvmspawn/devices/tpm"
	"github.com/gvmspawn/gvmspawn/firmware/acpi"
	"github.com/gvmspawn/gvmspawn/vmm/bus"
	"github.com/gvmspawn/gvmspawn/vmm/layout"
)

// TPMInterface is how drivers speak to a TPM.
type TPMInterface uint8

const (
	// TPMTIS is the FIFO interface, which every firmware and system knows.
	TPMTIS TPMInterface = iota
	// TPMCRB is the command response buffer: fewer accesses a command.
	TPMCRB
)

// TPMBackend executes a TPM's commands.
type TPMBackend = tpm.Backend

// TPM is a TPM 2.0 at the PC's address.
type TPM struct {
	Interface TPMInterface
	// Backend belongs to the caller and outlives the machine, which is one
	// boot: each machine begins with its Init.
	Backend TPMBackend
}

// addTPM maps the TPM's registers.
func (m *Machine) addTPM() error {
	if m.cfg.TPM == nil {
		return nil
	}
	var chip interface {
		bus.Device
		Close() error
	}
	var err error
	if b := m.cfg.TPM.Backend; m.cfg.TPM.Interface == TPMCRB {
		chip, err = tpm.NewCRB(b, layout.TPM)
	} else {
		chip, err = tpm.NewTIS(b)
	}
	if err != nil {
		return err
	}
	m.onClose(chip.Close)
	return m.bus.MMIO.Map("TPM", layout.TPM, tpm.Size, chip)
}

// table tells the guest of the interface. Nothing is measured without
// firmware, and firmware makes its own event log.
func (t *TPM) table() acpi.Table {
	if t.Interface == TPMCRB {
		return acpi.TPM2(layout.TPM+tpm.CRBControlArea, 0, 0)
	}
	return acpi.TPM2(0, 0, 0)
}
