// Package ext4 reads files out of an ext2, ext3 or ext4 file system in an
// image, to find the kernel in it. It only reads, replays no journal and
// trusts nothing: whoever filled the image cannot make it read elsewhere, run
// for ever or use memory without bound.
//
// Document: Linux kernel, Documentation/filesystems/ext4/.
package ext4

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"sort"
	"strings"

	"github.com/gvmspawn/gvmspawn/cmd/gvmspawn/internal/rofs"
)

var le = binary.LittleEndian

// Numbers of the format, by their names in the document.
const (
	superOffset = 1024
	superMagic  = 0xef53
	rootInode   = 2

	incompatMetaBG    = 0x10
	incompatExtents   = 0x40
	incompat64Bit     = 0x80
	incompatEncrypt   = 0x10000
	incompatKnown     = 0x2 | 0x4 | incompatExtents | incompat64Bit | 0x200 | 0x2000 | 0x4000 | 0x8000 | incompatEncrypt | 0x20000
	inodeFlagExtents  = 0x80000
	inodeFlagInline   = 0x10000000
	inodeFlagEncrypt  = 0x800
	extentMagic       = 0xf30a
	modeType          = 0xf000
	modeDir           = 0x4000
	modeRegular       = 0x8000
	modeLink          = 0xa000
	fileTypeDirectory = 2
)

// Bounds of what we read.
const (
	maxDirectory = 16 << 20 // bytes
	maxNames     = 100000
	maxLinks     = 40
	maxDepth     = 5     // levels of an extent tree
	maxExtents   = 65536 // of a file
	maxNodes     = 16384 // blocks with extents or block numbers, of a file
)

// ErrNotExt4 is returned for something else.
var ErrNotExt4 = errors.New("not an ext4 file system")

// volume is an open file system.
type volume struct {
	r              io.ReaderAt
	blockSize      int64
	inodesPerGroup uint32
	inodeSize      int64
	inodes         uint32
	descSize       int64
	descStart      int64 // byte offset of the group descriptors
	wide           bool  // 64-bit block numbers
}

// New opens the file system that r holds.
func New(r io.ReaderAt) (fs.FS, error) {
	var s [1024]byte
	if _, err := r.ReadAt(s[:], superOffset); err != nil || le.Uint16(s[0x38:]) != superMagic {
		return nil, ErrNotExt4
	}
	v := &volume{r: r, inodesPerGroup: le.Uint32(s[0x28:]), inodeSize: 128, descSize: 32}
	v.inodes = le.Uint32(s[:])
	logSize := le.Uint32(s[0x18:])
	if logSize > 6 || v.inodesPerGroup == 0 {
		return nil, errors.New("the ext4 superblock makes no sense")
	}
	v.blockSize = 1024 << logSize
	incompat := le.Uint32(s[0x60:])
	if le.Uint32(s[0x4c:]) > 0 { // EXT4_DYNAMIC_REV
		v.inodeSize = int64(le.Uint16(s[0x58:]))
	} else {
		incompat = 0
	}
	if incompat&incompatMetaBG != 0 || incompat&^uint32(incompatKnown) != 0 {
		return nil, fmt.Errorf("the ext4 file system has features that are not supported (%#x)", incompat)
	}
	if v.wide = incompat&incompat64Bit != 0; v.wide {
		v.descSize = int64(le.Uint16(s[0xfe:]))
	}
	if v.inodeSize < 128 || v.inodeSize > v.blockSize || v.descSize < 32 || v.descSize > 1024 {
		return nil, errors.New("the ext4 superblock makes no sense")
	}
	v.descStart = (int64(le.Uint32(s[0x14:])) + 1) * v.blockSize
	return rofs.FS(v.find), nil
}

// inode is a file of the volume.
type inode struct {
	v     *volume
	mode  uint16
	flags uint32
	size  int64
	block [60]byte
	runs  []run // filled by load, in order
	nodes int   // blocks read for that
}

// run is a range of blocks of a file.
type run struct{ logical, physical, count int64 }

