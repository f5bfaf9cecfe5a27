// Package uefi reads firmware images and keeps their variable stores: the files
// of a flash chip that ends at 4 GiB. Documents: UEFI Platform Initialization
// 1.8, volume 3 (firmware volumes); OVMF's flash layout.
package uefi

import (
	"encoding/binary"
	"fmt"
	"io"
	"os"

	"github.com/gvmspawn/gvmspawn/vmm/layout"
)

// MaxFlash is how much an image and its variable store may have together in
// bytes: what is free below 4 GiB.
const MaxFlash = layout.FirmwareEnd - layout.FirmwareStart

// blockSize is the granularity of memory slots and of flash blocks.
const blockSize = layout.PageSize

// ReadImage reads the code image at path, which begins to run at its last 16
// bytes.
func ReadImage(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("cannot open the firmware: %w", err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("firmware %s: %w", path, err)
	}
	if !st.Mode().IsRegular() {
		return nil, fmt.Errorf("firmware %s is not a regular file: give the path of a raw flash image, such as OVMF_CODE_4M.fd", path)
	}
	if err := checkSize("firmware", path, st.Size()); err != nil {
		return nil, err
	}
	b := make([]byte, st.Size())
	if _, err := io.ReadFull(f, b); err != nil {
		return nil, fmt.Errorf("cannot read the firmware %s: %w", path, err)
	}
	if !startsThere(b) {
		return nil, fmt.Errorf("firmware %s has no code at its end, where a CPU starts: it is truncated, or no raw flash image", path)
	}
	return b, nil
}

// checkSize says what is wrong with the size of a flash file.
func checkSize(what, path string, size int64) error {
	switch {
	case size == 0:
		return fmt.Errorf("%s %s is empty", what, path)
	case size%blockSize != 0:
		return fmt.Errorf("%s %s has %d bytes, which is no multiple of %d KiB: it is truncated, or no raw flash image", what, path, size, blockSize>>10)
	case size > MaxFlash:
		return fmt.Errorf("%s %s has %d KiB: flash has at most %d", what, path, size>>10, MaxFlash>>10)
	}
	return nil
}

// startsThere reports whether there is something to run at the reset vector.
// Erased flash is all ones, and holes of a file are zeroes.
func startsThere(image []byte) bool {
	for _, b := range image[len(image)-16:] {
		if b != 0 && b != 0xff {
			return true
		}
	}
	return false
}

// CheckPair reports whether a variable store of vars bytes belongs to an image
// of code bytes: together they are one flash chip, of whole MiB, that the build
// cut in two.
func CheckPair(codePath string, code int, varsPath string, vars int) error {
	switch total := code + vars; {
	case total > MaxFlash:
		return fmt.Errorf("the variable store %s and the firmware %s have %d KiB together: flash has at most %d", varsPath, codePath, total>>10, MaxFlash>>10)
	case total%layout.MiB != 0:
		return fmt.Errorf("the variable store %s of %d KiB does not belong to the firmware %s of %d KiB: take the template of the same build",
			varsPath, vars>>10, codePath, code>>10)
	}
	return nil
}

// Header of a firmware volume (PI 1.8, volume 3, §3.2.1).
const (
	fvLength    = 32
	fvSignature = 40
	fvMagic     = "_FVH"
	fvMinimum   = 56
)

// checkVolume reports what is wrong with the beginning of a variable store. An
// erased one is left to the firmware.
func checkVolume(path string, head []byte, size int64) error {
	erased := true
	for _, b := range head {
		erased = erased && b == 0xff
	}
	if erased {
		return nil
	}
	if len(head) < fvMinimum || string(head[fvSignature:fvSignature+4]) != fvMagic {
		return fmt.Errorf("%s is not a variable store of UEFI firmware: copy a template, such as OVMF_VARS_4M.fd", path)
	}
	if n := binary.LittleEndian.Uint64(head[fvLength:]); n > uint64(size) {
		return fmt.Errorf("the variable store %s has %d KiB of the %d that its header says: it is truncated", path, size>>10, n>>10)
	}
	return nil
}
