package fs

import (
	"bytes"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/gvmspawn/gvmspawn/virtio/virtiotest"
	"github.com/gvmspawn/gvmspawn/virtio/virtq"
	"github.com/gvmspawn/gvmspawn/virtio/virtq/virtqtest"
)

// hot are the requests that must not allocate, on a share that has a file of 1 MiB.
func hot(t testing.TB, c *client, dir string) map[string][]byte {
	put(t, filepath.Join(dir, "f"), string(make([]byte, 1<<20)))
	put(t, filepath.Join(dir, "g"), "")
	f := c.node("f")
	rd, wr := c.open(f, unix.O_RDONLY).FH, c.open(f, unix.O_RDWR).FH
	g := c.node("g")
	ap := c.open(g, unix.O_WRONLY).FH
	d := c.opendir(rootID)
	m := func(op opcode, node uint64, args ...[]byte) []byte {
		return bytes.Join(message(op, node, 1, args...), nil)
	}
	return map[string][]byte{
		"lookup":      m(opLookup, rootID, str("f")),
		"lookup-miss": m(opLookup, rootID, str("none")),
		"getattr":     m(opGetattr, f, raw(getattrIn{})),
		"read-4K":     m(opRead, f, raw(readIn{FH: rd, Offset: 8192, Size: 4096})),
		"read-128K":   m(opRead, f, raw(readIn{FH: rd, Offset: 8192, Size: 128 << 10})),
		"read-end":    m(opRead, f, raw(readIn{FH: rd, Offset: 1<<20 - 100, Size: 4096})),
		"write-4K":    m(opWrite, f, raw(writeIn{FH: wr, Offset: 8192, Size: 4096}), make([]byte, 4096)),
		"write-128K":  m(opWrite, g, raw(writeIn{FH: ap, Offset: 0, Size: 128 << 10}), make([]byte, 128<<10)),
		"setattr":     m(opSetattr, f, raw(setattrIn{Valid: fattrMode | fattrMtime, Mode: 0o644})),
		"getxattr":    m(opGetxattr, f, raw(getxattrIn{Size: 100}), str("security.capability")),
		"readdir":     m(opReaddir, rootID, raw(readIn{FH: d, Size: 4096})),
		"readdirplus": m(opReaddirplus, rootID, raw(readIn{FH: d, Size: 4096})),
		"statfs":      m(opStatfs, rootID),
		"access":      m(opAccess, f, raw(accessIn{Mask: 4})),
	}
}

// set prepares the request, with the buffers in pages as a driver's are.
func (c *client) set(in []byte) {
	c.r.chain.Readable, c.r.chain.ReadableLen = pieces(c.r.chain.Readable[:0], in, inHeaderSize, writeInSize), uint64(len(in))
	c.r.chain.Writable, c.r.chain.WritableLen = pieces(c.r.chain.Writable[:0], c.out[:outHeaderSize+128<<10], outHeaderSize), outHeaderSize+128<<10
}

