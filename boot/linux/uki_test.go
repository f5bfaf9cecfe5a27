package linux

import (
	"bytes"
	"encoding/binary"
	"io"
	"strings"
	"testing"
)

type peSection struct {
	name string
	data []byte
}

// buildPE makes a PE32+ file whose raw data is padded to 512 bytes.
func buildPE(sections ...peSection) []byte {
	const peAt, optSize = 0x80, 112
	le := binary.LittleEndian
	b := make([]byte, 4096)
	copy(b, "MZ")
	le.PutUint32(b[0x3c:], peAt)
	copy(b[peAt:], "PE\x00\x00")
	coff := b[peAt+4:]
	le.PutUint16(coff, 0x8664)
	le.PutUint16(coff[2:], uint16(len(sections)))
	le.PutUint16(coff[16:], optSize)
	le.PutUint16(coff[20:], 0x20b)
	for i, s := range sections {
		h := b[peAt+4+20+optSize+i*40:]
		copy(h[:8], s.name)
		le.PutUint32(h[8:], uint32(len(s.data)))
		le.PutUint32(h[16:], uint32(len(s.data)+511)&^511)
		le.PutUint32(h[20:], uint32(len(b)))
		b = append(b, s.data...)
		b = append(b, bytes.Repeat([]byte{0xaa}, -len(s.data)&511)...)
	}
	return b
}

func TestUKI(t *testing.T) {
	kernel := buildBzImage(pack(t, CompressionZstd, buildELF(testPref, testSegments(), nil)), 0)
	file := buildPE(peSection{".text", []byte("code")}, peSection{".osrel", []byte("ID=debian\n")}, peSection{".cmdline", []byte("quiet rw\n\x00")},
		peSection{".uname", []byte(testRelease)}, peSection{".ucode", []byte("microcode")}, peSection{".initrd", []byte("the initrd")},
		peSection{".linux", kernel}, peSection{".profile", []byte("ID=other")}, peSection{".cmdline", []byte("debug")})
	u, err := NewUKI("a.efi", bytes.NewReader(file))
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	if u.CommandLine != "quiet rw" || u.OSRelease != "ID=debian" || u.Uname != testRelease {
		t.Errorf("%+v", u)
	}
	for r, want := range map[*io.SectionReader]string{u.Ucode: "microcode", u.Initrd: "the initrd"} {
		if b, err := io.ReadAll(r); err != nil || string(b) != want {
			t.Errorf("%q, %v", b, err)
		}
	}
	img, err := New("a.efi", u.Linux, u.Linux.Size())
	if err != nil || img.Release() != testRelease {
		t.Errorf("%v", err)
	}
}

func TestUKIErrors(t *testing.T) {
	linux := peSection{".linux", make([]byte, 2000)}
	for _, tt := range []struct {
		file []byte
		want string
	}{
		{[]byte("no PE"), "not a unified kernel image"},
		{buildPE(peSection{".text", nil}), "no .linux section"},
		{buildPE(peSection{".profile", nil}, linux), "no .linux section"},
		{buildPE(linux)[:5000], "is damaged: section .linux: the file is truncated"},
		{buildPE(linux, peSection{".cmdline", make([]byte, 70000)}), "too long"},
	} {
		if _, err := NewUKI("a.efi", bytes.NewReader(tt.file)); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%v, want %q", err, tt.want)
		}
	}
	if _, err := OpenUKI(t.TempDir() + "/none"); err == nil {
		t.Error("a missing file was opened")
	}
}
