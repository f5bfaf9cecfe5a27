package qcow2

import (
	"errors"
	"io"

	"github.com/gvmspawn/gvmspawn/vmm/disk"
)

// kind of a guest cluster.
type kind uint8

const (
	unallocated kind = iota // the backing file's, or zeros
	zeroed                  // zeros
	data                    // a cluster of the file
	compressed
)

func (m *Image) kind(e uint64) kind {
	switch {
	case e&flagCompressed != 0:
		return compressed
	case m.h.version >= 3 && e&flagZero != 0:
		return zeroed
	case e&offsetMask == 0:
		return unallocated
	}
	return data
}

// l2 is the L2 table of an L1 index; nil if there is none.
// Preconditions: m.mu held.
func (m *Image) l2(i uint64) (*table, error) {
	off := m.l1[i] & offsetMask
	if off == 0 {
		return nil, nil
	}
	m.cacheMu.Lock()
	defer m.cacheMu.Unlock()
	t := m.cache[off]
	if t == nil {
		var err error
		if t, err = m.readTable("L2 table", off); err != nil {
			return nil, err
		}
		m.evict()
		m.cache[off] = t
	}
	t.used = true
	return t, nil
}

// evict makes room for one more table. Changed tables stay.
// Preconditions: m.cacheMu held.
func (m *Image) evict() {
	limit := max(int(cacheBytes/m.cluster), 8)
	for pass := 0; len(m.cache) >= limit && pass < 2; pass++ {
		for off, t := range m.cache {
			if !t.used && !t.dirty {
				delete(m.cache, off)
				if len(m.cache) < limit {
					return
				}
			}
			t.used = false
		}
	}
}

// entry is the L2 entry of a guest cluster. Preconditions: m.mu held.
func (m *Image) entry(cluster uint64) (uint64, error) {
	t, err := m.l2(cluster >> m.l2Bits)
	if t == nil || err != nil {
		return 0, err
	}
	return t.get(cluster & (1<<m.l2Bits - 1)), nil
}

// host is where the data cluster of an entry is in the file.
func (m *Image) host(e uint64) (uint64, error) {
	off := e & offsetMask
	if off&(m.cluster-1) != 0 || off>>m.h.clusterBits >= m.refs.end {
		return 0, m.corrupt("data cluster at %#x", off)
	}
	return off, nil
}

// extent is how far the bytes from off on, up to n, are of one kind and, if
// they are data, in one piece of the file. Preconditions: m.mu held.
func (m *Image) extent(off, n uint64) (length uint64, k kind, e uint64, err error) {
	c := off >> m.h.clusterBits
	if e, err = m.entry(c); err != nil {
		return 0, 0, 0, err
	}
	k = m.kind(e)
	length = min(n, m.cluster-off&(m.cluster-1))
	if k == compressed {
		return length, k, e, nil
	}
	for i := uint64(1); length < n; i++ {
		next, err := m.entry(c + i)
		if err != nil || m.kind(next) != k || (k == data && next&offsetMask != e&offsetMask+i<<m.h.clusterBits) {
			break // an error shows again when it is reached
		}
		length = min(n, length+m.cluster)
	}
	return length, k, e, nil
}

// ReadAt implements disk.Image.
func (m *Image) ReadAt(bufs [][]byte, off uint64) error {
	v := disk.NewVector(bufs)
	defer v.Free()
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.read(v, off, disk.Length(bufs))
}

// read fills the next n bytes of v. Preconditions: m.mu held.
func (m *Image) read(v *disk.Vector, off, n uint64) error {
	for n > 0 {
		k, kind, e, err := m.extent(off, n)
		if err != nil {
			return err
		}
		part := v.Take(k)
		in := off & (m.cluster - 1)
		switch kind {
		case data:
			var host uint64
			if host, err = m.host(e); err == nil {
				err = m.readHost(part, host+in)
			}
		case compressed:
			err = m.unpacker.read(part, e, in)
		case zeroed:
			disk.Zero(part)
		default:
			err = m.readBacking(part, off, k)
		}
		if err != nil {
			return err
		}
		off, n = off+k, n-k
	}
	return nil
}

// resident reports whether the L2 tables of a range are in memory.
// Preconditions: m.mu held.
func (m *Image) resident(off, n uint64) bool {
	m.cacheMu.Lock()
	defer m.cacheMu.Unlock()
	shift := m.l2Bits + m.h.clusterBits
	for i := off >> shift; i <= (off+n-1)>>shift; i++ {
		if l2 := m.l1[i] & offsetMask; l2 != 0 && m.cache[l2] == nil {
			return false
		}
	}
	return true
}

