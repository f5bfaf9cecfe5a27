package linux

import (
	"encoding/binary"
	"fmt"
	"io"

	"github.com/gvmspawn/gvmspawn/vmm/layout"
)

// setupDataStart is where the setup_data list lies: behind the page tables.
const setupDataStart = layout.BootPageTables + pageTablePages*layout.PageSize

// writeSeed leaves a SETUP_RNG_SEED entry, so that the guest's random number
// generator is ready from the start. Kernels before 6.0 skip it.
func (l *loader) writeSeed() error {
	d := l.ram[setupDataStart:][:setupDataHeader+rngSeedSize]
	le := binary.LittleEndian
	le.PutUint64(d, 0) // next
	le.PutUint32(d[8:], setupRNGSeed)
	le.PutUint32(d[12:], rngSeedSize)
	if _, err := io.ReadFull(l.Random, d[setupDataHeader:]); err != nil {
		return fmt.Errorf("no random numbers for the guest: %w", err)
	}
	l.Memory.MarkWritten(setupDataStart, uint64(len(d)))
	l.seed = setupDataStart
	return nil
}

// writeBootParams fills the zero page. For a bzImage the setup header is
// copied ("load the setup header (at 0x01f1) of bzImage into struct
// boot_params", boot.rst "64-bit Boot Protocol"), a vmlinux has none.
func (l *loader) writeBootParams() error {
	e820, err := memoryMap(l.Memory, l.Reserved)
	if err != nil {
		return err
	}
	p, le := l.ram[layout.ZeroPage:][:bpSize], binary.LittleEndian
	clear(p)
	if l.img.format == FormatBzImage {
		copy(p[bpSetupHeader:], l.img.setup[bpSetupHeader:])
	} else {
		le.PutUint16(p[hdrBootFlag:], bootFlag)
		copy(p[hdrMagic:], "HdrS")
		le.PutUint16(p[hdrVersion:], protocolOurs)
		le.PutUint32(p[hdrKernelAlign:], defaultKernelAlign)
	}
	p[hdrTypeOfLoader] = typeOfLoaderUnknown
	p[hdrLoadFlags] |= loadFlagLoadedHigh
	if l.k.randomized {
		p[hdrLoadFlags] |= loadFlagKASLR
	}
	le.PutUint64(p[bpAcpiRSDPAddr:], uint64(l.RSDP))
	le.PutUint64(p[hdrSetupData:], l.seed)
	putSplit(p, hdrRamdiskImage, bpExtRamdiskImage, l.initrd)
	putSplit(p, hdrRamdiskSize, bpExtRamdiskSize, l.initrdSize)
	putSplit(p, hdrCmdLinePtr, bpExtCmdLinePtr, layout.CommandLine)
	p[bpE820Entries] = byte(len(e820))
	for i, r := range e820 {
		e := p[bpE820Table+i*e820EntrySize:]
		le.PutUint64(e, uint64(r.Base))
		le.PutUint64(e[8:], r.Size)
		le.PutUint32(e[16:], uint32(r.Type))
	}
	l.Memory.MarkWritten(layout.ZeroPage, bpSize)
	return nil
}

// putSplit stores a 64-bit value in two fields of 32 bits.
func putSplit(p []byte, low, high int, v uint64) {
	binary.LittleEndian.PutUint32(p[low:], uint32(v))
	binary.LittleEndian.PutUint32(p[high:], uint32(v>>32))
}

// writeStartInfo fills struct hvm_start_info version 1, then its module list
// (the initrd) and its memory map.
func (l *loader) writeStartInfo() error {
	e820, err := memoryMap(l.Memory, l.Reserved)
	if err != nil {
		return err
	}
	const modules = layout.PVHInfo + 64
	const memmap = modules + pvhModuleSize
	room := l.ram[layout.PVHInfo:layout.BootPageTables]
	if memmap-layout.PVHInfo+len(e820)*pvhMemmapSize > len(room) {
		return fmt.Errorf("memory map: %d ranges do not fit into the PVH start info", len(e820))
	}
	clear(room)
	le, p := binary.LittleEndian, room[:pvhStartInfoSize]
	le.PutUint32(p[0:], pvhMagic)
	le.PutUint32(p[4:], pvhVersion)
	if l.initrdSize != 0 {
		le.PutUint32(p[12:], 1)           // nr_modules
		le.PutUint64(p[16:], modules)     // modlist_paddr
		m := l.ram[modules:]              // struct hvm_modlist_entry
		le.PutUint64(m, l.initrd)         // paddr
		le.PutUint64(m[8:], l.initrdSize) // size
	}
	le.PutUint64(p[24:], layout.CommandLine) // cmdline_paddr
	le.PutUint64(p[32:], uint64(l.RSDP))     // rsdp_paddr
	le.PutUint64(p[40:], memmap)             // memmap_paddr
	le.PutUint32(p[48:], uint32(len(e820)))  // memmap_entries
	for i, r := range e820 {
		e := l.ram[memmap+i*pvhMemmapSize:] // struct hvm_memmap_table_entry
		le.PutUint64(e, uint64(r.Base))
		le.PutUint64(e[8:], r.Size)
		le.PutUint32(e[16:], uint32(r.Type))
	}
	l.Memory.MarkWritten(layout.PVHInfo, uint64(len(room)))
	return nil
}
