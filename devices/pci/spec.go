package pci

// Configuration space header (PCI 3.0 §6.1, type 0).
const (
	regVendorID    = 0x00
	regDeviceID    = 0x02
	regCommand     = 0x04
	regStatus      = 0x06
	regRevision    = 0x08
	regCacheLine   = 0x0c
	regHeaderType  = 0x0e
	regBAR0        = 0x10
	regSubVendor   = 0x2c
	regSubsystem   = 0x2e
	regCapPointer  = 0x34
	regIntLine     = 0x3c
	regFirstCap    = 0x40
	headerMulti    = 0x80 // header type: function 0 of a device with several
	configSize     = 256
	ecamSize       = 4096
	barCount       = 6
	slotCount      = 32
	functionCount  = 8
	statusCapList  = 1 << 4
	barWide        = 2 << 1 // bits 2:1 of a memory BAR: 64-bit (§6.2.5.1)
	barPrefetch    = 1 << 3
	barFlags       = 0xf // of a memory BAR
	barPorts       = 1 << 0
	barPortFlags   = 3 // of an I/O BAR
	barMinimumSize = 16
	portMinimum    = 4
	portMaximum    = 256
)

// Command register bits (PCI 3.0 §6.2.2).
const (
	CommandIO          = 1 << 0 // writable in functions with ports only
	CommandMemory      = 1 << 1
	CommandBusMaster   = 1 << 2
	CommandParity      = 1 << 6
	CommandSERR        = 1 << 8
	CommandINTxDisable = 1 << 10

	commandWritable = CommandMemory | CommandBusMaster | CommandParity | CommandSERR | CommandINTxDisable
)

// Capability IDs (PCI 3.0 appendix H).
const (
	CapVendor = 0x09
	CapMSIX   = 0x11
)

// MSI-X capability and table (PCI 3.0 §6.8.2).
const (
	msixMaxVectors  = 2048
	msixEnable      = 1 << 15
	msixMaskAll     = 1 << 14
	msixEntrySize   = 16
	msixEntryAddrLo = 0
	msixEntryAddrHi = 4
	msixEntryData   = 8
	msixEntryCtrl   = 12
	msixCtrlMasked  = 1 << 0
)

// Host bridge: the memory controller hub of Intel's Q35, which firmware knows.
const (
	hostVendor = 0x8086
	hostDevice = 0x29c0
	hostClass  = 0x060000

	// QEMU's, by which SeaBIOS knows that there is a firmware configuration device.
	hostSubVendor = 0x1af4
	hostSubsystem = 0x1100
	// hostPCIEXBAR is where it keeps the base of ECAM, 64 bits (Intel
	// 3 Series Express chipset datasheet §5.1.17); bit 0 enables it.
	hostPCIEXBAR = 0x60
)

// Configuration mechanism #1 (PCI 3.0 §3.2.2.3.2).
const (
	addressEnable = 1 << 31
	resetPort     = 1 // 0xcf9 lies inside the address register at 0xcf8
)
