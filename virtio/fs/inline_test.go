package fs

import (
	"bytes"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gvmspawn/gvmspawn/virtio/virtq"
)

// TestQuickRequests: a CPU's thread serves what does not wait, and leaves the
// rest without having done anything.
func TestQuickRequests(t *testing.T) {
	c, dir := newShare(t, nil)
	path := filepath.Join(dir, "f")
	put(t, path, string(bytes.Repeat([]byte("contents"), 1<<15)))
	node := c.node("f")
	fh := view[openOut](c.must(opOpen, node, raw(openIn{}))).FH
	c.r.w = &worker{q: &queue{dev: c.dev}, here: true}
	try := func(op opcode, args ...[]byte) bool {
		body := bytes.Join(args, nil)
		b := append(raw(inHeader{Len: uint32(inHeaderSize + len(body)), Opcode: op, Unique: 2, NodeID: node}), body...)
		c.r.chain = virtq.Chain{
			Readable: []virtq.Buffer{{Bytes: b}}, ReadableLen: uint64(len(b)),
			Writable: []virtq.Buffer{{Bytes: c.out}}, WritableLen: uint64(len(c.out)),
		}
		n, ok := c.r.try()
		if !ok && n != 0 {
			t.Errorf("opcode %d was left and answered", op)
		}
		return ok
	}
	read := raw(readIn{FH: fh, Offset: 8, Size: 100000})
	if !try(opGetattr, raw(getattrIn{})) {
		t.Error("GETATTR was left to the worker")
	}
	if !try(opSetattr, raw(setattrIn{Valid: fattrMode, Mode: 0o600})) {
		t.Error("chmod was left to the worker")
	}
	if try(opSetattr, raw(setattrIn{Valid: fattrMode | fattrSize, Mode: 0o644, Size: 3})) {
		t.Error("a truncation was served")
	}
	if st, err := os.Stat(path); err != nil || st.Size() != 8<<15 || st.Mode() != 0o600 {
		t.Errorf("%v, %v", st, err)
	}
	if try(opOpen, raw(openIn{Flags: unix.O_WRONLY | unix.O_TRUNC})) {
		t.Error("an open that truncates was served")
	}
	for _, op := range []opcode{opFsync, opSetlkw, opFallocate, opInit, opcodes, 1 << 20} {
		if try(op, make([]byte, 64)) {
			t.Errorf("opcode %d was served", op)
		}
	}
	if try(opWrite, make([]byte, quickWrite)) {
		t.Error("a big write was served")
	}
	if _, err := os.ReadFile(path); err != nil {
		t.Fatal(err)
	}
	if !try(opRead, read) || !bytes.Equal(c.out[outHeaderSize:][:8], []byte("contents")) {
		t.Log("this file system cannot read without waiting")
	}
	c.dev.cfg.InlineRead = 4096
	if try(opRead, read) {
		t.Error("a read longer than InlineRead was served")
	}
	c.dev.cfg.InlineRead = 0
	f, err := os.Open(path)
	must(t, err)
	defer f.Close()
	must(t, f.Sync())
	must(t, unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED))
	if !try(opRead, read) { // it is in the page cache no more
		c.r.w = nil
		c.r.serve()
	}
	if !bytes.Equal(c.out[outHeaderSize:][:100000], bytes.Repeat([]byte("contents"), 12500)) {
		t.Error("wrong data")
	}
}

// TestLocal: CPUs serve requests only where nothing can wait for a network or
// another process: neither the share's file system nor one that is mounted below it,
// before the start or while the guest runs.
func TestLocal(t *testing.T) {
	remote := mount(t, Config{Tag: "remote", Path: t.TempDir()}) // FUSE stands for a network's file system
	bind := func(dir string) {
		t.Helper()
		must(t, os.Mkdir(filepath.Join(dir, "mnt"), 0o755))
		must(t, unix.Mount(remote, filepath.Join(dir, "mnt"), "", unix.MS_BIND, ""))
		t.Cleanup(func() { unix.Unmount(filepath.Join(dir, "mnt"), unix.MNT_DETACH) })
	}
	local, dir := newShare(t, nil)
	if !local.dev.local.Load() {
		t.Skip("the temporary directory is on no known file system")
	}
	if c, _ := newShare(t, func(cfg *Config) { cfg.Path = remote }); c.dev.local.Load() {
		t.Error("a share on FUSE counts as local")
	}
	if c, _ := newShare(t, func(cfg *Config) {
		cfg.Path = t.TempDir()
		bind(cfg.Path)
	}); c.dev.local.Load() {
		t.Error("a share with FUSE mounted in it counts as local")
	}
	bind(dir)
	local.node("mnt")
	if local.dev.local.Load() {
		t.Error("a share in which FUSE was mounted still counts as local")
	}
	if q := (&queue{dev: local.dev}); !q.inline() {
		t.Error("a CPU serves a share that is not local")
	}
}

// TestRemoteBelow: mountinfo's lines, with escapes.
func TestRemoteBelow(t *testing.T) {
	const table = `20 1 8:1 / / rw - ext4 /dev/sda1 rw
21 20 0:5 / /srv/a\040tree/proc rw,nosuid shared:5 - proc proc rw
22 20 0:40 / /srv/a\040tree/net rw - nfs4 server:/x rw
23 20 0:41 / /srv/a\040tree2 rw - cifs //server/x rw
`
	for _, tt := range []struct {
		mount uint64
		path  string
		want  bool
	}{{20, "/srv/a tree", true}, {20, "/srv/a tree/net", true}, {20, "/", true}, {20, "/srv/a tree/proc", false}, {20, "/srv/a", false}, {77, "/", false}} {
		if got := remoteBelow([]byte(table), tt.mount, tt.path); got != tt.want {
			t.Errorf("mount %d, %s: %t, want %t", tt.mount, tt.path, got, tt.want)
		}
	}
}

// TestPatience: a kind of request that made a CPU wait twice is left to the worker
// for a while; one that only took long is not.
func TestPatience(t *testing.T) {
	var p patience
	slow := func(wait bool) bool {
		a, ok := p.begin()
		if !ok {
			return false
		}
		if wait {
			time.Sleep(inlineSlow + time.Millisecond)
		} else {
			a.begin -= 2 * inlineSlow
		}
		p.end(a)
		return true
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	for i, wait := range []bool{false, false, true} {
		if !slow(wait) {
			t.Fatalf("request %d was left", i)
		}
	}
	if _, ok := p.begin(); ok {
		t.Error("a request after one that waited was served")
	}
	time.Sleep(time.Until(started.Add(p.rest)))
	first := p.rest
	if !slow(true) || p.rest-first < 3*inlineSlow {
		t.Errorf("a rest until %v, and one until %v", first, p.rest)
	}
}
