package disk

import (
	"bytes"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/gvmspawn/gvmspawn/vmm/disk/disktest"
)

// An overlay behaves like a disk and leaves its base alone.
func TestOverlay(t *testing.T) {
	for _, dir := range []string{t.TempDir(), "/nonexistent"} { // file and memory
		want := disktest.Random(1<<20 + 512)
		path := filepath.Join(t.TempDir(), "base.raw")
		if err := os.WriteFile(path, want, 0o400); err != nil {
			t.Fatal(err)
		}
		base, err := OpenRaw(path, Options{ReadOnly: true})
		if err != nil {
			t.Fatal(err)
		}
		o, err := NewOverlay(base, dir)
		if err != nil {
			t.Fatal(err)
		}
		disktest.Model(t, o, bytes.Clone(want), 2000, 5)
		if err := o.Discard(100, 9000); err != nil {
			t.Error(err)
		}
		if err := o.Close(); err != nil {
			t.Error(err)
		}
		if got, _ := os.ReadFile(path); !bytes.Equal(got, want) {
			t.Error("base changed")
		}
	}
}

// Writers of neighbouring sectors of one block do not undo each other.
func TestOverlayConcurrent(t *testing.T) {
	path := tempImage(t, 64<<10)
	for range 50 {
		base, err := OpenRaw(path, Options{ReadOnly: true})
		if err != nil {
			t.Fatal(err)
		}
		o, err := NewOverlay(base, t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		for s := range 128 {
			wg.Go(func() {
				b := bytes.Repeat([]byte{byte(s + 1)}, SectorSize)
				if err := o.WriteAt([][]byte{b}, uint64(s*SectorSize)); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		got := make([]byte, 64<<10)
		if err := o.ReadAt([][]byte{got}, 0); err != nil {
			t.Fatal(err)
		}
		for i, b := range got {
			if b != byte(i/SectorSize+1) {
				t.Fatalf("sector %d holds %d", i/SectorSize, b)
			}
		}
		_ = o.Close()
	}
}

// Requests of whole blocks cost no allocation.
func TestOverlayAllocs(t *testing.T) {
	base, err := OpenRaw(tempImage(t, 1<<20), Options{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	o, err := NewOverlay(base, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	bufs := [][]byte{make([]byte, 5000), make([]byte, 3192)}
	if n := testing.AllocsPerRun(200, func() {
		_ = o.TryReadAt(bufs, 4096)
		_ = o.TryWriteAt(bufs, 8192)
		if o.WriteAt(bufs, 8192) != nil || o.ReadAt(bufs, 4096) != nil {
			t.Fatal("failed")
		}
	}); n != 0 {
		t.Errorf("%v allocations per request", n)
	}
}
