package acpi

import (
	"fmt"
	"math/bits"

	"github.com/gvmspawn/gvmspawn/firmware/acpi/aml"
	"github.com/gvmspawn/gvmspawn/vmm/layout"
	"github.com/gvmspawn/gvmspawn/vmm/mem"
)

// dsdt is the Differentiated System Description Table: the devices that
// cannot be found by asking a bus. Revision 2 means 64-bit integers.
func dsdt(c Config) []byte {
	sb := []aml.Term{motherboard(c.pci())}
	if !c.NoPCI {
		sb = []aml.Term{pciHost(c), motherboard(c.pci())}
	}
	if !c.NoCOM1 {
		sb = append(sb, com1())
	}
	if !c.NoRTC {
		sb = append(sb, rtc())
	}
	if c.FWCfg {
		sb = append(sb, fwCfg())
	}
	if c.Generation != 0 {
		sb = append(sb, generation(c.Generation))
	}
	sb = append(sb, powerButton(), eventDevice(c.events()))
	for i := range c.CPUs {
		sb = append(sb, processor(i))
	}
	sb = append(sb, c.Devices...)
	return table("DSDT", 2, aml.List(
		aml.Scope(`\_SB`, sb...),
		// §7.4.2: the first value goes into SLEEP_CONTROL_REG's SLP_TYP.
		aml.Name(`\_S5`, aml.Package(aml.Integer(SleepTypeS5), aml.Integer(0), aml.Integer(0), aml.Integer(0))),
	))
}

// pciHost is the PCI Express host bridge.
func pciHost(c Config) aml.Term {
	p := c.pci()
	resources := []aml.Term{
		aml.WordBusNumber(0, uint16(p.Buses-1)),
		aml.IO(layout.PortPCIAddr, 8),
		aml.WordIO(layout.PortPCIStart, layout.PortEnd-1),
	}
	for _, w := range p.Low {
		resources = append(resources, aml.DWordMemory(uint32(w.Start), uint32(w.End-1)))
	}
	resources = append(resources, aml.QWordMemory(p.High.Start, p.High.End-1))
	terms := []aml.Term{
		aml.Name("_HID", aml.EISAID("PNP0A08")),
		aml.Name("_CID", aml.EISAID("PNP0A03")),
		aml.Name("_SEG", aml.Integer(0)),
		aml.Name("_BBN", aml.Integer(0)),
		aml.Name("_UID", aml.Integer(0)),
		aml.Name("_CCA", aml.Integer(1)),
		aml.Name("_CRS", aml.ResourceTemplate(resources...)),
		osc(),
	}
	if c.INTx {
		terms = append(terms, aml.Name("_PRT", pciRoutes()))
	}
	if c.HotplugSlots != 0 {
		terms = append(terms, pciSlots(c.HotplugSlots)...)
	}
	return aml.Device("PCI0", terms...)
}

// events are the Generic Event Device's besides the power button.
func (c *Config) events() []Event {
	if c.HotplugSlots == 0 {
		return c.Events
	}
	return append([]Event{{PCIHotplugEvent, aml.Path(`\_SB.PCI0.PCNT`)}}, c.Events...)
}

// pciSlots declares slots whose devices may come and go (§6.3): each has an
// _EJ0, and PCNT tells the driver of those where something has happened
// (§5.6.6: 0 is "bus check", 1 is "device check", 3 is "eject request").
func pciSlots(slots uint32) []aml.Term {
	const deviceCheck, ejectRequest = 1, 3
	up := []aml.Term{aml.Store(aml.Path("PCIU"), aml.Local(0))}
	down := []aml.Term{aml.Store(aml.Path("PCID"), aml.Local(0))}
	terms := []aml.Term{
		aml.OperationRegion("PCHP", aml.SystemMemory, layout.PCIHotplug, 12),
		aml.Field("PCHP", aml.DWordAcc, aml.FieldUnit{Name: "PCIU", Bits: 32}, aml.FieldUnit{Name: "PCID", Bits: 32}, aml.FieldUnit{Name: "PCEJ", Bits: 32}),
	}
	for s := slots; s != 0; s &= s - 1 {
		slot := uint64(bits.TrailingZeros32(s))
		name := fmt.Sprintf("S%03X", slot)
		terms = append(terms, aml.Device(name,
			aml.Name("_ADR", aml.Integer(slot<<16)),
			aml.Name("_SUN", aml.Integer(slot)),
			aml.Method("_EJ0", 1, true, aml.Store(aml.Integer(1<<slot), aml.Path("PCEJ"))),
		))
		here := aml.And(aml.Local(0), aml.Integer(1<<slot))
		up = append(up, aml.If(here, aml.Notify(name, deviceCheck)))
		down = append(down, aml.If(here, aml.Notify(name, ejectRequest)))
	}
	return append(terms, aml.Method("PCNT", 0, true, append(up, down...)...))
}

