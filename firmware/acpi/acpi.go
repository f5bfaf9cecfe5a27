// Package acpi builds the ACPI tables that tell the guest what the machine is
// made of (ACPI 6.5, 2022; MCFG: PCI Firmware 3.3 §4.1.2; TPM2: TCG ACPI
// Specification 1.3).
//
// # Hardware-reduced
//
// The FADT says HARDWARE_REDUCED_ACPI (§4.1, §5.2.9). That profile exists for
// machines without the PC's power-management hardware, and it is less of
// everything on both sides:
//
//   - No PM1 event and control blocks, no GPE blocks, no SCI, no PM timer, no
//     FACS and no switch into ACPI mode. The guest never polls or calibrates
//     against them.
//   - Events come through a Generic Event Device (§5.6.9): one GSI and one
//     register. The power button is a control-method button behind it. More
//     events (memory hotplug) are more bits of that register.
//   - Power-off and sleep go through SLEEP_CONTROL_REG and SLEEP_STATUS_REG
//     (§4.8.3.7), reset through RESET_REG: three ports.
//   - Linux on x86 then uses neither the 8259 pair nor the 8254 timer
//     (acpi_generic_reduced_hw_init), so the machine may lack both. Its clocks
//     are the TSC, whose frequency the CPU tells, and the local APIC's
//     TSC-deadline timer. A CPU without that timer mode would leave such a
//     kernel without a clock event to calibrate against.
//
// What is lost is the fixed-feature power button and the PM timer; firmware
// that wants a PM timer asks the hardware, not these tables.
package acpi

import (
	"encoding/binary"
	"fmt"

	"github.com/gvmspawn/gvmspawn/firmware/acpi/aml"
	"github.com/gvmspawn/gvmspawn/vmm/layout"
	"github.com/gvmspawn/gvmspawn/vmm/mem"
)

// Config is what the tables tell about a machine. Only CPUs and RAMEnd must be set.
type Config struct {
	// CPUs is the number of virtual CPUs, 1 to layout.MaxVCPUs.
	CPUs int
	// APICIDs gives each CPU's local APIC ID. nil means 0, 1, 2, …
	APICIDs []uint32
	// RAMEnd is the first address above all RAM, where hotplugged RAM too
	// would end: the 64-bit PCI window lies behind it.
	RAMEnd mem.GPA
	// PCI says where firmware put PCI; nil stands for the fixed places of layout.
	PCI *PCI
	// FWCfg declares the firmware configuration device at layout.PortFWCfg.
	FWCfg bool
	// NoCOM1 leaves the serial port out, NoRTC the real-time clock.
	NoCOM1, NoRTC bool
	// NoPCI leaves the PCI host bridge and its MCFG out.
	NoPCI bool
	// INTx lists routes for the legacy PCI interrupts INTA to INTD: GSI 16
	// to 19, rotated by slot. Without it devices have MSI and MSI-X only.
	INTx bool
	// HotplugSlots is a mask of PCI slots whose devices may come and go, by
	// the registers at layout.PCIHotplug. With any, [PCIHotplugEvent] is taken.
	HotplugSlots uint32
	// PIC says that a pair of 8259 and an 8254 whose channel 0 is wired to
	// GSI 2 exist besides the APICs.
	PIC bool
	// Generation is the address of the generation identifier's 16 bytes; for
	// BuildLoadable, the offset in GenerationFile. 0 means that there is none.
	Generation mem.GPA
	// Devices are further objects of the scope \_SB.
	Devices []aml.Term
	// Events are the Generic Event Device's events besides the power button.
	Events []Event
	// Tables are further tables, without the common header.
	Tables []Table
}

// PCI is where the memory of bus 0 lies.
type PCI struct {
	ECAM  uint64 // base of the memory-mapped configuration space, 1 MiB a bus
	Buses int
	Low   []Window // below 4 GiB
	High  Window   // above
}

// Window is [Start, End).
type Window struct{ Start, End uint64 }

// pci is where PCI is.
func (c *Config) pci() *PCI {
	if c.PCI != nil {
		return c.PCI
	}
	high := layout.PCIMMIO64Start(uint64(c.RAMEnd))
	return &PCI{
		ECAM: layout.ECAM, Buses: layout.ECAMBuses,
		Low:  []Window{{layout.PCIMMIO32Start, layout.PCIMMIO32End}},
		High: Window{high, high + layout.PCIMMIO64Size},
	}
}

