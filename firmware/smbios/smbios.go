// Package smbios builds the SMBIOS tables, which tell the guest who it is and
// carry strings to it: the OEM strings of type 11 are how systemd receives
// credentials.
//
// The document is DMTF DSP0134, System Management BIOS Reference
// Specification, 3.7.0; the structures have their 3.0 lengths, and the entry
// point says 3.0.
//
// # Where the table lives
//
// The entry point is in the range that a firmware-less system scans. The
// structure table is not: with credentials it may be more than 1 MiB, so it
// lies in RAM that the caller chooses and reserves in the memory map.
//
// # How big it may be
//
// The specification allows 4 GiB and any string length. Linux on x86 maps the
// table before it has a page allocator, in a window of [LinuxTableMax] bytes,
// and knows no SMBIOS at all if the table is bigger. Whoever has more to say
// needs another way to say it.
//
// It also copies every OEM string that its structure counts, into 64 KiB of
// early memory (RESERVE_BRK(dmi_alloc)), and stops with a BUG when they are full.
// So strings beyond a budget go into structures that count none: Linux copies
// nothing of them, and systemd, which reads the structure itself, finds them.
package smbios

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"strings"

	"github.com/gvmspawn/gvmspawn/vmm/layout"
	"github.com/gvmspawn/gvmspawn/vmm/mem"
)

// LinuxTableMax is the largest table in bytes that Linux on x86 can read, if
// it begins on a page boundary: NR_FIX_BTMAPS (64) pages of early_ioremap.
const LinuxTableMax = 64 * layout.PageSize

// Config is what the tables tell.
type Config struct {
	// UUID is the system's identity as printed (RFC 4122 byte order). All
	// zeroes means that the system has none.
	UUID [16]byte
	// Manufacturer, Product, Version, Serial, SKU and Family describe the
	// system; empty ones are left out.
	Manufacturer, Product, Version, Serial, SKU, Family string
	// BIOSVersion is the version of the firmware, or of this program.
	BIOSVersion string
	// RAM lists the guest's memory.
	RAM []Range
	// OEMStrings are the strings of type 11. They must neither be empty nor
	// contain NUL. Their number and length have no limit here.
	OEMStrings []string
}

// Range is [Base, Base+Size) in guest memory.
type Range struct {
	Base mem.GPA
	Size uint64
}

// Write puts the entry point at layout.SMBIOSEntry and the table right below
// the address top, on a page boundary, and returns the pages that the memory
// map must reserve. All of it must be RAM.
func Write(m *mem.Memory, top mem.GPA, c Config) (reserved Range, err error) {
	table, err := Table(c)
	if err != nil {
		return Range{}, err
	}
	const mask = layout.PageSize - 1
	end := top &^ mask
	size := (uint64(len(table)) + mask) &^ mask
	if uint64(end) < layout.KernelStart+size {
		return Range{}, fmt.Errorf("SMBIOS table of %d KiB does not fit into the memory below %#x", size>>10, top)
	}
	reserved = Range{end - mem.GPA(size), size}
	if err := m.WriteAt(table, reserved.Base); err != nil {
		return Range{}, fmt.Errorf("write SMBIOS table at %#x: %w", reserved.Base, err)
	}
	if err := m.WriteAt(EntryPoint(reserved.Base, uint32(len(table))), layout.SMBIOSEntry); err != nil {
		return Range{}, fmt.Errorf("write SMBIOS entry point at %#x: %w", layout.SMBIOSEntry, err)
	}
	return reserved, nil
}

// EntryPoint is the 64-bit entry point structure (§5.2.2, table 2) of a table
// of size bytes.
func EntryPoint(table mem.GPA, size uint32) []byte {
	b := make([]byte, 24)
	copy(b, "_SM3_")
	b[6] = byte(len(b))
	b[7], b[8] = 3, 0 // version of the structures
	b[10] = 1         // entry point revision
	binary.LittleEndian.PutUint32(b[12:], size)
	binary.LittleEndian.PutUint64(b[16:], uint64(table))
	var sum byte
	for _, v := range b {
		sum += v
	}
	b[5] = -sum
	return b
}

// Table is the structure table: types 0, 1, 3, 11, 16, 17, 19, 32 and 127.
func Table(c Config) ([]byte, error) {
	b := &builder{}
	b.biosInformation(&c)
	b.systemInformation(&c)
	b.chassis(&c)
	for i, s := range c.OEMStrings {
		if s == "" || strings.ContainsRune(s, 0) {
			return nil, fmt.Errorf("SMBIOS: OEM string %d (%.40q) must not be empty nor contain NUL", i+1, s)
		}
	}
	b.allOEMStrings(c.OEMStrings)
	b.memory(c.RAM)
	b.add(typeBootInformation, make([]byte, 7)) // §7.33: no errors detected
	b.add(typeEndOfTable, nil)
	return b.out, b.err
}

// builder appends structures with rising handles.
type builder struct {
	out    []byte
	handle uint16
	err    error
}

// §6.1.2: handles from 0xff00 up are reserved.
const firstReservedHandle = 0xff00

// add appends a structure (§6.1): header, the formatted area after the header,
// and the strings, closed by two NULs. It returns the structure's handle.
func (b *builder) add(kind structureType, formatted []byte, strs ...string) uint16 {
	h := b.handle
	b.handle++
	if h >= firstReservedHandle && b.err == nil {
		b.err = errors.New("SMBIOS: too many structures")
	}
	b.out = append(b.out, byte(kind), byte(4+len(formatted)))
	b.out = binary.LittleEndian.AppendUint16(b.out, h)
	b.out = append(b.out, formatted...)
	for _, s := range strs {
		b.out = append(append(b.out, s...), 0)
	}
	if len(strs) == 0 {
		b.out = append(b.out, 0)
	}
	b.out = append(b.out, 0)
	if len(b.out) > math.MaxUint32 && b.err == nil {
		b.err = errors.New("SMBIOS: table above 4 GiB")
	}
	return h
}

// stringSet numbers a structure's strings (§6.1.3): 0 is no string.
type stringSet []string

// add takes s in and returns its number. Empty strings get 0, and a NUL ends
// a string, as it would for every reader.
func (s *stringSet) add(v string) byte {
	v, _, _ = strings.Cut(v, "\x00")
	if v == "" {
		return 0
	}
	*s = append(*s, v)
	return byte(len(*s))
}
