package qcow2

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"github.com/gvmspawn/gvmspawn/vmm/disk"
)

// CreateOptions describe a new image.
type CreateOptions struct {
	Size uint64 // bytes
	// Backing is the path of the backing file, relative to the new image's
	// directory or absolute, and BackingFormat its format: raw or qcow2.
	Backing, BackingFormat string
	// Preallocate makes all tables at once, so that later writes change none.
	Preallocate bool
}

const createBits = 16 // 64 KiB clusters

// Create makes a new version 3 image. The file must not exist.
func Create(path string, o CreateOptions) (err error) {
	const cluster = 1 << createBits
	if o.Size == 0 || o.Size > maxL1Bytes/8*(cluster/8)*cluster {
		return fmt.Errorf("disk image %s: a size of %d bytes is not possible", path, o.Size)
	}
	if len(o.Backing) > maxBackingName || (o.Backing != "" && o.BackingFormat != "raw" && o.BackingFormat != "qcow2") {
		return fmt.Errorf("disk image %s: backing file %q needs a format, raw or qcow2", path, o.Backing)
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return fmt.Errorf("create disk image: %w", err)
	}
	defer func() {
		if cerr := f.Close(); err == nil {
			err = cerr
		}
		if err != nil {
			_ = os.Remove(path)
		}
	}()
	// Clusters: header, refcount table, refcount block, then the L1 table.
	l1 := (o.Size + cluster*cluster/8 - 1) / (cluster * cluster / 8)
	clusters := 3 + (8*l1+cluster-1)/cluster
	counts := make([]byte, cluster)
	for c := range clusters {
		putCount(counts, 4, c, 1)
	}
	var table [8]byte
	binary.BigEndian.PutUint64(table[:], 2*cluster)
	for off, b := range map[int64][]byte{0: newHeader(o, uint32(l1)), cluster: table[:], 2 * cluster: counts} {
		if _, err := f.WriteAt(b, off); err != nil {
			return err
		}
	}
	if err := f.Truncate(int64(clusters * cluster)); err != nil {
		return err
	}
	if err := f.Sync(); err != nil || !o.Preallocate {
		return err
	}
	return preallocate(path)
}

// newHeader is the first cluster.
func newHeader(o CreateOptions, l1 uint32) []byte {
	const cluster = 1 << createBits
	b := make([]byte, 1024, cluster)
	be := binary.BigEndian
	be.PutUint32(b, magic)
	be.PutUint32(b[offVersion:], 3)
	be.PutUint32(b[offClusterBits:], createBits)
	be.PutUint64(b[offSize:], o.Size)
	be.PutUint32(b[offL1Size:], l1)
	be.PutUint64(b[offL1Offset:], 3*cluster)
	be.PutUint64(b[offRefcountTableOffset:], cluster)
	be.PutUint32(b[offRefcountTableSize:], 1)
	be.PutUint32(b[offRefcountOrder:], 4)
	be.PutUint32(b[offHeaderLength:], headerV3)
	if o.Backing == "" {
		return b
	}
	ext := b[headerV3:]
	be.PutUint32(ext, extBackingFormat)
	be.PutUint32(ext[4:], uint32(len(o.BackingFormat)))
	copy(ext[8:], o.BackingFormat)
	be.PutUint64(b[offBackingOffset:], uint64(len(b)))
	be.PutUint32(b[offBackingSize:], uint32(len(o.Backing)))
	return append(b, o.Backing...)
}

// preallocate gives every guest cluster its place.
func preallocate(path string) error {
	m, err := Open(path, disk.Options{})
	if err != nil {
		return err
	}
	err = m.preallocate()
	return errors.Join(err, m.Close())
}

func (m *Image) preallocate() error {
	if m.backing != nil {
		return fmt.Errorf("disk image %s: preallocation and a backing file exclude each other", m.name)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for c := range (m.h.size + m.cluster - 1) >> m.h.clusterBits {
		host, err := m.refs.alloc()
		if err != nil {
			return err
		}
		if err := m.setEntry(c, host<<m.h.clusterBits|flagCopied); err != nil {
			return err
		}
		if err := m.flushMany(); err != nil {
			return err
		}
	}
	// The file is new: places that were never written are holes of zeros.
	return m.file.Resize(m.refs.end << m.h.clusterBits)
}