// inode reads inode n.
func (v *volume) inode(n uint32) (*inode, error) {
	if n == 0 || n > v.inodes {
		return nil, errors.New("an inode number is out of range")
	}
	group, index := int64((n-1)/v.inodesPerGroup), int64((n-1)%v.inodesPerGroup)
	var d [64]byte
	if _, err := v.r.ReadAt(d[:min(v.descSize, 64)], v.descStart+group*v.descSize); err != nil {
		return nil, err
	}
	table := int64(le.Uint32(d[8:]))
	if v.wide && v.descSize >= 64 {
		table |= int64(le.Uint32(d[0x28:])) << 32
	}
	var b [128]byte
	if err := v.readAt(b[:], table, index*v.inodeSize); err != nil {
		return nil, err
	}
	i := &inode{v: v, mode: le.Uint16(b[:]), flags: le.Uint32(b[0x20:]), size: int64(le.Uint32(b[4:]))}
	copy(i.block[:], b[0x28:])
	if i.mode&modeType == modeRegular {
		i.size |= int64(le.Uint32(b[0x6c:])) << 32
	}
	if i.size < 0 {
		return nil, errors.New("a file has a negative size")
	}
	return i, i.load()
}

// maxBlock keeps byte offsets within an int64.
const maxBlock = 1 << 46

