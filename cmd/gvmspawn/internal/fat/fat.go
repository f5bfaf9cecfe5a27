// Package fat reads files out of a FAT12, FAT16 or FAT32 file system in an
// image, as EFI system partitions are, to find the kernel in it. It only reads
// and trusts nothing that it reads.
//
// Document: Microsoft Extensible Firmware Initiative FAT32 File System
// Specification, version 1.03.
package fat

import (
	"encoding/binary"
	"errors"
	"io"
	"io/fs"
	"strings"
	"unicode/utf16"

	"github.com/gvmspawn/gvmspawn/cmd/gvmspawn/internal/rofs"
)

var le = binary.LittleEndian

// Attributes of a directory entry.
const (
	attrVolume    = 0x08
	attrDirectory = 0x10
	attrLongName  = 0x0f
	entrySize     = 32
	maxDirectory  = 16 << 20 // bytes
	maxTable      = 64 << 20 // bytes of the allocation table
)

// ErrNotFAT is returned for something else.
var ErrNotFAT = errors.New("not a FAT file system")

// volume is an open file system.
type volume struct {
	r           io.ReaderAt
	bits        int // 12, 16 or 32
	cluster     int64
	data        int64 // offset of cluster 2
	clusters    uint32
	table       []byte
	rootOffset  int64 // of FAT12 and FAT16
	rootSize    int64
	rootCluster uint32 // of FAT32
}

// New opens the file system that r holds. The allocation table is read at once.
func New(r io.ReaderAt) (fs.FS, error) {
	var b [512]byte
	if _, err := r.ReadAt(b[:], 0); err != nil || b[510] != 0x55 || b[511] != 0xaa {
		return nil, ErrNotFAT
	}
	sector, per := int64(le.Uint16(b[11:])), int64(b[13])
	reserved, tables, rootEntries := int64(le.Uint16(b[14:])), int64(b[16]), int64(le.Uint16(b[17:]))
	total, tableSectors := int64(le.Uint16(b[19:])), int64(le.Uint16(b[22:]))
	if total == 0 {
		total = int64(le.Uint32(b[32:]))
	}
	if tableSectors == 0 {
		tableSectors = int64(le.Uint32(b[36:]))
	}
	if sector < 512 || sector > 4096 || sector&(sector-1) != 0 || per == 0 || per&(per-1) != 0 || reserved == 0 || tables == 0 || tables > 4 || tableSectors == 0 || total == 0 {
		return nil, ErrNotFAT
	}
	v := &volume{r: r, cluster: per * sector, rootSize: rootEntries * entrySize, rootOffset: (reserved + tables*tableSectors) * sector}
	v.data = v.rootOffset + (v.rootSize+sector-1)/sector*sector
	clusters := (total*sector - v.data) / v.cluster
	if clusters < 1 || clusters > 0x0fffffff {
		return nil, ErrNotFAT
	}
	v.clusters = uint32(clusters)
	switch {
	case clusters < 4085:
		v.bits = 12
	case clusters < 65525:
		v.bits = 16
	default:
		v.bits, v.rootCluster = 32, le.Uint32(b[44:])&0x0fffffff
	}
	size := min(tableSectors*sector, (clusters+2)*int64(v.bits)/8+2)
	if size > maxTable {
		return nil, errors.New("the FAT file system is too large")
	}
	v.table = make([]byte, size)
	if _, err := r.ReadAt(v.table, reserved*sector); err != nil {
		return nil, errors.New("the FAT file system is cut off")
	}
	return rofs.FS(v.find), nil
}

// next is the cluster after c, and whether there is one.
func (v *volume) next(c uint32) (uint32, bool) {
	var n uint32
	switch v.bits {
	case 12:
		i := int(c) + int(c)/2
		if i+2 > len(v.table) {
			return 0, false
		}
		n = uint32(le.Uint16(v.table[i:]))
		if c&1 != 0 {
			n >>= 4
		}
		n &= 0xfff
	case 16:
		if int(c)*2+2 > len(v.table) {
			return 0, false
		}
		n = uint32(le.Uint16(v.table[2*c:]))
	default:
		if int(c)*4+4 > len(v.table) {
			return 0, false
		}
		n = le.Uint32(v.table[4*c:]) & 0x0fffffff
	}
	return n, v.valid(n)
}

func (v *volume) valid(c uint32) bool { return c >= 2 && c-2 < v.clusters }

// node is a file or directory: its clusters in order, or for the root of FAT12
// and FAT16 a range of bytes.
type node struct {
	v     *volume
	chain []uint32
	fixed int64 // offset, if chain is nil
	size  int64
	dir   bool
}

