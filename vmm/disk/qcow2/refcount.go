package qcow2

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"
)

// refcounts is the image's account of its clusters. Image.mu guards it; only
// alloc, free and flush change it.
type refcounts struct {
	m      *Image
	table  []uint64          // offsets of the blocks, 0 for those that do not exist
	blocks map[uint64]*table // by index, read when needed and kept
	order  uint32            // log2 of the bits of a count
	perLog uint32            // log2 of the counts of a block
	end    uint64            // clusters of the file
	hint   uint64            // no free cluster below

	tableDirty bool
	moved      bool // the table has a new place
	oldOffset  uint64
	oldLen     uint64
}

func (r *refcounts) load(m *Image, fileSize uint64) error {
	*r = refcounts{m: m, blocks: make(map[uint64]*table), order: m.h.refcountOrder}
	r.perLog = m.h.clusterBits + 3 - r.order
	r.end = (fileSize + m.cluster - 1) >> m.h.clusterBits
	b := make([]byte, uint64(m.h.refTableClusters)<<m.h.clusterBits)
	if err := m.readHost([][]byte{b}, m.h.refTableOffset); err != nil {
		return fmt.Errorf("refcount table: %w", err)
	}
	m.protect(m.h.refTableOffset, uint64(len(b)))
	r.table = make([]uint64, len(b)/8)
	for i := range r.table {
		off := binary.BigEndian.Uint64(b[8*i:]) &^ 511
		if off != 0 {
			m.protect(off, 1)
		}
		r.table[i] = off
	}
	return nil
}

// block is refcount block i; nil if it does not exist.
func (r *refcounts) block(i uint64) (*table, error) {
	if t := r.blocks[i]; t != nil {
		return t, nil
	}
	if i >= uint64(len(r.table)) || r.table[i] == 0 {
		return nil, nil
	}
	t, err := r.m.readTable("refcount block", r.table[i])
	if err == nil {
		r.blocks[i] = t
	}
	return t, err
}

// count is a cluster's refcount.
func (r *refcounts) count(c uint64) (uint64, error) {
	t, err := r.block(c >> r.perLog)
	if t == nil || err != nil {
		return 0, err
	}
	return getCount(t.data, r.order, c&(1<<r.perLog-1)), nil
}

// set changes a cluster's refcount, making the block if need be.
func (r *refcounts) set(c, v uint64) error {
	t, err := r.block(c >> r.perLog)
	if err == nil && t == nil {
		t, err = r.addBlock(c >> r.perLog)
	}
	if err != nil {
		return err
	}
	putCount(t.data, r.order, c&(1<<r.perLog-1), v)
	r.m.touch(t)
	return nil
}

// addBlock makes refcount block i at the end of the file. The block's own
// cluster may need another block, which then counts itself.
func (r *refcounts) addBlock(i uint64) (*table, error) {
	if i >= uint64(len(r.table)) {
		if err := r.growTable(i); err != nil {
			return nil, err
		}
		if t, err := r.block(i); t != nil || err != nil {
			return t, err
		}
	}
	c := r.end
	r.end++
	t := &table{off: c << r.m.h.clusterBits, data: make([]byte, r.m.cluster)}
	r.table[i] = t.off
	r.tableDirty = true
	r.blocks[i] = t
	r.m.touch(t)
	r.m.protect(t.off, 1)
	return t, r.set(c, 1)
}