// Allocations per request are 0, apart from making and dropping inodes and handles.
func TestRequestsDoNotAllocate(t *testing.T) {
	c, dir := newShare(t, nil)
	for name, in := range hot(t, c, dir) {
		c.set(in)
		if n := testing.AllocsPerRun(200, func() { c.r.serve() }); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

// Neither does the way through the queue.
func TestQueueDoesNotAllocate(t *testing.T) {
	m, _, dir := machine(t, nil, virtiotest.Options{})
	put(t, filepath.Join(dir, "f"), "x")
	for name, msg := range map[string][][]byte{
		"getattr": message(opGetattr, rootID, 1, raw(getattrIn{})),
		"lookup":  message(opLookup, rootID, 1, str("f")),
	} {
		again := m.Queue[1].Again(descriptors(m, msg)...)
		again()
		if n := testing.AllocsPerRun(200, again); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
		m.Reset()
		must(t, m.Activate())
		ask(m.Queue[1], opInit, 0, sizeOf[initOut](), raw(initIn{Major: 7, Minor: 41}))
	}
}

func descriptors(m *virtiotest.Machine, msg [][]byte) []virtqtest.Desc {
	var d []virtqtest.Desc
	for _, b := range msg {
		at := m.Mem.Alloc(uint64(len(b)))
		copy(m.Mem.Bytes(at, uint64(len(b))), b)
		d = append(d, virtqtest.Desc{Addr: at, Len: uint32(len(b))})
	}
	return append(d, virtqtest.Desc{Addr: m.Mem.Alloc(4096), Len: 4096, Flags: virtqtest.DescWrite})
}

// BenchmarkRequest is the device's own time for a request, without the queue.
func BenchmarkRequest(b *testing.B) {
	c, dir := newShare(b, nil)
	reqs := hot(b, c, dir)
	for _, name := range []string{"getattr", "lookup", "lookup-miss", "read-4K", "read-128K", "write-4K", "write-128K", "readdirplus"} {
		b.Run(name, func(b *testing.B) {
			in := reqs[name]
			c.set(in)
			b.ReportAllocs()
			for b.Loop() {
				if c.r.serve() == 0 {
					b.Fatal("no answer")
				}
			}
		})
	}
	b.Run("open-close", func(b *testing.B) {
		f := c.node("f")
		open := bytes.Join(message(opOpen, f, 1, raw(openIn{})), nil)
		for b.Loop() {
			c.set(open)
			c.r.serve()
			fh := view[openOut](c.out[outHeaderSize:]).FH
			c.set(bytes.Join(message(opRelease, f, 1, raw(releaseIn{FH: fh})), nil))
			c.r.serve()
		}
	})
	b.Run("create-unlink", func(b *testing.B) {
		cr := bytes.Join(message(opCreate, rootID, 1, raw(createIn{Flags: unix.O_RDWR, Mode: 0o644}), str("new")), nil)
		un := bytes.Join(message(opUnlink, rootID, 1, str("new")), nil)
		for b.Loop() {
			c.set(cr)
			c.r.serve()
			n, fh := view[entryOut](c.out[outHeaderSize:]).NodeID, view[openOut](c.out[outHeaderSize+entryOutSize:]).FH
			c.set(un)
			c.r.serve()
			c.set(bytes.Join(message(opRelease, n, 1, raw(releaseIn{FH: fh})), nil))
			c.r.serve()
			c.set(bytes.Join(message(opForget, n, 1, raw(forgetIn{1})), nil))
			c.r.serve()
		}
	})
}

// BenchmarkQueue is a whole round through the ring and its worker.
func BenchmarkQueue(b *testing.B) {
	m, _, _ := machine(b, nil, virtiotest.Options{})
	again := m.Queue[1].Again(descriptors(m, message(opGetattr, rootID, 1, raw(getattrIn{})))...)
	b.ReportAllocs()
	for b.Loop() {
		again()
	}
}

// FuzzRequest sends arbitrary requests, several to a session, in arbitrary
// pieces. Nothing may panic, hang or leave the share.
func FuzzRequest(f *testing.F) {
	seed := func(msgs ...[]byte) {
		var all []byte
		for _, m := range msgs {
			all = append(append(all, byte(len(m)), byte(len(m)>>8)), m...)
		}
		f.Add(all)
	}
	m := func(op opcode, node uint64, args ...[]byte) []byte {
		return bytes.Join(message(op, node, 1, args...), nil)
	}
	seed(m(opLookup, rootID, str("f")), m(opGetattr, 2, raw(getattrIn{})), m(opOpen, 2, raw(openIn{Flags: 2})),
		m(opRead, 2, raw(readIn{FH: 1, Size: 100})), m(opWrite, 2, raw(writeIn{FH: 1, Size: 2}), []byte("hi")))
	seed(m(opCreate, rootID, raw(createIn{Flags: 2, Mode: 0o600}), str("g")), m(opRename2, rootID, raw(rename2In{Newdir: 1}), str("g"), str("h")),
		m(opSetattr, 2, raw(setattrIn{Valid: 0x3f})), m(opFallocate, 2, raw(fallocateIn{FH: 1, Length: 100})))
	seed(m(opMkdir, rootID, raw(mkdirIn{Mode: 0o755}), str("d")), m(opOpendir, rootID, raw(openIn{})),
		m(opReaddirplus, rootID, raw(readIn{FH: 1, Size: 4096})), m(opReaddir, rootID, raw(readIn{FH: 1, Size: 4096})))
	seed(m(opSetxattr, rootID, raw(setxattrIn{Size: 1}), str("user.a"), []byte("v")), m(opListxattr, rootID, raw(getxattrIn{Size: 100})))
	seed(m(opSetlk, 2, raw(lkIn{FH: 1, Owner: 1})), m(opBatchForget, 0, raw(batchForgetIn{Count: 2}), raw(forgetOne{2, 1})))
	seed(m(opSetupmapping, 2, raw(setupmappingIn{Len: daxRange, Flags: 3})), m(opRemovemapping, 2, le32(1), raw(removemappingOne{0, daxRange})))
	out := make([]byte, 1<<17)
	f.Fuzz(func(t *testing.T, in []byte) {
		dir := t.TempDir()
		put(t, filepath.Join(dir, "f"), "contents")
		d, err := New(Config{Tag: "t", Path: dir, Locks: true, ACL: true, DAXSize: 4 << 20, DAXMinFile: 1})
		must(t, err)
		defer d.Close()
		must(t, d.SetWindow(newWindow(4<<20)))
		c := newClient(t, d)
		c.start()
		for len(in) > 2 {
			n := min(int(in[0])|int(in[1])<<8, len(in)-2)
			msg, room := in[2:2+n], 1<<17
			in = in[2+n:]
			if len(msg) >= inHeaderSize {
				if op := view[inHeader](bytes.Clone(msg)).Opcode; op == opSetlkw || op == opSyncfs || op == opFsync || op == opFsyncdir {
					continue // may wait for itself; slow
				}
				room = min(room, int(msg[24])<<9|int(msg[25])) // the uid is of no use here
			}
			c.r.chain = virtq.Chain{Readable: pieces(nil, bytes.Clone(msg), 1+len(msg)%50), ReadableLen: uint64(n),
				Writable: pieces(nil, out[:room], 7), WritableLen: uint64(room)}
			if got := int(c.r.serve()); got > room || got != 0 && got < outHeaderSize {
				t.Fatalf("reply of %d bytes in %d", got, room)
			}
		}
	})
}
