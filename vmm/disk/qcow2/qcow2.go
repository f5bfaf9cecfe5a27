// Package qcow2 reads and writes disk images in QEMU's copy-on-write format,
// versions 2 and 3. Document: "The QCOW2 file format" (docs/interop/qcow2 of
// QEMU), for the layout.
//
// Not supported, and refused: encryption, external data files, extended L2
// entries. Internal snapshots are kept intact and otherwise ignored.
//
// # Order of writes
//
// Changed tables are kept in memory. A flush writes them so that the file is
// sound after a crash at any moment: data and refcounts first, then what
// refers to them (L2, then L1), each group on the disk before the next; what is
// no longer referred to is freed after that. A crash can therefore only leave
// clusters that are counted but not used.
package qcow2

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"github.com/gvmspawn/gvmspawn/vmm/disk"
)

// maxDepth bounds a chain of backing files.
const maxDepth = 16

// cacheBytes bounds the clean L2 tables in memory, per image.
const cacheBytes = 16 << 20

// maxDirty is after how many changed tables a write flushes them by itself.
const maxDirty = 64

// errCorrupt is wrapped by errors about what the image says of itself.
var errCorrupt = errors.New("qcow2 image is corrupt")

// L1 and L2 entries.
const (
	flagCopied     = 1 << 63 // the refcount is exactly one
	flagCompressed = 1 << 62
	flagZero       = 1 << 0 // reads as zeros (version 3)
	offsetMask     = 1<<56 - 1<<9
)

// Image is an open qcow2 image. It implements disk.Image.
type Image struct {
	name     string
	file     *disk.Raw
	readOnly bool
	h        *header
	backing  disk.Image // nil if there is none
	cluster  uint64     // cluster size in bytes
	l2Bits   uint32     // log2 of the entries of an L2 table

	// mu is held for reading while clusters that exist are read or
	// written, and for writing while the mapping changes.
	mu      sync.RWMutex
	l1      []uint64
	l1Dirty bool
	refs    refcounts
	// meta are the clusters of the image's own tables, by number. No data
	// may ever be written there, whatever the tables say.
	meta map[uint64]struct{}
	// freed are clusters to be given back once nothing on the disk refers to them.
	freed []uint64
	dirty int // changed tables in memory

	cacheMu sync.Mutex // guards cache; taken after mu
	cache   map[uint64]*table

	unpacker unpacker
}

// table is a cluster of metadata in memory, big-endian as on the disk.
type table struct {
	off   uint64
	data  []byte
	dirty bool
	used  bool // since the last eviction
}

func (t *table) get(i uint64) uint64    { return binary.BigEndian.Uint64(t.data[8*i:]) }
func (t *table) set(i uint64, v uint64) { binary.BigEndian.PutUint64(t.data[8*i:], v) }

// Open opens the image at path, and its backing files read-only.
func Open(path string, o disk.Options) (*Image, error) {
	return open(path, o, nil)
}

// open is Open; above are the files of the chain so far.
func open(path string, o disk.Options, above []os.FileInfo) (*Image, error) {
	f, err := disk.OpenFile(path, o)
	if err != nil {
		return nil, err
	}
	m, err := openFile(f, path, o, above)
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("disk image %s: %w", path, err)
	}
	return m, nil
}

func openFile(f *os.File, path string, o disk.Options, above []os.FileInfo) (*Image, error) {
	raw, err := disk.NewFile(f, o.ReadOnly)
	if err != nil {
		return nil, err
	}
	h, err := parseHeader(raw, raw.Size())
	if err != nil {
		return nil, err
	}
	m := &Image{
		name: path, file: raw, readOnly: o.ReadOnly, h: h, cluster: 1 << h.clusterBits, l2Bits: h.clusterBits - 3,
		meta: make(map[uint64]struct{}), cache: make(map[uint64]*table),
	}
	m.unpacker.init(m)
	if err := m.load(raw.Size()); err != nil {
		return nil, err
	}
	if err := m.openBacking(f, path, o.AnyBacking, above); err != nil {
		return nil, err
	}
	if !o.ReadOnly {
		if err := m.prepare(); err != nil {
			m.closeBacking()
			return nil, err
		}
	}
	return m, nil
}

// load reads the L1 and refcount tables.
func (m *Image) load(fileSize uint64) error {
	b := make([]byte, uint64(m.h.l1Size)*8)
	if len(b) > 0 {
		if err := m.file.ReadAt([][]byte{b}, m.h.l1Offset); err != nil {
			return fmt.Errorf("L1 table: %w", err)
		}
	}
	m.l1 = make([]uint64, m.h.l1Size)
	for i := range m.l1 {
		m.l1[i] = binary.BigEndian.Uint64(b[8*i:])
	}
	m.protect(0, 1)
	m.protect(m.h.l1Offset, uint64(len(b)))
	for _, e := range m.l1 {
		if off := e & offsetMask; off != 0 {
			m.protect(off, 1)
		}
	}
	return m.refs.load(m, fileSize)
}