// Event is one bit of the Generic Event Device's register.
type Event struct {
	// Bit is the event's mask in the register. [PowerButtonEvent] is taken.
	Bit uint32
	// Action is run when the bit was set, such as aml.Notify.
	Action aml.Term
}

// Bits of the GED register.
const (
	// PowerButtonEvent is the power button's.
	PowerButtonEvent = 1 << 0
	// PCIHotplugEvent tells to look at the registers at layout.PCIHotplug.
	PCIHotplugEvent = 1 << 3
)

// Table is a system description table without its 36-byte header.
type Table struct {
	Signature string // four characters
	Revision  byte
	Body      []byte
}

// Blob is bytes with their place in guest memory.
type Blob struct {
	Address mem.GPA
	Bytes   []byte
}

// Write puts the tables into guest memory, between layout.ACPITables and
// layout.ACPITablesEnd, and the root pointer at layout.RSDP, and returns the
// root pointer's address. That memory must be RAM that the memory map reserves.
func Write(m *mem.Memory, c Config) (rsdp mem.GPA, err error) {
	blobs, err := Build(c)
	if err != nil {
		return 0, err
	}
	for _, b := range blobs {
		if err := m.WriteAt(b.Bytes, b.Address); err != nil {
			return 0, fmt.Errorf("write ACPI tables at %#x: %w", b.Address, err)
		}
	}
	return layout.RSDP, nil
}

// Build makes the tables: the root pointer first, then the XSDT, the DSDT, the
// FADT, the MADT, the MCFG unless c.NoPCI is set, and those of c.Tables in order.
func Build(c Config) ([]Blob, error) {
	blobs, end, err := c.build(layout.ACPITables)
	if err == nil && end > layout.ACPITablesEnd {
		err = fmt.Errorf("ACPI tables: %d bytes do not fit into %d", end-layout.ACPITables, layout.ACPITablesEnd-layout.ACPITables)
	}
	return blobs, err
}

// build is Build for tables from base to end.
func (c *Config) build(base mem.GPA) (blobs []Blob, end mem.GPA, err error) {
	if err := c.check(); err != nil {
		return nil, 0, err
	}
	next := uint64(base)
	place := func(b []byte) Blob {
		blob := Blob{mem.GPA(next), b}
		next = (next + uint64(len(b)) + 15) &^ 15
		return blob
	}
	// The XSDT comes first and must know all others: its size is known.
	n := 3 + len(c.Tables)
	if c.NoPCI {
		n--
	}
	next += uint64(headerSize+8*n+15) &^ 15
	dsdt := place(dsdt(*c))
	blobs = []Blob{dsdt, place(fadt(*c, dsdt.Address)), place(madt(*c))}
	if !c.NoPCI {
		blobs = append(blobs, place(mcfg(c.pci())))
	}
	for _, t := range c.Tables {
		blobs = append(blobs, place(table(t.Signature, t.Revision, t.Body)))
	}
	var entries []byte
	for _, b := range blobs[1:] {
		entries = binary.LittleEndian.AppendUint64(entries, uint64(b.Address))
	}
	xsdt := Blob{base, table("XSDT", 1, entries)}
	return append([]Blob{{layout.RSDP, rsdp(xsdt.Address)}, xsdt}, blobs...), mem.GPA(next), nil
}

// check reports what cannot be told in tables.
func (c *Config) check() error {
	if c.CPUs < 1 || c.CPUs > layout.MaxVCPUs {
		return fmt.Errorf("ACPI tables: %d CPUs, must be 1 to %d", c.CPUs, layout.MaxVCPUs)
	}
	if c.APICIDs != nil && len(c.APICIDs) != c.CPUs {
		return fmt.Errorf("ACPI tables: %d APIC IDs for %d CPUs", len(c.APICIDs), c.CPUs)
	}
	for _, t := range c.Tables {
		if len(t.Signature) != 4 {
			return fmt.Errorf("ACPI tables: bad signature %q", t.Signature)
		}
	}
	seen := uint32(PowerButtonEvent)
	if c.HotplugSlots != 0 {
		seen |= PCIHotplugEvent
	}
	for _, e := range c.Events {
		if e.Bit == 0 || e.Bit&(e.Bit-1) != 0 || seen&e.Bit != 0 {
			return fmt.Errorf("ACPI tables: event bit %#x is no single free bit", e.Bit)
		}
		seen |= e.Bit
	}
	return nil
}

// apicID is the local APIC ID of CPU i.
func (c *Config) apicID(i int) uint32 {
	if c.APICIDs == nil {
		return uint32(i)
	}
	return c.APICIDs[i]
}
