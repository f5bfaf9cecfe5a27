package fs

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// copyRacy writes to b as a guest does to its memory: unseen by the race detector.
//
//go:norace
func copyRacy(b []byte, s string) {
	for i := range len(s) {
		b[i] = s[i]
	}
}

// list is what a host directory holds.
func list(t testing.TB, dir string) string {
	t.Helper()
	es, err := os.ReadDir(dir)
	must(t, err)
	var n []string
	for _, e := range es {
		n = append(n, e.Name())
	}
	return strings.Join(n, " ")
}

func TestConfig(t *testing.T) {
	dir := t.TempDir()
	for want, cfg := range map[string]Config{
		"tag \"\"":                  {Path: dir},
		"1 to 36 bytes":             {Path: dir, Tag: strings.Repeat("t", 37)},
		"65 request queues":         {Path: dir, Tag: "t", Queues: 65},
		"power of two":              {Path: dir, Tag: "t", DAXSize: 3 << 20},
		"no path":                   {Tag: "t"},
		"no such file or directory": {Tag: "t", Path: dir + "/none"},
		"neither a directory nor":   {Tag: "t", Path: "/dev/null"},
		"beyond the last valid id":  {Tag: "t", Path: dir, IDMap: IDMap{1 << 31, 1 << 31}},
		"unknown cache policy":      {Tag: "t", Path: dir, Cache: 9},
		"negative timeout":          {Tag: "t", Path: dir, Timeout: -1},
	} {
		if _, err := New(cfg); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	// virtio 1.2 §5.11.4: tag[36], num_request_queues; beyond it zero.
	d, err := New(Config{Tag: "mytag", Path: dir, Queues: 3, DAXSize: 2 << 20})
	must(t, err)
	defer d.Close()
	b := bytes.Repeat([]byte{0xff}, 44)
	d.ReadConfig(0, b)
	want := make([]byte, 44)
	copy(want, "mytag")
	want[36] = 3
	if !bytes.Equal(b, want) {
		t.Errorf("config space %q", b)
	}
	d.WriteConfig(0, []byte("x"))
	for _, off := range []uint64{36, 40, 1 << 63, 1<<64 - 1} {
		d.ReadConfig(off, b[:4])
	}
	if q := d.QueueSizes(); !slices.Equal(q, []uint16{128, 1024, 1024, 1024}) {
		t.Errorf("queues %v", q)
	}
	if m := d.SharedMemory(); len(m) != 1 || m[0].ID != 0 || m[0].Size != 2<<20 {
		t.Errorf("shared memory %v", m)
	}
}

func TestInitFlags(t *testing.T) {
	for _, tc := range []struct {
		name       string
		edit       func(*Config)
		has, lacks uint64
	}{
		{"auto", nil, initAutoInvalData | initParallelDirops | initMaxPages | initHandleKillprivV2 | initSubmounts, initWritebackCache | initPosixLocks | initPosixACL | initHasInodeDAX},
		{"always", func(c *Config) { c.Cache = CacheAlways }, initMaxPages, initAutoInvalData},
		{"never", func(c *Config) { c.Cache = CacheNever; c.Writeback = true }, initDirectIOMmap, initAutoInvalData | initWritebackCache},
		{"all", func(c *Config) { c.Writeback, c.ACL, c.Locks = true, true, true }, initWritebackCache | initPosixLocks | initFlockLocks | initPosixACL | initDontMask, 0},
	} {
		c, _ := newShare(t, tc.edit)
		o := c.start()
		f := uint64(o.Flags) | uint64(o.Flags2)<<32
		if f&tc.has != tc.has || f&tc.lacks != 0 {
			t.Errorf("%s: flags %#x, should have %#x and not %#x", tc.name, f, tc.has, tc.lacks)
		}
		if o.MaxWrite != 1<<20 || o.MaxPages != 256 || o.TimeGran != 1 {
			t.Errorf("%s: %+v", tc.name, o)
		}
	}
}

func TestFileLife(t *testing.T) {
	c, dir := newShare(t, nil)
	e, o := c.create(rootID, "f", 0o640)
	if e.Attr.Mode != unix.S_IFREG|0o640 || e.Attr.Size != 0 || e.EntryValid != 1 || e.AttrValid != 1 {
		t.Errorf("created %+v", e)
	}
	data := bytes.Repeat([]byte("0123456789abcdef"), 16384) // 256 KiB
	if n := c.write(e.NodeID, o.FH, 5, data); int(n) != len(data) {
		t.Errorf("wrote %d", n)
	}
	if got := c.read(e.NodeID, o.FH, 5, uint32(len(data))); !bytes.Equal(got, data) {
		t.Error("read something else")
	}
	if got := c.read(e.NodeID, o.FH, uint64(len(data)), 100); string(got) != string(data[len(data)-5:]) {
		t.Errorf("the end is %q", got)
	}
	if got := c.read(e.NodeID, o.FH, 1<<40, 100); len(got) != 0 {
		t.Errorf("beyond the end is %q", got)
	}
	// O_APPEND goes to the end whatever the offset; written-back pages do not.
	a := c.open(e.NodeID, unix.O_WRONLY|unix.O_APPEND).FH
	c.write(e.NodeID, a, 0, []byte("end"))
	c.must(opWrite, e.NodeID, raw(writeIn{FH: a, Offset: 0, Size: 5, WriteFlags: writeCache}), []byte("begin"))
	got := content(t, dir, "f")
	if got != "begin"+string(data)+"end" {
		t.Errorf("the file has %d bytes, %q … %q", len(got), got[:8], got[len(got)-8:])
	}
	c.must(opFsync, e.NodeID, raw(fsyncIn{FH: a, Flags: 1}))
	c.must(opSetattr, e.NodeID, raw(setattrIn{Valid: fattrSize | fattrFH, FH: a, Size: 4}))
	c.must(opSetattr, e.NodeID, raw(setattrIn{Valid: fattrSize, Size: 3}))
	// Unlinked, it goes on.
	c.must(opUnlink, rootID, str("f"))
	if got := c.getattr(e.NodeID); got.Nlink != 0 || got.Size != 3 {
		t.Errorf("unlinked: %+v", got)
	}
	if got := c.read(e.NodeID, o.FH, 0, 100); string(got) != "beg" {
		t.Errorf("unlinked: %q", got)
	}
	c.must(opRelease, e.NodeID, raw(releaseIn{FH: o.FH}))
	c.must(opRelease, e.NodeID, raw(releaseIn{FH: a}))
	c.must(opForget, e.NodeID, raw(forgetIn{1}))
	if list(t, dir) != "" || c.dev.nodes.size() != 0 || len(c.dev.handles.byID) != 0 {
		t.Error("something is left")
	}
}

func TestDirectories(t *testing.T) {
	c, dir := newShare(t, nil)
	var want []string
	for i := range 300 {
		n := strings.Repeat("n", i%200+1) + "-" + string(rune('0'+i%10)) + strings.Repeat("x", i/10%7)
		if os.WriteFile(filepath.Join(dir, n), nil, 0o644) == nil && !slices.Contains(want, n) {
			want = append(want, n)
		}
	}
	for _, size := range []uint32{600, 4096, 1 << 20} {
		for _, plus := range []bool{false, true} {
			l := c.list(rootID, plus, size)
			if len(l) != len(want)+2 {
				t.Errorf("size %d, plus %v: %d entries, want %d", size, plus, len(l), len(want)+2)
			}
			for _, n := range want {
				e, ok := l[n]
				if !ok || plus && (e.NodeID == 0 || e.Attr.Mode&unix.S_IFMT != unix.S_IFREG) {
					t.Fatalf("size %d: %q is %+v", size, n, e)
				}
			}
			if l["."].NodeID != 0 || l[".."].NodeID != 0 {
				t.Error("dots were looked up")
			}
		}
	}
	c.must(opMkdir, rootID, raw(mkdirIn{Mode: 0o755}), str("zz"))
	z := c.node("zz")
	c.must(opMkdir, z, raw(mkdirIn{Mode: 0o755}), str("in"))
	c.fails(opRmdir, rootID, unix.ENOTEMPTY, str("zz"))
	c.fails(opUnlink, rootID, unix.EISDIR, str("zz"))
	c.must(opRename2, z, raw(rename2In{Newdir: rootID, Flags: unix.RENAME_NOREPLACE}), str("in"), str("out"))
	c.fails(opRename2, rootID, unix.EEXIST, raw(rename2In{Newdir: rootID, Flags: unix.RENAME_NOREPLACE}), str("out"), str("zz"))
	c.must(opRename2, rootID, raw(rename2In{Newdir: rootID, Flags: unix.RENAME_EXCHANGE}), str("out"), str("zz"))
	// A directory removed while in use can still be asked.
	d := c.opendir(z)
	c.must(opRmdir, rootID, str("out"))
	c.getattr(z)
	if b, e := c.send(opReaddir, z, raw(readIn{FH: d, Size: 4096})); len(b) != 0 || e != 0 && e != unix.ENOENT {
		t.Errorf("a removed directory lists %q, %v", b, e)
	}
	c.fails(opCreate, z, unix.ENOENT, raw(createIn{Flags: unix.O_RDWR, Mode: 0o600}), str("f"))
	c.must(opFsyncdir, rootID, raw(fsyncIn{FH: c.opendir(rootID)}))
}

func TestTmpfile(t *testing.T) {
	c, dir := newShare(t, nil)
	b, e := c.send(opTmpfile, rootID, raw(createIn{Flags: unix.O_RDWR, Mode: unix.S_IFREG | 0o600}), str("#1"))
	if e == unix.EOPNOTSUPP {
		t.Skip("no O_TMPFILE here")
	}
	if e != 0 {
		t.Fatal(e)
	}
	n, fh := view[entryOut](b).NodeID, view[openOut](b[entryOutSize:]).FH
	c.write(n, fh, 0, []byte("tmp"))
	c.must(opLink, rootID, raw(linkIn{OldNodeID: n}), str("named"))
	if got := content(t, dir, "named"); got != "tmp" {
		t.Errorf("%q", got)
	}
}

// Opening again keeps the guest's pages if and only if the file is unchanged
// since, and its times were old enough to tell.
func TestKeepCache(t *testing.T) {
	c, dir := newShare(t, nil)
	p := filepath.Join(dir, "f")
	put(t, p, "one")
	must(t, os.Mkdir(filepath.Join(dir, "d"), 0o755))
	f, d := c.node("f"), c.node("d")
	kept := func() bool { return c.open(f, unix.O_RDONLY).OpenFlags&fopenKeepCache != 0 }
	dir1 := func() uint32 { return view[openOut](c.must(opOpendir, d, raw(openIn{}))).OpenFlags }
	if kept() {
		t.Error("kept at the first open")
	}
	if kept() {
		t.Error("kept though the file changed a moment before: a change in the same tick would go unseen")
	}
	_ = dir1()
	time.Sleep(2 * tick)
	_, _ = kept(), dir1()
	if !kept() || dir1() != fopenKeepCache|fopenCacheDir {
		t.Error("not kept though nothing changed")
	}
	put(t, p, "two") // same size
	put(t, filepath.Join(dir, "d", "new"), "")
	if kept() || dir1() != fopenCacheDir {
		t.Error("kept though it changed")
	}
	time.Sleep(2 * tick)
	_ = kept()
	if !kept() {
		t.Error("not kept though nothing changed again")
	}
	must(t, os.Chtimes(p, time.Now(), time.Now().Add(-time.Hour)))
	if kept() {
		t.Error("kept though the time was set back")
	}
	always, dir := newShare(t, func(c *Config) { c.Cache = CacheAlways })
	put(t, filepath.Join(dir, "f"), "x")
	if o := always.open(always.node("f"), 0); o.OpenFlags != fopenKeepCache {
		t.Errorf("always: %#x", o.OpenFlags)
	}
	if e := always.lookup(rootID, "none"); e.NodeID != 0 || e.EntryValid == 0 {
		t.Errorf("always: no negative entry: %+v", e)
	}
	never, dir := newShare(t, func(c *Config) { c.Cache = CacheNever })
	put(t, filepath.Join(dir, "f"), "x")
	if e := never.lookup(rootID, "f"); e.EntryValid|e.AttrValid|uint64(e.AttrValidNsec) != 0 {
		t.Errorf("never: %+v", e)
	}
	if o := never.open(never.node("f"), 0); o.OpenFlags != fopenDirectIO {
		t.Errorf("never: %#x", o.OpenFlags)
	}
}

// A share of one file shows just that, also after an editor replaced it.
func TestFileShare(t *testing.T) {
	dir := t.TempDir()
	p := filepath.Join(dir, "config")
	put(t, p, "one")
	put(t, filepath.Join(dir, "neighbour"), "SECRET")
	d, err := New(Config{Tag: "t", Path: p, FileName: "shown"})
	must(t, err)
	defer d.Close()
	c := newClient(t, d)
	c.start()
	if a := c.getattr(rootID); a.Mode != unix.S_IFDIR|0o555 {
		t.Errorf("root %+v", a)
	}
	for _, plus := range []bool{false, true} {
		if l := c.list(rootID, plus, 4096); len(l) != 3 || plus != (l["shown"].NodeID != 0) {
			t.Errorf("listing %v", l)
		}
	}
	c.fails(opLookup, rootID, unix.ENOENT, str("neighbour"))
	c.fails(opLookup, rootID, unix.ENOENT, str("config"))
	n := c.node("shown")
	fh := c.open(n, unix.O_RDWR).FH
	c.write(n, fh, 0, []byte("two"))
	if got := content(t, p); got != "two" {
		t.Errorf("the host has %q", got)
	}
	c.must(opSetattr, n, raw(setattrIn{Valid: fattrMode, Mode: 0o600}))
	ro := unix.EROFS
	c.fails(opUnlink, rootID, ro, str("shown"))
	c.fails(opCreate, rootID, ro, raw(createIn{Flags: unix.O_RDWR}), str("new"))
	c.fails(opCreate, rootID, ro, raw(createIn{Flags: unix.O_RDWR}), str("shown"))
	c.fails(opMkdir, rootID, ro, raw(mkdirIn{}), str("new"))
	c.fails(opRename, rootID, ro, raw(renameIn{Newdir: rootID}), str("shown"), str("new"))
	c.fails(opLink, rootID, ro, raw(linkIn{OldNodeID: n}), str("new"))
	c.fails(opTmpfile, rootID, ro, raw(createIn{Flags: unix.O_RDWR}), str(""))
	c.fails(opSetattr, rootID, ro, raw(setattrIn{Valid: fattrMode, Mode: 0o777}))
	c.fails(opSetxattr, rootID, unix.EOPNOTSUPP, raw(setxattrIn{Size: 1}), str("user.a"), []byte("v"))
	c.must(opStatfs, rootID)
	c.must(opStatx, rootID, raw(statxIn{}))
	put(t, p+"~", "three")
	must(t, os.Rename(p+"~", p))
	n = c.node("shown")
	if got := c.read(n, c.open(n, 0).FH, 0, 10); string(got) != "three" {
		t.Errorf("after replacement: %q", got)
	}
	must(t, os.Remove(p))
	must(t, os.Symlink("neighbour", p))
	c.fails(opLookup, rootID, unix.ENOENT, str("shown"))
	must(t, os.Remove(p))
	must(t, os.Mkdir(p, 0o755))
	c.fails(opLookup, rootID, unix.ENOENT, str("shown"))
}

func TestSessionEnds(t *testing.T) {
	c, dir := newShare(t, func(c *Config) { c.Locks = true })
	before := fdsInUse.Load()
	for i := range 20 {
		put(t, filepath.Join(dir, string(rune('a'+i))), "x")
		n := c.node(string(rune('a' + i)))
		fh := c.open(n, unix.O_RDWR).FH
		c.must(opSetlk, n, raw(lkIn{FH: fh, Owner: 1, Lk: fileLock{0, 10, unix.F_WRLCK, 1}}))
	}
	c.opendir(rootID)
	if fdsInUse.Load() != before+61 {
		t.Errorf("%d descriptors in use", fdsInUse.Load()-before)
	}
	n := c.node("a")
	c.start() // INIT again
	if fdsInUse.Load() != before {
		t.Errorf("%d descriptors are left over", fdsInUse.Load()-before)
	}
	c.fails(opGetattr, n, unix.ESTALE, raw(getattrIn{}))
}

func TestStatxAndStatfs(t *testing.T) {
	c, dir := newShare(t, nil)
	put(t, filepath.Join(dir, "f"), "hello")
	n := c.node("f")
	s := view[statxOut](c.must(opStatx, n, raw(statxIn{}))).Stat
	if s.Size != 5 || s.Mode&unix.S_IFMT != unix.S_IFREG || s.Mask&unix.STATX_BASIC_STATS != unix.STATX_BASIC_STATS {
		t.Errorf("%+v", s)
	}
	if f := view[kstatfs](c.must(opStatfs, n)); f.Bsize == 0 || f.Blocks == 0 || f.Namelen != 255 {
		t.Errorf("%+v", f)
	}
	c.must(opSyncfs, rootID, le64(0))
	old := setattrIn{Valid: fattrAtime | fattrMtime, Atime: 1, Atimensec: 2, Mtime: 1 << 33, Mtimensec: 999999999}
	a := view[attrOut](c.must(opSetattr, n, raw(old))).Attr
	if a.Atime != 1 || a.Atimensec != 2 || a.Mtime != 1<<33 || a.Mtimensec != 999999999 {
		t.Errorf("%+v", a)
	}
	now := setattrIn{Valid: fattrMtime | fattrMtimeNow | fattrAtime | fattrAtimeNow}
	a = view[attrOut](c.must(opSetattr, n, raw(now))).Attr
	if d := time.Since(time.Unix(int64(a.Mtime), 0)); d > time.Minute || d < -time.Minute {
		t.Errorf("now is %v ago", d)
	}
}

func TestCopyAndSeek(t *testing.T) {
	c, dir := newShare(t, nil)
	put(t, filepath.Join(dir, "a"), strings.Repeat("a", 10000))
	put(t, filepath.Join(dir, "b"), "bbb")
	a, b := c.node("a"), c.node("b")
	fa, fb := c.open(a, unix.O_RDONLY).FH, c.open(b, unix.O_RDWR).FH
	n := view[writeOut](c.must(opCopyFileRange, a, raw(copyFileRangeIn{FHIn: fa, OffIn: 10, NodeIDOut: b, FHOut: fb, OffOut: 3, Len: 5}))).Size
	if n != 5 || content(t, dir, "b") != "bbbaaaaa" {
		t.Errorf("copied %d: %q", n, content(t, dir, "b"))
	}
	m := view[copyFileRangeOut](c.must(opCopyFileRange64, a, raw(copyFileRangeIn{FHIn: fa, NodeIDOut: b, FHOut: fb, Len: 1 << 40}))).BytesCopied
	if m != 10000 {
		t.Errorf("copied %d", m)
	}
	if o := view[lseekOut](c.must(opLseek, a, raw(lseekIn{FH: fa, Whence: unix.SEEK_HOLE}))).Offset; o != 10000 {
		t.Errorf("the hole is at %d", o)
	}
	c.must(opFallocate, b, raw(fallocateIn{FH: fb, Offset: 0, Length: 20000, Mode: unix.FALLOC_FL_KEEP_SIZE}))
	if s := c.getattr(b); s.Size != 10000 {
		t.Errorf("size %d", s.Size)
	}
}

// Another file system below the share is a mount of its own in the guest, and
// the same file through a bind mount another inode.
func TestSubmounts(t *testing.T) {
	needRoot(t)
	if os.Getenv(envInNS) == "" {
		t.Skip("needs a mount namespace")
	}
	c, dir := newShare(t, nil)
	sub, bind := filepath.Join(dir, "sub"), filepath.Join(dir, "bind")
	must(t, os.Mkdir(sub, 0o755))
	must(t, os.Mkdir(bind, 0o755))
	put(t, filepath.Join(dir, "f"), "x")
	if err := unix.Mount("tmpfs", sub, "tmpfs", 0, ""); err != nil {
		t.Skip("cannot mount: ", err)
	}
	defer func() { must(t, unix.Unmount(sub, unix.MNT_DETACH)) }()
	must(t, unix.Mount(dir, bind, "", unix.MS_BIND, ""))
	defer func() { must(t, unix.Unmount(bind, unix.MNT_DETACH)) }()
	put(t, filepath.Join(sub, "g"), "y")
	s, b := c.lookup(rootID, "sub"), c.lookup(rootID, "bind")
	if s.Attr.Flags&attrSubmount == 0 || b.Attr.Flags&attrSubmount == 0 {
		t.Error("a mount point has no FUSE_ATTR_SUBMOUNT")
	}
	if c.lookup(rootID, "f").Attr.Flags != 0 || c.lookup(s.NodeID, "g").Attr.Flags != 0 {
		t.Error("a file has flags")
	}
	if b.NodeID == rootID || c.node("bind", "f") == c.node("f") {
		t.Error("an inode was taken for that of another mount")
	}
	if l := c.list(rootID, true, 4096); l["sub"].Attr.Flags&attrSubmount == 0 || l["sub"].NodeID != s.NodeID {
		t.Errorf("READDIRPLUS: %+v", l["sub"])
	}
	c.fails(opRename, rootID, unix.EXDEV, raw(renameIn{Newdir: s.NodeID}), str("f"), str("f"))
	c.fails(opLink, s.NodeID, unix.EXDEV, raw(linkIn{OldNodeID: c.node("f")}), str("f"))
}

// TestReadTooMuch: a READ of more than max_write gives the beginning, so that a driver
// that reads whole files (OVMF's) goes on from there.
func TestReadTooMuch(t *testing.T) {
	c, dir := newShare(t, nil)
	want := bytes.Repeat([]byte("0123456789abcde\n"), maxWrite/8)
	put(t, filepath.Join(dir, "f"), string(want))
	c.out = make([]byte, outHeaderSize+len(want))
	f := c.node("f")
	fh := c.open(f, unix.O_RDONLY).FH
	var got []byte
	for n := 1; n > 0; {
		b := c.read(f, fh, uint64(len(got)), uint32(len(want)))
		if n = len(b); n > maxWrite {
			t.Fatalf("%d bytes at once", n)
		}
		got = append(got, b...)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%d bytes, want %d", len(got), len(want))
	}
}