// protect notes that the clusters of a range hold metadata.
func (m *Image) protect(off, n uint64) {
	for c := off >> m.h.clusterBits; c<<m.h.clusterBits < off+n; c++ {
		m.meta[c] = struct{}{}
	}
}

// unprotect is its opposite.
func (m *Image) unprotect(off, n uint64) {
	for c := off >> m.h.clusterBits; c<<m.h.clusterBits < off+n; c++ {
		delete(m.meta, c)
	}
}

// openBacking opens the backing file that the header names. The guest cannot
// write the header, but whoever made the image may be a stranger to the user and
// mean another file of the host: see findBacking.
func (m *Image) openBacking(f *os.File, path string, anywhere bool, above []os.FileInfo) error {
	if m.h.backing == "" {
		return nil
	}
	st, err := f.Stat()
	if err != nil {
		return err
	}
	above = append(above, st)
	if len(above) > maxDepth {
		return fmt.Errorf("more than %d backing files", maxDepth)
	}
	name, file, err := findBacking(m.h.backing, path, anywhere)
	if err != nil {
		return err
	}
	o := disk.Options{ReadOnly: true, AnyBacking: anywhere}
	if file != nil {
		defer file.Close()
		o.File = file
	}
	if st, err := os.Stat(name); err == nil {
		for _, a := range above {
			if os.SameFile(a, st) {
				return fmt.Errorf("backing file %s leads back to itself", name)
			}
		}
	}
	switch m.h.backingFormat {
	case "raw":
		m.backing, err = disk.OpenRaw(name, o)
	case "qcow2":
		m.backing, err = open(name, o, above)
	case "":
		err = fmt.Errorf("the format of backing file %s is not recorded, and is never guessed: set it with qemu-img rebase -u -F raw (or qcow2) -b", name)
	default:
		err = fmt.Errorf("backing file %s has the unsupported format %q", name, m.h.backingFormat)
	}
	return err
}

// prepare makes the file ready for writing.
func (m *Image) prepare() error {
	if m.h.incompatible&incompatDirty != 0 {
		if err := m.rebuild(); err != nil {
			return err
		}
	}
	if m.h.autoclear != 0 {
		// Whoever writes the image without knowing a feature clears its bit.
		m.h.autoclear = 0
		if err := m.file.WriteAt([][]byte{make([]byte, 8)}, offAutoclear); err != nil {
			return err
		}
		return m.file.Flush()
	}
	return nil
}

// Size implements disk.Image. A size that is not whole sectors is rounded down.
func (m *Image) Size() uint64 { return m.h.size &^ (disk.SectorSize - 1) }

// ReadOnly implements disk.Image.
func (m *Image) ReadOnly() bool { return m.readOnly }

// Geometry implements disk.Image.
func (m *Image) Geometry() disk.Geometry {
	return disk.Geometry{BlockSize: disk.SectorSize, PhysicalBlock: 4096, Cluster: uint32(m.cluster)}
}

// Close implements disk.Image.
func (m *Image) Close() error {
	var err error
	if !m.readOnly {
		err = m.Flush()
	}
	return errors.Join(err, m.file.Close(), m.closeBacking())
}

func (m *Image) closeBacking() error {
	if m.backing == nil {
		return nil
	}
	return m.backing.Close()
}

func (m *Image) corrupt(format string, args ...any) error {
	return fmt.Errorf("%s: %w: %s", m.name, errCorrupt, fmt.Sprintf(format, args...))
}

// readTable reads a cluster of metadata.
func (m *Image) readTable(what string, off uint64) (*table, error) {
	if off&(m.cluster-1) != 0 || off>>m.h.clusterBits >= m.refs.end {
		return nil, m.corrupt("%s at %#x", what, off)
	}
	t := &table{off: off, data: make([]byte, m.cluster)}
	if err := m.readHost([][]byte{t.data}, off); err != nil {
		return nil, err
	}
	return t, nil
}

// readHost reads from the file; beyond its end are zeros.
func (m *Image) readHost(bufs [][]byte, off uint64) error {
	err := m.file.ReadAt(bufs, off)
	if !errors.Is(err, io.ErrUnexpectedEOF) {
		return err
	}
	disk.Zero(bufs)
	if st, err := m.file.Length(); err != nil || st <= off {
		return err
	} else if n := min(st-off, disk.Length(bufs)); n > 0 {
		v := disk.NewVector(bufs)
		defer v.Free()
		return m.file.ReadAt(v.Take(n), off)
	}
	return nil
}