// pciRoutes is a _PRT (§6.2.13): pin p of slot s is wired to one of four GSIs,
// rotated so that slots share them evenly.
func pciRoutes() aml.Term {
	var routes []aml.Term
	for slot := range uint64(32) {
		for pin := range uint64(4) {
			routes = append(routes, aml.Package(
				aml.Integer(slot<<16|0xffff), aml.Integer(pin),
				aml.Integer(0), aml.Integer(uint64(PCIInterrupt(uint8(slot), uint8(pin))))))
		}
	}
	return aml.Package(routes...)
}

// PCIInterrupt is the GSI of a slot's interrupt pin, 0 for INTA to 3 for INTD.
func PCIInterrupt(slot, pin uint8) uint32 { return layout.GSIPCI + uint32(slot+pin)%4 }

// osc lets the system have every PCI Express feature that it asks for (PCI
// Firmware 3.3 §4.5.1, ACPI 6.5 §6.2.11): there is no firmware to share with.
func osc() aml.Term {
	pcie := [16]byte{0x33, 0xdb, 0x4d, 0x5b, 0x1f, 0xf7, 0x40, 0x1c, 0x96, 0x57, 0x74, 0x41, 0xc0, 0x3d, 0xd7, 0x66}
	const unrecognizedUUID = 1 << 2
	return aml.Method("_OSC", 4, true,
		aml.CreateDWordField(aml.Arg(3), 0, "CDW1"),
		aml.If(aml.NotEqual(aml.Arg(0), aml.UUID(pcie)),
			aml.OrTo(aml.Path("CDW1"), aml.Integer(unrecognizedUUID), aml.Path("CDW1")),
		),
		aml.Return(aml.Arg(3)),
	)
}

// motherboard reserves what no other device declares: a system accepts the
// MCFG only if its range is reserved (PCI Firmware 3.3 §4.1.2).
func motherboard(p *PCI) aml.Term {
	return aml.Device("MBRD",
		aml.Name("_HID", aml.EISAID("PNP0C02")),
		aml.Name("_UID", aml.Integer(0)),
		aml.Name("_CRS", aml.ResourceTemplate(
			aml.Memory32Fixed(uint32(p.ECAM), uint32(p.Buses)*layout.MiB),
			aml.Memory32Fixed(layout.GED, layout.GEDSize),
			aml.Memory32Fixed(layout.PCIHotplug, layout.PCIHotplugSize),
			aml.IO(layout.PortPM, layout.PortPMSize),
		)),
	)
}

// com1 is the first serial port.
func com1() aml.Term {
	return aml.Device("COM1",
		aml.Name("_HID", aml.EISAID("PNP0501")),
		aml.Name("_UID", aml.Integer(0)),
		aml.Name("_CRS", aml.ResourceTemplate(
			aml.IO(layout.PortCOM1, 8),
			aml.IRQNoFlags(layout.GSICOM1),
		)),
	)
}

// rtc is the real-time clock with its CMOS memory.
func rtc() aml.Term {
	return aml.Device("RTC",
		aml.Name("_HID", aml.EISAID("PNP0B00")),
		aml.Name("_CRS", aml.ResourceTemplate(
			aml.IO(layout.PortCMOS, 2),
			aml.IRQNoFlags(layout.GSIRTC),
		)),
	)
}

