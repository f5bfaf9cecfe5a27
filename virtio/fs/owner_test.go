package fs

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// owned is a file's owner and mode on the host.
func owned(t testing.TB, path ...string) (uid, gid uint32, mode uint32) {
	t.Helper()
	var st syscall.Stat_t
	must(t, syscall.Lstat(filepath.Join(path...), &st))
	return st.Uid, st.Gid, st.Mode & 0o7777
}

func wantOwner(t testing.TB, uid, gid, mode uint32, path ...string) {
	t.Helper()
	if u, g, m := owned(t, path...); u != uid || g != gid || mode != 0 && m != mode {
		t.Errorf("%s belongs to %d:%d, mode %o; want %d:%d, %o", filepath.Join(path...), u, g, m, uid, gid, mode)
	}
}

// New files belong to the caller from the start, of every kind, whatever our umask.
func TestOwnerOfNewFiles(t *testing.T) {
	needRoot(t)
	c, dir := newShare(t, nil)
	must(t, os.Chmod(dir, 0o755)) // not writable for the caller: the guest has checked
	c.uid, c.gid = 1234, 5678
	c.create(rootID, "f", 0o666)
	c.must(opMkdir, rootID, raw(mkdirIn{Mode: 0o777}), str("d"))
	c.must(opMknod, rootID, raw(mknodIn{Mode: unix.S_IFIFO | 0o622}), str("p"))
	c.must(opSymlink, rootID, str("l"), str("t"))
	wantOwner(t, 1234, 5678, 0o666, dir, "f")
	wantOwner(t, 1234, 5678, 0o777, dir, "d")
	wantOwner(t, 1234, 5678, 0o622, dir, "p")
	wantOwner(t, 1234, 5678, 0, dir, "l")
	c.uid, c.gid = 0, 77
	c.create(rootID, "g", 0o600)
	wantOwner(t, 0, 77, 0o600, dir, "g")
	c.gid = 0
	e, _ := c.create(rootID, "r", 0o4755)
	wantOwner(t, 0, 0, 0o4755, dir, "r")
	if e.Attr.UID != 0 || e.Attr.Mode&0o7777 != 0o4755 {
		t.Errorf("%+v", e.Attr)
	}
	// A set-group-ID directory passes its group on.
	must(t, os.Mkdir(filepath.Join(dir, "sg"), 0o777))
	must(t, os.Chown(filepath.Join(dir, "sg"), 0, 99))
	must(t, unix.Chmod(filepath.Join(dir, "sg"), 0o2777))
	sg := c.node("sg")
	c.uid, c.gid = 1234, 5678
	c.create(sg, "f", 0o644)
	c.must(opMkdir, sg, raw(mkdirIn{Mode: 0o755}), str("d"))
	wantOwner(t, 1234, 99, 0o644, dir, "sg", "f")
	wantOwner(t, 1234, 99, 0o2755, dir, "sg", "d")
	// The thread is itself again.
	if got := sysSetfsid(unix.SYS_SETFSUID, ^uint32(0)); got != 0 {
		t.Errorf("fsuid %d", got)
	}
	c.fails(opMkdir, rootID, unix.EEXIST, raw(mkdirIn{Mode: 0o755}), str("d"))
}

