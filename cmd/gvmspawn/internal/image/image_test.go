package image

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"os"
	"path/filepath"
	"testing"
)

// TestVersions: the examples of the UAPI Group's Version Format Specification.
func TestVersions(t *testing.T) {
	for _, c := range []struct{ older, newer string }{
		{"122.1", "123~rc1-1"}, {"123~rc1-1", "123"}, {"123", "123-a"}, {"123-a", "123-a.1"}, {"123-a.1", "123-1"},
		{"123-1", "123-1.1"}, {"123-1.1", "123^post1"}, {"123^post1", "123.a-1"}, {"123.a-1", "123.1-1"}, {"123.1-1", "123a-1"}, {"123a-1", "124-1"},
		{"1.9", "1.10"}, {"", "1"}, {"6.1.0-9", "6.1.0-10"}, {"a", "b"},
	} {
		if CompareVersions(c.older, c.newer) >= 0 || CompareVersions(c.newer, c.older) <= 0 {
			t.Errorf("%q is not older than %q", c.older, c.newer)
		}
	}
	for _, c := range [][2]string{{"1", "1"}, {"1_", "1"}, {"01", "1"}} {
		if CompareVersions(c[0], c[1]) != 0 {
			t.Errorf("%q and %q differ", c[0], c[1])
		}
	}
}

func FuzzVersions(f *testing.F) {
	f.Add("1.2~a", "1.2-b")
	f.Fuzz(func(t *testing.T, a, b string) {
		x, y := CompareVersions(a, b), CompareVersions(b, a)
		if (x < 0) != (y > 0) || (x == 0) != (y == 0) {
			t.Errorf("%q %q: %d %d", a, b, x, y)
		}
	})
}

func TestLookup(t *testing.T) {
	one, two := t.TempDir(), t.TempDir()
	for _, dir := range []string{"tree", "versions.raw.v"} {
		if err := os.Mkdir(filepath.Join(two, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, file := range []string{"disk.raw", "versions.raw.v/versions_1.9.raw", "versions.raw.v/versions_1.10.raw", "versions.raw.v/versions_1.11+0-3.raw", "versions.raw.v/other_2.raw"} {
		if err := os.WriteFile(filepath.Join(two, file), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("/dev/null", filepath.Join(two, "odd")); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]Image{"tree": {filepath.Join(two, "tree"), true}, "disk": {filepath.Join(two, "disk.raw"), false},
		"versions": {filepath.Join(two, "versions.raw.v/versions_1.10.raw"), false}} {
		if got, err := Lookup(name, []string{one, two}); got != want || err != nil {
			t.Errorf("%s: %v %v", name, got, err)
		}
	}
	if _, err := Lookup("nope", []string{one, two}); err == nil || err.Error() != "no image for machine 'nope'" {
		t.Error(err)
	}
	if _, err := Lookup("odd", []string{one, two}); err == nil {
		t.Error("a device node is an image")
	}
}

func TestName(t *testing.T) {
	host, _ := os.Hostname()
	for im, want := range map[Image]string{{"/a/x86_64", true}: "x8664", {"/a/debian.raw", false}: "debian", {"/a/debian.raw", true}: "debian.raw", {"/", true}: host, {"/a/___", true}: ""} {
		if got, err := Name(im); got != want && im.Path != "/" || (err != nil) != (want == "") {
			t.Errorf("%v: %q %v", im, got, err)
		}
	}
}

// table builds a disk with the given partitions.
func table(entries ...[]byte) []byte {
	d := make([]byte, 64<<10)
	array := d[1024 : 1024+128*128]
	for i, e := range entries {
		copy(array[i*128:], e)
	}
	h := d[512:604]
	copy(h, "EFI PART")
	le := binary.LittleEndian
	le.PutUint32(h[12:], 92)
	le.PutUint64(h[72:], 2)
	le.PutUint32(h[80:], 128)
	le.PutUint32(h[84:], 128)
	le.PutUint32(h[88:], crc32.ChecksumIEEE(array))
	le.PutUint32(h[16:], crc32.ChecksumIEEE(h))
	return d
}

func entry(typ [16]byte, uuid byte, flags uint64, label string) []byte {
	e := make([]byte, 128)
	copy(e, typ[:])
	e[16] = uuid
	binary.LittleEndian.PutUint64(e[32:], 40)
	binary.LittleEndian.PutUint64(e[40:], 47)
	binary.LittleEndian.PutUint64(e[48:], flags)
	for i, c := range label {
		e[56+2*i] = byte(c)
	}
	return e
}

var (
	rootType    = [16]byte{0xe3, 0xbc, 0x68, 0x4f, 0xcd, 0xe8, 0xb1, 0x4d, 0x96, 0xe7, 0xfb, 0xca, 0xf9, 0x84, 0xb7, 0x09}
	usrType     = [16]byte{0x0c, 0x68, 0x84, 0x84, 0x21, 0x95, 0xc6, 0x48, 0x9c, 0x11, 0xb0, 0x72, 0x06, 0x56, 0xf6, 0x9e}
	genericType = [16]byte{0xaf, 0x3d, 0xc6, 0x0f, 0x83, 0x84, 0x72, 0x47, 0x8e, 0x79, 0x3d, 0x69, 0xd8, 0x47, 0x7d, 0xe4}
)

// TestRootArgument: vmspawn.md §2.1, step 3.
func TestRootArgument(t *testing.T) {
	id := func(n string) string { return "000000" + n + "-0000-0000-0000-000000000000" }
	for name, c := range map[string]struct {
		disk []byte
		want string
		err  error
	}{
		"root":    {table(entry(genericType, 1, 0, "x"), entry(usrType, 2, 0, "usr"), entry(rootType, 3, 0, "root")), "root=PARTUUID=" + id("03"), nil},
		"usr":     {table(entry(usrType, 2, 0, "usr"), entry(rootType, 3, flagNoAuto, "root")), "mount.usr=PARTUUID=" + id("02"), nil},
		"generic": {table(entry(genericType, 1, 0, "x")), "", ErrNoRoot},
		"none":    {make([]byte, 8192), "", ErrNoTable},
		"short":   {make([]byte, 100), "", ErrNoTable},
	} {
		parts, err := ReadTable(bytes.NewReader(c.disk))
		got := ""
		if err == nil {
			got, _, err = RootArgument(parts)
		}
		if got != c.want || !errors.Is(err, c.err) {
			t.Errorf("%s: %q %v", name, got, err)
		}
	}
	parts, err := ReadTable(bytes.NewReader(table(entry(rootType, 3, flagReadOnly, "Name"))))
	if err != nil || len(parts) != 1 {
		t.Fatal(parts, err)
	}
	if p := parts[0]; p.Label != "Name" || !p.ReadOnly || p.Start != 40*512 || p.Size != 8*512 || p.Number != 1 {
		t.Errorf("%+v", p)
	}
}

// FuzzTable: an image is the guest's to write.
func FuzzTable(f *testing.F) {
	f.Add(table(entry(rootType, 3, 0, "root"))[:2048], uint32(128), uint64(2))
	f.Fuzz(func(t *testing.T, d []byte, count uint32, lba uint64) {
		ReadTable(bytes.NewReader(d))
		if len(d) >= 604 { // with good checksums, too
			h := d[512:604]
			binary.LittleEndian.PutUint32(h[80:], count)
			binary.LittleEndian.PutUint64(h[72:], lba)
			clear(h[16:20])
			binary.LittleEndian.PutUint32(h[16:], crc32.ChecksumIEEE(h))
			ReadTable(bytes.NewReader(d))
		}
	})
}
