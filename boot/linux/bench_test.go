package linux

import (
	"testing"

	"github.com/gvmspawn/gvmspawn/vmm/layout"
)

// BenchmarkLoad measures what unpacking and placing a real kernel costs, into
// RAM that is untouched each time, as at a start.
func BenchmarkLoad(b *testing.B) {
	path := realKernel(b)
	for _, tt := range []struct {
		name  string
		entry Entry
		kaslr bool
	}{{"64-bit", Entry64, false}, {"KASLR", Entry64, true}} {
		b.Run(tt.name, func(b *testing.B) {
			m := newMemory(b, 512*layout.MiB)
			for b.Loop() {
				img, err := Open(path)
				if err != nil {
					b.Fatal(err)
				}
				if _, err := Load(Boot{Memory: m, Image: img, Entry: tt.entry, KASLR: tt.kaslr}); err != nil {
					b.Fatal(err)
				}
				img.Close()
				b.StopTimer()
				if err := m.Discard(0, 512*layout.MiB); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
		})
	}
}