// With ACLs the mode comes without the caller's umask, which is sent along.
func TestUmaskWithACL(t *testing.T) {
	needRoot(t)
	c, dir := newShare(t, func(c *Config) { c.ACL = true })
	for i, mask := range []uint32{0, 0o022, 0o027, 0o077} {
		n := string(rune('a' + i))
		c.must(opMkdir, rootID, raw(mkdirIn{Mode: 0o777, Umask: mask}), str(n))
		wantOwner(t, 0, 0, 0o777&^mask, dir, n)
	}
	// user::rwx user:4:rwx group::rwx mask::rwx other::---, by default.
	acl := le32(2)
	for _, e := range [][2]uint32{{7<<16 | 1, ^uint32(0)}, {7<<16 | 2, 4}, {7<<16 | 4, ^uint32(0)}, {7<<16 | 0x10, ^uint32(0)}, {0<<16 | 0x20, ^uint32(0)}} {
		acl = append(append(acl, le32(e[0])...), le32(e[1])...)
	}
	d := c.node("a")
	if _, e := c.send(opSetxattr, d, raw(setxattrIn{Size: uint32(len(acl))}), str("system.posix_acl_default"), acl); e == unix.EOPNOTSUPP {
		t.Skip("no ACLs on this file system")
	} else if e != 0 {
		t.Fatal(e)
	}
	c.create(d, "f", 0o666) // the default ACL counts, not the umask
	wantOwner(t, 0, 0, 0o660, dir, "a", "f")
	got := c.must(opGetxattr, d, raw(getxattrIn{Size: 1000}), str("system.posix_acl_default"))
	if string(got) != string(acl) {
		t.Errorf("ACL %x, want %x", got, acl)
	}
}

// Writing and truncating clear set-ID bits when the guest's kernel says so.
func TestKillSetID(t *testing.T) {
	needRoot(t)
	c, dir := newShare(t, nil)
	p := filepath.Join(dir, "f")
	setid := func() {
		put(t, p, "x")
		must(t, unix.Chmod(p, 0o6755))
	}
	setid()
	n := c.node("f")
	fh := c.open(n, unix.O_RDWR).FH
	c.write(n, fh, 0, []byte("y"))
	wantOwner(t, 0, 0, 0o6755, p) // the caller has CAP_FSETID
	c.must(opWrite, n, raw(writeIn{FH: fh, Size: 1, WriteFlags: writeKillSuidgid}), []byte("y"))
	wantOwner(t, 0, 0, 0o755, p)
	setid()
	c.must(opSetattr, n, raw(setattrIn{Valid: fattrSize | fattrKillSuidgid, Size: 1}))
	wantOwner(t, 0, 0, 0o755, p)
	setid()
	c.must(opOpen, n, raw(openIn{Flags: unix.O_RDWR | unix.O_TRUNC, OpenFlags: openKillSuidgid}))
	wantOwner(t, 0, 0, 0o755, p)
	setid()
	c.must(opSetattr, n, raw(setattrIn{Valid: fattrUID, UID: 5}))
	wantOwner(t, 5, 0, 0o755, p)
	var caps capData
	if sysCapget(&caps); caps != c.dev.host.caps.base {
		t.Error("the thread's capabilities are not what they were")
	}
}

