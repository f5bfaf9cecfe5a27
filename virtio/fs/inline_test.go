package fs

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

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
	for _, op := range []opcode{opFsync, opSetlkw, opFallocate, opUnlink, opInit, opcodes, 1 << 20} {
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
