package linux

import (
	"bytes"
	"testing"

	"github.com/gvmspawn/gvmspawn/vmm/layout"
)

// A kernel file may come from an untrusted disk image or tree.
func FuzzImage(f *testing.F) {
	small := []testSegment{{0x1000, layout.KernelStart, pattern(1, 3000), 5000}, {0x2000, layout.KernelStart + 0x4000, pattern(2, 99), 100}}
	for c := CompressionUnknown; c <= CompressionLZMA; c++ {
		if c == CompressionXZ {
			continue
		}
		elf := relocTable(buildELF(layout.KernelStart, small, nil), []uint32{0x8010_0000}, []uint32{0x8010_0010})
		b := buildBzImage(pack(f, c, elf), 0)
		copy(b[0x258:], []byte{0, 0, 0x10, 0, 0, 0, 0, 0})
		f.Add(b, byte(0))
	}
	f.Add(buildELF(layout.KernelStart, small, &testSegment{0x1000, layout.KernelStart, xenNote(layout.KernelStart), 36}), byte(2))
	m := newMemory(f, 16*layout.MiB)
	f.Fuzz(func(t *testing.T, file []byte, how byte) {
		img, err := New("fuzz", bytes.NewReader(file), int64(len(file)))
		if err != nil {
			return
		}
		_ = img.Release()
		_, _ = Load(Boot{Memory: m, Image: img, Entry: Entry(how & 3), KASLR: how&4 != 0, Random: zeroReader{}})
		if err := m.Discard(0, 16*layout.MiB); err != nil {
			t.Fatal(err)
		}
	})
}

type zeroReader struct{}

func (zeroReader) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func FuzzUKI(f *testing.F) {
	f.Add(buildPE(peSection{".linux", []byte("kernel")}, peSection{".cmdline", []byte("quiet")}, peSection{".initrd", nil}))
	f.Fuzz(func(t *testing.T, file []byte) {
		if u, err := NewUKI("fuzz", bytes.NewReader(file)); err == nil && u.Linux.Size() > int64(len(file)) {
			t.Error("the kernel is larger than the file")
		}
	})
}