// fwCfg is the firmware configuration device (QEMU, docs/specs/fw_cfg.rst), by
// which Linux shows its files.
func fwCfg() aml.Term {
	return aml.Device("FWCF",
		aml.Name("_HID", aml.String("QEMU0002")),
		aml.Name("_STA", aml.Integer(0xb)), // present, enabled, not shown to people
		aml.Name("_CRS", aml.ResourceTemplate(aml.IO(layout.PortFWCfg, layout.PortFWCfgSize))),
	)
}

// powerButton is a control-method power button (§4.8.3.3.1.1).
func powerButton() aml.Term {
	return aml.Device("PWRB", aml.Name("_HID", aml.EISAID("PNP0C0C")))
}

// eventDevice is the Generic Event Device (§5.6.9). Reading its register
// returns the pending events and clears them, which lowers the line: a level,
// so that an event from before the driver started is not lost.
func eventDevice(events []Event) aml.Term {
	const buttonPressed = 0x80 // §4.8.3.3.1.2
	all := append([]Event{{PowerButtonEvent, aml.Notify("PWRB", buttonPressed)}}, events...)
	body := []aml.Term{aml.Store(aml.Path("ESEL"), aml.Local(0))}
	for _, e := range all {
		mask := aml.And(aml.Local(0), aml.Integer(uint64(e.Bit)))
		body = append(body, aml.If(mask, e.Action))
	}
	return aml.Device("GED",
		aml.Name("_HID", aml.String("ACPI0013")),
		aml.Name("_UID", aml.Integer(0)),
		aml.Name("_CRS", aml.ResourceTemplate(aml.Interrupt(aml.Level, layout.GSIGED))),
		aml.OperationRegion("EREG", aml.SystemMemory, layout.GED, 4),
		aml.Field("EREG", aml.DWordAcc, aml.FieldUnit{Name: "ESEL", Bits: 32}),
		aml.Method("_EVT", 1, true, body...),
	)
}

// processor is CPU i, matched to the MADT by _UID (§8.4).
func processor(i int) aml.Term {
	return aml.Device(fmt.Sprintf("C%03X", i),
		aml.Name("_HID", aml.String("ACPI0007")),
		aml.Name("_UID", aml.Integer(uint64(i))),
	)
}

// VirtioMMIO declares the virtio-mmio device i, with its registers at
// layout.VirtioMMIO + i × layout.VirtioMMIOStride, for Config.Devices. The
// trigger is what its transport drives the line like.
func VirtioMMIO(i int, t aml.Trigger, gsi uint32) aml.Term {
	return aml.Device(fmt.Sprintf("VM%02X", i),
		aml.Name("_HID", aml.String("LNRO0005")),
		aml.Name("_UID", aml.Integer(uint64(i))),
		aml.Name("_CCA", aml.Integer(1)),
		aml.Name("_CRS", aml.ResourceTemplate(
			aml.Memory32Fixed(uint32(layout.VirtioMMIO+i*layout.VirtioMMIOStride), layout.VirtioMMIOStride),
			aml.Interrupt(t, gsi),
		)),
	)
}

// generation declares the generation identifier's place ("Virtual Machine
// Generation ID", Microsoft 2012). The event's action that tells of a change is
// aml.Notify("VMGN", 0x80).
func generation(address mem.GPA) aml.Term {
	return aml.Device("VMGN",
		aml.Name("_HID", aml.String("GVMS0001")),
		aml.Name("_CID", aml.String("VM_Gen_Counter")),
		aml.Name("_DDN", aml.String("VM_Gen_Counter")),
		generationAddress(address),
	)
}

// generationAddress is the object that tells the address, in two halves.
func generationAddress(a mem.GPA) aml.Term {
	return aml.Name("ADDR", aml.Package(aml.DWord(uint32(a)), aml.Integer(uint64(a)>>32)))
}

// TPM declares the TPM's register page at base, for Config.Devices besides
// the table [TPM2].
func TPM(base, size uint32) aml.Term {
	return aml.Device("TPM",
		aml.Name("_HID", aml.String("MSFT0101")),
		aml.Name("_UID", aml.Integer(0)),
		aml.Name("_STR", aml.Buffer([]byte("T\x00P\x00M\x00\x00\x00"))),
		aml.Name("_CRS", aml.ResourceTemplate(aml.Memory32Fixed(base, size))),
	)
}