func TestIDMap(t *testing.T) {
	needRoot(t)
	c, dir := newShare(t, func(c *Config) { c.IDMap = IDMap{100000, 65536} })
	must(t, os.Chown(dir, 100000, 100000))
	put(t, filepath.Join(dir, "foreign"), "secret")
	must(t, os.Chmod(filepath.Join(dir, "foreign"), 0o600))
	put(t, filepath.Join(dir, "public"), "public")
	must(t, os.Mkdir(filepath.Join(dir, "hostdir"), 0o755))
	c.uid, c.gid = 0, 0
	c.create(rootID, "root", 0o600)
	wantOwner(t, 100000, 100000, 0o600, dir, "root")
	c.uid, c.gid = 1000, 100
	e, _ := c.create(rootID, "user", 0o2755)
	wantOwner(t, 101000, 100100, 0, dir, "user")
	if e.Attr.UID != 1000 || e.Attr.GID != 100 {
		t.Errorf("the guest sees %d:%d", e.Attr.UID, e.Attr.GID)
	}
	c.uid = 70000
	c.fails(opMkdir, rootID, unix.EOVERFLOW, raw(mkdirIn{Mode: 0o755}), str("beyond"))
	c.uid = 0
	c.must(opSetattr, e.NodeID, raw(setattrIn{Valid: fattrUID | fattrGID, UID: 5, GID: 6}))
	wantOwner(t, 100005, 100006, 0, dir, "user")
	c.fails(opSetattr, e.NodeID, unix.EINVAL, raw(setattrIn{Valid: fattrUID, UID: 65536}))
	// What belongs to the host is the overflow user's, and used as by others.
	f := c.lookup(rootID, "foreign")
	if f.Attr.UID != overflowID || f.Attr.GID != overflowID {
		t.Errorf("%+v", f.Attr)
	}
	c.fails(opOpen, f.NodeID, unix.EACCES, raw(openIn{}))
	c.fails(opSetattr, f.NodeID, unix.EPERM, raw(setattrIn{Valid: fattrMode, Mode: 0o777}))
	c.fails(opSetattr, f.NodeID, unix.EPERM, raw(setattrIn{Valid: fattrUID, UID: 0}))
	c.fails(opSetxattr, f.NodeID, unix.EPERM, raw(setxattrIn{Size: 1}), str("user.a"), []byte("v"))
	c.fails(opLink, rootID, unix.EPERM, raw(linkIn{OldNodeID: f.NodeID}), str("mine"))
	p, h := c.node("public"), c.node("hostdir")
	c.open(p, unix.O_RDONLY)
	c.fails(opOpen, p, unix.EACCES, raw(openIn{Flags: unix.O_RDWR}))
	c.fails(opCreate, h, unix.EACCES, raw(createIn{Flags: unix.O_RDWR, Mode: 0o600}), str("f"))
	c.fails(opRename, h, unix.EACCES, raw(renameIn{Newdir: rootID}), str("a"), str("b"))
	// In the host's /tmp the guest removes only its own.
	must(t, os.Mkdir(filepath.Join(dir, "tmp"), 0o755))
	must(t, unix.Chmod(filepath.Join(dir, "tmp"), 0o1777))
	put(t, filepath.Join(dir, "tmp", "hosts"), "x")
	tmp := c.node("tmp")
	c.create(tmp, "mine", 0o600)
	c.fails(opUnlink, tmp, unix.EPERM, str("hosts"))
	c.fails(opRename, tmp, unix.EPERM, raw(renameIn{Newdir: rootID}), str("hosts"), str("b"))
	c.fails(opRename, tmp, unix.EPERM, raw(renameIn{Newdir: tmp}), str("mine"), str("hosts"))
	c.must(opRename, tmp, raw(renameIn{Newdir: tmp}), str("mine"), str("still"))
	c.must(opUnlink, tmp, str("still"))
	// File capabilities hold for the guest's root only.
	cap2 := append(le32(capRevision2|1), make([]byte, 16)...)
	binary.LittleEndian.PutUint32(cap2[4:], 1<<unix.CAP_NET_RAW)
	c.must(opSetxattr, e.NodeID, raw(setxattrIn{Size: cap2Size}), str("security.capability"), cap2)
	b := make([]byte, 64)
	m, err := unix.Lgetxattr(filepath.Join(dir, "user"), "security.capability", b)
	if err != nil || m != cap3Size || binary.LittleEndian.Uint32(b[20:]) != 100000 {
		t.Errorf("on the host: %x %v", b[:max(m, 0)], err)
	}
	if got := c.must(opGetxattr, e.NodeID, raw(getxattrIn{Size: 20}), str("security.capability")); string(got) != string(cap2) {
		t.Errorf("in the guest: %x, want %x", got, cap2)
	}
}

