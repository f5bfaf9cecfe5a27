package linux

import (
	"crypto/rand"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/gvmspawn/gvmspawn/vmm/layout"
	"github.com/gvmspawn/gvmspawn/vmm/mem"
	"github.com/gvmspawn/gvmspawn/vmm/vcpu"
)

// Entry is the way into the kernel.
type Entry uint8

const (
	// EntryAuto takes Entry64, or EntryPVH for an ELF file that is not Linux
	// or has no usable 64-bit entry.
	EntryAuto Entry = iota
	// Entry64 is startup_64 in long mode, with boot_params in RSI.
	Entry64
	// EntryPVH is the 32-bit entry of the Xen note, with hvm_start_info in EBX.
	EntryPVH
	// EntryDecompressor is the 64-bit entry of a bzImage's own decompressor,
	// which also does its own KASLR unless the command line says nokaslr. It
	// starts kernels whose compression is unknown here, and it is slower.
	EntryDecompressor
)

// Range is a piece of guest physical memory, in bytes.
type Range struct {
	Base mem.GPA
	Size uint64
	Type E820Type
}

// Initrd is one initial RAM disk. Its Size bytes are read from Data straight
// into guest memory.
type Initrd struct {
	Name string // for error sentences
	Size int64
	Data io.ReaderAt
}

// Boot is what to boot and how.
type Boot struct {
	// Memory is the guest's memory. All RAM must read as zero: fresh, or
	// given back with [mem.Memory.Discard].
	Memory *mem.Memory
	Image  *Image
	// Initrds are concatenated in guest memory, each padded to four bytes.
	Initrds []Initrd
	// MoreInitrds, if set, is asked for further initrds once the kernel is
	// in memory and can be searched; an error ends Load and is returned as is.
	MoreInitrds func(Kernel) ([]Initrd, error)
	// CommandLine is the kernel command line, without a NUL. MoreArguments, if
	// set, is asked for arguments before it once the kernel is in memory.
	CommandLine   string
	MoreArguments func(Kernel) string
	// RSDP is where the ACPI root pointer lies, 0 for none or unknown.
	RSDP mem.GPA
	// Reserved is put into the memory map beside what package layout reserves.
	Reserved []Range
	Entry    Entry
	// KASLR moves the kernel of a bzImage to a random virtual address, as its
	// own decompressor would, and lets it randomise its other mappings. It
	// costs one or two milliseconds a start. It is off by default, so that
	// addresses in messages match System.map and one start is like the other.
	// A kernel built without CONFIG_RANDOMIZE_BASE ignores it, and so does
	// EntryPVH. EntryDecompressor goes by the command line alone (nokaslr).
	KASLR bool
	// Random gives the seed of the guest's random number generator and of
	// KASLR; nil is the host's generator.
	Random io.Reader
}

// Load writes kernel, initrds, command line, boot_params or hvm_start_info,
// descriptor table and page tables into guest memory and returns the state in
// which CPU 0 starts. A user's mistake (a kernel or an initrd larger than the
// RAM, a command line that is too long) gives one sentence that names the file.
func Load(b Boot) (vcpu.Registers, error) {
	if b.Random == nil {
		b.Random = rand.Reader
	}
	l := &loader{Boot: b, img: b.Image}
	if err := l.run(); err != nil {
		return vcpu.Registers{}, err
	}
	if l.k.pvh {
		return pvhRegisters(l.k.entry), nil
	}
	return longModeRegisters(l.k.entry), nil
}

// loader is one run of Load.
type loader struct {
	Boot
	img *Image
	ram []byte // RAM from address 0 on: the first region
	k   Kernel

	initrd, initrdSize uint64
	seed               uint64 // address of the setup_data list, 0 for none
}

func (l *loader) run() error {
	if err := l.checkCommandLine(); err != nil {
		return err
	}
	low := l.Memory.Find(0)
	if low == nil || low.Kind != mem.RAM || low.Size() <= layout.KernelStart {
		return l.img.errorf("cannot be loaded: the machine has less than 2 MiB of RAM (--ram=)")
	}
	l.ram = low.Bytes()
	l.k.l = l
	for _, step := range []func() error{l.placeKernel, l.placeInitrds, l.writeSeed, l.writeCommandLine, l.writeTables} {
		if err := step(); err != nil {
			return err
		}
	}
	if l.k.pvh {
		return l.writeStartInfo()
	}
	return l.writeBootParams()
}

