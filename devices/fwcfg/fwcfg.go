// Package fwcfg is QEMU's firmware configuration device, by which a machine
// tells its firmware what it is made of: numbered items, and files with names
// that the item 0x19 lists. Document: QEMU, docs/specs/fw_cfg.rst.
//
// The guest selects an item and reads it byte by byte from the data port, or
// has it copied into its memory by one DMA command. Items belong to the host
// and are read-only, but for files made by [Device.AddWritable].
package fwcfg

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"fmt"
	"io"
	"slices"
	"sync"

	"github.com/gvmspawn/gvmspawn/vmm/bus"
	"github.com/gvmspawn/gvmspawn/vmm/mem"
)

// Source is the content of an item.
type Source interface {
	io.ReaderAt
	Size() int64 // in bytes, below 4 GiB
}

// item is what a selector stands for.
type item struct {
	source Source
	// write, if not nil, takes what the guest writes.
	write func(off int64, p []byte)
	// refresh, if not nil, is called when the guest selects the item.
	refresh func()
}

// file is an entry of the directory.
type file struct {
	name     string
	selector uint16
	size     uint32
}

// Device is the chip: [Device.Ports] is what to map. Items are added before the
// machine runs.
type Device struct {
	memory *mem.Memory
	items  map[uint16]*item
	files  []file

	mu       sync.Mutex // guards all below, held while sources and memory are used
	selector uint16
	offset   int64
	ahead    [readAhead]byte // what the data port reads next
	aheadAt  int64           // where in the item ahead begins
	aheadLen int
	dmaHigh  uint32
}

// New returns a device without files, whose DMA goes to memory.
func New(memory *mem.Memory) *Device {
	d := &Device{memory: memory, items: map[uint16]*item{}}
	d.Add(Signature, []byte("QEMU"))
	d.Add(Revision, []byte{revisionTraditional | revisionDMA, 0, 0, 0})
	d.putDirectory()
	return d
}

// Add makes the item with the given selector: content that nobody changes.
func (d *Device) Add(selector uint16, content []byte) {
	d.items[selector] = &item{source: bytes.NewReader(content)}
}

// AddSource is Add with content that is read when the guest does.
func (d *Device) AddSource(selector uint16, s Source) { d.items[selector] = &item{source: s} }

// AddInt makes an item of a little-endian number of size bytes, 2, 4 or 8.
func (d *Device) AddInt(selector uint16, size int, v uint64) {
	d.Add(selector, binary.LittleEndian.AppendUint64(nil, v)[:size])
}

// AddFile makes a file with a name, of up to 55 bytes, that no other has.
func (d *Device) AddFile(name string, content []byte) error {
	return d.addFile(name, &item{source: bytes.NewReader(content)})
}

// AddFileSource is AddFile with content that is read when the guest does.
func (d *Device) AddFileSource(name string, s Source) error { return d.addFile(name, &item{source: s}) }

// AddBuilt makes a file of size bytes whose content build makes each time when
// the guest begins to read it. What build returns is cut or padded with zeroes.
func (d *Device) AddBuilt(name string, size int, build func() []byte) error {
	b := &built{content: make([]byte, size)}
	return d.addFile(name, &item{source: b, refresh: func() {
		n := copy(b.content, build())
		clear(b.content[n:])
	}})
}

// built is the content of a file that is made on demand.
type built struct{ content []byte }

// Size implements Source.
func (b *built) Size() int64 { return int64(len(b.content)) }

