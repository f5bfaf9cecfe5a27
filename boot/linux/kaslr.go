package linux

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
)

// Kernel address space layout randomisation, done for the guest.
//
// The build appends to the ELF file of a relocatable kernel the places that
// hold absolute virtual addresses (Linux arch/x86/tools/relocs.c; read by
// handle_relocations in arch/x86/boot/compressed/misc.c): backwards from the
// end of the file a table of places with 32-bit addresses, up to Linux 6.14
// one of places that hold 32-bit differences to be decreased, and one of places
// with 64-bit addresses, each led by a zero. An entry is the low half of the place's
// virtual address. The kernel stays where it is in physical memory and is
// moved in virtual memory alone, by a multiple of its alignment.
const (
	startKernelMap  = 0x8000_0000 // low half of __START_KERNEL_map
	kernelImageSize = 1 << 30     // KERNEL_IMAGE_SIZE with CONFIG_RANDOMIZE_BASE
)

// relocations are the parts of a kernel's table.
type relocations struct {
	abs32, inverse32, abs64 places
}

// places is one part of the table, without its zero.
type places []byte

func (p places) len() int { return len(p) / 4 }

// at is the physical address of place i.
func (p places) at(i int) uint32 {
	return binary.LittleEndian.Uint32(p[i*4:]) - startKernelMap
}

// prepareKASLR chooses the displacement and reads the relocation table of the
// payload file before the segments are moved over it. The function that it
// returns applies it to the segments in their final places.
func (l *loader) prepareKASLR(file []byte) (func() error, error) {
	nothing := func() error { return nil }
	if !l.KASLR || l.Entry == EntryPVH { // the PVH entry's code cannot be moved
		return nothing, nil
	}
	le := binary.LittleEndian
	tail := le.Uint64(file[40:]) + uint64(le.Uint16(file[58:]))*uint64(le.Uint16(file[60:])) // e_shoff + e_shentsize*e_shnum
	if tail >= uint64(len(file)) || len(file)-int(tail) < 12 {
		return nothing, nil // built without relocations
	}
	delta, err := l.randomOffset()
	if err != nil || delta == 0 {
		return nothing, err
	}
	table := slices.Clone(file[tail:])
	return func() error {
		rel, err := l.readRelocations(table)
		if err != nil {
			return l.img.errorf("cannot be randomised: %w; start it without KASLR", err)
		}
		rel.apply(l.ram, delta)
		l.k.randomized = true
		return nil
	}, nil
}

// randomOffset chooses among the places for the image in its virtual address
// range, like find_random_virt_addr in arch/x86/boot/compressed/kaslr.c.
func (l *loader) randomOffset() (uint64, error) {
	step, start := uint64(l.img.hdr.Kernelalignment), l.img.hdr.PrefAddress
	size := l.k.high - l.k.low
	if step < hugePage || step&(step-1) != 0 || start+size >= kernelImageSize {
		return 0, nil // the kernel does not expect to be moved
	}
	var b [8]byte
	if _, err := io.ReadFull(l.Random, b[:]); err != nil {
		return 0, fmt.Errorf("no random numbers for KASLR: %w", err)
	}
	slots := (kernelImageSize-start-size)/step + 1
	return binary.LittleEndian.Uint64(b[:]) % slots * step, nil
}

// readRelocations splits the table, which has two or three parts. The last
// one, the first in the file, must hold what it should.
func (l *loader) readRelocations(b []byte) (r relocations, err error) {
	if r.abs32, b, err = l.takeRelocations(b); err != nil {
		return r, err
	}
	if r.abs64, b, err = l.takeRelocations(b); err == nil && len(b) >= 4 {
		r.inverse32 = r.abs64
		r.abs64, b, err = l.takeRelocations(b)
	}
	if err == nil && (len(b) >= 4 || !l.mostlyAddresses(r.abs64)) {
		err = errors.New("its relocation table is of an unknown kind")
	}
	return r, err
}

// takeRelocations takes one part from the end of b, and its leading zero.
func (l *loader) takeRelocations(b []byte) (part places, rest []byte, err error) {
	for at := len(b) - 4; at >= 0; at -= 4 {
		v := binary.LittleEndian.Uint32(b[at:])
		if v == 0 {
			return b[at+4:], b[:at], nil
		}
		if p := uint64(v - startKernelMap); p < l.k.elf.low() || p+8 > l.k.elf.high() {
			return nil, nil, fmt.Errorf("its relocation table names the address %#x outside the kernel", v)
		}
	}
	return nil, nil, errors.New("its relocation table has no beginning")
}

// mostlyAddresses reports whether at least half of the places hold 64-bit
// kernel addresses, whose upper half is all ones. The rest are physical
// addresses in early page tables and null pointers into the per-CPU area.
func (l *loader) mostlyAddresses(p places) bool {
	n := 0
	for i := range p.len() {
		if binary.LittleEndian.Uint32(l.ram[p.at(i)+4:]) == 0xffff_ffff {
			n++
		}
	}
	return 2*n >= p.len()
}

// apply adds delta to all addresses.
func (r relocations) apply(ram []byte, delta uint64) {
	le := binary.LittleEndian
	for i := range r.abs32.len() {
		b := ram[r.abs32.at(i):]
		le.PutUint32(b, le.Uint32(b)+uint32(delta))
	}
	for i := range r.inverse32.len() {
		b := ram[r.inverse32.at(i):]
		le.PutUint32(b, le.Uint32(b)-uint32(delta))
	}
	for i := range r.abs64.len() {
		b := ram[r.abs64.at(i):]
		le.PutUint64(b, le.Uint64(b)+delta)
	}
}
