// Package fakedisk has images for the tests of disk devices.
package fakedisk

import (
	"sync"

	"github.com/gvmspawn/gvmspawn/vmm/disk"
)

// RAM is an image in memory that counts and can fail or block. Its fields may
// be changed while no request is in flight.
type RAM struct {
	Data        []byte
	Discards    []disk.Range
	Zeroes      []disk.Range
	NoWrites    bool          // read-only
	Gate        chan struct{} // if set, reads and writes wait for it
	BlockSize   uint32        // 0 for 512
	mu          sync.Mutex    // guards the rest, and Data, Discards and Zeroes while requests run
	flushes     int
	err         error
	writesSince int // writes since the last flush
}

// NewRAM returns an image of n zeroes.
func NewRAM(n int) *RAM { return &RAM{Data: make([]byte, n)} }

func (m *RAM) each(bufs [][]byte, off uint64, f func(disk, buf []byte)) error {
	if m.Gate != nil {
		<-m.Gate
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.err != nil {
		return m.err
	}
	for _, b := range bufs {
		f(m.Data[off:off+uint64(len(b))], b)
		off += uint64(len(b))
	}
	return nil
}

// ReadAt implements disk.Image.
func (m *RAM) ReadAt(bufs [][]byte, off uint64) error {
	return m.each(bufs, off, func(disk, buf []byte) { copy(buf, disk) })
}

// WriteAt implements disk.Image.
func (m *RAM) WriteAt(bufs [][]byte, off uint64) error {
	return m.each(bufs, off, func(disk, buf []byte) { copy(disk, buf); m.writesSince++ })
}

// Flush implements disk.Image.
func (m *RAM) Flush() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.flushes++
	m.writesSince = 0
	return m.err
}

// Discard implements disk.Image: it fills the range with ones.
func (m *RAM) Discard(off, n uint64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.Discards = append(m.Discards, disk.Range{Off: off, N: n})
	for i := range m.Data[off : off+n] {
		m.Data[off+uint64(i)] = 0xff
	}
	return m.err
}

// WriteZeroes implements disk.Image.
func (m *RAM) WriteZeroes(off, n uint64, unmap bool) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.Zeroes = append(m.Zeroes, disk.Range{Off: off, N: n, Unmap: unmap})
	clear(m.Data[off : off+n])
	return m.err
}

// Fail makes all further requests fail with err, or succeed again.
func (m *RAM) Fail(err error) {
	m.mu.Lock()
	m.err = err
	m.mu.Unlock()
}

// Flushes is how often the image was flushed.
func (m *RAM) Flushes() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.flushes
}

// Settled is the image once the requests that are done have released it: a
// test that learns of their end from guest memory alone looks through it.
func (m *RAM) Settled() *RAM {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m
}

// Dirty reports whether something was written since the last flush.
func (m *RAM) Dirty() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.writesSince > 0
}

// Size implements disk.Image.
func (m *RAM) Size() uint64 { return uint64(len(m.Data)) }

// ReadOnly implements disk.Image.
func (m *RAM) ReadOnly() bool { return m.NoWrites }

// Geometry implements disk.Image.
func (m *RAM) Geometry() disk.Geometry {
	return disk.Geometry{BlockSize: max(m.BlockSize, 512), PhysicalBlock: 4096, Cluster: 65536}
}

// Close implements disk.Image.
func (m *RAM) Close() error { return nil }

// Null is an image that does nothing, at once: what is left of a request is
// its device's own cost.
type Null struct{ *RAM }

// TryReadAt implements disk.TryImage.
func (Null) TryReadAt([][]byte, uint64) error { return nil }

// TryWriteAt implements disk.TryImage.
func (Null) TryWriteAt([][]byte, uint64) error { return nil }
