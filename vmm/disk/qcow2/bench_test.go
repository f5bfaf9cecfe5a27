package qcow2

import (
	"path/filepath"
	"testing"
)

// Benchmark4K is requests to clusters that exist, in the page cache; compare
// with BenchmarkRaw4K of package disk.
func Benchmark4K(b *testing.B) {
	const size = 64 << 20
	path := filepath.Join(b.TempDir(), "disk.qcow2")
	if err := Create(path, CreateOptions{Size: size}); err != nil {
		b.Fatal(err)
	}
	m := openImage(b, path)
	defer m.Close()
	if err := m.WriteAt([][]byte{make([]byte, size)}, 0); err != nil {
		b.Fatal(err)
	}
	bufs := [][]byte{make([]byte, 4096)}
	for name, f := range map[string]func([][]byte, uint64) error{"read": m.ReadAt, "tryread": m.TryReadAt, "write": m.WriteAt} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for i := range b.N {
				if err := f(bufs, uint64(i*7919)%(size>>12)<<12); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	b.Run("allocate", func(b *testing.B) {
		b.SetBytes(1 << 20)
		big := [][]byte{make([]byte, 1<<20)}
		for i := range b.N {
			off := uint64(i) << 20 % size
			if off == 0 {
				b.StopTimer()
				if err := m.Discard(0, size); err != nil {
					b.Fatal(err)
				}
				if err := m.Flush(); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
			if err := m.WriteAt(big, off); err != nil {
				b.Fatal(err)
			}
		}
	})
}
