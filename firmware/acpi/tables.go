package acpi

import (
	"encoding/binary"

	"github.com/gvmspawn/gvmspawn/vmm/layout"
	"github.com/gvmspawn/gvmspawn/vmm/mem"
)

// headerSize is the size of the header of every table but the RSDP (§5.2.6), and
// tableChecksum where its checksum is.
const (
	headerSize    = 36
	tableChecksum = 9
)

// Fields of the RSDP (§5.2.5.3, table 5.3).
const (
	rsdpOldSize  = 20
	rsdpChecksum = 8
	rsdpXSDT     = 24
	rsdpExtended = 32
)

const (
	oemID      = "GVMSPN"
	oemTableID = "GVMSPAWN"
	creatorID  = "GVMS"
)

// table puts the common header (§5.2.6, table 5.4) before body.
func table(signature string, revision byte, body []byte) []byte {
	b := make([]byte, headerSize, headerSize+len(body))
	copy(b[0:], signature)
	binary.LittleEndian.PutUint32(b[4:], uint32(headerSize+len(body)))
	b[8] = revision
	copy(b[10:], oemID)
	copy(b[16:], oemTableID)
	binary.LittleEndian.PutUint32(b[24:], 1) // OEM Revision
	copy(b[28:], creatorID)
	binary.LittleEndian.PutUint32(b[32:], 1) // Creator Revision
	b = append(b, body...)
	b[tableChecksum] = checksum(b)
	return b
}

// checksum is what makes the sum of all bytes zero.
func checksum(b []byte) byte {
	var sum byte
	for _, v := range b {
		sum += v
	}
	return -sum
}

// rsdp is the Root System Description Pointer, revision 2 (§5.2.5.3, table 5.3).
// It has no RSDT: every system that reads revision 2 prefers the XSDT.
func rsdp(xsdt mem.GPA) []byte {
	b := make([]byte, 36)
	copy(b[0:], "RSD PTR ")
	copy(b[9:], oemID)
	b[15] = 2 // Revision
	binary.LittleEndian.PutUint32(b[20:], uint32(len(b)))
	binary.LittleEndian.PutUint64(b[rsdpXSDT:], uint64(xsdt))
	b[rsdpChecksum] = checksum(b[:rsdpOldSize])
	b[rsdpExtended] = checksum(b)
	return b
}

// FADT fields (§5.2.9, table 5.9): offsets and flags.
const (
	fadtSize = 276

	fadtDSDT           = 40
	fadtProfile        = 45
	fadtPLvl2Lat       = 96
	fadtPLvl3Lat       = 98
	fadtCentury        = 108
	fadtBootArch       = 109
	fadtFlags          = 112
	fadtResetReg       = 116
	fadtResetValue     = 128
	fadtMinorVersion   = 131
	fadtXDSDT          = 140
	fadtSleepControl   = 244
	fadtSleepStatus    = 256
	fadtHypervisorID   = 268
	profileUnspecified = 0

	// Flags (table 5.10).
	fadtWBINVD          = 1 << 0
	fadtProcC1          = 1 << 2
	fadtPwrButton       = 1 << 4 // no fixed power button
	fadtSlpButton       = 1 << 5 // no fixed sleep button
	fadtResetRegSup     = 1 << 10
	fadtHardwareReduced = 1 << 20

	// IAPC_BOOT_ARCH (table 5.11).
	bootLegacyDevices  = 1 << 0
	bootVGANotPresent  = 1 << 2
	bootNoASPM         = 1 << 4
	bootCMOSNotPresent = 1 << 5

	// rtcCentury is the index of the century in the clock's memory.
	rtcCentury = 0x32

	// Latencies above these mean "no C2" and "no C3".
	noC2Latency = 101
	noC3Latency = 1001
)

// Ports of the sleep and reset registers, and what the reset register wants.
// The chip behind them is devices/acpi.
const (
	SleepControlPort = layout.PortPM + 0
	SleepStatusPort  = layout.PortPM + 1
	ResetPort        = layout.PortPM + 2
	ResetValue       = 1

	// SleepTypeS5 is the SLP_TYP value that \_S5 announces.
	SleepTypeS5 = 5
)

// fadt is the Fixed ACPI Description Table of a hardware-reduced machine.
func fadt(c Config, dsdt mem.GPA) []byte {
	b := make([]byte, fadtSize)
	le := binary.LittleEndian
	le.PutUint32(b[fadtDSDT:], uint32(dsdt))
	b[fadtProfile] = profileUnspecified
	le.PutUint16(b[fadtPLvl2Lat:], noC2Latency)
	le.PutUint16(b[fadtPLvl3Lat:], noC3Latency)
	arch := uint16(bootVGANotPresent | bootNoASPM)
	if !c.NoCOM1 {
		arch |= bootLegacyDevices
	}
	if c.NoRTC {
		arch |= bootCMOSNotPresent
	} else {
		b[fadtCentury] = rtcCentury
	}
	le.PutUint16(b[fadtBootArch:], arch)
	le.PutUint32(b[fadtFlags:], fadtWBINVD|fadtProcC1|fadtPwrButton|fadtSlpButton|fadtResetRegSup|fadtHardwareReduced)
	putPort(b[fadtResetReg:], ResetPort)
	b[fadtResetValue] = ResetValue
	b[fadtMinorVersion] = 5
	le.PutUint64(b[fadtXDSDT:], uint64(dsdt))
	putPort(b[fadtSleepControl:], SleepControlPort)
	putPort(b[fadtSleepStatus:], SleepStatusPort)
	copy(b[fadtHypervisorID:], "GVMSPAWN")
	return table("FACP", 6, b[headerSize:])
}

