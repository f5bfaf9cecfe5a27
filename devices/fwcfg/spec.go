package fwcfg

// Selectors of items with fixed numbers (QEMU, include/standard-headers/linux/qemu_fw_cfg.h).
const (
	Signature     = 0x00 // "QEMU"
	Revision      = 0x01 // feature bits
	SystemUUID    = 0x02
	RAMSize       = 0x03
	NoGraphic     = 0x04
	BootCPUs      = 0x05 // 16 bits
	KernelSize    = 0x08
	InitrdSize    = 0x0b
	BootMenu      = 0x0e
	MaximumCPUs   = 0x0f
	KernelData    = 0x11
	InitrdData    = 0x12
	CommandSize   = 0x14 // of the command line with its NUL
	CommandLine   = 0x15
	SetupSize     = 0x17 // of the kernel's real-mode part
	SetupData     = 0x18
	fileDirectory = 0x19
	firstFile     = 0x20
)

// Ports, relative to the first.
const (
	portSelector = 0
	portData     = 1
	portDMA      = 4
	// PortsSize is how many ports the device has.
	PortsSize = 12
)

// Names and numbers of files.
const (
	// MaxName is the longest name in bytes, FW_CFG_MAX_FILE_PATH less the NUL.
	MaxName  = 55
	maxFiles = 0x100
)

// Features of the item Revision.
const (
	revisionTraditional = 1 << 0
	revisionDMA         = 1 << 1
)

// The DMA interface.
const (
	dmaSignature     = 0x51454d5520434647 // "QEMU CFG"
	dmaCommandSize   = 16
	dmaError         = 1 << 0
	dmaRead          = 1 << 1
	dmaSkip          = 1 << 2
	dmaSelect        = 1 << 3
	dmaWrite         = 1 << 4
	dmaSelectorShift = 16
)

const (
	// maxZeroes is how many bytes behind an item's end one command may read.
	maxZeroes = 1 << 20
	// endOfAll is behind the end of every item.
	endOfAll = 1 << 33
	// readAhead is how much the data port reads from a source at a time.
	readAhead = 4096
)