func (l *loader) checkCommandLine() error {
	limit := min(l.img.CommandLineMax(), layout.CommandLineMax-1)
	if n := len(l.CommandLine); n > limit {
		return fmt.Errorf("the kernel command line is %d bytes long, but %s takes at most %d; pass fewer kernel arguments", n, l.img.name, limit)
	}
	if strings.ContainsRune(l.CommandLine, 0) {
		return fmt.Errorf("the kernel command line contains a NUL character")
	}
	return nil
}

// writeCommandLine leaves the command line, with its NUL, at its place.
func (l *loader) writeCommandLine() error {
	if l.MoreArguments != nil {
		l.CommandLine = strings.TrimSpace(l.MoreArguments(l.k) + " " + l.CommandLine)
		if err := l.checkCommandLine(); err != nil {
			return err
		}
	}
	dst := l.ram[layout.CommandLine:][:layout.CommandLineMax]
	dst[copy(dst, l.CommandLine)] = 0
	l.Memory.MarkWritten(layout.CommandLine, uint64(len(l.CommandLine)+1))
	return nil
}

// placeInitrds reads the initrds to the highest place that the kernel allows.
func (l *loader) placeInitrds() error {
	list := l.Initrds
	if l.MoreInitrds != nil {
		more, err := l.MoreInitrds(l.k)
		if err != nil {
			return err
		}
		list = append(list[:len(list):len(list)], more...)
	}
	if len(list) == 0 {
		return nil
	}
	var total uint64
	names := make([]string, len(list))
	for i, d := range list {
		names[i] = d.Name
		if d.Size < 0 || d.Size > 1<<40 {
			return fmt.Errorf("initrd %s has an impossible size of %d bytes", d.Name, d.Size)
		}
		total = align(total, 4) + uint64(d.Size)
	}
	at, ok := l.initrdPlace(total)
	if !ok {
		return fmt.Errorf("initrd %s (%d MiB) does not fit into the machine's %d MiB of RAM beside the kernel; give it more (--ram=)",
			strings.Join(names, " + "), mib(total), l.Memory.RAMSize()/layout.MiB)
	}
	dst, err := l.Memory.Slice(mem.GPA(at), total)
	if err != nil {
		return err
	}
	off := uint64(0)
	for _, d := range list {
		off = align(off, 4)
		if n, err := d.Data.ReadAt(dst[off:off+uint64(d.Size)], 0); int64(n) < d.Size {
			return fmt.Errorf("initrd %s cannot be read: got %d of %d bytes: %w", d.Name, n, d.Size, err)
		}
		off += uint64(d.Size)
	}
	l.Memory.MarkWritten(mem.GPA(at), total)
	l.initrd, l.initrdSize = at, total
	return nil
}

// initrdPlace finds room for n bytes: as high as initrd_addr_max allows in the
// RAM below 4 GiB, else, if the kernel can take that, at the end of all RAM.
func (l *loader) initrdPlace(n uint64) (uint64, bool) {
	limit, above4G := uint64(defaultInitrdAddrMax), true
	if l.img.format == FormatBzImage {
		limit, above4G = uint64(l.img.hdr.InitrdAddrMax), l.img.hdr.XLoadFlags&xlfAbove4G != 0
	}
	ends := []uint64{min(limit+1, uint64(len(l.ram)))}
	if above4G && !l.k.pvh {
		ends = append(ends, uint64(len(l.ram)), uint64(l.Memory.RAMEnd()))
	}
	for _, end := range ends {
		at, ok := l.below(end, n)
		if !ok {
			continue
		}
		if _, err := l.Memory.Slice(mem.GPA(at), n); err == nil && at >= l.k.high {
			return at, true
		}
	}
	return 0, false
}

// below is the highest page at which n bytes end before end and touch no
// reserved range.
func (l *loader) below(end, n uint64) (at uint64, ok bool) {
	for n <= end {
		at = (end - n) &^ (layout.PageSize - 1)
		i := slices.IndexFunc(l.Reserved, func(r Range) bool {
			return at < uint64(r.Base)+r.Size && uint64(r.Base) < at+n
		})
		if i < 0 {
			return at, true
		}
		end = uint64(l.Reserved[i].Base)
	}
	return 0, false
}

func align(n, to uint64) uint64 { return (n + to - 1) &^ (to - 1) }

// mib rounds bytes up to MiB.
func mib(n uint64) uint64 { return (n + layout.MiB - 1) / layout.MiB }
