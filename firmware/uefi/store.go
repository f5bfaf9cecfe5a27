// Package uefi reads what UEFI firmware keeps: the variable store in its flash,
// as EDK II lays it out, and the values of the variables that the specification
// defines (UEFI Specification 2.10; EDK II MdeModulePkg/Include/Guid/VariableFormat.h;
// PI Specification 1.8 vol. 3 §3.2.1 for the firmware volume around it).
package uefi

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"unicode/utf16"
)

// GUID is an EFI_GUID in its memory order: the first three fields little-endian.
type GUID [16]byte

// String returns the registry form, in lower case.
func (g GUID) String() string {
	b := [16]byte{g[3], g[2], g[1], g[0], g[5], g[4], g[7], g[6]}
	copy(b[8:], g[8:])
	h := hex.EncodeToString(b[:])
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
}

// parseGUID is for constants: the registry form in lower case.
func parseGUID(s string) (g GUID) {
	b, err := hex.DecodeString(s[:8] + s[9:13] + s[14:18] + s[19:23] + s[24:])
	if err != nil {
		panic("bad GUID constant " + s)
	}
	copy(g[:], b)
	slices.Reverse(g[:4])
	slices.Reverse(g[4:6])
	slices.Reverse(g[6:8])
	return g
}

// Attributes of a variable (UEFI 2.10 §8.2.1).
type Attributes uint32

// Bits of Attributes.
const (
	NonVolatile                       Attributes = 1 << 0
	BootServiceAccess                 Attributes = 1 << 1
	RuntimeAccess                     Attributes = 1 << 2
	HardwareErrorRecord               Attributes = 1 << 3
	TimeBasedAuthenticatedWriteAccess Attributes = 1 << 5
)

// String lists the bits by short names, such as "NV,BS,RT".
func (a Attributes) String() string {
	s := ""
	for _, b := range []struct {
		bit  Attributes
		name string
	}{{NonVolatile, "NV"}, {BootServiceAccess, "BS"}, {RuntimeAccess, "RT"}, {HardwareErrorRecord, "HR"}, {TimeBasedAuthenticatedWriteAccess, "AT"}} {
		if a&b.bit != 0 {
			s += "," + b.name
		}
	}
	if s == "" {
		return "-"
	}
	return s[1:]
}

// Variable is a variable that the firmware would find in the store.
type Variable struct {
	Name       string
	Vendor     GUID
	Attributes Attributes
	Data       []byte
}

// ErrNotStore is returned for a file that is no EDK II variable store.
var ErrNotStore = errors.New("not an EFI variable store")

// Numbers of the firmware volume and the variable store.
const (
	volumeGUIDOffset   = 16
	volumeLengthOffset = 32
	volumeSignature    = 40
	volumeHeaderLength = 48
	volumeHeaderMin    = 56

	storeHeaderSize  = 28
	storeFormatted   = 0x5a
	storeHealthy     = 0xfe
	variableStartID  = 0x55aa
	variableAdded    = 0x3f // bits are cleared as the life of a variable goes on
	variableReplaced = variableAdded & 0xfe

	plainHeaderSize         = 32
	authenticatedHeaderSize = 60
)

var (
	systemNVData       = parseGUID("fff12b8d-7696-4c8b-a985-2747075b4f50")
	plainStore         = parseGUID("ddcf3616-3275-4164-98b6-fe85707ffe7d")
	authenticatedStore = parseGUID("aaf32c78-947b-439a-a180-2e144ec37792")
)

// IsStore reports whether an image begins with the firmware volume of a
// variable store; erased flash, all ones, is one too: the firmware formats it.
func IsStore(image []byte) bool {
	_, _, err := openStore(image)
	return err == nil || len(image) > 0 && !slices.ContainsFunc(image, func(b byte) bool { return b != 0xff })
}

// openStore finds the variables' bytes within the image.
func openStore(image []byte) (store []byte, authenticated bool, err error) {
	if len(image) < volumeHeaderMin || string(image[volumeSignature:volumeSignature+4]) != "_FVH" ||
		GUID(image[volumeGUIDOffset:volumeGUIDOffset+16]) != systemNVData {
		return nil, false, ErrNotStore
	}
	header := int(binary.LittleEndian.Uint16(image[volumeHeaderLength:]))
	length := binary.LittleEndian.Uint64(image[volumeLengthOffset:])
	if length > uint64(len(image)) || header < volumeHeaderMin || header+storeHeaderSize > int(length) {
		return nil, false, fmt.Errorf("%w: it is cut off", ErrNotStore)
	}
	store = image[header:length]
	switch GUID(store[:16]) {
	case authenticatedStore:
		authenticated = true
	case plainStore:
	default:
		return nil, false, fmt.Errorf("%w: the variables have an unknown format", ErrNotStore)
	}
	size := binary.LittleEndian.Uint32(store[16:])
	if size < storeHeaderSize || uint64(size) > uint64(len(store)) || store[20] != storeFormatted || store[21] != storeHealthy {
		return nil, false, fmt.Errorf("%w: its header is damaged", ErrNotStore)
	}
	return store[storeHeaderSize:size], authenticated, nil
}

// ReadStore returns the variables in the store at the start of a flash image, in
// the order in which they stand there. What is deleted, half written or behind a
// damaged header is left out, as by the firmware.
func ReadStore(image []byte) ([]Variable, error) {
	store, authenticated, err := openStore(image)
	if err != nil {
		return nil, err
	}
	var added, replaced []Variable
	for len(store) > 0 {
		v, state, rest, ok := nextVariable(store, authenticated)
		if !ok {
			break
		}
		switch state {
		case variableAdded:
			added = append(added, v)
		case variableReplaced:
			replaced = append(replaced, v)
		}
		store = rest
	}
	// A variable whose replacement was never finished still counts.
	for _, v := range replaced {
		if !slices.ContainsFunc(added, func(a Variable) bool { return a.Name == v.Name && a.Vendor == v.Vendor }) {
			added = append(added, v)
		}
	}
	return added, nil
}

// nextVariable reads the variable at the start of b; ok is false at the end.
func nextVariable(b []byte, authenticated bool) (v Variable, state byte, rest []byte, ok bool) {
	header, sizes := plainHeaderSize, 8
	if authenticated {
		header, sizes = authenticatedHeaderSize, 36
	}
	if len(b) < header || binary.LittleEndian.Uint16(b) != variableStartID {
		return v, 0, nil, false
	}
	name, data := uint64(binary.LittleEndian.Uint32(b[sizes:])), uint64(binary.LittleEndian.Uint32(b[sizes+4:]))
	end := uint64(header) + name + data
	if end > uint64(len(b)) {
		return v, 0, nil, false
	}
	v = Variable{
		Name:       ucs2(b[header : uint64(header)+name]),
		Vendor:     GUID(b[sizes+8 : sizes+24]),
		Attributes: Attributes(binary.LittleEndian.Uint32(b[4:])),
		Data:       b[uint64(header)+name : end],
	}
	const align = 4
	next := min((end+align-1)&^(align-1), uint64(len(b)))
	return v, b[2], b[next:], true
}

// ucs2 is the string that b begins with, up to its NUL.
func ucs2(b []byte) string {
	var units []uint16
	for ; len(b) >= 2; b = b[2:] {
		u := binary.LittleEndian.Uint16(b)
		if u == 0 {
			break
		}
		units = append(units, u)
	}
	return string(utf16.Decode(units))
}