// readAt reads at byte off after the start of a block.
func (v *volume) readAt(p []byte, block, off int64) error {
	if block <= 0 || block > maxBlock {
		return errors.New("a block number is out of range")
	}
	_, err := v.r.ReadAt(p, block*v.blockSize+off)
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// load finds the file's blocks.
func (i *inode) load() error {
	kind := i.mode & modeType
	switch {
	case kind != modeRegular && kind != modeDir && kind != modeLink:
		return nil
	case kind == modeLink && i.size < int64(len(i.block)) && i.flags&inodeFlagExtents == 0:
		return nil // the target stands in the inode
	case i.flags&(inodeFlagInline|inodeFlagEncrypt) != 0:
		return errors.New("inline and encrypted files are not supported")
	case i.flags&inodeFlagExtents == 0:
		return i.blockMap()
	}
	err := i.extents(i.block[:], maxDepth)
	sort.Slice(i.runs, func(a, b int) bool { return i.runs[a].logical < i.runs[b].logical })
	return err
}

// extents walks a node of the extent tree.
func (i *inode) extents(node []byte, depth int) error {
	count, level := int(le.Uint16(node[2:])), le.Uint16(node[6:])
	if le.Uint16(node) != extentMagic || 12+12*count > len(node) || depth == 0 || int(level) >= depth {
		return errors.New("an extent tree is damaged")
	}
	for e := range count {
		b := node[12+12*e:]
		if level == 0 {
			length := int64(le.Uint16(b[4:]))
			if length > 32768 { // unwritten: reads as zeroes
				continue
			}
			i.runs = append(i.runs, run{int64(le.Uint32(b)), int64(le.Uint16(b[6:]))<<32 | int64(le.Uint32(b[8:])), length})
		} else {
			child, err := i.node(int64(le.Uint16(b[8:]))<<32 | int64(le.Uint32(b[4:])))
			if err != nil {
				return err
			}
			if err := i.extents(child, int(level)); err != nil {
				return err
			}
		}
		if len(i.runs) > maxExtents {
			return errors.New("a file has too many extents")
		}
	}
	return nil
}

// node reads a block that says where the file's blocks are.
func (i *inode) node(block int64) ([]byte, error) {
	if i.nodes++; i.nodes > maxNodes {
		return nil, errors.New("a file has too many blocks of block numbers")
	}
	b := make([]byte, i.v.blockSize)
	return b, i.v.readAt(b, block, 0)
}

// blockMap reads the block numbers of ext2 and ext3.
func (i *inode) blockMap() error {
	logical := int64(0)
	for n := range 12 {
		if err := i.add(&logical, le.Uint32(i.block[4*n:]), 0); err != nil {
			return err
		}
	}
	for level := 1; level <= 3; level++ {
		if err := i.add(&logical, le.Uint32(i.block[4*(11+level):]), level); err != nil {
			return err
		}
	}
	return nil
}

// add appends block b, or those that it points to through levels of blocks.
func (i *inode) add(logical *int64, b uint32, level int) error {
	per := i.v.blockSize / 4
	if *logical*i.v.blockSize >= i.size {
		return nil
	}
	span := int64(1)
	for range level {
		span *= per
	}
	switch {
	case b == 0:
		*logical += span
	case level == 0:
		if n := len(i.runs); n > 0 && i.runs[n-1].logical+i.runs[n-1].count == *logical && i.runs[n-1].physical+i.runs[n-1].count == int64(b) {
			i.runs[n-1].count++
		} else if n >= maxExtents {
			return errors.New("a file has too many extents")
		} else {
			i.runs = append(i.runs, run{*logical, int64(b), 1})
		}
		*logical++
	default:
		table, err := i.node(int64(b))
		if err != nil {
			return err
		}
		for n := range per {
			if err := i.add(logical, le.Uint32(table[4*n:]), level-1); err != nil {
				return err
			}
		}
	}
	return nil
}

// Size implements rofs.Node.
func (i *inode) Size() int64 { return i.size }

// IsDir implements rofs.Node.
func (i *inode) IsDir() bool { return i.mode&modeType == modeDir }

// ReadAt implements io.ReaderAt. Holes are zeroes.
func (i *inode) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off >= i.size {
		return 0, io.EOF
	}
	n := int(min(int64(len(p)), i.size-off))
	clear(p[:n])
	first := sort.Search(len(i.runs), func(k int) bool { return (i.runs[k].logical+i.runs[k].count)*i.v.blockSize > off })
	for _, r := range i.runs[first:] {
		if r.logical*i.v.blockSize >= off+int64(n) {
			break
		}
		start, end := max(r.logical*i.v.blockSize, off), min((r.logical+r.count)*i.v.blockSize, off+int64(n))
		if start >= end {
			continue
		}
		if err := i.v.readAt(p[start-off:end-off], r.physical, start-r.logical*i.v.blockSize); err != nil {
			return 0, err
		}
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// walk calls f for each entry of a directory until it returns false.
func (i *inode) walk(f func(name string, inode uint32, isDir bool) bool) error {
	if i.size > maxDirectory {
		return errors.New("a directory is too large")
	}
	block := make([]byte, i.v.blockSize)
	for off := int64(0); off < i.size; off += i.v.blockSize {
		if _, err := i.ReadAt(block, off); err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		for b := block; len(b) >= 8; {
			length, n := int(le.Uint16(b[4:])), int(b[6])
			if length < 8 || length > len(b) || 8+n > length {
				return errors.New("a directory is damaged")
			}
			if ino := le.Uint32(b); ino != 0 && n > 0 {
				if name := string(b[8 : 8+n]); name != "." && name != ".." && !f(name, ino, b[7] == fileTypeDirectory) {
					return nil
				}
			}
			b = b[length:]
		}
	}
	return nil
}

// Entries implements rofs.Node.
func (i *inode) Entries() (map[string]bool, error) {
	names := map[string]bool{}
	err := i.walk(func(name string, _ uint32, isDir bool) bool {
		names[name] = isDir
		return len(names) < maxNames
	})
	return names, err
}

// lookup finds a name in a directory.
func (i *inode) lookup(name string) (*inode, error) {
	if !i.IsDir() {
		return nil, fs.ErrNotExist
	}
	var found uint32
	if err := i.walk(func(n string, ino uint32, _ bool) bool {
		if n == name {
			found = ino
		}
		return found == 0
	}); err != nil {
		return nil, err
	}
	if found == 0 {
		return nil, fs.ErrNotExist
	}
	return i.v.inode(found)
}

// target is where a symbolic link points to.
func (i *inode) target() (string, error) {
	if i.size >= 4096 {
		return "", errors.New("a symbolic link is too long")
	}
	if i.runs == nil && i.size < int64(len(i.block)) {
		return string(i.block[:i.size]), nil
	}
	b := make([]byte, i.size)
	_, err := i.ReadAt(b, 0)
	return string(b), err
}

// find follows a path from the root, and symbolic links within the volume.
func (v *volume) find(name string) (rofs.Node, error) {
	root, err := v.inode(rootInode)
	if err != nil {
		return nil, err
	}
	stack, rest, links := []*inode{root}, strings.Split(name, "/"), 0
	for len(rest) > 0 {
		part := rest[0]
		rest = rest[1:]
		switch part {
		case "", ".":
			continue
		case "..":
			stack = stack[:max(len(stack)-1, 1)]
			continue
		}
		next, err := stack[len(stack)-1].lookup(part)
		if err != nil {
			return nil, err
		}
		if next.mode&modeType != modeLink {
			stack = append(stack, next)
			continue
		}
		if links++; links > maxLinks {
			return nil, errors.New("too many symbolic links")
		}
		to, err := next.target()
		if err != nil {
			return nil, err
		}
		if strings.HasPrefix(to, "/") {
			stack = stack[:1]
		}
		rest = append(strings.Split(to, "/"), rest...)
	}
	last := stack[len(stack)-1]
	if k := last.mode & modeType; k != modeRegular && k != modeDir {
		return nil, fs.ErrNotExist
	}
	return last, nil
}
