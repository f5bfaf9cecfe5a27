// Package layout is the guest physical memory map: every fixed address, port,
// interrupt number and identifier of the machine, in one file.
//
// The map follows the PC: RAM below 3 GiB, a hole for memory-mapped I/O up to
// 4 GiB, RAM again from 4 GiB, and a 64-bit window for PCI above all RAM.
package layout

// Sizes in bytes.
const (
	KiB = 1 << 10
	MiB = 1 << 20
	GiB = 1 << 30

	// PageSize is the smallest x86 page.
	PageSize = 4 * KiB
)

// RAM and its holes.
const (
	// LowRAMEnd is the exclusive end of the RAM below 4 GiB. What does not
	// fit moves to HighRAMStart.
	LowRAMEnd = 3 * GiB
	// HighRAMStart is the first byte of RAM above the 32-bit hole.
	HighRAMStart = 4 * GiB

	// EBDAStart to LegacyHoleEnd is reserved in the E820 map: the extended
	// BIOS data area, video memory and the BIOS area.
	EBDAStart     = 0x9fc00
	LegacyHoleEnd = 0x100000

	// MaxVCPUs is how many virtual CPUs a machine can have.
	MaxVCPUs = 64
)

// Structures that the boot code leaves in low RAM.
const (
	// BootGDT is the descriptor table of the boot protocol's entry state.
	BootGDT = 0x500
	// PVHInfo is struct hvm_start_info with its modules and memory map.
	PVHInfo = 0x6000
	// ZeroPage is struct boot_params.
	ZeroPage = 0x7000
	// BootStack is the initial stack pointer.
	BootStack = 0x8ff0
	// BootPageTables is the PML4 of the identity map, followed by its lower levels.
	BootPageTables = 0x9000
	// CommandLine is the kernel command line, NUL-terminated.
	CommandLine = 0x20000
	// CommandLineMax is the room for it, including the NUL.
	CommandLineMax = 0x10000

	// Generation is the page with the generation identifier.
	Generation = 0xdf000

	// SMBIOSEntry is the _SM3_ anchor; a firmware-less kernel scans
	// 0xF0000 to 0xFFFFF on 16-byte boundaries (SMBIOS 3.7 §5.2.2).
	SMBIOSEntry = 0xf0000
	// RSDP is the ACPI root pointer; the same range is scanned (ACPI 6.5 §5.2.5.1).
	RSDP = 0xf0100
	// MPTable is the MP floating pointer structure with its table behind it;
	// the same range is scanned on 16-byte boundaries (MP 1.4 §4).
	MPTable     = 0xf0200
	MPTableSize = 0x1e00
	// ACPITables is where the other ACPI tables begin.
	ACPITables = 0xe0000
	// ACPITablesEnd is the exclusive end of the room for them.
	ACPITablesEnd = 0xf0000

	// BIOSEntry is where a CPU in real mode restarts a PC (F000:FFF0).
	BIOSEntry = 0xffff0

	// KernelStart is where a protected-mode kernel is loaded by default.
	KernelStart = 1 * MiB
)

