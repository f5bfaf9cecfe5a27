package linux

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
)

// ELF64 constants (gABI 4.1).
const (
	elfHeaderSize  = 64
	elfProgSize    = 56
	elfMaxPrograms = 64
	elfClass64     = 2
	elfLittle      = 1
	elfMachineX86  = 62
	ptLoad         = 1
	ptNote         = 4
	maxNoteSegment = 1 << 20
)

// segment is a program header of type PT_LOAD or PT_NOTE.
type segment struct {
	off, filesz  uint64
	vaddr, paddr uint64
	memsz        uint64
}

func (s segment) end() uint64 { return s.paddr + s.memsz }

// elfImage is what booting needs of an ELF file. Every range in it is checked:
// no sum of two of its fields overflows, file ranges lie inside the file.
type elfImage struct {
	entry uint64
	loads []segment // by rising physical address, not overlapping
	notes []segment
}

// low and high bound the physical addresses of the loaded image.
func (e *elfImage) low() uint64  { return e.loads[0].paddr }
func (e *elfImage) high() uint64 { return e.loads[len(e.loads)-1].end() }

// hasPhys reports whether the physical address lies inside a segment.
func (e *elfImage) hasPhys(p uint64) bool {
	return slices.ContainsFunc(e.loads, func(s segment) bool { return p >= s.paddr && p < s.end() })
}

// parseELF reads the headers of the ELF64 file r of the given size in bytes.
// The error is the end of a sentence that begins with the file's name.
func parseELF(r io.ReaderAt, size int64) (*elfImage, error) {
	var h [elfHeaderSize]byte
	if _, err := r.ReadAt(h[:], 0); err != nil {
		return nil, readProblem(err, "its ELF header")
	}
	le := binary.LittleEndian
	if h[4] != elfClass64 || h[5] != elfLittle || le.Uint16(h[18:]) != elfMachineX86 {
		return nil, errors.New("is an ELF file, but not a 64-bit x86 kernel")
	}
	n, phoff := int(le.Uint16(h[56:])), le.Uint64(h[32:])
	if le.Uint16(h[54:]) != elfProgSize || n == 0 || n > elfMaxPrograms || phoff > uint64(size) {
		return nil, errors.New("has no usable ELF program headers")
	}
	ph := make([]byte, n*elfProgSize)
	if _, err := r.ReadAt(ph, int64(phoff)); err != nil {
		return nil, readProblem(err, "its ELF program headers")
	}
	e := &elfImage{entry: le.Uint64(h[24:])}
	for ; len(ph) > 0; ph = ph[elfProgSize:] {
		if err := e.addProgram(ph, uint64(size)); err != nil {
			return nil, err
		}
	}
	return e, e.sortLoads()
}

// addProgram checks and keeps one program header.
func (e *elfImage) addProgram(p []byte, size uint64) error {
	le := binary.LittleEndian
	s := segment{off: le.Uint64(p[8:]), vaddr: le.Uint64(p[16:]), paddr: le.Uint64(p[24:]),
		filesz: le.Uint64(p[32:]), memsz: le.Uint64(p[40:])}
	kind := le.Uint32(p)
	if kind != ptLoad && kind != ptNote || s.filesz == 0 && s.memsz == 0 {
		return nil
	}
	if s.off > size || s.filesz > size-s.off {
		return fmt.Errorf("is truncated: a segment needs %d bytes at offset %d, the file has %d bytes", s.filesz, s.off, size)
	}
	if kind == ptNote {
		e.notes = append(e.notes, s)
		return nil
	}
	if s.memsz < s.filesz || s.paddr+s.memsz < s.paddr {
		return errors.New("has a broken ELF program header")
	}
	e.loads = append(e.loads, s)
	return nil
}

// sortLoads orders the segments by address and refuses overlaps.
func (e *elfImage) sortLoads() error {
	if len(e.loads) == 0 {
		return errors.New("has nothing to load: no PT_LOAD program header")
	}
	slices.SortFunc(e.loads, func(a, b segment) int {
		if a.paddr < b.paddr {
			return -1
		}
		return 1
	})
	for i := 1; i < len(e.loads); i++ {
		if e.loads[i].paddr < e.loads[i-1].end() {
			return errors.New("has ELF segments that overlap in memory")
		}
	}
	return nil
}

// pvhEntry finds the note XEN_ELFNOTE_PHYS32_ENTRY, the 32-bit entry point of
// a kernel that boots by PVH.
func (e *elfImage) pvhEntry(r io.ReaderAt) (uint64, bool) {
	for _, s := range e.notes {
		if s.filesz > maxNoteSegment {
			continue
		}
		b := make([]byte, s.filesz)
		if _, err := r.ReadAt(b, int64(s.off)); err != nil {
			continue
		}
		if v, ok := findXenEntry(b); ok {
			return v, true
		}
	}
	return 0, false
}

// findXenEntry walks ELF notes: u32 namesz, descsz, type, then name and
// descriptor, each padded to four bytes.
func findXenEntry(b []byte) (uint64, bool) {
	le := binary.LittleEndian
	pad := func(n uint32) uint64 { return (uint64(n) + 3) &^ 3 }
	for len(b) >= 12 {
		namesz, descsz, kind := le.Uint32(b), le.Uint32(b[4:]), le.Uint32(b[8:])
		b = b[12:]
		if pad(namesz)+pad(descsz) > uint64(len(b)) {
			return 0, false
		}
		name, desc := b[:namesz], b[pad(namesz):][:descsz]
		if string(name) == "Xen\x00" && kind == xenNotePhys32Entry {
			switch descsz {
			case 4:
				return uint64(le.Uint32(desc)), true
			case 8:
				return le.Uint64(desc), true
			}
		}
		b = b[pad(namesz)+pad(descsz):]
	}
	return 0, false
}

// readProblem is the error of reading a part of an image.
func readProblem(err error, what string) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("is truncated: it ends inside %s", what)
	}
	return fmt.Errorf("cannot be read: %w", err)
}