// TryReadAt implements disk.TryImage.
func (m *Image) TryReadAt(bufs [][]byte, off uint64) error {
	if !m.mu.TryRLock() {
		return disk.ErrWouldBlock
	}
	defer m.mu.RUnlock()
	n := disk.Length(bufs)
	if !m.resident(off, n) {
		return disk.ErrWouldBlock
	}
	v := disk.NewVector(bufs)
	defer v.Free()
	for n > 0 {
		k, kind, e, err := m.extent(off, n)
		if err != nil {
			return err
		}
		part := v.Take(k)
		switch {
		case kind == data:
			var host uint64
			if host, err = m.host(e); err == nil {
				err = m.file.TryReadAt(part, host+off&(m.cluster-1))
			}
		case kind == zeroed || (kind == unallocated && m.backing == nil):
			disk.Zero(part)
		default:
			err = disk.ErrWouldBlock
		}
		if errors.Is(err, io.ErrUnexpectedEOF) {
			err = disk.ErrWouldBlock // ReadAt knows what to do
		}
		if err != nil {
			return err
		}
		off, n = off+k, n-k
	}
	return nil
}

// readBacking reads n bytes that the image does not hold. A backing file may be
// shorter than the image: zeros follow.
func (m *Image) readBacking(bufs [][]byte, off, n uint64) error {
	if m.backing == nil || off >= m.backing.Size() {
		disk.Zero(bufs)
		return nil
	}
	if have := m.backing.Size() - off; have < n {
		v := disk.NewVector(bufs)
		defer v.Free()
		if err := m.backing.ReadAt(v.Take(have), off); err != nil {
			return err
		}
		disk.Zero(v.Take(n - have))
		return nil
	}
	return m.backing.ReadAt(bufs, off)
}

// writableL2 is the L2 table of an L1 index, made or copied if the image must
// not share it. Preconditions: m.mu held for writing.
func (m *Image) writableL2(i uint64) (*table, error) {
	old, err := m.l2(i)
	if err != nil || (old != nil && m.l1[i]&flagCopied != 0) {
		return old, err
	}
	c, err := m.refs.alloc()
	if err != nil {
		return nil, err
	}
	t := &table{off: c << m.h.clusterBits, data: make([]byte, m.cluster), used: true}
	if old != nil {
		// A snapshot has it too.
		copy(t.data, old.data)
		m.freed = append(m.freed, old.off>>m.h.clusterBits)
	}
	m.protect(t.off, 1)
	m.cacheMu.Lock()
	m.evict()
	m.cache[t.off] = t
	m.cacheMu.Unlock()
	m.touch(t)
	m.l1[i] = t.off | flagCopied
	m.l1Dirty = true
	return t, nil
}

// touch marks a table as changed. Preconditions: m.mu held for writing.
func (m *Image) touch(t *table) {
	if !t.dirty {
		t.dirty = true
		m.dirty++
	}
}

// setEntry changes the mapping of a guest cluster and frees what it had.
// Preconditions: m.mu held for writing.
func (m *Image) setEntry(cluster, e uint64) error {
	t, err := m.writableL2(cluster >> m.l2Bits)
	if err != nil {
		return err
	}
	i := cluster & (1<<m.l2Bits - 1)
	first, n := m.held(t.get(i))
	for c := first; c < first+n; c++ {
		if _, ok := m.meta[c]; ok || c >= m.refs.end {
			return m.corrupt("guest cluster %#x is in a table of the image, or nowhere", cluster)
		}
	}
	t.set(i, e)
	m.touch(t)
	if n > 0 && e&offsetMask>>m.h.clusterBits != first {
		for c := first; c < first+n; c++ {
			m.freed = append(m.freed, c)
		}
	}
	return nil
}

// held is what clusters of the file an entry holds a reference of.
func (m *Image) held(e uint64) (first, n uint64) {
	if e&flagCompressed != 0 {
		off, size := m.packed(e)
		first = off >> m.h.clusterBits
		return first, (off+size-1)>>m.h.clusterBits - first + 1
	}
	if e&offsetMask == 0 {
		return 0, 0
	}
	return e & offsetMask >> m.h.clusterBits, 1
}
