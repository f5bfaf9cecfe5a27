package qcow2

import (
	"encoding/binary"
	"fmt"
)

// Bounds of what rebuild reads of internal snapshots.
const (
	maxSnapshots       = 65536
	maxSnapshotL1Bytes = 64 << 20
	snapshotHeader     = 40
	offSnapshotsOffset = 64
)

// rebuild counts all references anew and corrects the refcounts. An image with
// lazy refcounts needs it when it was not closed ("dirty bit").
func (m *Image) rebuild() error {
	n := &counter{m: m, counts: make([]uint32, m.refs.end), limit: m.h.snapshots + 1}
	if err := n.all(); err != nil {
		return fmt.Errorf("refcounts need a repair (lazy refcounts, not closed), which failed: %w", err)
	}
	for c, want := range n.counts {
		have, err := m.refs.count(uint64(c))
		if err != nil {
			return err
		}
		if have != uint64(want) {
			if err := m.refs.set(uint64(c), uint64(want)); err != nil {
				return err
			}
		}
	}
	if err := m.flushTables(); err != nil {
		return err
	}
	if err := m.file.Flush(); err != nil {
		return err
	}
	m.h.incompatible &^= incompatDirty
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], m.h.incompatible)
	if err := m.file.WriteAt([][]byte{b[:]}, offIncompatible); err != nil {
		return err
	}
	return m.file.Flush()
}

// counter counts the references of each cluster of the file.
type counter struct {
	m      *Image
	counts []uint32
	limit  uint32 // how often an L2 table may be referred to
}

func (n *counter) all() error {
	m := n.m
	if err := n.add(0, 1); err != nil {
		return err
	}
	if err := n.add(m.h.refTableOffset, uint64(m.h.refTableClusters)<<m.h.clusterBits); err != nil {
		return err
	}
	for _, off := range m.refs.table {
		if off != 0 {
			if err := n.add(off, 1); err != nil {
				return err
			}
		}
	}
	if err := n.tree(m.h.l1Offset, m.l1); err != nil {
		return err
	}
	return n.snapshots()
}

// add counts the clusters of a range.
func (n *counter) add(off, size uint64) error {
	for c := off >> n.m.h.clusterBits; c<<n.m.h.clusterBits < off+size; c++ {
		if c >= uint64(len(n.counts)) {
			return n.m.corrupt("reference to %#x, beyond the end", off)
		}
		n.counts[c]++
	}
	return nil
}

// tree counts an L1 table and all below it.
func (n *counter) tree(off uint64, l1 []uint64) error {
	if err := n.add(off, 8*uint64(len(l1))); err != nil {
		return err
	}
	for _, e := range l1 {
		off := e & offsetMask
		if off == 0 {
			continue
		}
		if err := n.add(off, 1); err != nil {
			return err
		}
		if n.counts[off>>n.m.h.clusterBits] > n.limit {
			return n.m.corrupt("L2 table at %#x has too many references", off)
		}
		t, err := n.m.readTable("L2 table", off)
		if err != nil {
			return err
		}
		for i := range n.m.cluster / 8 {
			if err := n.entry(t.get(i)); err != nil {
				return err
			}
		}
	}
	return nil
}

func (n *counter) entry(e uint64) error {
	if e&flagCompressed != 0 {
		off, size := n.m.packed(e)
		// The last sectors may be cut off at the end of the file.
		end := uint64(len(n.counts)) << n.m.h.clusterBits
		return n.add(off, max(1, min(size, end-min(off, end))))
	}
	if off := e & offsetMask; off != 0 {
		return n.add(off, 1)
	}
	return nil
}

// snapshots counts what internal snapshots refer to.
func (n *counter) snapshots() error {
	m := n.m
	if m.h.snapshots == 0 {
		return nil
	}
	if m.h.snapshots > maxSnapshots {
		return m.corrupt("%d snapshots", m.h.snapshots)
	}
	var b [snapshotHeader]byte
	if err := m.file.ReadAt([][]byte{b[:8]}, offSnapshotsOffset); err != nil {
		return err
	}
	start := binary.BigEndian.Uint64(b[:])
	p, total := start, uint64(0)
	for range m.h.snapshots {
		if err := m.readHost([][]byte{b[:]}, p); err != nil {
			return err
		}
		be := binary.BigEndian
		l1Off, l1Len := be.Uint64(b[:]), 8*uint64(be.Uint32(b[8:]))
		if total += l1Len; total > maxSnapshotL1Bytes {
			return m.corrupt("snapshot tables of more than %d bytes", maxSnapshotL1Bytes)
		}
		raw := make([]byte, l1Len)
		if err := m.readHost([][]byte{raw}, l1Off); err != nil {
			return err
		}
		l1 := make([]uint64, l1Len/8)
		for i := range l1 {
			l1[i] = be.Uint64(raw[8*i:])
		}
		if err := n.tree(l1Off, l1); err != nil {
			return err
		}
		p += snapshotHeader + uint64(be.Uint32(b[36:])) + uint64(be.Uint16(b[12:])) + uint64(be.Uint16(b[14:]))
		p = (p + 7) &^ 7
	}
	return n.add(start, p-start)
}
