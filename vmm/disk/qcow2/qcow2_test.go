package qcow2

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gvmspawn/gvmspawn/vmm/disk"
	"github.com/gvmspawn/gvmspawn/vmm/disk/disktest"
)

var _ disk.TryImage = (*Image)(nil)

// qemuImg runs qemu-img, the second opinion on every image.
func qemuImg(t testing.TB, args ...string) string {
	t.Helper()
	if _, err := exec.LookPath("qemu-img"); err != nil {
		t.Skip("qemu-img is not installed")
	}
	out, err := exec.Command("qemu-img", args...).CombinedOutput()
	if err != nil {
		t.Fatalf("qemu-img %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// check has qemu-img look for corruption and leaks, and compare the content.
func check(t testing.TB, path string, want []byte) {
	t.Helper()
	qemuImg(t, "check", "-f", "qcow2", path)
	raw := filepath.Join(t.TempDir(), "converted")
	qemuImg(t, "convert", "-f", "qcow2", "-O", "raw", path, raw)
	got, err := os.ReadFile(raw)
	if err != nil || !bytes.Equal(got, want) {
		t.Fatalf("qemu-img reads something else (%d bytes, want %d): %v", len(got), len(want), err)
	}
}

func openImage(t testing.TB, path string) *Image {
	t.Helper()
	m, err := Open(path, disk.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func write(t testing.TB, path string, b []byte) string {
	t.Helper()
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// Random operations on images of every shape; QEMU agrees with the result.
func TestRandom(t *testing.T) {
	const size = 3<<20 + 512
	for _, o := range []string{
		"compat=1.1", "compat=0.10", "cluster_size=512", "cluster_size=4096,refcount_bits=64", "cluster_size=2M",
		"refcount_bits=1", "refcount_bits=2", "refcount_bits=8", "refcount_bits=32", "preallocation=metadata", "preallocation=full", "lazy_refcounts=on",
	} {
		t.Run(o, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "disk.qcow2")
			qemuImg(t, "create", "-q", "-f", "qcow2", "-o", o, path, fmt.Sprint(size))
			want := make([]byte, size)
			for round := range uint64(3) {
				if testing.Short() && round > 0 {
					break
				}
				m := openImage(t, path)
				disktest.Model(t, m, want, 200, round+7)
				if err := m.Close(); err != nil {
					t.Fatal(err)
				}
				check(t, path, want)
			}
		})
	}
}

// An image over a backing file, raw and qcow2, shorter than itself.
func TestBacking(t *testing.T) {
	for _, compat := range []string{"0.10", "1.1"} {
		for _, format := range []string{"raw", "qcow2"} {
			dir := t.TempDir()
			base := disktest.Random(1 << 20)
			raw := write(t, filepath.Join(dir, "base.raw"), base)
			if format == "qcow2" {
				qemuImg(t, "convert", "-f", "raw", "-O", "qcow2", raw, filepath.Join(dir, "base.qcow2"))
			}
			path := filepath.Join(dir, "top.qcow2")
			qemuImg(t, "create", "-q", "-f", "qcow2", "-o", "compat="+compat, "-b", "base."+format, "-F", format, path, "2M")
			m := openImage(t, path)
			want := append(bytes.Clone(base), make([]byte, 1<<20)...)
			disktest.Model(t, m, want, 300, 3)
			if err := m.Discard(0, 512<<10); err != nil {
				t.Error(err)
			}
			after := make([]byte, len(want))
			if err := m.ReadAt([][]byte{after}, 0); err != nil {
				t.Error(err)
			}
			if err := m.Close(); err != nil {
				t.Error(err)
			}
			check(t, path, after)
			if got, _ := os.ReadFile(raw); !bytes.Equal(got, base) {
				t.Error("backing file changed")
			}
		}
	}
}

// A backing file is in the image's directory or below it, however it is named, or
// anywhere if the user says so; what it rests on itself, too.
func TestBackingPlace(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	for _, d := range []string{"images/below", "other"} {
		if err := os.MkdirAll(at(d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range []string{"images/base", "images/below/base", "other/base"} {
		write(t, at(f), bytes.Repeat([]byte(f), 512))
	}
	if err := errors.Join(os.Symlink("images", at("link")), os.Symlink("../base", at("images/below/up"))); err != nil {
		t.Fatal(err)
	}
	if err := Create(at("images/below/middle"), CreateOptions{Size: 4096, Backing: "../../other/base", BackingFormat: "raw"}); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		image, backing, format string
		want                   string // what the file begins with; "" if it is outside
		anywhere               string
	}{
		{"images/top", "base", "raw", "images/base", "images/base"},
		{"images/top", "below/base", "raw", "images/below/base", "images/below/base"},
		{"images/top", "below/../base", "raw", "images/base", "images/base"},
		{"images/top", "below/up", "raw", "images/base", "images/base"},
		{"images/top", at("images/base"), "raw", "images/base", "images/base"},
		{"link/top", at("images/base"), "raw", "images/base", "images/base"},
		{"images/top", at("link/base"), "raw", "", "images/base"},
		{"images/top", "../other/base", "raw", "", "other/base"},
		{"images/top", at("other/base"), "raw", "", "other/base"},
		{"images/top", "below/middle", "qcow2", "", "other/base"},
		{"images/below/top", "../base", "raw", "", "images/base"},
	} {
		path := at(c.image)
		_ = os.Remove(path)
		if err := Create(path, CreateOptions{Size: 4096, Backing: c.backing, BackingFormat: c.format}); err != nil {
			t.Fatal(err)
		}
		for _, anywhere := range []bool{false, true} {
			want := c.want
			if anywhere {
				want = c.anywhere
			}
			m, err := Open(path, disk.Options{AnyBacking: anywhere})
			if want == "" {
				if err == nil || !strings.Contains(err.Error(), "is outside the image's directory") {
					t.Errorf("%s over %s: %v", c.image, c.backing, err)
				}
				continue
			}
			if err != nil {
				t.Errorf("%s over %s: %v", c.image, c.backing, err)
				continue
			}
			got := make([]byte, 512)
			if err := m.ReadAt([][]byte{got}, 0); err != nil || !bytes.HasPrefix(got, []byte(want)) {
				t.Errorf("%s over %s, anywhere %v: %q, %v", c.image, c.backing, anywhere, got[:20], err)
			}
			_ = m.Close()
		}
	}
}

// Compressed clusters are read, and written over.
func TestCompressed(t *testing.T) {
	for _, method := range []string{"zlib", "zstd"} {
		dir := t.TempDir()
		want := bytes.Repeat([]byte("All work and no play makes Jack a dull boy.\n"), 50000)[:2<<20]
		copy(want[300<<10:], disktest.Random(200<<10))
		raw := write(t, filepath.Join(dir, "raw"), want)
		path := filepath.Join(dir, "disk.qcow2")
		qemuImg(t, "convert", "-c", "-f", "raw", "-O", "qcow2", "-o", "compression_type="+method, raw, path)
		m := openImage(t, path)
		got := make([]byte, len(want))
		if err := m.ReadAt([][]byte{got}, 0); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("%s: read differs: %v", method, err)
		}
		disktest.Model(t, m, want, 300, 4)
		if err := m.Close(); err != nil {
			t.Fatal(err)
		}
		check(t, path, want)
	}
}

// Internal snapshots survive what is written after them.
func TestSnapshot(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk.qcow2")
	qemuImg(t, "create", "-q", "-f", "qcow2", "-o", "cluster_size=4096", path, "1M")
	want := make([]byte, 1<<20)
	m := openImage(t, path)
	disktest.Model(t, m, want, 100, 1)
	_ = m.Close()
	before := bytes.Clone(want)
	qemuImg(t, "snapshot", "-c", "one", path)
	m = openImage(t, path)
	disktest.Model(t, m, want, 200, 2)
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	check(t, path, want)
	qemuImg(t, "snapshot", "-a", "one", path)
	check(t, path, before)
}

// An image that was not closed, with lazy refcounts: they are made right.
func TestRebuild(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk.qcow2")
	qemuImg(t, "create", "-q", "-f", "qcow2", "-o", "cluster_size=4096,lazy_refcounts=on", path, "1M")
	want := make([]byte, 1<<20)
	m := openImage(t, path)
	disktest.Model(t, m, want, 100, 1)
	block := m.refs.table[0]
	_ = m.Close()
	qemuImg(t, "snapshot", "-c", "one", path)
	f, _ := os.OpenFile(path, os.O_RDWR, 0)
	_, _ = f.WriteAt(make([]byte, 4096), int64(block)) // all counts lost
	_, _ = f.WriteAt([]byte{0, 0, 0, 0, 0, 0, 0, incompatDirty}, offIncompatible)
	_ = f.Close()
	m = openImage(t, path)
	if m.h.incompatible != 0 {
		t.Error("still dirty")
	}
	disktest.Model(t, m, want, 100, 2)
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	check(t, path, want)
}

// Our own new images.
func TestCreate(t *testing.T) {
	dir := t.TempDir()
	base := disktest.Random(1 << 20)
	write(t, filepath.Join(dir, "base"), base)
	for name, o := range map[string]CreateOptions{
		"plain":    {Size: 1 << 20},
		"prealloc": {Size: 1<<20 + 512, Preallocate: true},
		"backing":  {Size: 1 << 20, Backing: "base", BackingFormat: "raw"},
		"large":    {Size: 8 << 40},
	} {
		path := filepath.Join(dir, name)
		if err := Create(path, o); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		qemuImg(t, "check", "-f", "qcow2", path)
		m := openImage(t, path)
		if o.Size < 1<<30 {
			want := make([]byte, o.Size)
			if o.Backing != "" {
				copy(want, base)
			}
			disktest.Model(t, m, want, 100, 6)
			_ = m.Close()
			check(t, path, want)
			continue
		}
		if err := m.WriteAt([][]byte{base}, o.Size-1<<20); err != nil {
			t.Error(err)
		}
		got := make([]byte, 1<<20)
		if err := m.ReadAt([][]byte{got}, o.Size-1<<20); err != nil || !bytes.Equal(got, base) {
			t.Errorf("end of a large image: %v", err)
		}
		_ = m.Close()
		qemuImg(t, "check", "-f", "qcow2", path)
	}
	for _, o := range []CreateOptions{{}, {Size: 1 << 60}, {Size: 512, Backing: "x"}} {
		if err := Create(filepath.Join(dir, "bad"), o); err == nil {
			t.Errorf("%+v accepted", o)
		}
	}
	if err := Create(filepath.Join(dir, "plain"), CreateOptions{Size: 512}); err == nil {
		t.Error("overwrote an image")
	}
}

// Discarded clusters are used again, so that the file does not grow for ever.
func TestReuse(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk.qcow2")
	if err := Create(path, CreateOptions{Size: 16 << 20}); err != nil {
		t.Fatal(err)
	}
	m := openImage(t, path)
	data := disktest.Random(4 << 20)
	for range 20 {
		for _, op := range []error{
			m.WriteAt([][]byte{data}, 1<<20), m.Flush(), m.Discard(1<<20, 4<<20), m.Flush(),
		} {
			if op != nil {
				t.Fatal(op)
			}
		}
	}
	_ = m.Close()
	check(t, path, make([]byte, 16<<20))
	if st, _ := os.Stat(path); st.Size() > 8<<20 {
		t.Errorf("file grew to %d bytes", st.Size())
	}
}

// Hostile headers: one clear error each, in bounded time and memory.
func TestHostileHeaders(t *testing.T) {
	dir := t.TempDir()
	good := filepath.Join(dir, "good")
	if err := Create(good, CreateOptions{Size: 1 << 20, Backing: "base", BackingFormat: "raw"}); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "base"), make([]byte, 512))
	if err := errors.Join(os.Mkdir(filepath.Join(dir, "below"), 0o755), os.Symlink("/etc/hostname", filepath.Join(dir, "below/out"))); err != nil {
		t.Fatal(err)
	}
	image, _ := os.ReadFile(good)
	be := binary.BigEndian
	u32 := func(off int, v uint32) func([]byte) { return func(b []byte) { be.PutUint32(b[off:], v) } }
	u64 := func(off int, v uint64) func([]byte) { return func(b []byte) { be.PutUint64(b[off:], v) } }
	name := func(s string) func([]byte) {
		return func(b []byte) {
			copy(b[1024:], s)
			be.PutUint32(b[offBackingSize:], uint32(len(s)))
		}
	}
	for want, change := range map[string]func([]byte){
		"not a qcow2 image":          u32(0, 0),
		"version 4":                  u32(offVersion, 4),
		"cluster size 2^63":          u32(offClusterBits, 63),
		"cluster size 2^8":           u32(offClusterBits, 8),
		"encrypted":                  u32(offCryptMethod, 1),
		"L1 table of 4294967295":     u32(offL1Size, 1<<32-1),
		"too small":                  u64(offSize, 1<<50),
		"disk size of 0":             u64(offSize, 0),
		"disk size of 1844":          u64(offSize, 1<<64-1),
		"L1 table at 0x1":            u64(offL1Offset, 1),
		"L1 table at 0xfff":          u64(offL1Offset, 0xfffffffffffe0000),
		"refcount table of 0":        u32(offRefcountTableSize, 0),
		"refcount table of 42949672": u32(offRefcountTableSize, 1<<32-1),
		"refcount table at":          u64(offRefcountTableOffset, 1<<40),
		"refcount width":             u32(offRefcountOrder, 7),
		"header length":              u32(offHeaderLength, 1<<31),
		"marked as corrupt":          u64(offIncompatible, incompatCorrupt),
		"external data":              u64(offIncompatible, incompatDataFile),
		"extended L2":                u64(offIncompatible, incompatExtendedL2),
		"unknown incompatible":       u64(offIncompatible, 1<<40),
		"compression method":         func(b []byte) { u32(offHeaderLength, 112)(b); b[offCompressionType] = 9 },
		"backing file name":          u64(offBackingOffset, 1<<40),
		"header extension":           u32(headerV3+4, 1<<31),
		"NUL":                        name("a\x00b"),
		"not a plain path":           name("json:{}"),
		"back to itself":             name("bad"),
		"is a directory":             name("below"),
		"no such file":               name("nonexistent"),
		"../base is outside":         name("../base"),
		"/etc/hostname is outside":   name("/etc/hostname"),
		"below/out is outside":       name("below/out"),
		"below/../../x is outside":   name("below/../../x"),
		"never guessed":              u32(headerV3, 0x12345678),
		"unsupported format":         func(b []byte) { copy(b[headerV3+8:], "vdi") },
	} {
		b := bytes.Clone(image)
		change(b)
		path := filepath.Join(dir, "bad")
		_ = os.Remove(path)
		write(t, path, b)
		m, err := Open(path, disk.Options{})
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), path) {
			t.Errorf("want %q, got: %v", want, err)
		}
		if err == nil {
			_ = m.Close()
		}
	}
}

// Tables that point at metadata or nowhere: errors, and the metadata stays whole.
func TestHostileTables(t *testing.T) {
	for _, entry := range []uint64{0, 0x10000, 0x20000, 0x30000, 0x50000, 0x123 << 9, 1 << 50} {
		path := filepath.Join(t.TempDir(), "disk")
		if err := Create(path, CreateOptions{Size: 1 << 20}); err != nil {
			t.Fatal(err)
		}
		m := openImage(t, path)
		if err := m.WriteAt([][]byte{make([]byte, 65536)}, 0); err != nil {
			t.Fatal(err)
		}
		l2 := m.l1[0] & offsetMask
		_ = m.Close()
		f, _ := os.OpenFile(path, os.O_RDWR, 0)
		var b [8]byte
		binary.BigEndian.PutUint64(b[:], entry|flagCopied)
		_, _ = f.WriteAt(b[:], int64(l2))
		_ = f.Close()
		image, _ := os.ReadFile(path)
		m = openImage(t, path)
		_ = m.WriteAt([][]byte{bytes.Repeat([]byte{0xee}, 65536)}, 0)
		_ = m.ReadAt([][]byte{make([]byte, 65536)}, 0)
		_ = m.Close()
		after, _ := os.ReadFile(path)
		if !bytes.Equal(after[:65536], image[:65536]) || bytes.Contains(after[:0x40000], bytes.Repeat([]byte{0xee}, 100)) {
			t.Errorf("entry %#x: the guest wrote metadata", entry)
		}
	}
}

func FuzzOpen(f *testing.F) {
	path := filepath.Join(f.TempDir(), "seed")
	if err := Create(path, CreateOptions{Size: 1 << 20}); err != nil {
		f.Fatal(err)
	}
	b, _ := os.ReadFile(path)
	f.Add(b[:1024], b[0x10000:0x10010], []byte{0, 1})
	f.Fuzz(func(t *testing.T, head, table, l1 []byte) {
		image := make([]byte, 0x50000)
		copy(image, head)
		copy(image[0x10000:], table)
		copy(image[0x20000:], table)
		copy(image[0x30000:], l1)
		copy(image[0x40000:], l1)
		m, err := Open(write(t, filepath.Join(t.TempDir(), "disk"), image), disk.Options{})
		if err != nil {
			return
		}
		buf := make([]byte, 4096)
		for _, off := range []uint64{0, 65536, m.Size() - 512} {
			n := min(4096, m.Size()-min(off, m.Size()))
			if off < m.Size() {
				_ = m.ReadAt([][]byte{buf[:n]}, off)
				_ = m.WriteAt([][]byte{buf[:n]}, off)
				_ = m.Discard(off, n)
			}
		}
		_ = m.Close()
	})
}
