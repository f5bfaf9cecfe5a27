package qcow2

import (
	"encoding/binary"

	"golang.org/x/sys/unix"

	"github.com/gvmspawn/gvmspawn/vmm/disk"
)

// WriteAt implements disk.Image.
func (m *Image) WriteAt(bufs [][]byte, off uint64) error {
	if m.readOnly {
		return unix.EROFS
	}
	n := disk.Length(bufs)
	v := disk.NewVector(bufs)
	defer v.Free()
	m.mu.RLock()
	ready, err := m.inPlace(off, n)
	if ready && err == nil {
		err = m.overwrite(v, off, n)
	}
	m.mu.RUnlock()
	if ready || err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.write(v, off, n); err != nil {
		return err
	}
	if m.dirty > maxDirty || len(m.freed) > 16*maxDirty {
		return m.flushTables()
	}
	return nil
}

// TryWriteAt implements disk.TryImage: writes to clusters that the image owns
// are writes to the file.
func (m *Image) TryWriteAt(bufs [][]byte, off uint64) error {
	if m.readOnly || !m.mu.TryRLock() {
		return disk.ErrWouldBlock
	}
	defer m.mu.RUnlock()
	n := disk.Length(bufs)
	if !m.resident(off, n) {
		return disk.ErrWouldBlock
	}
	if ready, err := m.inPlace(off, n); !ready || err != nil {
		return disk.ErrWouldBlock
	}
	k, _, e, err := m.extent(off, n)
	if err != nil || k < n {
		return disk.ErrWouldBlock
	}
	return m.file.TryWriteAt(bufs, e&offsetMask+off&(m.cluster-1))
}

// owned reports whether an entry's cluster may be written where it is.
func (m *Image) owned(e uint64) bool {
	if e&flagCopied == 0 || m.kind(e) != data {
		return false
	}
	host, err := m.host(e)
	_, meta := m.meta[host>>m.h.clusterBits]
	return err == nil && !meta
}

// inPlace reports whether all clusters of a range are owned.
// Preconditions: m.mu held.
func (m *Image) inPlace(off, n uint64) (bool, error) {
	for c := off >> m.h.clusterBits; c <= (off+n-1)>>m.h.clusterBits; c++ {
		e, err := m.entry(c)
		if err != nil || !m.owned(e) {
			return false, err
		}
	}
	return true, nil
}

// overwrite writes a range that inPlace said yes to. Preconditions: m.mu held.
func (m *Image) overwrite(v *disk.Vector, off, n uint64) error {
	for n > 0 {
		k, _, e, err := m.extent(off, n)
		if err != nil {
			return err
		}
		if err := m.file.WriteAt(v.Take(k), e&offsetMask+off&(m.cluster-1)); err != nil {
			return err
		}
		off, n = off+k, n-k
	}
	return nil
}

// write writes any range. Preconditions: m.mu held for writing.
func (m *Image) write(v *disk.Vector, off, n uint64) error {
	for n > 0 {
		c, in := off>>m.h.clusterBits, off&(m.cluster-1)
		e, err := m.entry(c)
		if err != nil {
			return err
		}
		k := min(n, m.cluster-in)
		switch {
		case m.owned(e):
			err = m.file.WriteAt(v.Take(k), e&offsetMask+in)
		case k == m.cluster:
			k, err = m.writeNew(v, c, n>>m.h.clusterBits)
		default:
			err = m.writePart(v, c, in, k)
		}
		if err != nil {
			return err
		}
		off, n = off+k, n-k
	}
	return nil
}

// writeNew gives new places to as many whole clusters, from c on and up to
// count, as lie in one piece, and returns how many bytes that was.
func (m *Image) writeNew(v *disk.Vector, c, count uint64) (uint64, error) {
	first, err := m.refs.alloc()
	if err != nil {
		return 0, err
	}
	k := uint64(1)
	for ; k < count; k++ {
		e, err := m.entry(c + k)
		if err != nil || m.owned(e) || m.refs.hint != first+k {
			break
		}
		next, err := m.refs.alloc()
		if err != nil {
			break
		}
		if next != first+k {
			m.undo(next, 1)
			break
		}
	}
	if err := m.file.WriteAt(v.Take(k<<m.h.clusterBits), first<<m.h.clusterBits); err != nil {
		m.undo(first, k)
		return 0, err
	}
	for i := range k {
		if err := m.setEntry(c+i, (first+i)<<m.h.clusterBits|flagCopied); err != nil {
			m.undo(first+i, k-i)
			return 0, err
		}
	}
	return k << m.h.clusterBits, nil
}

// undo gives clusters back that nothing came to refer to.
func (m *Image) undo(first, n uint64) {
	for c := first; c < first+n; c++ {
		_ = m.refs.release(c)
	}
}

// writePart writes k bytes, in bytes into cluster c, which gets a new place:
// the rest of it is what it read as before.
func (m *Image) writePart(v *disk.Vector, c, in, k uint64) error {
	buf := make([]byte, m.cluster)
	off := c << m.h.clusterBits
	// The last cluster may reach beyond the disk's end.
	n := min(m.cluster, (m.h.size+disk.SectorSize-1)&^(disk.SectorSize-1)-off)
	old := disk.NewVector([][]byte{buf[:n]})
	err := m.read(old, off, n)
	old.Free()
	if err != nil {
		return err
	}
	p := buf[in : in+k]
	for _, b := range v.Take(k) {
		p = p[copy(p, b):]
	}
	host, err := m.refs.alloc()
	if err != nil {
		return err
	}
	if err := m.file.WriteAt([][]byte{buf}, host<<m.h.clusterBits); err != nil {
		m.undo(host, 1)
		return err
	}
	if err := m.setEntry(c, host<<m.h.clusterBits|flagCopied); err != nil {
		m.undo(host, 1)
		return err
	}
	return nil
}

