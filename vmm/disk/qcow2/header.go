package qcow2

import (
	"encoding/binary"
	"fmt"
	"strings"

	"github.com/gvmspawn/gvmspawn/vmm/disk"
)

// Header layout, big-endian ("The QCOW2 file format": Header).
const (
	magic = 0x514649fb // "QFI\xfb"

	offVersion             = 4
	offBackingOffset       = 8
	offBackingSize         = 16
	offClusterBits         = 20
	offSize                = 24
	offCryptMethod         = 32
	offL1Size              = 36
	offL1Offset            = 40
	offRefcountTableOffset = 48
	offRefcountTableSize   = 56
	offSnapshots           = 60
	offIncompatible        = 72 // from here on version 3
	offCompatible          = 80
	offAutoclear           = 88
	offRefcountOrder       = 96
	offHeaderLength        = 100
	offCompressionType     = 104

	headerV2 = 72
	headerV3 = 104
)

// Feature bits.
const (
	incompatDirty       = 1 << 0
	incompatCorrupt     = 1 << 1
	incompatDataFile    = 1 << 2
	incompatCompression = 1 << 3
	incompatExtendedL2  = 1 << 4
)

// Header extension types.
const (
	extEnd           = 0
	extBackingFormat = 0xe2792aca
)

// Bounds of what a header may ask for; they are QEMU's.
const (
	minClusterBits   = 9
	maxClusterBits   = 21
	maxL1Bytes       = 32 << 20
	maxRefTableBytes = 8 << 20
	maxBackingName   = 1023
	maxSize          = 1 << 56
)

// compression methods.
const (
	compressionDeflate = 0
	compressionZstd    = 1
)

type header struct {
	version           uint32
	clusterBits       uint32
	size              uint64 // bytes, as the guest sees it
	l1Size            uint32 // entries
	l1Offset          uint64
	refTableOffset    uint64
	refTableClusters  uint32
	snapshots         uint32
	incompatible      uint64
	autoclear         uint64
	refcountOrder     uint32
	compression       uint8
	backing           string
	backingFormat     string
	backingFormatSeen bool
}

// parseHeader checks everything that the header says. fileSize is in bytes.
func parseHeader(f *disk.Raw, fileSize uint64) (*header, error) {
	b := make([]byte, min(fileSize, 1<<maxClusterBits, 64<<10))
	if err := f.ReadAt([][]byte{b}, 0); err != nil {
		return nil, err
	}
	be := binary.BigEndian
	if len(b) < headerV2 || be.Uint32(b) != magic {
		return nil, fmt.Errorf("not a qcow2 image")
	}
	h := &header{
		version: be.Uint32(b[offVersion:]), clusterBits: be.Uint32(b[offClusterBits:]), size: be.Uint64(b[offSize:]),
		l1Size: be.Uint32(b[offL1Size:]), l1Offset: be.Uint64(b[offL1Offset:]),
		refTableOffset: be.Uint64(b[offRefcountTableOffset:]), refTableClusters: be.Uint32(b[offRefcountTableSize:]),
		snapshots: be.Uint32(b[offSnapshots:]), refcountOrder: 4,
	}
	length := uint32(headerV2)
	switch {
	case h.version != 2 && h.version != 3:
		return nil, fmt.Errorf("qcow version %d is not supported, only 2 and 3", h.version)
	case h.clusterBits < minClusterBits || h.clusterBits > maxClusterBits:
		return nil, fmt.Errorf("cluster size 2^%d is not in 2^%d to 2^%d", h.clusterBits, minClusterBits, maxClusterBits)
	case be.Uint32(b[offCryptMethod:]) != 0:
		return nil, fmt.Errorf("encrypted images are not supported")
	}
	if h.version == 3 {
		if len(b) < headerV3 {
			return nil, fmt.Errorf("header is cut off")
		}
		h.incompatible, h.autoclear = be.Uint64(b[offIncompatible:]), be.Uint64(b[offAutoclear:])
		h.refcountOrder, length = be.Uint32(b[offRefcountOrder:]), be.Uint32(b[offHeaderLength:])
		if length < headerV3 || uint64(length) > uint64(len(b)) || length%8 != 0 {
			return nil, fmt.Errorf("header length %d is impossible", length)
		}
		if length > offCompressionType {
			h.compression = b[offCompressionType]
		}
	}
	if err := h.checkFeatures(); err != nil {
		return nil, err
	}
	if err := h.checkTables(fileSize); err != nil {
		return nil, err
	}
	return h, h.parseBacking(b, length)
}