// ACLs name host users on the host and guest users in the guest.
func TestACLIDs(t *testing.T) {
	needRoot(t)
	c, dir := newShare(t, func(c *Config) { c.ACL, c.IDMap = true, IDMap{100000, 65536} })
	must(t, os.Chown(dir, 100000, 100000))
	c.uid, c.gid = 0, 0
	e, _ := c.create(rootID, "f", 0o600)
	acl := func(uid, gid uint32) []byte {
		b := le32(2)
		for _, e := range [][2]uint32{{6<<16 | 1, ^uint32(0)}, {4<<16 | aclUser, uid}, {0<<16 | 4, ^uint32(0)}, {4<<16 | aclGroup, gid},
			{4<<16 | 0x10, ^uint32(0)}, {0<<16 | 0x20, ^uint32(0)}} {
			b = append(append(b, le32(e[0])...), le32(e[1])...)
		}
		return b
	}
	const name = "system.posix_acl_access"
	a := acl(5, 6)
	if _, e := c.send(opSetxattr, e.NodeID, raw(setxattrIn{Size: uint32(len(a))}), str(name), a); e == unix.EOPNOTSUPP {
		t.Skip("no ACLs on this file system")
	}
	b := make([]byte, 200)
	n, err := unix.Lgetxattr(filepath.Join(dir, "f"), name, b)
	if err != nil || string(b[:n]) != string(acl(100005, 100006)) {
		t.Errorf("on the host: %x %v", b[:max(n, 0)], err)
	}
	if got := c.must(opGetxattr, e.NodeID, raw(getxattrIn{Size: 200}), str(name)); string(got) != string(a) {
		t.Errorf("in the guest: %x", got)
	}
	a = acl(70000, 6)
	c.fails(opSetxattr, e.NodeID, unix.EINVAL, raw(setxattrIn{Size: uint32(len(a))}), str(name), a)
	a = append(a, 1)
	c.fails(opSetxattr, e.NodeID, unix.EINVAL, raw(setxattrIn{Size: uint32(len(a))}), str(name), a)
}

// Without the capabilities of root everything is ours, and root's in the guest.
func TestSquashed(t *testing.T) {
	c, dir := newShare(t, nil)
	h := &c.dev.host
	if os.Geteuid() == 0 {
		// Act the part: the decisions are ours, not the kernel's.
		h.privileged, h.uid, h.gid = false, 1000, 1000
		must(t, os.Chown(dir, 1000, 1000))
	}
	if !c.dev.Squashed() {
		t.Error("not squashed")
	}
	put(t, filepath.Join(dir, "f"), "x")
	if os.Geteuid() == 0 {
		must(t, os.Chown(filepath.Join(dir, "f"), 1000, 1000))
	}
	e := c.lookup(rootID, "f")
	if e.Attr.UID != 0 || e.Attr.GID != 0 {
		t.Errorf("%+v", e.Attr)
	}
	c.must(opSetattr, e.NodeID, raw(setattrIn{Valid: fattrUID | fattrGID}))
	if uid, _, _ := owned(t, dir, "f"); uid != h.uid {
		t.Errorf("now of %d", uid)
	}
	c.uid, c.gid = 33, 33 // a daemon of the guest
	c.create(rootID, "g", 0o644)
	if os.Geteuid() != 0 {
		wantOwner(t, h.uid, h.gid, 0, dir, "g")
		c.fails(opSetattr, e.NodeID, unix.EPERM, raw(setattrIn{Valid: fattrUID, UID: 33}))
	}
}

func TestDeviceNodes(t *testing.T) {
	needRoot(t)
	c, dir := newShare(t, func(c *Config) { c.DeviceNodes = true })
	c.must(opMknod, rootID, raw(mknodIn{Mode: unix.S_IFCHR | 0o600, Rdev: 1<<8 | 3}), str("null"))
	e := c.lookup(rootID, "null")
	if e.Attr.Rdev != 1<<8|3 || e.Attr.Mode != unix.S_IFCHR|0o600 {
		t.Errorf("%+v", e.Attr)
	}
	c.fails(opOpen, e.NodeID, unix.ENXIO, raw(openIn{}))
	c.uid = 1000 // the guest's kernel has checked CAP_MKNOD
	c.must(opMknod, rootID, raw(mknodIn{Mode: unix.S_IFBLK | 0o600, Rdev: 8<<8 | 1<<20}), str("b"))
	wantOwner(t, 1000, 0, 0o600, dir, "b")
}
