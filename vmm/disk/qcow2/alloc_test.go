package qcow2

import (
	"path/filepath"
	"sync"
	"testing"

	"github.com/gvmspawn/gvmspawn/vmm/disk/disktest"
)

// Reads and writes of clusters that exist cost no allocation.
func TestAllocs(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk.qcow2")
	if err := Create(path, CreateOptions{Size: 4 << 20}); err != nil {
		t.Fatal(err)
	}
	m := openImage(t, path)
	defer m.Close()
	if err := m.WriteAt([][]byte{make([]byte, 1<<20)}, 0); err != nil {
		t.Fatal(err)
	}
	bufs := [][]byte{make([]byte, 1000), make([]byte, 3096)}
	if n := testing.AllocsPerRun(200, func() {
		_ = m.TryReadAt(bufs, 63<<10)
		_ = m.TryWriteAt(bufs, 63<<10)
		if m.ReadAt(bufs, 63<<10) != nil || m.WriteAt(bufs, 63<<10) != nil || m.ReadAt(bufs, 2<<20) != nil {
			t.Fatal("failed")
		}
	}); n != 0 {
		t.Errorf("%v allocations per request", n)
	}
}

// Many goroutines on disjoint parts of one image, as the device's pool does.
func TestConcurrent(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk.qcow2")
	if err := Create(path, CreateOptions{Size: 8 << 20}); err != nil {
		t.Fatal(err)
	}
	m := openImage(t, path)
	want := make([]byte, 8<<20)
	var wg sync.WaitGroup
	for i := range uint64(8) {
		part := want[i<<20 : (i+1)<<20]
		wg.Go(func() { disktest.Model(t, window{m, i << 20}, part, 100, i) })
	}
	wg.Wait()
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	check(t, path, want)
}

// window is a part of an image.
type window struct {
	m    *Image
	base uint64
}

func (w window) ReadAt(bufs [][]byte, off uint64) error     { return w.m.ReadAt(bufs, w.base+off) }
func (w window) WriteAt(bufs [][]byte, off uint64) error    { return w.m.WriteAt(bufs, w.base+off) }
func (w window) TryReadAt(bufs [][]byte, off uint64) error  { return w.m.TryReadAt(bufs, w.base+off) }
func (w window) TryWriteAt(bufs [][]byte, off uint64) error { return w.m.TryWriteAt(bufs, w.base+off) }
func (w window) Flush() error                               { return w.m.Flush() }
func (w window) WriteZeroes(off, n uint64, unmap bool) error {
	return w.m.WriteZeroes(w.base+off, n, unmap)
}
