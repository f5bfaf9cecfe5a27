package fs

import (
	"bytes"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// What a hostile guest may send. The names of the tests say which attack; none
// may panic, hang, leave the share or grow without bound.

// outside makes a directory with a secret beside the share and returns its path.
func outside(t *testing.T) string {
	d := t.TempDir()
	put(t, filepath.Join(d, "secret"), "SECRET")
	return d
}

func TestHostileHeaders(t *testing.T) {
	c, dir := newShare(t, nil)
	put(t, filepath.Join(dir, "f"), "x")
	head := func(n uint32, op opcode) []byte {
		return raw(inHeader{Len: n, Opcode: op, Unique: 7, NodeID: rootID})
	}
	get := append(head(56, opGetattr), raw(getattrIn{})...)
	for _, tc := range []struct {
		name string
		in   []byte
		out  int
		want unix.Errno
	}{
		{"nothing", nil, 200, 0},
		{"39 bytes", head(40, opGetattr)[:39], 200, 0},
		{"good", get, 200, 0},
		{"len 0", append(head(0, opGetattr), raw(getattrIn{})...), 200, unix.EINVAL},
		{"len 39", append(head(39, opGetattr), raw(getattrIn{})...), 200, unix.EINVAL},
		{"len beyond the buffer", append(head(57, opGetattr), raw(getattrIn{})...), 200, unix.EINVAL},
		{"len below the buffer", append(head(55, opGetattr), raw(getattrIn{})...), 200, unix.EINVAL},
		{"len 2^32-1", append(head(math.MaxUint32, opGetattr), raw(getattrIn{})...), 200, unix.EINVAL},
		{"arguments missing", head(40, opGetattr), 200, unix.EINVAL},
		{"opcode 0", head(40, 0), 200, unix.ENOSYS},
		{"opcode 54", head(40, 54), 200, unix.ENOSYS},
		{"CUSE_INIT", head(40, 4096), 200, unix.ENOSYS},
		{"opcode 2^32-1", head(40, math.MaxUint32), 200, unix.ENOSYS},
		{"BMAP", head(40, opBmap), 200, unix.ENOSYS},
		{"POLL", head(40, opPoll), 200, unix.ENOSYS},
		{"IOCTL", head(40, opIoctl), 200, unix.ENOTTY},
		{"no room for the payload", get, 100, unix.EINVAL},
		{"no room for the header", get, 15, 0},
		{"no room at all", get, 0, 0},
		{"huge arguments", append(head(inHeaderSize+maxIn+1, opGetattr), make([]byte, maxIn+1)...), 200, unix.EINVAL},
	} {
		if _, e := c.sendRaw(tc.in, make([]byte, tc.out)); e != tc.want {
			t.Errorf("%s: %v, want %v", tc.name, e, tc.want)
		}
	}
	if c.getattr(rootID).Mode&unix.S_IFMT != unix.S_IFDIR {
		t.Error("the root is no directory any more")
	}
}

func TestHostileBeforeInit(t *testing.T) {
	d, err := New(Config{Tag: "t", Path: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	c := newClient(t, d)
	c.fails(opGetattr, rootID, unix.EIO, raw(getattrIn{}))
	c.fails(opInit, 0, unix.EPROTO, raw(initIn{Major: 7, Minor: 30}))
	c.fails(opInit, 0, unix.EPROTO, raw(initIn{Major: 6, Minor: 99}))
	if o := view[initOut](c.must(opInit, 0, raw(initIn{Major: 8}))); o.Major != 7 {
		t.Errorf("answer to major 8: %+v", o)
	}
	c.fails(opGetattr, rootID, unix.EIO, raw(getattrIn{}))
	// The short form of Linux before 5.17.
	c.must(opInit, 0, raw(createIn{Flags: 7, Mode: 31, Umask: 4096, OpenFlags: initBigWrites}))
	c.getattr(rootID)
	c.must(opDestroy, 0)
	c.fails(opGetattr, rootID, unix.EIO, raw(getattrIn{}))
}

func TestHostileNames(t *testing.T) {
	c, dir := newShare(t, nil)
	put(t, filepath.Join(dir, "f"), "x")
	must(t, os.Mkdir(filepath.Join(dir, "d"), 0o755))
	must(t, os.Symlink(outside(t), filepath.Join(dir, "link")))
	put(t, filepath.Join(filepath.Dir(dir), "neighbour"), "SECRET")
	long := strings.Repeat("n", 256)
	f := c.node("f")
	for name, want := range map[string]unix.Errno{
		"": unix.EINVAL, ".": unix.EINVAL, "..": unix.EINVAL, "/": unix.EINVAL, "/etc": unix.EINVAL,
		"../neighbour": unix.EINVAL, "d/../../neighbour": unix.EINVAL, "link/secret": unix.EINVAL, "d/": unix.EINVAL,
		long: unix.ENAMETOOLONG, strings.Repeat("n", 5000): unix.ENAMETOOLONG,
	} {
		n := str(name)
		c.fails(opLookup, rootID, want, n, bytes.Repeat([]byte{0}, 1))
		c.fails(opMkdir, rootID, want, raw(mkdirIn{Mode: 0o755}), n, []byte{0})
		c.fails(opMknod, rootID, want, raw(mknodIn{Mode: unix.S_IFREG}), n, []byte{0})
		c.fails(opCreate, rootID, want, raw(createIn{Flags: unix.O_RDWR}), n, []byte{0})
		c.fails(opSymlink, rootID, want, n, str("target"))
		c.fails(opLink, rootID, want, raw(linkIn{OldNodeID: f}), n, []byte{0})
		c.fails(opUnlink, rootID, want, n, []byte{0})
		c.fails(opRmdir, rootID, want, n, []byte{0})
		c.fails(opRename, rootID, want, raw(renameIn{Newdir: rootID}), n, str("new"))
		c.fails(opRename, rootID, want, raw(renameIn{Newdir: rootID}), str("f"), n)
		c.fails(opRename2, rootID, want, raw(rename2In{Newdir: rootID, Flags: unix.RENAME_EXCHANGE}), str("f"), n)
	}
	// Without a NUL.
	c.fails(opLookup, rootID, unix.EINVAL, []byte("ff"))
	c.fails(opRename, rootID, unix.EINVAL, raw(renameIn{Newdir: rootID}), str("f"), []byte("abc"))
	c.fails(opSymlink, rootID, unix.EINVAL, str("new"), []byte("abc"))
	c.fails(opRename2, rootID, unix.EINVAL, raw(rename2In{Newdir: rootID, Flags: 1 << 7}), str("f"), str("g"))
	if got := list(t, dir); got != "d f link" {
		t.Errorf("the share has now: %s", got)
	}
}

// A parent must be a directory: not a link to one, not a file, not unknown.
func TestHostileParents(t *testing.T) {
	c, dir := newShare(t, nil)
	put(t, filepath.Join(dir, "f"), "x")
	must(t, os.Symlink(outside(t), filepath.Join(dir, "link")))
	file, link := c.node("f"), c.node("link")
	for node, want := range map[uint64]unix.Errno{file: unix.ENOTDIR, link: unix.ENOTDIR, 0: unix.ESTALE, 12345: unix.ESTALE, math.MaxUint64: unix.ESTALE} {
		c.fails(opLookup, node, want, str("secret"))
		c.fails(opCreate, node, want, raw(createIn{Flags: unix.O_RDWR}), str("new"))
		c.fails(opMkdir, node, want, raw(mkdirIn{Mode: 0o755}), str("new"))
		c.fails(opMknod, node, want, raw(mknodIn{Mode: unix.S_IFREG}), str("new"))
		c.fails(opSymlink, node, want, str("new"), str("t"))
		c.fails(opLink, node, want, raw(linkIn{OldNodeID: file}), str("new"))
		c.fails(opUnlink, node, want, str("secret"))
		c.fails(opRename, node, want, raw(renameIn{Newdir: rootID}), str("secret"), str("stolen"))
		c.fails(opRename, rootID, want, raw(renameIn{Newdir: node}), str("f"), str("new"))
		c.fails(opOpendir, node, want, raw(openIn{}))
		c.fails(opTmpfile, node, want, raw(createIn{Flags: unix.O_RDWR, Mode: 0o600}), str(""))
	}
	c.fails(opLink, rootID, unix.ESTALE, raw(linkIn{OldNodeID: 999}), str("new"))
	c.fails(opLink, rootID, unix.EPERM, raw(linkIn{OldNodeID: rootID}), str("new"))
}

// A link in the share is data; only its name can be looked up.
func TestHostileSymlinks(t *testing.T) {
	c, dir := newShare(t, nil)
	secret := filepath.Join(outside(t), "secret")
	c.must(opSymlink, rootID, str("link"), str(secret))
	e := c.lookup(rootID, "link")
	if e.Attr.Mode&unix.S_IFMT != unix.S_IFLNK {
		t.Fatalf("mode %o", e.Attr.Mode)
	}
	if got := string(c.must(opReadlink, e.NodeID)); got != secret {
		t.Errorf("readlink: %q", got)
	}
	c.fails(opOpen, e.NodeID, unix.ELOOP, raw(openIn{}))
	c.fails(opOpendir, e.NodeID, unix.ENOTDIR, raw(openIn{}))
	c.fails(opCreate, rootID, unix.ELOOP, raw(createIn{Flags: unix.O_RDWR | unix.O_TRUNC}), str("link"))
	c.fails(opSetattr, e.NodeID, unix.EINVAL, raw(setattrIn{Valid: fattrSize}))
	c.fails(opReadlink, rootID, unix.EINVAL)
	c.fails(opSetattr, e.NodeID, unix.EOPNOTSUPP, raw(setattrIn{Valid: fattrMode, Mode: 0o777}))
	c.must(opSetattr, e.NodeID, raw(setattrIn{Valid: fattrMtime, Mtime: 1}))
	c.must(opLink, rootID, raw(linkIn{OldNodeID: e.NodeID}), str("again"))
	if l, err := os.Readlink(filepath.Join(dir, "again")); err != nil || l != secret {
		t.Errorf("hard link to the link: %q, %v", l, err)
	}
	if st, err := os.Stat(secret); err != nil || st.Size() != 6 || st.ModTime().Unix() == 1 {
		t.Errorf("the secret was touched: %v %v", st, err)
	}
}

// Somebody on the host, or the guest itself, swaps a directory for a link all
// the time. No request may ever come out at the other end.
func TestHostileSwapRace(t *testing.T) {
	c, dir := newShare(t, nil)
	out := outside(t)
	must(t, os.Mkdir(filepath.Join(dir, "real"), 0o755))
	put(t, filepath.Join(dir, "real", "secret"), "inside")
	must(t, os.Symlink(out, filepath.Join(dir, "link")))
	must(t, os.Symlink(filepath.Join(out, "secret"), filepath.Join(dir, "flink")))
	put(t, filepath.Join(dir, "file"), "inside")
	var stop atomic.Bool
	var wg sync.WaitGroup
	swap := func(a, b string) {
		defer wg.Done()
		for !stop.Load() {
			_ = unix.Renameat2(unix.AT_FDCWD, filepath.Join(dir, a), unix.AT_FDCWD, filepath.Join(dir, b), unix.RENAME_EXCHANGE)
			runtime.Gosched()
		}
	}
	wg.Add(2)
	go swap("real", "link")
	go swap("file", "flink")
	defer wg.Wait()
	defer stop.Store(true)
	buf := make([]byte, 4096)
	steal := func(node uint64) {
		o, e := c.send(opOpen, node, raw(openIn{}))
		if e != 0 {
			return
		}
		fh := view[openOut](o).FH
		if b := c.read(node, fh, 0, uint32(len(buf))); bytes.Contains(b, []byte("SECRET")) {
			t.Fatal("the secret came out")
		}
		c.must(opRelease, node, raw(releaseIn{FH: fh}))
	}
	for end := time.Now().Add(300 * time.Millisecond); time.Now().Before(end); {
		for _, n := range []string{"real", "link"} {
			b, e := c.send(opLookup, rootID, str(n))
			if e != 0 {
				continue
			}
			d := view[entryOut](b).NodeID
			if b, e := c.send(opLookup, d, str("secret")); e == 0 {
				node := view[entryOut](b).NodeID
				steal(node)
				c.must(opForget, node, raw(forgetIn{1}))
			}
			_, _ = c.send(opUnlink, d, str("nothing"))
			c.must(opForget, d, raw(forgetIn{1}))
		}
		for _, n := range []string{"file", "flink"} {
			b, e := c.send(opCreate, rootID, raw(createIn{Flags: unix.O_RDWR | unix.O_TRUNC}), str(n))
			if e == 0 {
				node, fh := view[entryOut](b).NodeID, view[openOut](b[entryOutSize:]).FH
				c.write(node, fh, 0, []byte("overwritten"))
				c.must(opRelease, node, raw(releaseIn{FH: fh}))
				c.must(opForget, node, raw(forgetIn{1}))
			}
			if b, e := c.send(opLookup, rootID, str(n)); e == 0 {
				node := view[entryOut](b).NodeID
				steal(node)
				c.must(opForget, node, raw(forgetIn{1}))
			}
		}
	}
	if got := content(t, out, "secret"); got != "SECRET" {
		t.Fatalf("the secret was overwritten: %q", got)
	}
}

// Lookups that the guest never made are not its to forget.
func TestHostileForget(t *testing.T) {
	c, dir := newShare(t, nil)
	put(t, filepath.Join(dir, "f"), "x")
	n := c.node("f")
	c.node("f")
	c.must(opForget, n, raw(forgetIn{1}))
	c.getattr(n)
	c.must(opForget, n, raw(forgetIn{0}))
	c.getattr(n)
	c.must(opForget, n, raw(forgetIn{math.MaxUint64}))
	c.fails(opGetattr, n, unix.ESTALE, raw(getattrIn{}))
	c.must(opForget, n, raw(forgetIn{1}))
	c.must(opForget, rootID, raw(forgetIn{math.MaxUint64}))
	c.getattr(rootID)
	m := c.node("f")
	if m == n {
		t.Error("a node ID was used twice")
	}
	// The count lies both ways.
	c.must(opBatchForget, 0, raw(batchForgetIn{Count: math.MaxUint32}), raw(forgetOne{12345, 1}), raw(forgetOne{m, 1}), make([]byte, 9))
	c.fails(opGetattr, m, unix.ESTALE, raw(getattrIn{}))
	m = c.node("f")
	c.must(opBatchForget, 0, raw(batchForgetIn{Count: 0}), raw(forgetOne{m, 1}))
	c.getattr(m)
	// A file stays usable through its handle after the guest forgot it, and
	// the descriptor is not closed under a running request.
	fh := c.open(m, unix.O_RDONLY).FH
	c.must(opForget, m, raw(forgetIn{1}))
	c.fails(opRead, m, unix.ESTALE, raw(readIn{FH: fh, Size: 1}))
	if n := c.dev.nodes.size(); n != 0 {
		t.Errorf("%d inodes are left", n)
	}
}

// FIFOs, sockets and devices are never opened, so nothing can block on them.
func TestHostileSpecialFiles(t *testing.T) {
	c, dir := newShare(t, nil)
	c.must(opMknod, rootID, raw(mknodIn{Mode: unix.S_IFIFO | 0o666}), str("fifo"))
	c.must(opMknod, rootID, raw(mknodIn{Mode: unix.S_IFSOCK | 0o666}), str("sock"))
	c.fails(opMknod, rootID, unix.EPERM, raw(mknodIn{Mode: unix.S_IFBLK | 0o666, Rdev: 0x800}), str("sda"))
	c.fails(opMknod, rootID, unix.EPERM, raw(mknodIn{Mode: unix.S_IFCHR | 0o666, Rdev: 0x101}), str("mem"))
	c.fails(opMknod, rootID, unix.EINVAL, raw(mknodIn{Mode: unix.S_IFDIR | 0o666}), str("dir"))
	c.fails(opMknod, rootID, unix.EINVAL, raw(mknodIn{Mode: unix.S_IFLNK | 0o666}), str("lnk"))
	nodes := []uint64{c.node("fifo"), c.node("sock")}
	if os.Geteuid() == 0 && unix.Mknod(filepath.Join(dir, "null"), unix.S_IFCHR|0o666, 0x103) == nil {
		nodes = append(nodes, c.node("null"))
	}
	for _, n := range nodes {
		for _, flags := range []uint32{unix.O_RDONLY, unix.O_WRONLY, unix.O_RDWR, unix.O_PATH, unix.O_DIRECTORY} {
			c.fails(opOpen, n, unix.ENXIO, raw(openIn{Flags: flags}))
		}
		c.fails(opSetattr, n, unix.EINVAL, raw(setattrIn{Valid: fattrSize, Size: 1}))
		c.fails(opSetupmapping, n, unix.EINVAL, raw(setupmappingIn{FH: math.MaxUint64, Len: daxRange}))
		c.must(opSetattr, n, raw(setattrIn{Valid: fattrMode, Mode: 0o600}))
	}
	c.fails(opCreate, rootID, unix.ENXIO, raw(createIn{Flags: unix.O_WRONLY}), str("fifo"))
	// O_PATH and O_TMPFILE in open flags mean nothing here.
	put(t, filepath.Join(dir, "f"), "x")
	o := c.open(c.node("f"), unix.O_PATH|unix.O_TMPFILE|unix.O_CREAT|unix.O_ASYNC|3)
	c.read(c.node("f"), o.FH, 0, 1)
}

func TestHostileHandles(t *testing.T) {
	c, dir := newShare(t, nil)
	put(t, filepath.Join(dir, "f"), "contents")
	put(t, filepath.Join(dir, "g"), "contents")
	f, g := c.node("f"), c.node("g")
	rd, wr := c.open(f, unix.O_RDONLY).FH, c.open(f, unix.O_RDWR).FH
	d := c.opendir(rootID)
	for _, fh := range []uint64{0, 999, math.MaxUint64, d} {
		c.fails(opRead, f, unix.EBADF, raw(readIn{FH: fh, Size: 1}))
		c.fails(opWrite, f, unix.EBADF, raw(writeIn{FH: fh, Size: 1}), []byte("x"))
		c.fails(opRelease, f, unix.EBADF, raw(releaseIn{FH: fh}))
		c.fails(opFsync, f, unix.EBADF, raw(fsyncIn{FH: fh}))
		c.fails(opFallocate, f, unix.EBADF, raw(fallocateIn{FH: fh, Length: 1}))
		c.fails(opLseek, f, unix.EBADF, raw(lseekIn{FH: fh, Whence: unix.SEEK_DATA}))
		c.fails(opReaddir, f, unix.EBADF, raw(readIn{FH: fh, Size: 4096}))
	}
	c.fails(opRead, g, unix.EBADF, raw(readIn{FH: rd, Size: 1})) // another inode's
	c.fails(opRead, rootID, unix.EISDIR, raw(readIn{FH: d, Size: 1}))
	c.fails(opReaddir, f, unix.ENOTDIR, raw(readIn{FH: rd, Size: 4096}))
	c.fails(opWrite, f, unix.EBADF, raw(writeIn{FH: rd, Size: 1}), []byte("x"))
	c.fails(opFallocate, f, unix.EBADF, raw(fallocateIn{FH: rd, Length: 1}))
	for _, off := range []uint64{1 << 63, math.MaxInt64, math.MaxUint64} {
		c.fails(opRead, f, unix.EINVAL, raw(readIn{FH: rd, Offset: off, Size: 1}))
		c.fails(opWrite, f, unix.EINVAL, raw(writeIn{FH: wr, Offset: off, Size: 1}), []byte("x"))
		c.fails(opSetattr, f, unix.EFBIG, raw(setattrIn{Valid: fattrSize, Size: off | 1<<63}))
	}
	c.fails(opWrite, f, unix.EINVAL, raw(writeIn{FH: wr, Size: 2}), []byte("x"))
	c.fails(opWrite, f, unix.EINVAL, raw(writeIn{FH: wr, Size: 0}), []byte("x"))
	c.fails(opWrite, f, unix.EINVAL, raw(writeIn{FH: wr, Size: math.MaxUint32}), []byte("x"))
	c.fails(opRead, f, unix.EINVAL, raw(readIn{FH: rd, Size: math.MaxUint32}))
	c.fails(opFallocate, f, unix.EFBIG, raw(fallocateIn{FH: wr, Length: math.MaxUint64}))
	c.fails(opFallocate, f, unix.EFBIG, raw(fallocateIn{FH: wr, Offset: math.MaxInt64, Length: 1}))
	c.fails(opFallocate, f, unix.EOPNOTSUPP, raw(fallocateIn{FH: wr, Length: 1, Mode: 1 << 20}))
	if _, e := c.send(opFallocate, f, raw(fallocateIn{FH: wr, Length: 1 << 62})); e != unix.EFBIG && e != unix.ENOSPC {
		t.Errorf("fallocate of 2^62 bytes: %v", e)
	}
	c.fails(opLseek, f, unix.EINVAL, raw(lseekIn{FH: rd, Whence: unix.SEEK_SET}))
	c.fails(opLseek, f, unix.ENXIO, raw(lseekIn{FH: rd, Whence: unix.SEEK_DATA, Offset: 1 << 63}))
	c.fails(opCopyFileRange, f, unix.EBADF, raw(copyFileRangeIn{FHIn: rd, NodeIDOut: g, FHOut: wr, Len: 1}))
	c.fails(opCopyFileRange, f, unix.EBADF, raw(copyFileRangeIn{FHIn: rd, NodeIDOut: f, FHOut: rd, Len: 1}))
	c.fails(opCopyFileRange, f, unix.EINVAL, raw(copyFileRangeIn{FHIn: rd, NodeIDOut: f, FHOut: wr, OffOut: math.MaxUint64, Len: 1}))
	// Offsets in directories are the file system's; whatever is sent, it ends.
	for _, off := range []uint64{1, 77, 1 << 31, math.MaxInt64, 1 << 63, math.MaxUint64} {
		_, _ = c.send(opReaddir, rootID, raw(readIn{FH: d, Offset: off, Size: 4096}))
		_, _ = c.send(opReaddirplus, rootID, raw(readIn{FH: d, Offset: off, Size: math.MaxUint32}))
	}
	c.fails(opReaddir, rootID, unix.EINVAL, raw(readIn{FH: d, Size: 8}))
	if got := content(t, dir, "f"); got != "contents" {
		t.Errorf("the file is now %q", got)
	}
}

func TestHostileXattr(t *testing.T) {
	c, dir := newShare(t, nil)
	put(t, filepath.Join(dir, "f"), "x")
	f := c.node("f")
	set := func(name string, size uint32, value []byte, want unix.Errno) {
		t.Helper()
		c.fails(opSetxattr, f, want, raw(setxattrIn{Size: size}), str(name), value)
	}
	set("user.a", 5, []byte("value"), 0)
	set("user.a", 6, []byte("value"), unix.EINVAL)
	set("user.a", 4, []byte("value"), unix.EINVAL)
	set("user.a", math.MaxUint32, []byte("value"), unix.E2BIG)
	set("user.a", xattrSizeMax+1, make([]byte, xattrSizeMax+1), unix.E2BIG)
	set("", 0, nil, unix.ERANGE)
	set("user."+strings.Repeat("n", 300), 0, nil, unix.ERANGE)
	for _, n := range []string{"security.selinux", "security.ima", "system.posix_acl_access", "system.nfs4_acl", "btrfs.compression", "nonsense"} {
		set(n, 1, []byte("v"), unix.EOPNOTSUPP)
		c.fails(opGetxattr, f, unix.EOPNOTSUPP, raw(getxattrIn{Size: 10}), str(n))
		c.fails(opRemovexattr, f, unix.EOPNOTSUPP, str(n))
	}
	c.fails(opSetxattr, f, unix.EINVAL, raw(setxattrIn{Size: 1, Flags: 8}), str("user.a"), []byte("v"))
	c.fails(opGetxattr, f, unix.ERANGE, raw(getxattrIn{Size: 4}), str("user.a"))
	c.fails(opListxattr, f, unix.ERANGE, raw(getxattrIn{Size: 3}))
	if got := string(c.must(opGetxattr, f, raw(getxattrIn{Size: 5}), str("user.a"))); got != "value" {
		t.Errorf("user.a = %q", got)
	}
	if got := view[getxattrOut](c.must(opGetxattr, f, raw(getxattrIn{}), str("user.a"))).Size; got != 5 {
		t.Errorf("user.a has %d bytes", got)
	}
	if got := string(c.must(opListxattr, f, raw(getxattrIn{Size: math.MaxUint32}))); got != "user.a\x00" {
		t.Errorf("list: %q", got)
	}
}

// A guest that opens without end gets ENFILE; the process keeps some.
func TestHostileDescriptorExhaustion(t *testing.T) {
	c, dir := newShare(t, nil)
	put(t, filepath.Join(dir, "f"), "x")
	f := c.node("f")
	c.dev.host.fdMax = fdsInUse.Load() + 10
	var open []uint64
	for {
		b, e := c.send(opOpen, f, raw(openIn{}))
		if e == unix.ENFILE {
			break
		}
		if e != 0 || len(open) > 20 {
			t.Fatalf("%d files open, then %v", len(open), e)
		}
		open = append(open, view[openOut](b).FH)
	}
	if len(open) != 10 {
		t.Errorf("%d files could be opened, 10 were allowed", len(open))
	}
	put(t, filepath.Join(dir, "g"), "x")
	c.fails(opLookup, rootID, unix.ENFILE, str("g"))
	c.fails(opOpendir, rootID, unix.ENFILE, raw(openIn{}))
	c.fails(opCreate, rootID, unix.ENFILE, raw(createIn{Flags: unix.O_RDWR}), str("new"))
	c.must(opRelease, f, raw(releaseIn{FH: open[0]}))
	if l := c.list(rootID, true, 4096); len(l) != 4 || l["g"].NodeID != 0 {
		t.Errorf("listing without descriptors to spare: %v", l)
	}
}

func TestReadOnly(t *testing.T) {
	c, dir := newShare(t, func(c *Config) { c.ReadOnly = true; c.DAXSize = 4 << 20 })
	must(t, c.dev.SetWindow(newWindow(4<<20)))
	put(t, filepath.Join(dir, "f"), "x")
	f := c.node("f")
	ro := unix.EROFS
	c.fails(opCreate, rootID, ro, raw(createIn{Flags: unix.O_RDONLY}), str("new"))
	c.fails(opMkdir, rootID, ro, raw(mkdirIn{}), str("new"))
	c.fails(opMknod, rootID, ro, raw(mknodIn{Mode: unix.S_IFREG}), str("new"))
	c.fails(opSymlink, rootID, ro, str("new"), str("t"))
	c.fails(opLink, rootID, ro, raw(linkIn{OldNodeID: f}), str("new"))
	c.fails(opUnlink, rootID, ro, str("f"))
	c.fails(opRmdir, rootID, ro, str("f"))
	c.fails(opRename, rootID, ro, raw(renameIn{Newdir: rootID}), str("f"), str("g"))
	c.fails(opRename2, rootID, ro, raw(rename2In{Newdir: rootID}), str("f"), str("g"))
	c.fails(opTmpfile, rootID, ro, raw(createIn{Flags: unix.O_RDWR}))
	c.fails(opSetattr, f, ro, raw(setattrIn{Valid: fattrMode, Mode: 0o777}))
	c.fails(opSetxattr, f, ro, raw(setxattrIn{Size: 1}), str("user.a"), []byte("v"))
	c.fails(opRemovexattr, f, ro, str("user.a"))
	c.fails(opAccess, f, ro, raw(accessIn{Mask: unix.W_OK}))
	c.must(opAccess, f, raw(accessIn{Mask: unix.R_OK}))
	for _, flags := range []uint32{unix.O_WRONLY, unix.O_RDWR, unix.O_TRUNC, 3} {
		c.fails(opOpen, f, ro, raw(openIn{Flags: flags}))
	}
	c.fails(opSetupmapping, f, ro, raw(setupmappingIn{FH: math.MaxUint64, Len: daxRange, Flags: setupmappingRead | setupmappingWrite}))
	fh := c.open(f, unix.O_RDONLY).FH
	c.fails(opWrite, f, ro, raw(writeIn{FH: fh, Size: 1}), []byte("y"))
	c.fails(opFallocate, f, ro, raw(fallocateIn{FH: fh, Length: 1}))
	c.fails(opCopyFileRange, f, ro, raw(copyFileRangeIn{FHIn: fh, NodeIDOut: f, FHOut: fh, Len: 1}))
	if got := c.read(f, fh, 0, 10); string(got) != "x" {
		t.Errorf("read %q", got)
	}
	if got := list(t, dir); got != "f" {
		t.Errorf("the share has now: %s", got)
	}
}

// The guest's memory changes while a request is served; the copy counts.
func TestHostileDoubleFetch(t *testing.T) {
	c, dir := newShare(t, nil)
	put(t, filepath.Join(dir, "f"), "x")
	body := append(str("f"), 0)
	in := append(raw(inHeader{Len: uint32(inHeaderSize + len(body)), Opcode: opLookup, Unique: 9, NodeID: rootID}), body...)
	var stop atomic.Bool
	var wg sync.WaitGroup
	wg.Add(1)
	go func() {
		defer wg.Done()
		for !stop.Load() { // "f", "..", "./": the copy is always a whole name or refused
			copyRacy(in[inHeaderSize:], "..\x00")
			copyRacy(in[inHeaderSize:], "./\x00")
			copyRacy(in[inHeaderSize:], "f\x00\x00")
			copyRacy(in[0:], "\xff\xff\xff\xff")
			copyRacy(in[0:], string(raw(inHeader{Len: uint32(len(in))})[:4]))
		}
	}()
	for range 20000 {
		b, e := c.sendRaw(in, c.out)
		if e == 0 && len(b) == entryOutSize && view[entryOut](b).Attr.Mode&unix.S_IFMT != unix.S_IFREG {
			t.Fatal("LOOKUP went astray")
		}
	}
	stop.Store(true)
	wg.Wait()
}
