package disk

import (
	"bytes"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// engines are all ways to carry requests out.
var engines = map[string]Engine{"pool": EnginePool, "io_uring": EngineURing}

// rig is a drive with one queue.
type rig struct {
	*Drive
	t    *testing.T
	q    *Queue
	done chan error
}

func newRig(t *testing.T, img Image, e Engine) *rig {
	d := NewDrive(Config{Image: img, Engine: e, Log: slog.New(slog.DiscardHandler)})
	r := &rig{Drive: d, t: t, q: d.NewQueue(func() {}), done: make(chan error, QueueDepth)}
	t.Cleanup(func() { r.q.Close(); d.Close() })
	return r
}

// do carries a request out as if others waited, so that it may go elsewhere.
func (r *rig) do(op Op, off uint64, bufs ...[]byte) error {
	r.t.Helper()
	req := &Request{Op: op, Off: off, Bufs: bufs, N: Length(bufs), Done: func(err error) { r.done <- err }}
	r.q.Start(req, true)
	r.q.Submit()
	select {
	case err := <-r.done:
		return err
	case <-time.After(20 * time.Second):
		r.t.Fatalf("%v is never done", op)
		return nil
	}
}

// TestFull: a host without space is an error for the writes that need some,
// and for no other request; when there is space again they work.
func TestFull(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=2m"); err != nil {
		t.Skipf("cannot mount a small file system: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	for name, e := range engines {
		t.Run(name, func(t *testing.T) { full(t, filepath.Join(dir, "disk"), filepath.Join(dir, "ballast"), e) })
	}
}

func full(t *testing.T, path, ballast string, e Engine) {
	if err := errors.Join(os.WriteFile(path, nil, 0o600), os.Truncate(path, 64<<20), os.WriteFile(ballast, make([]byte, 1<<20), 0o600)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Remove(path) })
	img, err := OpenRaw(path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	r := newRig(t, img, e)
	data := bytes.Repeat([]byte{7}, 256<<10)
	n := uint64(0)
	for ; err == nil && n < 64; n++ {
		err = r.do(OpWrite, n*uint64(len(data)), data)
	}
	if !errors.Is(err, unix.ENOSPC) {
		t.Errorf("%v after %d writes", err, n)
	}
	got := make([]byte, len(data))
	if err := r.do(OpRead, 0, got); err != nil || !bytes.Equal(got, data) {
		t.Errorf("read on a full host: %v", err)
	}
	if err := r.do(OpFlush, 0); err != nil {
		t.Errorf("flush on a full host: %v", err)
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	if err := r.do(OpWrite, 32<<20, data); err != nil {
		t.Errorf("write with space again: %v", err)
	}
}

// TestTruncated: reads beyond the end of a file that somebody cut are errors,
// alone and across the new end; what is left can be read.
func TestTruncated(t *testing.T) {
	for name, e := range engines {
		for _, direct := range []bool{false, true} {
			path := tempImage(t, 1<<20)
			img, err := OpenRaw(path, Options{Direct: direct})
			if err != nil {
				t.Log(err) // a file system without direct I/O
				continue
			}
			r := newRig(t, img, e)
			if err := os.Truncate(path, 512<<10); err != nil {
				t.Fatal(err)
			}
			b, err := unix.Mmap(-1, 0, 64<<10, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
			if err != nil {
				t.Fatal(err)
			}
			for _, off := range []uint64{512 << 10, 512<<10 - 4096} {
				if err := r.do(OpRead, off, b[:8192]); !errors.Is(err, io.ErrUnexpectedEOF) {
					t.Errorf("%s, direct %v: read at %d: %v", name, direct, off, err)
				}
			}
			if err := r.do(OpRead, 0, b); err != nil {
				t.Errorf("%s, direct %v: read of what is left: %v", name, direct, err)
			}
			if err := r.do(OpWrite, 768<<10, b); err != nil {
				t.Errorf("%s, direct %v: write beyond: %v", name, direct, err)
			}
			t.Cleanup(func() { unix.Munmap(b) })
		}
	}
}

// broken is an image whose device has gone.
type broken struct{ Image }

func (broken) ReadAt([][]byte, uint64) error  { return unix.EIO }
func (broken) WriteAt([][]byte, uint64) error { return unix.ENXIO }
func (broken) Flush() error                   { return unix.EIO }
func (broken) Discard(_, _ uint64) error      { return unix.EIO }
func (broken) Close() error                   { return nil }
func (broken) ReadOnly() bool                 { return false }

// TestVanished: the errors of a device that has gone reach each request, and
// the queue goes on.
func TestVanished(t *testing.T) {
	r := newRig(t, broken{}, EngineAuto)
	for op, want := range map[Op]error{OpRead: unix.EIO, OpWrite: unix.ENXIO, OpFlush: unix.EIO} {
		for range 100 {
			if err := r.do(op, 0, make([]byte, 512)); err != want {
				t.Fatalf("%v: %v", op, err)
			}
		}
	}
	if err := r.Flush(); err != unix.EIO {
		t.Error(err)
	}
}
