package disk

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/gvmspawn/gvmspawn/vmm/disk/disktest"
)

func tempImage(t testing.TB, size int64) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk.raw")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestRaw(t *testing.T) {
	path := tempImage(t, 1<<20)
	img, err := OpenRaw(path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer img.Close()
	var bufs [][]byte
	var want []byte
	for i := range 200 { // more than one vector
		b := bytes.Repeat([]byte{byte(i)}, 128+i)
		bufs = append(bufs, b)
		want = append(want, b...)
	}
	if err := img.WriteAt(bufs, 4096); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(want))
	if err := img.ReadAt([][]byte{got[:1000], got[1000:1001], got[1001:]}, 4096); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("read back: %v", err)
	}
	if err := img.TryReadAt([][]byte{got}, 4096); err != nil && err != ErrWouldBlock && err != ErrCannotTry {
		t.Error(err)
	}
	if err := img.WriteZeroes(4096, 8192, true); err != nil {
		t.Error(err)
	}
	if err := img.WriteZeroes(12288, 512, false); err != nil {
		t.Error(err)
	}
	if err := img.Discard(16384, 4096); err != nil {
		t.Error(err)
	}
	if err := img.ReadAt([][]byte{got[:8704]}, 4096); err != nil || !bytes.Equal(got[:8704], make([]byte, 8704)) {
		t.Errorf("after WriteZeroes: %v", err)
	}
	if err := img.Flush(); err != nil {
		t.Error(err)
	}
	// A truncated file is an error, not old data.
	if err := os.Truncate(path, 8192); err != nil {
		t.Fatal(err)
	}
	if err := img.ReadAt([][]byte{make([]byte, 8192)}, 4096); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("read of a truncated file: %v", err)
	}
}

// Direct I/O, with buffers of every alignment.
func TestDirect(t *testing.T) {
	img, err := OpenRaw(tempImage(t, 4<<20), Options{Direct: true})
	if err != nil {
		t.Skip(err)
	}
	defer img.Close()
	disktest.Model(t, img, make([]byte, 4<<20), 300, 2)
	page := disktest.Aligned(t, 8192)
	if err := img.WriteAt([][]byte{page[:4096], page[4096:]}, 4096); err != nil {
		t.Error(err)
	}
	if !aligned([][]byte{page}, 512) || aligned([][]byte{page[1:]}, 0) || aligned([][]byte{page}, 100) || aligned([][]byte{page[:100]}, 0) {
		t.Error("alignment judged wrongly")
	}
}

// Two machines cannot write one image; two can read it.
func TestLock(t *testing.T) {
	path := tempImage(t, 4096)
	a, err := OpenRaw(path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range []Options{{}, {ReadOnly: true}} {
		if _, err := OpenRaw(path, o); err == nil || !strings.Contains(err.Error(), "in use") || !strings.Contains(err.Error(), path) {
			t.Errorf("%+v: %v", o, err)
		}
	}
	_ = a.Close()
	a, err = OpenRaw(path, Options{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	b, err := OpenRaw(path, Options{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := b.WriteAt([][]byte{make([]byte, 512)}, 0); err == nil {
		t.Error("wrote a read-only image")
	}
	_, _ = a.Close(), b.Close()
}

// Bad images: one clear sentence that names the file.
func TestOpenErrors(t *testing.T) {
	dir := t.TempDir()
	fifo := filepath.Join(dir, "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	odd := filepath.Join(dir, "odd")
	_ = os.WriteFile(odd, make([]byte, 513), 0o600)
	empty := filepath.Join(dir, "empty")
	_ = os.WriteFile(empty, nil, 0o600)
	for path, want := range map[string]string{
		dir:                        "directory",
		fifo:                       "neither a regular file nor a block device",
		odd:                        "multiple of 512",
		empty:                      "0 bytes",
		filepath.Join(dir, "none"): "no such file",
		"/dev/null":                "neither",
	} {
		_, err := OpenRaw(path, Options{})
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v", path, err)
		}
	}
}

func BenchmarkRaw4K(b *testing.B) {
	path := tempImage(b, 64<<20)
	img, err := OpenRaw(path, Options{})
	if err != nil {
		b.Fatal(err)
	}
	defer img.Close()
	bufs := [][]byte{make([]byte, 4096)}
	for off := uint64(0); off < 64<<20; off += 4096 {
		_ = img.WriteAt(bufs, off)
	}
	off := func(i int) uint64 { return uint64(i*7919) % (16 << 10) << 12 }
	b.Run("read", func(b *testing.B) {
		b.ReportAllocs()
		for i := range b.N {
			if err := img.ReadAt(bufs, off(i)); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("tryread", func(b *testing.B) {
		for i := range b.N {
			if err := img.TryReadAt(bufs, off(i)); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("write", func(b *testing.B) {
		for i := range b.N {
			if err := img.WriteAt(bufs, off(i)); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("trywrite", func(b *testing.B) {
		for i := range b.N {
			if err := img.TryWriteAt(bufs, off(i)); err == ErrCannotTry {
				b.Skip("this file system cannot try a write")
			} else if err != nil {
				b.Fatal(err)
			}
		}
	})
}
