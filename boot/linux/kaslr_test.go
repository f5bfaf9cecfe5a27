package linux

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/gvmspawn/gvmspawn/vmm/layout"
)

// relocTable appends the parts in the order of the file, each led by a zero.
func relocTable(file []byte, parts ...[]uint32) []byte {
	le := binary.LittleEndian
	file = append(file, make([]byte, -len(file)&3)...)
	le.PutUint64(file[40:], uint64(len(file))) // e_shoff
	for _, p := range parts {
		file = le.AppendUint32(file, 0)
		for _, v := range p {
			file = le.AppendUint32(file, v)
		}
	}
	return file
}

// handle_relocations in Linux arch/x86/boot/compressed/misc.c, with and
// without the inverse part.
func TestKASLR(t *testing.T) {
	const at = testPref + 0x1000
	for _, inverse := range []bool{true, false} {
		segs := testSegments()
		d, le := segs[0].data[0x1000:], binary.LittleEndian
		le.PutUint64(d, 0xffff_ffff_8100_0010)
		le.PutUint64(d[8:], 0xffff_ffff_8200_0020)
		le.PutUint32(d[16:], 0x8123_0000)
		le.PutUint32(d[24:], 0x0300_0000)
		parts := [][]uint32{{0x8000_0000 + at, 0x8000_0000 + at + 8}, {0x8000_0000 + at + 24}, {0x8000_0000 + at + 16}}
		if !inverse {
			parts = [][]uint32{parts[0], parts[2]}
		}
		img := openBytes(t, buildBzImage(pack(t, CompressionZstd, relocTable(buildELF(testPref, segs, nil), parts...)), 32*layout.MiB))
		m := newMemory(t, 64*layout.MiB)
		// Random: 8 bytes for the offset: (1 GiB - 16 MiB - 32 MiB) / 2 MiB + 1 = 489 slots; 5 mod 489.
		random := append([]byte{5, 0, 0, 0, 0, 0, 0, 0}, make([]byte, 32)...)
		if _, err := Load(Boot{Memory: m, Image: img, KASLR: true, Random: bytes.NewReader(random)}); err != nil {
			t.Fatal(err)
		}
		const delta = 5 * hugePage
		ram := m.Regions()[0].Bytes()
		got := ram[at:]
		wantInv := uint32(0x0300_0000)
		if inverse {
			wantInv -= delta
		}
		if le.Uint64(got) != 0xffff_ffff_8100_0010+delta || le.Uint64(got[8:]) != 0xffff_ffff_8200_0020+delta ||
			le.Uint32(got[16:]) != 0x8123_0000+delta || le.Uint32(got[24:]) != wantInv {
			t.Errorf("inverse=%v: % x", inverse, got[:28])
		}
		if ram[layout.ZeroPage+hdrLoadFlags]&loadFlagKASLR == 0 {
			t.Error("KASLR_FLAG is not set")
		}
	}
}

func TestKASLRWithoutTable(t *testing.T) {
	m := newMemory(t, 64*layout.MiB)
	if _, err := Load(Boot{Memory: m, Image: testImage(t, CompressionZstd), KASLR: true}); err != nil {
		t.Fatal(err)
	}
	checkKernel(t, m, testSegments())
	if m.Regions()[0].Bytes()[layout.ZeroPage+hdrLoadFlags]&loadFlagKASLR != 0 {
		t.Error("KASLR_FLAG is set for a kernel that was not moved")
	}
}

func TestKASLRBadTable(t *testing.T) {
	for _, parts := range [][][]uint32{
		{{0x8000_0000}, {0x8100_0000}, {0x8100_0000}},                      // outside the kernel
		{{0x8100_0000, 0x8100_0010}, {0x8100_0000}, {0x8100_0000}},         // no addresses there
		{{0x8100_0000}, {0x8100_0000}, {0x8100_0000}, {0x8100_0000}, {42}}, // too many parts
		{{0x8100_0000, 0x8100_0004, 0x8100_0008}},                          // one part
	} {
		file := relocTable(buildELF(testPref, testSegments(), nil), parts...)
		img := openBytes(t, buildBzImage(pack(t, CompressionZstd, file), 0))
		_, err := Load(Boot{Memory: newMemory(t, 64*layout.MiB), Image: img, KASLR: true})
		if err == nil && len(parts) != 1 {
			t.Errorf("%x was accepted", parts)
		}
		t.Log(err)
	}
}
