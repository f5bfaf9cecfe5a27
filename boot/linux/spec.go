package linux

// struct boot_params, "the zero page" (zero-page.rst): offsets in bytes.
const (
	bpAcpiRSDPAddr    = 0x070 // acpi_rsdp_addr, u64
	bpExtRamdiskImage = 0x0c0 // ext_ramdisk_image, u32: bits 32-63 of ramdisk_image
	bpExtRamdiskSize  = 0x0c4 // ext_ramdisk_size, u32
	bpExtCmdLinePtr   = 0x0c8 // ext_cmd_line_ptr, u32
	bpE820Entries     = 0x1e8 // e820_entries, u8
	bpSetupHeader     = 0x1f1 // hdr, struct setup_header
	bpE820Table       = 0x2d0 // e820_table, struct boot_e820_entry[128]
	bpSize            = 0x1000

	e820EntrySize = 20 // u64 addr, u64 size, u32 type, packed
	e820MaxInPage = 128
)

// struct setup_header (boot.rst, "The Real-Mode Kernel Header"): offsets in
// the image and in boot_params alike.
const (
	hdrSetupSects   = 0x1f1 // u8
	hdrBootFlag     = 0x1fe // u16, 0xaa55
	hdrJump         = 0x200 // u16, its second byte gives the header's end
	hdrMagic        = 0x202 // "HdrS"
	hdrVersion      = 0x206 // u16
	hdrTypeOfLoader = 0x210 // u8
	hdrLoadFlags    = 0x211 // u8
	hdrRamdiskImage = 0x218 // u32
	hdrRamdiskSize  = 0x21c // u32
	hdrCmdLinePtr   = 0x228 // u32
	hdrKernelAlign  = 0x230 // u32
	hdrSetupData    = 0x250 // u64

	hdrStructEnd = 0x268 // bytes of an image that hold the fields up to handover_offset
)

// Values of those fields.
const (
	bootFlag             = 0xaa55
	typeOfLoaderUnknown  = 0xff // no assigned ID
	loadFlagLoadedHigh   = 1 << 0
	loadFlagKASLR        = 1 << 1 // KASLR_FLAG: the kernel was placed at random
	xlfKernel64          = 1 << 0 // XLF_KERNEL_64: has the 64-bit entry at 0x200
	xlfAbove4G           = 1 << 1 // XLF_CAN_BE_LOADED_ABOVE_4G
	entry64Offset        = 0x200  // of the protected-mode part
	sectorSize           = 512
	protocol64           = 0x020c // 2.12, the first with xloadflags
	protocolPayload      = 0x0208 // 2.08, the first with payload_offset
	protocolOurs         = 0x020f // 2.15, for kernels without a header of their own
	defaultCmdLineSize   = 2047   // COMMAND_LINE_SIZE - 1 on x86
	defaultInitrdAddrMax = 0x7fff_ffff
	defaultKernelAlign   = 0x20_0000
)

// E820Type is the kind of a range in the BIOS memory map (ACPI 6.5 §15).
type E820Type uint32

// Kinds of memory.
const (
	E820RAM      E820Type = 1
	E820Reserved E820Type = 2
	E820ACPI     E820Type = 3
	E820NVS      E820Type = 4
)

// struct setup_data (boot.rst, setup_data field): u64 next, u32 type, u32 len, data.
const (
	setupDataHeader = 16
	setupRNGSeed    = 9 // SETUP_RNG_SEED, since Linux 6.0
	rngSeedSize     = 32
)

// PVH (Xen start_info.h).
const (
	xenNotePhys32Entry = 18 // XEN_ELFNOTE_PHYS32_ENTRY

	pvhMagic         = 0x336ec578
	pvhVersion       = 1
	pvhStartInfoSize = 56
	pvhModuleSize    = 32
	pvhMemmapSize    = 24
)

// Segment selectors of the 64-bit boot protocol.
const (
	bootCS = 0x10 // __BOOT_CS
	bootDS = 0x18 // __BOOT_DS
	bootTR = 0x20 // __BOOT_TR
)
