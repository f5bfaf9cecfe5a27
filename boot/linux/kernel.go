package linux

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/gvmspawn/gvmspawn/vmm/layout"
	"github.com/gvmspawn/gvmspawn/vmm/mem"
)

// Kernel is a kernel in guest memory.
type Kernel struct {
	l               *loader
	elf             *elfImage // nil if it is still packed
	entry           uint64
	pvh, randomized bool
	low, high       uint64 // physical range that the kernel occupies or soon will
}

// HasString reports whether the kernel contains s as a NUL-terminated string
// with a NUL before it, as C strings in a table of strings are stored. The
// second result is false if that is not known, because the kernel is still packed.
// It finds out whether a driver whose name is s is built in, where there is
// no modules.builtin to ask.
func (k Kernel) HasString(s string) (found, known bool) {
	if k.elf == nil {
		return false, false
	}
	return slices.ContainsFunc(k.elf.loads, func(p segment) bool {
		return containsCString(k.l.ram[p.paddr:p.paddr+p.filesz], []byte(s))
	}), true
}

// containsCString reports whether s is in b between two NULs. A kernel is full of
// NULs, so looking for the first of them is several times as slow.
func containsCString(b, s []byte) bool {
	for at := 0; at < len(b); at++ {
		i := bytes.Index(b[at:], s)
		if i < 0 {
			return false
		}
		at += i
		if end := at + len(s); at > 0 && b[at-1] == 0 && end < len(b) && b[end] == 0 {
			return true
		}
	}
	return false
}

// Release is the kernel's release as [Image.Release] gives it, or, for a
// bzImage that does not state it, from the unpacked kernel.
func (k Kernel) Release() string {
	if rel := k.l.img.Release(); rel != "" || k.elf == nil {
		return rel
	}
	for _, p := range k.elf.loads {
		if rel := releaseAfterBanner(k.l.ram[p.paddr : p.paddr+p.filesz]); rel != "" {
			return rel
		}
	}
	return ""
}

// hugePage is the unit in which touched memory is given back, so that the
// host's huge pages under the kernel stay whole.
const hugePage = 2 * layout.MiB

func (l *loader) placeKernel() error {
	var err error
	switch {
	case l.Entry == EntryDecompressor && l.img.format == FormatBzImage:
		return l.placePacked()
	case l.Entry == EntryDecompressor:
		return l.img.errorf("is an ELF file, which has no decompressor of its own")
	case l.img.format == FormatBzImage:
		err = l.placePayload()
	default:
		err = l.placeELF()
	}
	if err != nil {
		return err
	}
	return l.chooseEntry()
}

// needRAM checks that the kernel fits below end, an address behind its last byte.
func (l *loader) needRAM(end uint64) error {
	if end > uint64(len(l.ram)) {
		return l.img.errorf("does not fit into the machine's RAM: it needs at least %d MiB, the machine has %d MiB (--ram=)",
			mib(end), l.Memory.RAMSize()/layout.MiB)
	}
	return nil
}

// placePacked loads the protected-mode part of a bzImage where it wants to be.
func (l *loader) placePacked() error {
	h := &l.img.hdr
	size := min(uint64(h.Syssize)*16, uint64(l.img.size-l.img.setupSize()))
	l.k.low = max(h.PrefAddress, layout.KernelStart)
	if l.k.low > 1<<40 {
		return l.img.errorf("has a broken setup header: pref_address %#x", h.PrefAddress)
	}
	l.k.high = l.k.low + max(uint64(h.InitSize), size)
	l.k.entry = l.k.low + entry64Offset
	if err := l.needRAM(l.k.high); err != nil {
		return err
	}
	dst := l.ram[l.k.low:][:size]
	if n, err := l.img.r.ReadAt(dst, l.img.setupSize()); n < len(dst) {
		return l.img.errorf("%w", readProblem(err, "the kernel"))
	}
	l.Memory.MarkWritten(mem.GPA(l.k.low), size)
	return nil
}