// putPort writes a Generic Address Structure (§5.2.3.2) for a one-byte port.
func putPort(b []byte, port uint64) {
	b[0], b[1], b[2], b[3] = 1, 8, 0, 1 // System I/O, 8 bits at bit 0, byte access
	binary.LittleEndian.PutUint64(b[4:], port)
}

// Interrupt controller structures of the MADT (§5.2.12, table 5.21).
const (
	madtLocalAPIC    = 0
	madtIOAPIC       = 1
	madtOverride     = 2
	madtLocalAPICNMI = 4
	madtLocalX2APIC  = 9
	madtX2APICNMI    = 10

	madtPCATCompat = 1 << 0
	madtEnabled    = 1 << 0

	intiActiveHigh = 1
	intiLevel      = 3 << 2
)

// madt is the Multiple APIC Description Table: the CPUs, the I/O APIC and the
// differences of its pins to ISA's edge-triggered identity mapping.
func madt(c Config) []byte {
	le := binary.LittleEndian
	b := le.AppendUint32(nil, layout.LocalAPIC)
	var flags uint32
	if c.PIC {
		flags |= madtPCATCompat
	}
	b = le.AppendUint32(b, flags)
	x2apic := false
	for i := range c.CPUs {
		// §5.2.12.12: IDs from 255 up cannot be told in the short form.
		id := c.apicID(i)
		if id < 255 {
			b = append(b, madtLocalAPIC, 8, byte(i), byte(id), madtEnabled, 0, 0, 0)
			continue
		}
		x2apic = true
		b = append(b, madtLocalX2APIC, 16, 0, 0)
		b = le.AppendUint32(b, id)
		b = le.AppendUint32(b, madtEnabled)
		b = le.AppendUint32(b, uint32(i))
	}
	b = append(b, madtIOAPIC, 12, 0, 0)
	b = le.AppendUint32(b, layout.IOAPIC)
	b = le.AppendUint32(b, 0) // first GSI
	if c.PIC {
		b = override(b, 0, layout.GSIPIT, 0)
	}
	b = override(b, layout.GSIGED, layout.GSIGED, intiActiveHigh|intiLevel)
	// NMI is wired to LINT1 of all CPUs, as on every PC (§5.2.12.7).
	b = append(b, madtLocalAPICNMI, 6, 0xff, 0, 0, 1)
	if x2apic {
		b = append(b, madtX2APICNMI, 12, 0, 0, 0xff, 0xff, 0xff, 0xff, 1, 0, 0, 0)
	}
	return table("APIC", 6, b)
}

// override appends an Interrupt Source Override structure (§5.2.12.5).
func override(b []byte, irq byte, gsi uint32, flags uint16) []byte {
	b = append(b, madtOverride, 10, 0, irq)
	b = binary.LittleEndian.AppendUint32(b, gsi)
	return binary.LittleEndian.AppendUint16(b, flags)
}

// mcfg says where PCI configuration space is (PCI Firmware 3.3 §4.1.2).
func mcfg(p *PCI) []byte {
	b := make([]byte, 8, 8+16)
	b = binary.LittleEndian.AppendUint64(b, p.ECAM)
	return table("MCFG", 1, append(b, 0, 0, 0, byte(p.Buses-1), 0, 0, 0, 0))
}

// TPM2 is the table of a TPM 2.0 (TCG ACPI 1.3 §8, table 7): with a command
// response buffer whose control area is at the given address, or, with 0, a
// FIFO interface. Firmware keeps its event log in logSize bytes at log; 0 means
// that there is none.
func TPM2(controlArea, log mem.GPA, logSize uint32) Table {
	const (
		platformClient  = 0
		startMethodFIFO = 6
		startMethodCRB  = 7
		startParameters = 12 // unused with these methods
	)
	method := uint32(startMethodCRB)
	if controlArea == 0 {
		method = startMethodFIFO
	}
	b := binary.LittleEndian.AppendUint16(nil, platformClient)
	b = append(b, 0, 0)
	b = binary.LittleEndian.AppendUint64(b, uint64(controlArea))
	b = binary.LittleEndian.AppendUint32(b, method)
	b = append(b, make([]byte, startParameters)...)
	b = binary.LittleEndian.AppendUint32(b, logSize)
	b = binary.LittleEndian.AppendUint64(b, uint64(log))
	return Table{Signature: "TPM2", Revision: 4, Body: b}
}