// Discard implements disk.Image: whole clusters are given back and read as
// zeros then.
func (m *Image) Discard(off, n uint64) error {
	if m.readOnly {
		return unix.EROFS
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	first := (off + m.cluster - 1) >> m.h.clusterBits
	for c := first; (c+1)<<m.h.clusterBits <= off+n; c++ {
		if _, err := m.unmap(c); err != nil {
			return err
		}
	}
	return m.flushMany()
}

func (m *Image) flushMany() error {
	if m.dirty > maxDirty || len(m.freed) > 16*maxDirty {
		return m.flushTables()
	}
	return nil
}

// unmap makes a cluster read as zeros without storage. It returns false if the
// format cannot say that: version 2 with a backing file.
// Preconditions: m.mu held for writing.
func (m *Image) unmap(c uint64) (bool, error) {
	e, err := m.entry(c)
	if err != nil {
		return false, err
	}
	empty := uint64(0)
	if m.backing != nil {
		if m.h.version < 3 {
			return false, nil
		}
		empty = flagZero
	}
	if e == empty {
		return true, nil
	}
	return true, m.setEntry(c, empty)
}

// WriteZeroes implements disk.Image.
func (m *Image) WriteZeroes(off, n uint64, unmap bool) error {
	if m.readOnly {
		return unix.EROFS
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for n > 0 {
		c, in := off>>m.h.clusterBits, off&(m.cluster-1)
		k := min(n, m.cluster-in)
		if err := m.zero(c, in, k, unmap); err != nil {
			return err
		}
		off, n = off+k, n-k
	}
	return m.flushMany()
}

// zeroes is what is written where zeros must be bytes.
var zeroes [1 << maxClusterBits]byte

// zero zeroes k bytes, in bytes into cluster c. Preconditions: m.mu held for writing.
func (m *Image) zero(c, in, k uint64, unmap bool) error {
	e, err := m.entry(c)
	if err != nil {
		return err
	}
	if m.kind(e) == zeroed || (m.kind(e) == unallocated && m.backing == nil) {
		return nil
	}
	end := min(m.cluster, m.h.size-c<<m.h.clusterBits)
	if in == 0 && k >= end&^(disk.SectorSize-1) && (unmap || !m.owned(e)) {
		if done, err := m.unmap(c); done || err != nil {
			return err
		}
	}
	v := disk.NewVector([][]byte{zeroes[:k]})
	defer v.Free()
	return m.write(v, c<<m.h.clusterBits+in, k)
}

// Flush implements disk.Image.
func (m *Image) Flush() error {
	if m.readOnly {
		return nil
	}
	m.mu.RLock()
	clean := m.dirty == 0 && !m.l1Dirty && !m.refs.tableDirty && len(m.freed) == 0
	if clean {
		defer m.mu.RUnlock()
		return m.file.Flush()
	}
	m.mu.RUnlock()
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.flushTables(); err != nil {
		return err
	}
	return m.file.Flush()
}

// flushTables writes all changed tables, in the order that the package comment
// explains. Preconditions: m.mu held for writing.
func (m *Image) flushTables() error {
	if err := m.flushRefcounts(); err != nil {
		return err
	}
	// From here on the file counts every cluster that the tables refer to,
	// and holds what the guest wrote there.
	if err := m.file.Flush(); err != nil {
		return err
	}
	if err := m.flushL2(); err != nil {
		return err
	}
	if m.l1Dirty {
		if err := m.file.Flush(); err != nil {
			return err
		}
		if err := m.writeWords(m.l1, m.h.l1Offset); err != nil {
			return err
		}
		m.l1Dirty = false
	}
	if len(m.freed) == 0 {
		return nil
	}
	if err := m.file.Flush(); err != nil {
		return err
	}
	freed := m.freed
	m.freed = nil
	for _, c := range freed {
		if err := m.refs.release(c); err != nil {
			return err
		}
	}
	return m.flushRefcounts()
}

func (m *Image) flushL2() error {
	m.cacheMu.Lock()
	defer m.cacheMu.Unlock()
	for _, t := range m.cache {
		if err := m.writeTable(t); err != nil {
			return err
		}
	}
	return nil
}

func (m *Image) writeTable(t *table) error {
	if !t.dirty {
		return nil
	}
	if err := m.file.WriteAt([][]byte{t.data}, t.off); err != nil {
		return err
	}
	t.dirty = false
	m.dirty--
	return nil
}

// writeWords writes a table of 64-bit words.
func (m *Image) writeWords(w []uint64, off uint64) error {
	b := make([]byte, 8*len(w))
	for i, x := range w {
		binary.BigEndian.PutUint64(b[8*i:], x)
	}
	return m.file.WriteAt([][]byte{b}, off)
}

// flushRefcounts writes blocks, then the table, then the header that says
// where the table is.
func (m *Image) flushRefcounts() error {
	r := &m.refs
	for _, t := range r.blocks {
		if err := m.writeTable(t); err != nil {
			return err
		}
	}
	if !r.tableDirty {
		return nil
	}
	if err := m.file.Flush(); err != nil {
		return err
	}
	if err := m.writeWords(r.table, m.h.refTableOffset); err != nil {
		return err
	}
	r.tableDirty = false
	if !r.moved {
		return nil
	}
	if err := m.file.Flush(); err != nil {
		return err
	}
	var b [12]byte
	binary.BigEndian.PutUint64(b[:], m.h.refTableOffset)
	binary.BigEndian.PutUint32(b[8:], m.h.refTableClusters)
	if err := m.file.WriteAt([][]byte{b[:]}, offRefcountTableOffset); err != nil {
		return err
	}
	r.moved = false
	r.free(r.oldOffset, r.oldLen)
	return nil
}
