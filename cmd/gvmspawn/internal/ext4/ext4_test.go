package ext4

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"testing/fstest"
)

// tree fills a directory with what a root file system has, and more.
func tree(t *testing.T) (dir string, big []byte) {
	t.Helper()
	dir = t.TempDir()
	big = make([]byte, 3<<20+5)
	r := rand.NewPCG(1, 2)
	for i := range big {
		big[i] = byte(r.Uint64())
	}
	for _, d := range []string{"boot", "usr/lib", "many"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	files := map[string][]byte{"boot/vmlinuz-1": big, "empty": nil, "usr/lib/x": []byte("x")}
	for i := range 500 {
		files["many/file-with-a-rather-long-name-"+string(rune('a'+i%26))+string(rune('a'+i/26))] = []byte{byte(i)}
	}
	for n, b := range files {
		if err := os.WriteFile(filepath.Join(dir, n), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for n, to := range map[string]string{"lib": "usr/lib", "vmlinuz": "/boot/../boot/vmlinuz-1", "up": "../../../../usr/lib/x", "loop": "loop", "dangling": "/nowhere",
		"long": "/boot/./././././././././././././././././././././././././././././././././vmlinuz-1"} {
		if err := os.Symlink(to, filepath.Join(dir, n)); err != nil {
			t.Fatal(err)
		}
	}
	return dir, big
}

// image makes a file system of the tree with mke2fs.
func image(t *testing.T, dir string, args ...string) []byte {
	t.Helper()
	mke2fs, err := exec.LookPath("mke2fs")
	if err != nil {
		mke2fs = "/usr/sbin/mke2fs"
	}
	path := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(path, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, 16<<20); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(mke2fs, append(append([]string{"-q", "-F", "-d", dir}, args...), path)...).CombinedOutput(); err != nil {
		t.Skipf("needs mke2fs: %v %s", err, out)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestRead(t *testing.T) {
	dir, big := tree(t)
	for name, args := range map[string][]string{"ext2": {"-t", "ext2", "-b", "1024"}, "ext3": {"-t", "ext3"}, "ext4": {"-t", "ext4"}, "ext4, 32 bit, 1 KiB": {"-t", "ext4", "-b", "1024", "-O", "^64bit"}} {
		fsys, err := New(bytes.NewReader(image(t, dir, args...)))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		for _, p := range []string{"boot/vmlinuz-1", "vmlinuz", "long"} {
			if b, err := fs.ReadFile(fsys, p); err != nil || !bytes.Equal(b, big) {
				t.Errorf("%s: %s: %d bytes, %v", name, p, len(b), err)
			}
		}
		for _, p := range []string{"usr/lib/x", "lib/x", "up"} {
			if b, err := fs.ReadFile(fsys, p); err != nil || string(b) != "x" {
				t.Errorf("%s: %s: %q %v", name, p, b, err)
			}
		}
		if e, err := fs.ReadDir(fsys, "many"); err != nil || len(e) != 500 {
			t.Errorf("%s: %d entries, %v", name, len(e), err)
		}
		for _, p := range []string{"dangling", "nope", "empty/x"} {
			if _, err := fsys.Open(p); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("%s: %s: %v", name, p, err)
			}
		}
		if _, err := fsys.Open("loop"); err == nil || errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v", name, err)
		}
		sub, err := fs.Sub(fsys, "boot")
		if err != nil {
			t.Fatal(err)
		}
		if err := fstest.TestFS(sub, "vmlinuz-1"); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestHostile: damaged file systems give errors, in bounded time.
func TestHostile(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "x"), make([]byte, 100000), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("x", filepath.Join(dir, "l")); err != nil {
		t.Fatal(err)
	}
	good := image(t, dir, "-t", "ext4", "-b", "1024")
	var used []int // where something is
	for i, c := range good {
		if c != 0 {
			used = append(used, i)
		}
	}
	r := rand.New(rand.NewPCG(1, 2))
	for range 2000 {
		b := bytes.Clone(good[:1<<20])
		for range 1 + r.IntN(20) {
			b[used[r.IntN(len(used))]%len(b)] = byte(r.Uint32())
		}
		fsys, err := New(bytes.NewReader(b))
		if err != nil {
			continue
		}
		fs.ReadDir(fsys, ".")
		for _, p := range []string{"x", "l"} {
			if f, err := fsys.Open(p); err == nil {
				io.Copy(io.Discard, io.LimitReader(f, 1<<20))
			}
		}
	}
	for _, n := range []int{0, 1024, 1100, 2048} {
		if _, err := New(bytes.NewReader(good[:n])); err == nil && n < 2048 {
			t.Errorf("%d bytes are a file system", n)
		}
	}
}

func FuzzExt4(f *testing.F) {
	b := make([]byte, 8192)
	le.PutUint16(b[1024+0x38:], superMagic)
	le.PutUint32(b[1024:], 100)
	le.PutUint32(b[1024+0x28:], 100)
	le.PutUint32(b[2048+8:], 4)
	le.PutUint16(b[4096+128:], modeDir)
	le.PutUint32(b[4096+128+4:], 1024)
	le.PutUint32(b[4096+128+0x28:], 7)
	f.Add(b, "a/b")
	f.Fuzz(func(t *testing.T, b []byte, name string) {
		fsys, err := New(bytes.NewReader(b))
		if err != nil {
			return
		}
		fs.ReadDir(fsys, ".")
		if f, err := fsys.Open(name); err == nil {
			io.Copy(io.Discard, io.LimitReader(f, 1<<16))
		}
	})
}
