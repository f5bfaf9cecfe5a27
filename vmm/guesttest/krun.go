package guesttest

import (
	"bytes"
	"debug/elf"
	le "encoding/binary" // package guesttest has a variable binary
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// KrunKernel makes an ELF file of the kernel in Debian's libkrunfw, which has
// virtio-mmio and neither PCI nor ACPI nor modules, and returns its path. The
// library is only read: its function krunfw_get_kernel says where its data has the
// kernel's image, and where that is loaded and entered.
func KrunKernel(t testing.TB) string {
	t.Helper()
	libs, err := filepath.Glob(filepath.Join(Asset(t, "kernel-krun"), "usr/lib/x86_64-linux-gnu/libkrunfw.so.*"))
	if err != nil || len(libs) == 0 {
		t.Fatalf("no libkrunfw: %v", err)
	}
	image, load, entry, err := krunImage(libs[0])
	if err != nil {
		t.Fatalf("%s: %v", libs[0], err)
	}
	path := filepath.Join(t.TempDir(), "vmlinux-krun")
	if err := os.WriteFile(path, elfFile(image, load, entry), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// krunImage finds the kernel in the library.
func krunImage(path string) (image []byte, load, entry uint64, err error) {
	f, err := elf.Open(path)
	if err != nil {
		return nil, 0, 0, err
	}
	defer f.Close()
	code, at, err := function(f, "krunfw_get_kernel")
	if err != nil {
		return nil, 0, 0, err
	}
	var values []uint64
	var slot uint64
	for i := 0; i+7 <= len(code); i++ {
		imm := le.LittleEndian.Uint32(code[i+3:])
		switch {
		case bytes.HasPrefix(code[i:], []byte{0x48, 0xc7, 0x00}): // mov qword [rax], imm32
			values = append(values, uint64(imm))
		case bytes.HasPrefix(code[i:], []byte{0x48, 0x8b, 0x05}): // mov rax, [rip+rel32]
			slot = at + uint64(i+7) + uint64(int64(int32(imm)))
		}
	}
	if len(values) != 3 || slot == 0 {
		return nil, 0, 0, fmt.Errorf("its function has %d values", len(values))
	}
	data, err := relocated(f, slot)
	if err != nil {
		return nil, 0, 0, err
	}
	image = make([]byte, values[2])
	for _, s := range f.Sections {
		if s.Type == elf.SHT_PROGBITS && data >= s.Addr && data-s.Addr < s.Size {
			_, err = s.ReadAt(image, int64(data-s.Addr))
			return image, values[0], values[1], err
		}
	}
	return nil, 0, 0, errors.New("its kernel is in no section")
}

// function is the code of a function and its address.
func function(f *elf.File, name string) ([]byte, uint64, error) {
	symbols, err := f.DynamicSymbols()
	if err != nil {
		return nil, 0, err
	}
	for _, s := range symbols {
		if s.Name == name && int(s.Section) < len(f.Sections) {
			code := make([]byte, s.Size)
			text := f.Sections[s.Section]
			_, err := text.ReadAt(code, int64(s.Value-text.Addr))
			return code, s.Value, err
		}
	}
	return nil, 0, fmt.Errorf("no function %s", name)
}

// relocated is the address that the loader would put into a slot.
func relocated(f *elf.File, slot uint64) (uint64, error) {
	section := f.Section(".rela.dyn")
	if section == nil {
		return 0, errors.New("no relocations")
	}
	b, err := section.Data()
	if err != nil {
		return 0, err
	}
	symbols, err := f.DynamicSymbols()
	if err != nil {
		return 0, err
	}
	for ; len(b) >= 24; b = b[24:] {
		symbol := int(le.LittleEndian.Uint32(b[12:]))
		if le.LittleEndian.Uint64(b) == slot && symbol >= 1 && symbol <= len(symbols) {
			return symbols[symbol-1].Value + le.LittleEndian.Uint64(b[16:]), nil
		}
	}
	return 0, fmt.Errorf("no relocation for %#x", slot)
}

// elfFile is an executable of one segment.
func elfFile(image []byte, load, entry uint64) []byte {
	const offset = 4096
	b := make([]byte, offset, offset+len(image))
	copy(b, "\x7fELF\x02\x01\x01")
	le.LittleEndian.PutUint16(b[16:], uint16(elf.ET_EXEC))
	le.LittleEndian.PutUint16(b[18:], uint16(elf.EM_X86_64))
	le.LittleEndian.PutUint32(b[20:], 1)
	le.LittleEndian.PutUint64(b[24:], entry)
	le.LittleEndian.PutUint64(b[32:], 64) // program headers
	le.LittleEndian.PutUint16(b[52:], 64)
	le.LittleEndian.PutUint16(b[54:], 56)
	le.LittleEndian.PutUint16(b[56:], 1)
	p := b[64:]
	le.LittleEndian.PutUint32(p, uint32(elf.PT_LOAD))
	le.LittleEndian.PutUint32(p[4:], 7)
	for at, v := range map[int]uint64{8: offset, 16: load, 24: load, 32: uint64(len(image)), 40: uint64(len(image)), 48: offset} {
		le.LittleEndian.PutUint64(p[at:], v)
	}
	return append(b, image...)
}