// checkFeatures refuses what would be misread.
func (h *header) checkFeatures() error {
	switch {
	case h.incompatible&incompatCorrupt != 0:
		return fmt.Errorf("it is marked as corrupt: repair it with qemu-img check -r all")
	case h.incompatible&incompatDataFile != 0:
		return fmt.Errorf("external data files are not supported: convert it with qemu-img convert")
	case h.incompatible&incompatExtendedL2 != 0:
		return fmt.Errorf("extended L2 entries are not supported: convert it with qemu-img convert")
	case h.incompatible&^(incompatDirty|incompatCompression) != 0:
		return fmt.Errorf("unknown incompatible features %#x", h.incompatible&^(incompatDirty|incompatCompression))
	case h.compression > compressionZstd || (h.compression != 0) != (h.incompatible&incompatCompression != 0):
		return fmt.Errorf("unknown compression method %d", h.compression)
	case h.refcountOrder > 6:
		return fmt.Errorf("refcount width 2^%d is more than 64 bits", h.refcountOrder)
	}
	return nil
}

// checkTables bounds sizes and places of the tables.
func (h *header) checkTables(fileSize uint64) error {
	cluster := uint64(1) << h.clusterBits
	covered := cluster << (h.clusterBits - 3) // bytes that one L1 entry maps
	inside := func(off, n uint64) bool { return off%cluster == 0 && off != 0 && off < fileSize && n <= fileSize-off }
	switch {
	case h.size == 0 || h.size > maxSize:
		return fmt.Errorf("disk size of %d bytes is not supported", h.size)
	case uint64(h.l1Size)*8 > maxL1Bytes:
		return fmt.Errorf("L1 table of %d entries is too large", h.l1Size)
	case uint64(h.l1Size) < (h.size+covered-1)/covered:
		return fmt.Errorf("L1 table of %d entries is too small for %d bytes", h.l1Size, h.size)
	case !inside(h.l1Offset, uint64(h.l1Size)*8):
		return fmt.Errorf("L1 table at %#x is misplaced", h.l1Offset)
	case h.refTableClusters == 0 || uint64(h.refTableClusters)*cluster > maxRefTableBytes:
		return fmt.Errorf("refcount table of %d clusters is not supported", h.refTableClusters)
	case !inside(h.refTableOffset, 1):
		return fmt.Errorf("refcount table at %#x is misplaced", h.refTableOffset)
	}
	return nil
}

// parseBacking reads the header extensions and the backing file's name, which
// must lie in the first cluster.
func (h *header) parseBacking(b []byte, length uint32) error {
	be := binary.BigEndian
	off, n := be.Uint64(b[offBackingOffset:]), uint64(be.Uint32(b[offBackingSize:]))
	first := min(uint64(len(b)), 1<<h.clusterBits)
	end := first
	if off != 0 {
		if n == 0 || n > maxBackingName || off < uint64(length) || off > first || n > first-off {
			return fmt.Errorf("backing file name of %d bytes at %#x is misplaced", n, off)
		}
		h.backing = string(b[off : off+n])
		end = off
		if strings.ContainsRune(h.backing, 0) {
			return fmt.Errorf("backing file name contains a NUL byte")
		}
	}
	for p := uint64(length); p+8 <= end; {
		typ, n := be.Uint32(b[p:]), uint64(be.Uint32(b[p+4:]))
		p += 8
		if typ == extEnd {
			break
		}
		if n > end-p {
			return fmt.Errorf("header extension %#x is cut off", typ)
		}
		if typ == extBackingFormat {
			h.backingFormat, h.backingFormatSeen = string(b[p:p+n]), true
		}
		p += (n + 7) &^ 7
	}
	return nil
}
