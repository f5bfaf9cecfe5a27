package acpi

import (
	"bytes"
	"encoding/binary"

	"github.com/gvmspawn/gvmspawn/vmm/layout"
)

// Files of the firmware configuration device by which firmware gets the tables.
const (
	LoaderFile = "etc/table-loader"
	TablesFile = "etc/acpi/tables"
	RSDPFile   = "etc/acpi/rsdp"
	// GenerationFile is the page with the generation identifier.
	GenerationFile = "etc/vmgenid_guid"
)

// Loadable is tables for firmware that puts them into memory itself: the
// tables, whose pointers are offsets in them, the root pointer, and a script
// that says what firmware does with the two (QEMU, hw/acpi/bios-linker-loader.c).
type Loadable struct {
	Tables, RSDP, Script []byte
}

// BuildLoadable is Build for firmware.
func BuildLoadable(c Config) (Loadable, error) {
	blobs, end, err := c.build(0)
	if err != nil {
		return Loadable{}, err
	}
	l := Loadable{Tables: make([]byte, end), RSDP: blobs[0].Bytes}
	for _, b := range blobs[1:] {
		copy(l.Tables[b.Address:], b.Bytes)
	}
	s := script{}
	s.allocate(TablesFile, 64, zoneHigh)
	s.allocate(RSDPFile, 16, zoneFSEG)
	xsdt, dsdt, fadt := blobs[1], blobs[2], blobs[3]
	if c.Generation != 0 {
		s.allocate(GenerationFile, layout.PageSize, zoneHigh)
		at := int(dsdt.Address) + bytes.Index(dsdt.Bytes, generationAddress(c.Generation)) + generationLow
		s.pointerTo(GenerationFile, TablesFile, at, 4)
		s.checksum(l.Tables, TablesFile, int(dsdt.Address)+tableChecksum, int(dsdt.Address), len(dsdt.Bytes))
	}
	// The 32-bit pointer would keep the tables below 4 GiB.
	clear(l.Tables[int(fadt.Address)+fadtDSDT:][:4])
	s.pointer(TablesFile, int(fadt.Address)+fadtXDSDT)
	s.checksum(l.Tables, TablesFile, int(fadt.Address)+tableChecksum, int(fadt.Address), len(fadt.Bytes))
	for at := headerSize; at < len(xsdt.Bytes); at += 8 {
		s.pointer(TablesFile, at)
	}
	s.checksum(l.Tables, TablesFile, tableChecksum, 0, len(xsdt.Bytes))
	s.pointer(RSDPFile, rsdpXSDT)
	s.checksum(l.RSDP, RSDPFile, rsdpChecksum, 0, rsdpOldSize)
	s.checksum(l.RSDP, RSDPFile, rsdpExtended, 0, len(l.RSDP))
	l.Script = s.bytes
	return l, nil
}

// generationLow is where in generationAddress the low half is: behind NameOp,
// the name, PackageOp, its length, its number of elements, and DWordPrefix.
const generationLow = 1 + 4 + 1 + 1 + 1 + 1

// Commands of the script, and where firmware may allocate.
const (
	commandSize     = 128
	nameSize        = 56
	commandAllocate = 1
	commandPointer  = 2
	commandChecksum = 3
	zoneHigh        = 1
	zoneFSEG        = 2
)

// script is a list of commands.
type script struct{ bytes []byte }

// add appends a command with its names, and returns the room behind them.
func (s *script) add(command uint32, names ...string) []byte {
	at := len(s.bytes)
	s.bytes = append(s.bytes, make([]byte, commandSize)...)
	b := s.bytes[at:]
	binary.LittleEndian.PutUint32(b, command)
	for i, n := range names {
		copy(b[4+i*nameSize:], n)
	}
	return b[4+len(names)*nameSize:]
}

// allocate loads a file into memory.
func (s *script) allocate(name string, align uint32, zone byte) {
	b := s.add(commandAllocate, name)
	binary.LittleEndian.PutUint32(b, align)
	b[4] = zone
}

// pointer adds the address of the tables to the 8 bytes at off of a file.
func (s *script) pointer(name string, off int) { s.pointerTo(TablesFile, name, off, 8) }

// pointerTo adds the address of a file to the size bytes at off of another. With
// 4 of them firmware puts the file below 4 GiB.
func (s *script) pointerTo(file, name string, off int, size byte) {
	b := s.add(commandPointer, name, file)
	binary.LittleEndian.PutUint32(b, uint32(off))
	b[4] = size
}

// checksum makes the sum of length bytes from start zero by the byte at off,
// which is made zero in the file before: firmware includes it.
func (s *script) checksum(content []byte, name string, off, start, length int) {
	content[off] = 0
	b := s.add(commandChecksum, name)
	for i, v := range []int{off, start, length} {
		binary.LittleEndian.PutUint32(b[4*i:], uint32(v))
	}
}
