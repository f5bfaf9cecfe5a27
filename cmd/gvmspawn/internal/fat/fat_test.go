package fat

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"testing/fstest"
)

// image makes a file system with dosfstools and mtools.
func image(t *testing.T, bits int, size int64, big []byte) []byte {
	t.Helper()
	dir := t.TempDir()
	path := filepath.Join(dir, "image")
	run := func(name string, args ...string) {
		t.Helper()
		if p, err := exec.LookPath(name); err == nil {
			name = p
		} else {
			name = "/usr/sbin/" + name
		}
		c := exec.Command(name, args...)
		c.Env = append(os.Environ(), "MTOOLS_SKIP_CHECK=1")
		if out, err := c.CombinedOutput(); err != nil {
			t.Skipf("needs dosfstools and mtools: %v %s", err, out)
		}
	}
	for n, b := range map[string][]byte{"image": nil, "big": big, "small": []byte("small")} {
		if err := os.WriteFile(filepath.Join(dir, n), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
	run("mkfs.vfat", "-F", strconv.Itoa(bits), path)
	run("mmd", "-i", path, "::/EFI", "::/EFI/Linux", "::/loader", "::/loader/entries")
	run("mcopy", "-i", path, filepath.Join(dir, "big"), "::/EFI/Linux/A kernel with a long näme.efi")
	run("mcopy", "-i", path, filepath.Join(dir, "small"), "::/loader/entries/debian.conf")
	run("mcopy", "-i", path, filepath.Join(dir, "small"), "::/SHORT.TXT")
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestRead(t *testing.T) {
	big := make([]byte, 1<<20+7)
	for i := range big {
		big[i] = byte(i * 7 >> 3)
	}
	for bits, size := range map[int]int64{12: 4 << 20, 16: 32 << 20, 32: 64 << 20} {
		fsys, err := New(bytes.NewReader(image(t, bits, size, big)))
		if err != nil {
			t.Errorf("FAT%d: %v", bits, err)
			continue
		}
		for _, p := range []string{"EFI/Linux/A kernel with a long näme.efi", "efi/linux/a KERNEL with a long näme.EFI"} {
			if b, err := fs.ReadFile(fsys, p); err != nil || !bytes.Equal(b, big) {
				t.Errorf("FAT%d: %d bytes, %v", bits, len(b), err)
			}
		}
		for _, p := range []string{"loader/entries/debian.conf", "SHORT.TXT", "short.txt"} {
			if b, err := fs.ReadFile(fsys, p); err != nil || string(b) != "small" {
				t.Errorf("FAT%d: %s: %q %v", bits, p, b, err)
			}
		}
		for _, p := range []string{"nope", "SHORT.TXT/x", "EFI/nope"} {
			if _, err := fsys.Open(p); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("FAT%d: %s: %v", bits, p, err)
			}
		}
		if err := fstest.TestFS(fsys, "loader/entries/debian.conf"); err != nil {
			t.Errorf("FAT%d: %v", bits, err)
		}
	}
}

// TestHostile: damaged file systems give errors, in bounded time.
func TestHostile(t *testing.T) {
	good := image(t, 12, 1<<20, make([]byte, 10000))
	r := rand.New(rand.NewPCG(1, 2))
	for range 2000 {
		b := bytes.Clone(good[:256<<10])
		for range 1 + r.IntN(20) {
			b[r.IntN(32<<10)] = byte(r.Uint32())
		}
		fsys, err := New(bytes.NewReader(b))
		if err != nil {
			continue
		}
		fs.ReadDir(fsys, ".")
		if f, err := fsys.Open("EFI/Linux/A kernel with a long näme.efi"); err == nil {
			io.Copy(io.Discard, f)
		}
	}
}

func FuzzFAT(f *testing.F) {
	b := make([]byte, 8192)
	le.PutUint16(b[11:], 512)
	b[13], b[16] = 1, 1
	le.PutUint16(b[14:], 1)
	le.PutUint16(b[17:], 16)
	le.PutUint16(b[19:], 16)
	le.PutUint16(b[22:], 1)
	b[510], b[511] = 0x55, 0xaa
	copy(b[1024:], "A       TXT")
	le.PutUint16(b[1024+26:], 2)
	le.PutUint32(b[1024+28:], 100)
	f.Add(b, "a.txt")
	f.Fuzz(func(t *testing.T, b []byte, name string) {
		fsys, err := New(bytes.NewReader(b))
		if err != nil {
			return
		}
		fs.ReadDir(fsys, ".")
		if f, err := fsys.Open(name); err == nil {
			io.Copy(io.Discard, f)
		}
	})
}