// placePayload unpacks a bzImage's payload into guest memory, so that the
// first segments already lie right, and moves the others.
func (l *loader) placePayload() error {
	h := &l.img.hdr
	if h.PrefAddress > 1<<40 {
		return l.img.errorf("has a broken setup header: pref_address %#x", h.PrefAddress)
	}
	packed, free, err := l.readPayload()
	if err != nil {
		return err
	}
	defer free()
	c := detectCompression(packed)
	switch c {
	case CompressionUnknown:
		return l.img.errorf("has a payload of unknown compression (it begins with % x)", packed[:4])
	case CompressionLZO:
		return l.img.errorf("has a payload compressed with lzo, which is not supported; use a kernel packed with zstd, lz4, gzip, xz, lzma or bzip2")
	}
	size := uint64(binary.LittleEndian.Uint32(packed[len(packed)-4:]))
	if c != CompressionGzip { // gzip's own trailer is that size
		packed = packed[:len(packed)-4]
	}
	if size == 0 || size > maxPayload {
		return l.img.errorf("has a payload that claims to be %d bytes long", size)
	}
	// The linker aligns the first segment to 2 MiB in the file, as in memory.
	base := max(h.PrefAddress, layout.KernelStart+hugePage) - hugePage
	if err := l.needRAM(max(base+size, h.PrefAddress+uint64(h.InitSize))); err != nil {
		return err
	}
	dst := l.ram[base : base+size : base+size]
	if err := unpack(c, packed, dst); err != nil {
		return l.img.errorf("is damaged: unpacking its %s payload fails: %w", c, err)
	}
	return l.settle(base, size)
}

// settle turns an ELF file that lies in RAM at base into the kernel that it describes.
func (l *loader) settle(base, size uint64) error {
	file := l.ram[base : base+size]
	e, err := parseELF(bytes.NewReader(file), int64(size))
	if err != nil {
		return l.img.errorf("has a payload that %w", err)
	}
	if e.low() < layout.KernelStart {
		return l.img.errorf("wants to be loaded at %#x, below 1 MiB", e.low())
	}
	l.k.elf, l.k.low = e, e.low()
	l.k.high = max(e.high(), l.img.hdr.PrefAddress+uint64(l.img.hdr.InitSize))
	if err := l.needRAM(l.k.high); err != nil {
		return err
	}
	move, err := l.prepareKASLR(file)
	if err != nil {
		return err
	}
	moveSegments(l.ram, base, e.loads)
	l.clearAround(base, base+size)
	l.Memory.MarkWritten(mem.GPA(min(base, e.low())), max(e.high(), base+size)-min(base, e.low()))
	return move()
}

// moveSegments moves the segments of the ELF file at ram[base:] to their
// addresses. Neither the segments' places in the file nor those in memory overlap,
// so if they come in the same order, those that move up can go from the last
// to the first, then those that move down from the first to the last.
func moveSegments(ram []byte, base uint64, loads []segment) {
	for i := 1; i < len(loads); i++ {
		if loads[i].off < loads[i-1].off+loads[i-1].filesz {
			file := slices.Clone(ram[base:lastByte(base, loads)])
			for _, s := range loads {
				copy(ram[s.paddr:s.paddr+s.filesz], file[s.off:])
			}
			return
		}
	}
	for _, s := range slices.Backward(loads) {
		if s.paddr > base+s.off {
			copy(ram[s.paddr:], ram[base+s.off:][:s.filesz])
		}
	}
	for _, s := range loads {
		if s.paddr < base+s.off {
			copy(ram[s.paddr:], ram[base+s.off:][:s.filesz])
		}
	}
}

// lastByte is the end of the part of the file at base that the segments use.
func lastByte(base uint64, loads []segment) uint64 {
	end := base
	for _, s := range loads {
		end = max(end, base+s.off+s.filesz)
	}
	return end
}