// Memory-mapped I/O below 4 GiB.
const (
	// PCIMMIO32Start to PCIMMIO32End is the 32-bit PCI window.
	PCIMMIO32Start = 0xc000_0000
	PCIMMIO32End   = 0xe000_0000

	// ECAM is the PCI Express configuration space (MCFG), 1 MiB a bus.
	ECAM     = 0xe000_0000
	ECAMSize = ECAMBuses * MiB
	// ECAMBuses is how many buses ECAM covers. Everything sits on bus 0.
	ECAMBuses = 16

	// FirmwareLowRAMEnd is LowRAMEnd of a machine with firmware, which puts
	// PCI's memory and ECAM where it likes from there to FirmwarePCIEnd: OVMF
	// begins at the bottom, SeaBIOS at the top.
	FirmwareLowRAMEnd = 2 * GiB
	FirmwarePCIEnd    = IOAPIC
	// SMRAMSize is the size of the memory for System Management Mode, at the end
	// of the RAM below 4 GiB.
	SMRAMSize = 16 * MiB

	// VirtioMMIO is the first virtio-mmio register window.
	VirtioMMIO       = 0xe800_0000
	VirtioMMIOStride = 0x1000

	// IOAPIC and LocalAPIC have their architectural addresses.
	IOAPIC        = 0xfec0_0000
	IOAPICSize    = 0x1000
	LocalAPIC     = 0xfee0_0000
	LocalAPICSize = 0x1000

	// GED is the Generic Event Device's register block (ACPI 6.5 §5.6.9).
	GED     = 0xfed2_0000
	GEDSize = 0x10

	// PCIHotplug is the register block of the slots whose devices may come
	// and go.
	PCIHotplug     = 0xfed3_0000
	PCIHotplugSize = 0x10

	// Watchdog is the watchdog's registers.
	Watchdog = 0xfed2_1000

	// TPM is where a PC's TPM is (TCG PC Client Platform TPM Profile).
	TPM = 0xfed4_0000

	// KVMIdentityMap and KVMTSS are pages that KVM on old Intel hosts needs.
	KVMIdentityMap = 0xfeff_c000
	KVMTSS         = 0xfeff_d000

	// BIOSSize is how much of a BIOS's end is visible below BIOSEnd, too.
	BIOSSize = 128 * KiB
	// BIOSEnd is the exclusive end of the area that real mode reaches.
	BIOSEnd = 0x10_0000
	// FirmwareStart is the lowest address of flash.
	FirmwareStart = 0xff00_0000
	// FirmwareEnd is the exclusive end of a firmware image, whose last 16
	// bytes hold the reset vector.
	FirmwareEnd = 0x1_0000_0000
)

// I/O ports.
const (
	PortPIC1       = 0x20
	PortPIT        = 0x40
	PortI8042Data  = 0x60
	PortSystemCtlB = 0x61
	PortI8042Cmd   = 0x64
	PortCMOS       = 0x70
	PortSystemCtlA = 0x92
	PortPIC2       = 0xa0
	PortCOM1       = 0x3f8
	PortDebugcon   = 0x402
	PortPVPanic    = 0x505
	PortFWCfg      = 0x510
	PortFWCfgSize  = 12
	// PortPM is the ACPI sleep control and status block, then the reset register.
	PortPM     = 0x580
	PortPMSize = 8
	// PortICH9PM is the power management block of a PC's south bridge (PMBASE),
	// for firmware.
	PortICH9PM  = 0x600
	PortAPM     = 0xb2
	PortPCIAddr = 0xcf8
	PortReset   = 0xcf9
	PortPCIData = 0xcfc
	// PortPCIStart to PortEnd are the ports of I/O BARs.
	PortPCIStart = 0x1000
	PortEnd      = 0x1_0000
)

// Global system interrupts (GSI), which are IOAPIC pins.
const (
	GSIPIT    = 2 // ISA IRQ 0 is wired to pin 2
	GSICOM1   = 4
	GSIRTC    = 8
	GSIGED    = 9
	GSIPCI    = 16 // INTA..INTD of the PCI slots: 16 to 19
	GSIPins   = 24
	GSIMSIMin = 24 // first number free for message-signalled interrupts
)

// GSIVirtioMMIO are the interrupts of virtio-mmio devices, one each: what no other
// chip of the machine has, first those above ISA's.
var GSIVirtioMMIO = [...]uint32{16, 17, 18, 19, 20, 21, 22, 23, 5, 6, 7, 10, 11, 12}

// PCIMMIO64Start is the first address of the 64-bit PCI window for a machine
// whose RAM ends at ramEnd: above all RAM, aligned to 64 GiB so that a large
// BAR fits anywhere in it.
func PCIMMIO64Start(ramEnd uint64) uint64 {
	const align = 64 * GiB
	if ramEnd < HighRAMStart {
		ramEnd = HighRAMStart
	}
	return (ramEnd + align - 1) / align * align
}

// AddressEnd is the exclusive end of the physical addresses that the paging of
// x86 can express.
const AddressEnd = 1 << 52

// PCIMMIO64Size is the size of the 64-bit PCI window in bytes.
const PCIMMIO64Size = 128 * GiB
