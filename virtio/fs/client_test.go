package fs

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/gvmspawn/gvmspawn/virtio/virtq"
)

// client sends requests to a device's dispatch, as a driver would.
type client struct {
	t        testing.TB
	dev      *Device
	r        request
	unique   uint64
	uid, gid uint32
	out      []byte
}

// newShare makes a device for a new directory and starts a session.
func newShare(t testing.TB, edit func(*Config)) (*client, string) {
	dir := t.TempDir()
	cfg := Config{Tag: "test", Path: dir}
	if edit != nil {
		edit(&cfg)
	}
	d, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	c := newClient(t, d)
	c.start()
	return c, dir
}

func newClient(t testing.TB, d *Device) *client {
	c := &client{t: t, dev: d, uid: uint32(os.Geteuid()), gid: uint32(os.Getegid()), out: make([]byte, maxWrite+pageSize)}
	c.r.init(d, nil)
	return c
}

// start negotiates all that the device offers.
func (c *client) start() initOut {
	in := initIn{Major: 7, Minor: 41, MaxReadahead: 128 << 10, Flags: ^uint32(0), Flags2: ^uint32(0)}
	b := c.must(opInit, 0, raw(in))
	return *view[initOut](b)
}

// raw is the struct's bytes.
func raw[T wire](v T) []byte {
	return bytes.Clone(unsafe.Slice((*byte)(unsafe.Pointer(&v)), sizeOf[T]()))
}

// send sends a request and returns the payload of the reply.
func (c *client) send(op opcode, node uint64, args ...[]byte) ([]byte, unix.Errno) {
	body := bytes.Join(args, nil)
	c.unique += 2
	h := inHeader{Len: uint32(inHeaderSize + len(body)), Opcode: op, Unique: c.unique, NodeID: node, UID: c.uid, GID: c.gid, PID: 1}
	return c.sendRaw(append(raw(h), body...), c.out)
}

func (c *client) sendRaw(in, out []byte) ([]byte, unix.Errno) {
	c.t.Helper()
	c.r.chain = virtq.Chain{
		Readable: []virtq.Buffer{{Bytes: in}}, ReadableLen: uint64(len(in)),
		Writable: []virtq.Buffer{{Bytes: out}}, WritableLen: uint64(len(out)),
	}
	n := c.r.serve()
	if n == 0 {
		return nil, 0
	}
	if int(n) > len(out) || n < outHeaderSize {
		c.t.Fatalf("reply of %d bytes in a buffer of %d", n, len(out))
	}
	h := view[outHeader](out)
	if h.Len != n || h.Error > 0 {
		c.t.Fatalf("reply of %d bytes has header %+v", n, *h)
	}
	return out[outHeaderSize:n], unix.Errno(-h.Error)
}

// must sends a request that has to succeed and returns a copy of the payload.
func (c *client) must(op opcode, node uint64, args ...[]byte) []byte {
	c.t.Helper()
	b, e := c.send(op, node, args...)
	if e != 0 {
		c.t.Fatalf("opcode %d on node %d: %v", op, node, e)
	}
	return bytes.Clone(b)
}

// fails sends a request that has to fail with one of the errors.
func (c *client) fails(op opcode, node uint64, want unix.Errno, args ...[]byte) {
	c.t.Helper()
	if _, e := c.send(op, node, args...); e != want {
		c.t.Errorf("opcode %d on node %d, arguments %q: %v, want %v", op, node, bytes.Join(args, nil), e, want)
	}
}

func str(s string) []byte { return append([]byte(s), 0) }

func (c *client) lookup(parent uint64, name string) entryOut {
	c.t.Helper()
	return *view[entryOut](c.must(opLookup, parent, str(name)))
}

// node looks up a path.
func (c *client) node(path ...string) uint64 {
	c.t.Helper()
	n := uint64(rootID)
	for _, p := range path {
		n = c.lookup(n, p).NodeID
	}
	return n
}

func (c *client) open(node uint64, flags uint32) openOut {
	c.t.Helper()
	return *view[openOut](c.must(opOpen, node, raw(openIn{Flags: flags})))
}

func (c *client) opendir(node uint64) uint64 {
	c.t.Helper()
	return view[openOut](c.must(opOpendir, node, raw(openIn{}))).FH
}

func (c *client) read(node, fh, off uint64, n uint32) []byte {
	c.t.Helper()
	return c.must(opRead, node, raw(readIn{FH: fh, Offset: off, Size: n}))
}

func (c *client) write(node, fh, off uint64, p []byte) uint32 {
	c.t.Helper()
	b := c.must(opWrite, node, raw(writeIn{FH: fh, Offset: off, Size: uint32(len(p))}), p)
	return view[writeOut](b).Size
}

func (c *client) getattr(node uint64) attr {
	c.t.Helper()
	return view[attrOut](c.must(opGetattr, node, raw(getattrIn{}))).Attr
}

func (c *client) create(parent uint64, name string, mode uint32) (entryOut, openOut) {
	c.t.Helper()
	b := c.must(opCreate, parent, raw(createIn{Flags: unix.O_RDWR, Mode: unix.S_IFREG | mode}), str(name))
	return *view[entryOut](b), *view[openOut](b[entryOutSize:])
}

// list reads a whole directory by READDIR or READDIRPLUS in pieces of n bytes.
func (c *client) list(node uint64, plus bool, n uint32) map[string]entryOut {
	c.t.Helper()
	fh, off := c.opendir(node), uint64(0)
	found := map[string]entryOut{}
	op := opReaddir
	if plus {
		op = opReaddirplus
	}
	for {
		b := c.must(op, node, raw(readIn{FH: fh, Offset: off, Size: n}))
		if len(b) == 0 {
			break
		}
		for len(b) > 0 {
			var e entryOut
			if plus {
				e = *view[entryOut](b)
				b = b[entryOutSize:]
			}
			d := *view[dirent](b)
			name := string(b[direntSize:][:d.Namelen])
			if _, ok := found[name]; ok {
				c.t.Errorf("%q is listed twice", name)
			}
			found[name], off = e, d.Off
			b = b[(direntSize+d.Namelen+7)&^7:]
		}
	}
	c.must(opReleasedir, node, raw(releaseIn{FH: fh}))
	return found
}

// put writes a file on the host.
func put(t testing.TB, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func content(t testing.TB, path ...string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(path...))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func needRoot(t testing.TB) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
}

// le16 and friends make hostile requests readable.
func le32(v uint32) []byte { return binary.LittleEndian.AppendUint32(nil, v) }
func le64(v uint64) []byte { return binary.LittleEndian.AppendUint64(nil, v) }