// clearAround zeroes what lies in [from, to) and behind the segments' file
// contents: headers, relocations, and the place of what is not in the file.
func (l *loader) clearAround(from, to uint64) {
	at := from
	for _, s := range l.k.elf.loads {
		l.clear(at, min(s.paddr, to))
		at = max(at, s.paddr+s.filesz)
	}
	l.clear(at, to)
}

// clear zeroes [from, to) and gives whole huge pages back to the host.
func (l *loader) clear(from, to uint64) {
	if from >= to {
		return
	}
	first, last := align(from, hugePage), to&^(hugePage-1)
	if first >= last || l.Memory.Discard(mem.GPA(first), last-first) != nil {
		clear(l.ram[from:to])
		return
	}
	clear(l.ram[from:first])
	clear(l.ram[last:to])
}

// placeELF reads the segments of an ELF file to their addresses.
func (l *loader) placeELF() error {
	e := l.img.elf
	if e.low() < layout.KernelStart {
		return l.img.errorf("wants to be loaded at %#x, below 1 MiB", e.low())
	}
	l.k.elf, l.k.low, l.k.high = e, e.low(), e.high()
	if err := l.needRAM(l.k.high); err != nil {
		return err
	}
	for _, s := range e.loads {
		dst := l.ram[s.paddr:][:s.filesz]
		if n, err := l.img.r.ReadAt(dst, int64(s.off)); n < len(dst) {
			return l.img.errorf("%w", readProblem(err, "a segment"))
		}
		l.Memory.MarkWritten(mem.GPA(s.paddr), s.filesz)
	}
	return nil
}

// chooseEntry sets the entry point of a kernel that is unpacked.
func (l *loader) chooseEntry() error {
	e := l.k.elf
	l.k.entry = e.entry
	has64 := e.hasPhys(e.entry)
	pvh, hasPVH := l.pvhEntry()
	wantPVH := l.Entry == EntryPVH
	if l.Entry == EntryAuto && hasPVH {
		wantPVH = !has64 || l.img.format == FormatELF && l.img.Release() == ""
	}
	switch {
	case wantPVH && hasPVH && e.hasPhys(pvh) && pvh < 1<<32:
		l.k.entry, l.k.pvh = pvh, true
	case wantPVH:
		return l.img.errorf("has no PVH entry point")
	case !has64:
		return l.img.errorf("has no entry point that can be used: neither a 64-bit one in physical memory nor PVH")
	}
	return nil
}

// pvhEntry looks for the PVH note. That of a bzImage lies in RAM by now.
func (l *loader) pvhEntry() (uint64, bool) {
	if l.img.format == FormatELF {
		return l.img.elf.pvhEntry(l.img.r)
	}
	for _, n := range l.k.elf.notes {
		if n.filesz <= maxNoteSegment && n.paddr < uint64(len(l.ram)) && n.filesz <= uint64(len(l.ram))-n.paddr {
			if v, ok := findXenEntry(l.ram[n.paddr:][:n.filesz]); ok {
				return v, true
			}
		}
	}
	return 0, false
}

// readPayload reads the packed payload into memory outside the Go heap; free
// unmaps it.
func (l *loader) readPayload() (b []byte, free func(), err error) {
	r := l.img.payloadReader()
	b, err = unix.Mmap(-1, 0, int(r.Size()), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, nil, fmt.Errorf("no memory to unpack %s: %w", l.img.name, err)
	}
	_ = unix.Madvise(b, unix.MADV_HUGEPAGE) // a hint
	free = func() { _ = unix.Munmap(b) }
	if n, err := r.ReadAt(b, 0); n < len(b) {
		free()
		if err == nil {
			err = io.ErrUnexpectedEOF
		}
		return nil, nil, l.img.errorf("%w", readProblem(err, "its payload"))
	}
	return b, free, nil
}
