package linux

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/gvmspawn/gvmspawn/vmm/layout"
)

// edit returns b with the bytes at off replaced.
func edit(b []byte, off int, with ...byte) []byte {
	b = bytes.Clone(b)
	copy(b[off:], with)
	return b
}

// Every mistake gives one sentence that names the file.
func TestOpenErrors(t *testing.T) {
	good := buildBzImage(pack(t, CompressionZstd, buildELF(testPref, testSegments(), nil)), 0)
	elf := buildELF(testPref, testSegments(), nil)
	arm := append([]byte("MZ"), make([]byte, 1022)...)
	copy(arm[0x38:], "ARM\x64")
	for _, tt := range []struct {
		name string
		file []byte
		want string
	}{
		{"empty", nil, "too short"},
		{"text", bytes.Repeat([]byte("#!/bin/sh\n"), 100), "neither a bzImage nor an ELF"},
		{"gzip file", pack(t, CompressionGzip, elf), "compressed with gzip; unpack it first"},
		{"arm64", arm, "is an arm64 kernel"},
		{"EFI", append([]byte("MZ"), make([]byte, 1022)...), "EFI program"},
		{"UKI", buildPE(peSection{".linux", good}), "unified kernel image"},
		{"zImage", edit(good, hdrLoadFlags, 0), "zImage"},
		{"old", edit(good, hdrVersion, 4, 2), "boot protocol 2.04"},
		{"32-bit", edit(good, 0x236, 0, 0), "32-bit kernel"},
		{"bad header", edit(good, hdrJump+1, 1), "setup header"},
		{"cut", good[:len(good)-100], "is truncated"},
		{"cut setup", good[:2048], "is truncated"},
		{"payload", edit(good, 0x24c, 0xff, 0xff, 0xff, 0xff), "is truncated"},
		{"ELF32", edit(elf, 4, 1), "not a 64-bit x86 kernel"},
		{"aarch64 ELF", edit(elf, 18, 183), "not a 64-bit x86 kernel"},
		{"cut ELF", elf[:len(elf)-1], "is truncated"},
		{"cut ELF header", elf[:40], "is truncated"},
		{"no PT_LOAD", edit(elf, 56, 0), "program headers"},
	} {
		_, err := New("some%file", bytes.NewReader(tt.file), int64(len(tt.file)))
		if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.HasPrefix(err.Error(), "some%file ") || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.want)
		}
		if (tt.name == "UKI") != errors.Is(err, ErrUKI) {
			t.Errorf("%s: ErrUKI is wrong", tt.name)
		}
	}
}

func TestOpenFile(t *testing.T) {
	dir := t.TempDir()
	if _, err := Open(filepath.Join(dir, "none")); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
	if _, err := Open(dir); err == nil || !strings.Contains(err.Error(), "not a regular file") {
		t.Error(err)
	}
	fifo := filepath.Join(dir, "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(fifo); err == nil || !strings.Contains(err.Error(), "not a regular file") {
		t.Error(err)
	}
	path := filepath.Join(dir, "vmlinuz")
	if err := os.WriteFile(path, buildBzImage(pack(t, CompressionZstd, buildELF(testPref, testSegments(), nil)), 0), 0o600); err != nil {
		t.Fatal(err)
	}
	img, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	if img.Name() != path || img.Close() != nil {
		t.Error(img.Name())
	}
}

func TestLoadErrors(t *testing.T) {
	elf := buildELF(testPref, testSegments(), nil)
	build := func(c Compression) []byte { return buildBzImage(pack(t, c, elf), 0) }
	zstd := build(CompressionZstd)
	low := testSegments()
	low[0].paddr = 0x8000
	for _, tt := range []struct {
		name string
		file []byte
		ram  uint64
		boot Boot
		want string
	}{
		{"unknown compression", build(CompressionUnknown), 64, Boot{}, "unknown compression"},
		{"lzo", build(CompressionLZO), 64, Boot{}, "lzo"},
		{"damaged", edit(zstd, 6000, 1, 2, 3, 4), 64, Boot{}, "is damaged"},
		{"wrong size", edit(zstd, sizeField(zstd), 1, 2), 64, Boot{}, "is damaged"},
		{"huge size", edit(zstd, sizeField(zstd), 0, 0, 0, 0x7f), 64, Boot{}, "claims to be"},
		{"no ELF", buildBzImage(pack(t, CompressionGzip, make([]byte, 4096)), 0), 64, Boot{}, "has a payload that"},
		{"small RAM", zstd, 16, Boot{}, "does not fit into the machine's RAM: it needs at least 18 MiB"},
		{"tiny RAM", zstd, 1, Boot{}, "less than 2 MiB"},
		{"init_size", buildBzImage(pack(t, CompressionZstd, elf), 100<<20), 64, Boot{}, "needs at least 116 MiB"},
		{"decompressor", zstd, 16, Boot{Entry: EntryDecompressor}, "does not fit into the machine's RAM"},
		{"vmlinux small RAM", elf, 16, Boot{}, "does not fit into the machine's RAM"},
		{"vmlinux low", buildELF(0x8000, low, nil), 64, Boot{}, "below 1 MiB"},
		{"no decompressor", elf, 64, Boot{Entry: EntryDecompressor}, "no decompressor of its own"},
		{"no PVH", elf, 64, Boot{Entry: EntryPVH}, "no PVH entry point"},
		{"no entry", buildELF(1<<40, testSegments(), nil), 64, Boot{}, "no entry point"},
		{"command line", zstd, 64, Boot{CommandLine: strings.Repeat("x", 2048)}, "2048 bytes long, but vmlinuz takes at most 2047"},
		{"NUL", zstd, 64, Boot{CommandLine: "a\x00b"}, "NUL"},
		{"initrd", zstd, 64, Boot{Initrds: []Initrd{{"big.img", 60 << 20, zeros{}}}}, "initrd big.img (60 MiB) does not fit into the machine's 64 MiB of RAM"},
		{"initrd size", zstd, 64, Boot{Initrds: []Initrd{{"big.img", -1, zeros{}}}}, "impossible size"},
		{"short initrd", zstd, 64, Boot{Initrds: []Initrd{{"cut.img", 9, strings.NewReader("abc")}}}, "got 3 of 9 bytes"},
		{"hook", zstd, 64, Boot{MoreInitrds: func(Kernel) ([]Initrd, error) { return nil, errors.New("no module") }}, "no module"},
		{"no random", zstd, 64, Boot{Random: strings.NewReader("")}, "random"},
	} {
		tt.boot.Memory, tt.boot.Image = newMemory(t, tt.ram*layout.MiB), openBytes(t, tt.file)
		_, err := Load(tt.boot)
		if err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.want)
		}
	}
}

type zeros struct{}

func (zeros) ReadAt(p []byte, _ int64) (int, error) { clear(p); return len(p), nil }

// sizeField is the offset of the unpacked size in a bzImage.
func sizeField(b []byte) int {
	le := binary.LittleEndian
	return (int(b[hdrSetupSects])+1)*sectorSize + int(le.Uint32(b[0x248:])) + int(le.Uint32(b[0x24c:])) - 4
}
