package uefi

import (
	"encoding/binary"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf16"
)

// newImage makes a flash image with an authenticated store of the variables'
// bytes.
func newImage(variables ...[]byte) []byte {
	const header, length = 72, 4096
	image := make([]byte, length)
	for i := range image {
		image[i] = 0xff
	}
	clear(image[:header])
	copy(image[volumeGUIDOffset:], systemNVData[:])
	binary.LittleEndian.PutUint64(image[volumeLengthOffset:], length)
	copy(image[volumeSignature:], "_FVH")
	binary.LittleEndian.PutUint16(image[volumeHeaderLength:], header)
	store := image[header:]
	copy(store, authenticatedStore[:])
	binary.LittleEndian.PutUint32(store[16:], length-header)
	store[20], store[21] = storeFormatted, storeHealthy
	at := store[storeHeaderSize:]
	for _, v := range variables {
		at = at[copy(at, v):]
	}
	return image
}

func wide(s string) []byte {
	var b []byte
	for _, u := range append(utf16.Encode([]rune(s)), 0) {
		b = binary.LittleEndian.AppendUint16(b, u)
	}
	return b
}

// newVariable is an authenticated variable in a state.
func newVariable(state byte, name string, data []byte) []byte {
	b := make([]byte, authenticatedHeaderSize)
	binary.LittleEndian.PutUint16(b, variableStartID)
	b[2] = state
	binary.LittleEndian.PutUint32(b[4:], uint32(NonVolatile|BootServiceAccess|RuntimeAccess))
	n := wide(name)
	binary.LittleEndian.PutUint32(b[36:], uint32(len(n)))
	binary.LittleEndian.PutUint32(b[40:], uint32(len(data)))
	copy(b[44:], globalVariable[:])
	b = append(append(b, n...), data...)
	for len(b)%4 != 0 {
		b = append(b, 0xff)
	}
	return b
}

func TestReadStore(t *testing.T) {
	option := binary.LittleEndian.AppendUint32(nil, 1)
	path := wide(`\EFI\BOOT\BOOTX64.EFI`)
	node := append([]byte{4, 4, byte(len(path) + 4), 0}, path...)
	option = binary.LittleEndian.AppendUint16(option, uint16(len(node)))
	option = append(append(append(option, wide("Debian\x1b[31m")...), node...), 1, 2, 3)
	image := newImage(
		newVariable(variableAdded, "BootOrder", []byte{1, 0, 0x0a, 0}),
		newVariable(variableAdded&0xfd, "Deleted", []byte{1}),
		newVariable(0x7f, "HalfWritten", []byte{1}),
		newVariable(variableReplaced, "BootOrder", []byte{9, 0}),
		newVariable(variableReplaced, "Timeout", []byte{5, 0}),
		newVariable(variableAdded, "Boot0001", option),
	)
	vars, err := ReadStore(image)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, v := range vars {
		got = append(got, v.Name+" "+v.VendorName()+" "+v.Attributes.String()+" "+v.Describe())
	}
	want := []string{
		"BootOrder global NV,BS,RT 0001,000A",
		"Boot0001 global NV,BS,RT Debian\ufffd[31m \\EFI\\BOOT\\BOOTX64.EFI",
		"Timeout global NV,BS,RT 5 s",
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestNotStore(t *testing.T) {
	good := newImage()
	damage := func(at int, v byte) []byte {
		b := append([]byte(nil), good...)
		b[at] = v
		return b
	}
	for name, image := range map[string][]byte{
		"empty": nil, "zeroes": make([]byte, 4096), "short": good[:100], "other volume": damage(volumeGUIDOffset, 0),
		"no signature": damage(volumeSignature, 0), "unformatted": damage(72+20, 0), "long header": damage(volumeHeaderLength+1, 0xff),
	} {
		if _, err := ReadStore(image); !errors.Is(err, ErrNotStore) {
			t.Errorf("%s: %v, want ErrNotStore", name, err)
		}
		if IsStore(image) {
			t.Errorf("%s: taken for a store", name)
		}
	}
	erased := make([]byte, 4096)
	for i := range erased {
		erased[i] = 0xff
	}
	if !IsStore(erased) || !IsStore(good) {
		t.Error("a store is not recognised")
	}
}

// TestRealStore reads Debian's stores with the keys of a distribution enrolled.
func TestRealStore(t *testing.T) {
	out, err := exec.Command("bash", "../../vmm/guesttest/assets.sh", "ovmf").Output()
	if err != nil {
		t.Fatalf("assets.sh ovmf: %v", err)
	}
	dir := filepath.Join(strings.TrimSpace(string(out)), "usr/share/OVMF")
	image, err := os.ReadFile(filepath.Join(dir, "OVMF_VARS_4M.ms.fd"))
	if err != nil {
		t.Fatal(err)
	}
	vars, err := ReadStore(image)
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]string{}
	for _, v := range vars {
		found[v.Name] = v.Describe()
	}
	for name, want := range map[string]string{"KEK": "Microsoft", "db": "Microsoft", "dbx": "SHA-256", "SecureBootEnable": "1"} {
		if !strings.Contains(found[name], want) {
			t.Errorf("%s is %q, want it to contain %q", name, found[name], want)
		}
	}
}

func FuzzReadStore(f *testing.F) {
	f.Add(newImage(newVariable(variableAdded, "BootOrder", []byte{1, 0}), newVariable(variableAdded, "PK", make([]byte, 100))))
	f.Fuzz(func(t *testing.T, image []byte) {
		vars, err := ReadStore(image)
		if err != nil {
			return
		}
		for _, v := range vars {
			if s := v.Describe(); s != printable(s) {
				t.Errorf("%q is not printable", s)
			}
		}
	})
}
