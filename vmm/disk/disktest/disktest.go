// Package disktest checks disk images against a model.
package disktest

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"golang.org/x/sys/unix"
)

const sectorSize = 512

// Image is the part of disk.Image that Model uses.
type Image interface {
	ReadAt(bufs [][]byte, off uint64) error
	WriteAt(bufs [][]byte, off uint64) error
	WriteZeroes(off, n uint64, unmap bool) error
	Flush() error
}

// tryImage is the part of disk.TryImage that Model uses where it is there.
type tryImage interface {
	TryReadAt(bufs [][]byte, off uint64) error
	TryWriteAt(bufs [][]byte, off uint64) error
}

// Model does random operations on an image and on a plain slice, and compares.
func Model(t testing.TB, img Image, want []byte, ops int, seed uint64) {
	t.Helper()
	r := rand.New(rand.NewPCG(seed, 1))
	sectors := len(want) / sectorSize
	for i := range ops {
		first := r.IntN(sectors)
		n := min(1+r.IntN(300), sectors-first)
		if r.IntN(2) == 0 {
			n = min(n, 1+r.IntN(8))
		}
		off, size := uint64(first*sectorSize), n*sectorSize
		part := want[off : off+uint64(size)]
		var err error
		switch op := r.IntN(10); {
		case op < 5:
			data := make([]byte, size)
			for j := range data {
				data[j] = byte(r.Uint32())
			}
			copy(part, data)
			bufs := shape(r, data)
			if t, ok := img.(tryImage); !ok || t.TryWriteAt(bufs, off) != nil {
				err = img.WriteAt(bufs, off)
			}
		case op < 8:
			got := make([]byte, size)
			bufs := shape(r, got)
			if t, ok := img.(tryImage); !ok || t.TryReadAt(bufs, off) != nil {
				err = img.ReadAt(bufs, off)
			}
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

// Random returns n bytes that are the same each time.
func Random(n int) []byte {
	b := make([]byte, n)
	r := rand.New(rand.NewPCG(9, 9))
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

// Aligned returns n bytes that begin at a page.
func Aligned(t testing.TB, n int) []byte {
	t.Helper()
	b, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Munmap(b) })
	return b
}