// open collects the clusters of a file from first on. A directory's size is
// what its clusters hold.
func (v *volume) open(first uint32, size int64, dir bool) (*node, error) {
	n := &node{v: v, chain: []uint32{}, size: size, dir: dir}
	limit := (size + v.cluster - 1) / v.cluster
	if dir {
		limit = maxDirectory / v.cluster
	}
	for c, ok := first, v.valid(first); ok && int64(len(n.chain)) < limit; c, ok = v.next(c) {
		n.chain = append(n.chain, c)
	}
	if dir {
		n.size = int64(len(n.chain)) * v.cluster
	} else if int64(len(n.chain)) < limit {
		return nil, errors.New("a file's chain of clusters is broken")
	}
	return n, nil
}

func (v *volume) root() (*node, error) {
	if v.bits == 32 {
		return v.open(v.rootCluster, 0, true)
	}
	return &node{v: v, fixed: v.rootOffset, size: v.rootSize, dir: true}, nil
}

// Size implements rofs.Node.
func (n *node) Size() int64 { return n.size }

// IsDir implements rofs.Node.
func (n *node) IsDir() bool { return n.dir }

// ReadAt implements io.ReaderAt.
func (n *node) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off >= n.size {
		return 0, io.EOF
	}
	want := int(min(int64(len(p)), n.size-off))
	for done := 0; done < want; {
		at, part := n.fixed+off+int64(done), want-done
		if n.chain != nil {
			pos := off + int64(done)
			in := pos % n.v.cluster
			at = n.v.data + int64(n.chain[pos/n.v.cluster]-2)*n.v.cluster + in
			part = int(min(int64(part), n.v.cluster-in))
		}
		if _, err := n.v.r.ReadAt(p[done:done+part], at); err != nil {
			return done, io.ErrUnexpectedEOF
		}
		done += part
	}
	if want < len(p) {
		return want, io.EOF
	}
	return want, nil
}

// walk calls f for each entry of a directory until it returns false.
func (n *node) walk(f func(name string, e []byte) bool) error {
	b := make([]byte, n.size)
	if len(b) > 0 {
		if _, err := n.ReadAt(b, 0); err != nil {
			return err
		}
	}
	var long []uint16
	for ; len(b) >= entrySize && b[0] != 0; b = b[entrySize:] {
		e := b[:entrySize]
		switch attr := e[11]; {
		case e[0] == 0xe5: // free
			long = nil
		case attr&0x3f == attrLongName:
			if e[0]&0x40 != 0 {
				long = nil
			}
			if len(long) < 260 {
				long = append(longPart(e), long...)
			}
		case attr&attrVolume != 0:
			long = nil
		default:
			name := shortName(e)
			if long != nil {
				name = string(utf16.Decode(long))
			}
			long = nil
			if name != "." && name != ".." && !f(name, e) {
				return nil
			}
		}
	}
	return nil
}

// longPart is the 13 characters of a long name entry, up to its NUL.
func longPart(e []byte) []uint16 {
	var part []uint16
	for _, r := range [][2]int{{1, 11}, {14, 26}, {28, 32}} {
		for i := r[0]; i < r[1]; i += 2 {
			c := le.Uint16(e[i:])
			if c == 0 || c == 0xffff {
				return part
			}
			part = append(part, c)
		}
	}
	return part
}

// shortName is the name in 8.3 form, in lower case where the entry says so.
func shortName(e []byte) string {
	base, ext := strings.TrimRight(string(e[:8]), " "), strings.TrimRight(string(e[8:11]), " ")
	if e[12]&0x08 != 0 {
		base = strings.ToLower(base)
	}
	if e[12]&0x10 != 0 {
		ext = strings.ToLower(ext)
	}
	if ext != "" {
		base += "." + ext
	}
	return base
}

// Entries implements rofs.Node.
func (n *node) Entries() (map[string]bool, error) {
	names := map[string]bool{}
	err := n.walk(func(name string, e []byte) bool {
		if !strings.ContainsAny(name, "/\x00") {
			names[name] = e[11]&attrDirectory != 0
		}
		return true
	})
	return names, err
}

// find follows a path from the root; letter case does not count.
func (v *volume) find(name string) (rofs.Node, error) {
	n, err := v.root()
	if err != nil {
		return nil, err
	}
	if name == "." {
		return n, nil
	}
	for part := range strings.SplitSeq(name, "/") {
		if !n.dir {
			return nil, fs.ErrNotExist
		}
		var next []byte
		if err := n.walk(func(name string, e []byte) bool {
			if strings.EqualFold(name, part) || strings.EqualFold(shortName(e), part) {
				next = append([]byte(nil), e...)
			}
			return next == nil
		}); err != nil {
			return nil, err
		}
		if next == nil {
			return nil, fs.ErrNotExist
		}
		first := uint32(le.Uint16(next[26:]))
		if v.bits == 32 {
			first |= uint32(le.Uint16(next[20:])) << 16
		}
		if n, err = v.open(first, int64(le.Uint32(next[28:])), next[11]&attrDirectory != 0); err != nil {
			return nil, err
		}
	}
	return n, nil
}
