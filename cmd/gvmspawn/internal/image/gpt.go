package image

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"unicode/utf16"
)

// GUID is a GPT identifier in its on-disk, mixed-endian order.
type GUID [16]byte

// String returns the form with dashes, in lower case as Linux shows PARTUUID.
func (g GUID) String() string {
	b := [16]byte{g[3], g[2], g[1], g[0], g[5], g[4], g[7], g[6]}
	copy(b[8:], g[8:])
	h := hex.EncodeToString(b[:])
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
}

// Partition types of the UAPI Group's Discoverable Partitions Specification.
const (
	TypeRootX8664 = "4f68bce3-e8cd-4db1-96e7-fbcaf984b709"
	TypeUsrX8664  = "8484680c-9521-48c6-9c11-b0720656f69e"
	TypeESP       = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b"
	TypeXBOOTLDR  = "bc13c2ff-59e6-4262-a352-b275fd6f7172"
)

// Partition attributes of the same document.
const (
	flagReadOnly = 1 << 60
	flagNoAuto   = 1 << 63
)

// Partition is an entry of the partition table.
type Partition struct {
	Number   int // from 1, as in /dev/vda1
	Type     GUID
	UUID     GUID
	Start    int64 // in bytes
	Size     int64 // in bytes
	Label    string
	ReadOnly bool
	NoAuto   bool // not to be found automatically
}

// Bounds of what we accept of a table (UEFI 2.10 §5.3.2 allows more).
const (
	maxEntries   = 1024
	maxEntrySize = 4096
)

// ErrNoTable is returned for a disk without a GUID partition table.
var ErrNoTable = errors.New("there is no GUID partition table")

// ReadTable reads a disk's GUID partition table (UEFI 2.10 §5.3), the primary
// header with 512-byte sectors or, for images of such disks, 4096-byte ones.
func ReadTable(r io.ReaderAt) ([]Partition, error) {
	for _, sector := range []int64{512, 4096} {
		var h [92]byte
		if _, err := r.ReadAt(h[:], sector); err != nil {
			if errors.Is(err, io.EOF) {
				return nil, ErrNoTable
			}
			return nil, err
		}
		if bytes.HasPrefix(h[:], []byte("EFI PART")) {
			return readEntries(r, h, sector)
		}
	}
	return nil, ErrNoTable
}

// readEntries reads the partition array that header h describes.
func readEntries(r io.ReaderAt, h [92]byte, sector int64) ([]Partition, error) {
	le := binary.LittleEndian
	sum := le.Uint32(h[16:])
	clear(h[16:20])
	if le.Uint32(h[12:]) != uint32(len(h)) || crc32.ChecksumIEEE(h[:]) != sum {
		return nil, errors.New("the partition table's header is damaged")
	}
	lba, count, size := le.Uint64(h[72:]), le.Uint32(h[80:]), le.Uint32(h[84:])
	if count > maxEntries || size < 128 || size > maxEntrySize || lba > 1<<40 {
		return nil, errors.New("the partition table's header makes no sense")
	}
	array := make([]byte, int(count)*int(size))
	if _, err := r.ReadAt(array, int64(lba)*sector); err != nil {
		return nil, fmt.Errorf("cannot read the partition table: %w", err)
	}
	if crc32.ChecksumIEEE(array) != le.Uint32(h[88:]) {
		return nil, errors.New("the partition table is damaged")
	}
	var parts []Partition
	for i := range int(count) {
		if p, ok := parseEntry(array[i*int(size):], sector); ok {
			p.Number = i + 1
			parts = append(parts, p)
		}
	}
	return parts, nil
}

func parseEntry(e []byte, sector int64) (p Partition, ok bool) {
	le := binary.LittleEndian
	copy(p.Type[:], e)
	copy(p.UUID[:], e[16:])
	first, last, flags := le.Uint64(e[32:]), le.Uint64(e[40:]), le.Uint64(e[48:])
	if p.Type == (GUID{}) || first > last || last > 1<<40 {
		return p, false
	}
	p.Start, p.Size = int64(first)*sector, int64(last-first+1)*sector
	p.ReadOnly, p.NoAuto = flags&flagReadOnly != 0, flags&flagNoAuto != 0
	var name []uint16
	for i := 56; i < 128; i += 2 {
		c := le.Uint16(e[i:])
		if c == 0 {
			break
		}
		name = append(name, c)
	}
	p.Label = string(utf16.Decode(name))
	return p, true
}

// Find returns the first partition of a type that may be found automatically.
func Find(parts []Partition, typ string) *Partition {
	for i := range parts {
		if p := &parts[i]; !p.NoAuto && p.Type.String() == typ {
			return p
		}
	}
	return nil
}

// ErrNoRoot is returned where a direct kernel boot has nothing to mount.
var ErrNoRoot = errors.New("cannot perform a direct kernel boot without a root or usr partition, refusing")

// RootArgument returns what the kernel command line needs to mount the image:
// root=PARTUUID=… of the root partition, else mount.usr=PARTUUID=… of the usr
// partition, and that partition.
func RootArgument(parts []Partition) (string, *Partition, error) {
	if p := Find(parts, TypeRootX8664); p != nil {
		return "root=PARTUUID=" + p.UUID.String(), p, nil
	}
	if p := Find(parts, TypeUsrX8664); p != nil {
		return "mount.usr=PARTUUID=" + p.UUID.String(), p, nil
	}
	return "", nil, ErrNoRoot
}
