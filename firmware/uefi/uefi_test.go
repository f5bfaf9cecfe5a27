package uefi

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// volume is a variable store of size bytes whose header says length.
func volume(size int, length uint64) []byte {
	b := bytes.Repeat([]byte{0xff}, size)
	clear(b[:16])
	binary.LittleEndian.PutUint64(b[fvLength:], length)
	copy(b[fvSignature:], fvMagic)
	return b
}

func put(t *testing.T, name string, b []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// one reports whether err is one sentence with the words in it.
func one(t *testing.T, err error, words ...string) {
	t.Helper()
	if err == nil || strings.Contains(err.Error(), "\n") {
		t.Fatalf("error %v", err)
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%q says nothing of %q", err, w)
		}
	}
}

func TestBadImages(t *testing.T) {
	good := bytes.Repeat([]byte{0x90}, 64<<10)
	if b, err := ReadImage(put(t, "good.fd", good)); err != nil || !bytes.Equal(b, good) {
		t.Errorf("a good image: %v", err)
	}
	_, err := ReadImage("/nonexistent/code.fd")
	one(t, err, "/nonexistent/code.fd", "cannot open the firmware")
	_, err = ReadImage(t.TempDir())
	one(t, err, "not a regular file")
	_, err = ReadImage(put(t, "cut.fd", good[:5000]))
	one(t, err, "cut.fd", "5000 bytes", "truncated")
	_, err = ReadImage(put(t, "empty.fd", nil))
	one(t, err, "empty")
	_, err = ReadImage(put(t, "big.fd", make([]byte, MaxFlash+4096)))
	one(t, err, "big.fd", "at most 16384")
	_, err = ReadImage(put(t, "holes.fd", make([]byte, 8192)))
	one(t, err, "holes.fd", "no code at its end")
}

func TestBadVars(t *testing.T) {
	_, err := OpenVars("/nonexistent/vars.fd")
	one(t, err, "/nonexistent/vars.fd", "cannot open the variable store")
	_, err = OpenVars(put(t, "text.fd", bytes.Repeat([]byte("text"), 1024)))
	one(t, err, "text.fd", "not a variable store")
	_, err = OpenVars(put(t, "cut.fd", volume(8192, 540672)))
	one(t, err, "cut.fd", "8 KiB of the 528", "truncated")
	_, err = OpenVars(put(t, "odd.fd", volume(5000, 5000)))
	one(t, err, "odd.fd", "5000 bytes")
	if err := CheckPair("OVMF_CODE_4M.fd", 3653632, "OVMF_VARS_4M.fd", 540672); err != nil {
		t.Errorf("Debian's pair: %v", err)
	}
	one(t, CheckPair("OVMF_CODE.fd", 1966080, "OVMF_VARS_4M.fd", 540672), "OVMF_CODE.fd", "OVMF_VARS_4M.fd", "same build")
	one(t, CheckPair("c", MaxFlash, "v", 4096), "at most 16384")
	// An erased store is the firmware's to format.
	v, err := OpenVars(put(t, "erased.fd", bytes.Repeat([]byte{0xff}, 8192)))
	if err != nil {
		t.Fatal(err)
	}
	_ = v.Close()
}

// One machine at a time, and what was written is there for the next.
func TestVars(t *testing.T) {
	path := put(t, "vars.fd", volume(8192, 8192))
	v, err := OpenVars(path)
	if err != nil {
		t.Fatal(err)
	}
	_, err = OpenVars(path)
	one(t, err, path, "in use by another machine")
	if _, err := v.WriteAt([]byte("Boot0000"), 4096); err != nil {
		t.Error(err)
	}
	// Before Close: what a killed process leaves.
	if b, err := os.ReadFile(path); err != nil || string(b[4096:4104]) != "Boot0000" {
		t.Errorf("the file has %q (%v)", b[4096:4104], err)
	}
	if err := v.Close(); err != nil {
		t.Error(err)
	}
	if v, err = OpenVars(path); err != nil || string(v.Content[4096:4104]) != "Boot0000" {
		t.Fatalf("after Close: %v", err)
	}
	_ = v.Close()
}