// ReadAt implements io.ReaderAt.
func (b *built) ReadAt(p []byte, off int64) (int, error) {
	if off >= b.Size() {
		return 0, io.EOF
	}
	n := copy(p, b.content[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// AddWritable makes a file of size bytes that the guest may write, by DMA only.
// written is told of each write, on the CPU's thread; p is valid during the call.
func (d *Device) AddWritable(name string, size int, written func(off int64, p []byte)) error {
	content := make([]byte, size)
	return d.addFile(name, &item{source: bytes.NewReader(content), write: func(off int64, p []byte) {
		copy(content[off:], p)
		written(off, p)
	}})
}

// addFile gives a file the next free selector. The directory is sorted by name,
// as QEMU's.
func (d *Device) addFile(name string, it *item) error {
	if name == "" || len(name) > MaxName {
		return fmt.Errorf("fw_cfg file %q: its name must have 1 to %d bytes", name, MaxName)
	}
	if it.source.Size() > 1<<32-1 {
		return fmt.Errorf("fw_cfg file %s: %d MiB are too much, 4 GiB is the limit", name, it.source.Size()>>20)
	}
	at, found := slices.BinarySearchFunc(d.files, name, func(f file, n string) int { return cmp.Compare(f.name, n) })
	switch {
	case found:
		return fmt.Errorf("fw_cfg file %s: there are two of that name", name)
	case len(d.files) == maxFiles:
		return fmt.Errorf("fw_cfg file %s: there are %d files already", name, maxFiles)
	}
	selector := uint16(firstFile + len(d.files))
	d.items[selector] = it
	d.files = slices.Insert(d.files, at, file{name, selector, uint32(it.source.Size())})
	d.putDirectory()
	return nil
}

// putDirectory makes the item that lists the files (struct FWCfgFiles, big-endian).
func (d *Device) putDirectory() {
	b := binary.BigEndian.AppendUint32(nil, uint32(len(d.files)))
	for _, f := range d.files {
		b = binary.BigEndian.AppendUint32(b, f.size)
		b = binary.BigEndian.AppendUint16(b, f.selector)
		b = append(b, 0, 0)
		var name [MaxName + 1]byte
		copy(name[:], f.name)
		b = append(b, name[:]...)
	}
	d.Add(fileDirectory, b)
}

// Reset is power-on.
func (d *Device) Reset() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.selector, d.offset, d.aheadLen, d.dmaHigh = 0, 0, 0, 0
}

// choose selects an item and goes to its beginning.
//
// Preconditions: d.mu is held.
func (d *Device) choose(selector uint16) {
	d.selector, d.offset, d.aheadLen = selector, 0, 0
	if it := d.items[selector]; it != nil && it.refresh != nil {
		it.refresh()
	}
}

// nextByte reads the data port: 0 behind the end and for items that do not exist.
//
// Preconditions: d.mu is held.
func (d *Device) nextByte() byte {
	it := d.items[d.selector]
	if it == nil || d.offset >= it.source.Size() {
		return 0
	}
	if d.offset < d.aheadAt || d.offset >= d.aheadAt+int64(d.aheadLen) {
		n, _ := it.source.ReadAt(d.ahead[:min(readAhead, it.source.Size()-d.offset)], d.offset)
		d.aheadAt, d.aheadLen = d.offset, n
		if n == 0 {
			d.offset++
			return 0 // the host's file became shorter
		}
	}
	b := d.ahead[d.offset-d.aheadAt]
	d.offset++
	return b
}

// Ports are the device's registers, PortsSize ports: the selector at 0, two
// bytes, written at once; the data port at 1; the DMA address, big-endian, at 4.
func (d *Device) Ports() bus.Device { return (*ports)(d) }

type ports Device

// Read implements bus.Device. A wider read of the data port is one a byte, as
// on an ISA bus; the selector is write-only.
func (p *ports) Read(off uint64, size int) uint64 {
	d := (*Device)(p)
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case off == portData && size == 1:
		return uint64(d.nextByte())
	case off >= portDMA && off+uint64(size) <= portDMA+8:
		// Reading the DMA register tells that there is one: "QEMU CFG".
		v := uint64(dmaSignature) >> (8 * (8 - (off - portDMA) - uint64(size)))
		return swap(v, size)
	}
	return 0
}

// Write implements bus.Device.
func (p *ports) Write(off uint64, size int, v uint64) {
	d := (*Device)(p)
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case off == portSelector && size == 2:
		d.choose(uint16(v))
	case off == portDMA && size == 4:
		d.dmaHigh = uint32(swap(v, 4))
	case off == portDMA+4 && size == 4:
		high := d.dmaHigh
		d.dmaHigh = 0
		d.dma(mem.GPA(high)<<32 | mem.GPA(swap(v, 4)))
	case off == portDMA && size == 8:
		d.dma(mem.GPA(swap(v, 8)))
	}
}

// swap reverses the low size bytes, 1, 2, 4 or 8.
func swap(v uint64, size int) uint64 {
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], v)
	slices.Reverse(b[:size])
	return binary.LittleEndian.Uint64(b[:]) & bus.Ones(size)
}