// growTable moves the refcount table to the end of the file and makes it long
// enough for block i.
func (r *refcounts) growTable(i uint64) error {
	perCluster := r.m.cluster / 8
	clusters := max(2*uint64(len(r.table))/perCluster, i/perCluster+2)
	if clusters*r.m.cluster > maxRefTableBytes {
		return fmt.Errorf("%s: the refcount table cannot grow: %w", r.m.name, unix.ENOSPC)
	}
	if !r.moved {
		r.oldOffset, r.oldLen = r.m.h.refTableOffset, uint64(r.m.h.refTableClusters)<<r.m.h.clusterBits
	} else {
		// Moved twice between two flushes: the middle one was never on the disk.
		r.free(r.m.h.refTableOffset, uint64(r.m.h.refTableClusters)<<r.m.h.clusterBits)
	}
	start := r.end
	r.end += clusters
	bigger := make([]uint64, clusters*perCluster)
	copy(bigger, r.table)
	r.table = bigger
	r.tableDirty, r.moved = true, true
	r.m.h.refTableOffset, r.m.h.refTableClusters = start<<r.m.h.clusterBits, uint32(clusters)
	r.m.protect(start<<r.m.h.clusterBits, clusters<<r.m.h.clusterBits)
	for c := start; c < start+clusters; c++ {
		if err := r.set(c, 1); err != nil {
			return err
		}
	}
	return nil
}

// free has the clusters of a range of metadata given back with the next flush.
func (r *refcounts) free(off, n uint64) {
	for c := off >> r.m.h.clusterBits; c<<r.m.h.clusterBits < off+n; c++ {
		r.m.freed = append(r.m.freed, c)
	}
}

// alloc takes a free cluster and returns its number.
func (r *refcounts) alloc() (uint64, error) {
	for {
		c := r.hint
		if _, ok := r.m.meta[c]; ok {
			r.hint++
			continue
		}
		n, err := r.count(c)
		if err != nil {
			return 0, err
		}
		if n != 0 {
			r.hint++
			continue
		}
		// A block that is missing may be put just here.
		before := r.end
		if t, err := r.block(c >> r.perLog); err != nil {
			return 0, err
		} else if t == nil {
			r.end = max(r.end, c)
			if _, err := r.addBlock(c >> r.perLog); err != nil {
				return 0, err
			}
			if before <= c {
				continue
			}
		}
		r.hint = c + 1
		r.end = max(r.end, c+1)
		return c, r.set(c, 1)
	}
}

// release takes one reference of a cluster away.
func (r *refcounts) release(c uint64) error {
	n, err := r.count(c)
	if err != nil || n == 0 {
		return err // a corrupt image may say so; nothing to give back
	}
	if err := r.set(c, n-1); err != nil {
		return err
	}
	if n == 1 {
		r.m.forget(c)
		r.hint = min(r.hint, c)
	}
	return nil
}

// forget drops what is known of a cluster that is free now, and its storage.
func (m *Image) forget(c uint64) {
	off := c << m.h.clusterBits
	m.unprotect(off, 1)
	m.cacheMu.Lock()
	delete(m.cache, off)
	m.cacheMu.Unlock()
	m.unpacker.forget()
	_ = m.file.Discard(off, m.cluster)
}

// getCount reads count i of a block; 2^order bits each, big-endian, and below
// 8 bits from the least significant bit on.
func getCount(b []byte, order uint32, i uint64) uint64 {
	switch order {
	case 3:
		return uint64(b[i])
	case 4:
		return uint64(binary.BigEndian.Uint16(b[2*i:]))
	case 5:
		return uint64(binary.BigEndian.Uint32(b[4*i:]))
	case 6:
		return binary.BigEndian.Uint64(b[8*i:])
	}
	bits := uint64(1) << order
	return uint64(b[i*bits/8]) >> (i * bits % 8) & (1<<bits - 1)
}

func putCount(b []byte, order uint32, i, v uint64) {
	switch order {
	case 3:
		b[i] = byte(v)
	case 4:
		binary.BigEndian.PutUint16(b[2*i:], uint16(v))
	case 5:
		binary.BigEndian.PutUint32(b[4*i:], uint32(v))
	case 6:
		binary.BigEndian.PutUint64(b[8*i:], v)
	default:
		bits := uint64(1) << order
		shift := i * bits % 8
		p := &b[i*bits/8]
		*p = *p&^byte((1<<bits-1)<<shift) | byte(v<<shift)
	}
}
