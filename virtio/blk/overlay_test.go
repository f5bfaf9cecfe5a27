package blk

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
)

// model does random operations on an image and on a plain slice, and compares.
func model(t *testing.T, img Image, want []byte, ops int, seed uint64) {
	t.Helper()
	r := rand.New(rand.NewPCG(seed, 1))
	sectors := len(want) / SectorSize
	for i := range ops {
		first := r.IntN(sectors)
		n := min(1+r.IntN(300), sectors-first)
		if r.IntN(2) == 0 {
			n = min(n, 1+r.IntN(8))
		}
		off, size := uint64(first*SectorSize), n*SectorSize
		part := want[off : off+uint64(size)]
		var err error
		switch op := r.IntN(10); {
		case op < 5:
			data := make([]byte, size)
			for j := range data {
				data[j] = byte(r.Uint32())
			}
			copy(part, data)
			err = img.WriteAt(shape(r, data), off)
		case op < 8:
			got := make([]byte, size)
			err = img.ReadAt(shape(r, got), off)
			if err == nil && !bytes.Equal(got, part) {
				t.Fatalf("operation %d: read at %d+%d differs", i, off, size)
			}
		case op < 9:
			clear(part)
			err = img.WriteZeroes(off, uint64(size), r.IntN(2) == 0)
		default:
			err = img.Flush()
		}
		if err != nil {
			t.Fatalf("operation %d at %d+%d: %v", i, off, size, err)
		}
	}
	got := make([]byte, len(want))
	if err := img.ReadAt([][]byte{got}, 0); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("image differs in the end (%v)", err)
	}
}

// shape cuts data into buffers.
func shape(r *rand.Rand, data []byte) [][]byte {
	var bufs [][]byte
	for len(data) > 0 {
		k := min(len(data), 1+r.IntN(8192))
		bufs = append(bufs, data[:k])
		data = data[k:]
	}
	return bufs
}

func randomBytes(n int) []byte {
	b := make([]byte, n)
	r := rand.New(rand.NewPCG(9, 9))
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

// An overlay behaves like a disk and leaves its base alone.
func TestOverlay(t *testing.T) {
	for _, dir := range []string{t.TempDir(), "/nonexistent"} { // file and memory
		want := randomBytes(1<<20 + 512)
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
		model(t, o, bytes.Clone(want), 2000, 5)
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
	for range 50 {
		o, err := NewOverlay(newRAM(64<<10), t.TempDir())
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
