package fs

import (
	"bytes"
	"time"

	"golang.org/x/sys/unix"
)

// lookup serves LOOKUP.
func (r *request) lookup() (int, unix.Errno) {
	parent, e := r.directory(r.hdr.NodeID)
	if e != 0 {
		return 0, e
	}
	defer parent.put()
	name, e := onlyName(r.in)
	if e != 0 {
		return 0, e
	}
	if e := r.mayUse(parent, 1); e != 0 {
		return 0, e
	}
	n, e := r.answerEntry(parent, name)
	if e == unix.ENOENT && r.d.cfg.Cache == CacheAlways {
		// Node ID 0 with a timeout: the guest may remember the absence.
		o, n := answer[entryOut](r, 0)
		o.EntryValid = uint64(alwaysValid / time.Second)
		return n, 0
	}
	return n, e
}

// answerEntry makes the entry reply for name in parent, which counts one lookup.
func (r *request) answerEntry(parent *inode, name []byte) (int, unix.Errno) {
	i, e := r.resolve(parent, name)
	if e != 0 {
		return 0, e
	}
	return r.answerKnown(parent, i)
}

// answerKnown makes the entry reply for i, whose reference it gives back and whose
// attributes are in r.st.
func (r *request) answerKnown(parent, i *inode) (int, unix.Errno) {
	defer i.put()
	o, n := answer[entryOut](r, 0)
	r.fillEntry(o, parent, i)
	return n, 0
}

// fillEntry fills in an entry from r.st.
func (r *request) fillEntry(o *entryOut, parent, i *inode) {
	t := r.d.timeout()
	o.NodeID = i.id
	o.EntryValid, o.EntryValidNsec = uint64(t/time.Second), uint32(t%time.Second)
	o.AttrValid, o.AttrValidNsec = o.EntryValid, o.EntryValidNsec
	r.fill(&o.Attr, i)
	// A directory of another file system becomes a mount of its own in the
	// guest, so that inode numbers stay unique (SUBMOUNTS).
	if i.isDir() && !parent.synthetic() && i.key.mnt != parent.key.mnt && r.d.flag(initSubmounts) {
		o.Attr.Flags |= attrSubmount
	}
}

// resolve finds the inode of name in parent, with one more lookup and a
// reference, and leaves its attributes in r.st. A file that the guest knows
// costs one system call: its pinned descriptor vouches for the number.
func (r *request) resolve(parent *inode, name []byte) (*inode, unix.Errno) {
	dir := parent.fd
	if parent.synthetic() {
		if !bytes.Equal(name, r.d.host.guestName) {
			return nil, unix.ENOENT
		}
		dir, name = r.d.host.dir, r.d.host.fileName
	}
	if e := sysStatx(dir, name, 0, statMask, &r.st); e != 0 {
		return nil, e
	}
	i := r.d.nodes.find(keyOf(&r.st))
	if i == nil {
		var e unix.Errno
		if i, e = r.resolveNew(parent, dir, name); e != 0 {
			return nil, e
		}
	}
	if parent.synthetic() && !i.isFile() {
		// The shared file was replaced by something else.
		r.d.nodes.forget(i.id, 1)
		i.put()
		return nil, unix.ENOENT
	}
	return i, 0
}

// resolveListed is resolve for a name that a listing showed with an inode number. One
// of which the guest has nothing needs no look before it is opened.
func (r *request) resolveListed(parent *inode, name []byte, ino uint64) (*inode, unix.Errno) {
	k := parent.key
	k.ino = ino
	if parent.synthetic() || r.d.nodes.has(k) {
		return r.resolve(parent, name)
	}
	return r.resolveNew(parent, parent.fd, name)
}

// resolveNew opens a file, name in dir, that the guest does not know yet.
func (r *request) resolveNew(parent *inode, dir int, name []byte) (*inode, unix.Errno) {
	if e := r.d.takeFD(); e != 0 {
		return nil, e
	}
	fd, e := r.openPath(dir, name, unix.RESOLVE_NO_XDEV)
	sameMount := e == 0 && !parent.synthetic()
	if e == unix.EXDEV { // something is mounted there
		fd, e = r.openPath(dir, name, 0)
	}
	if e != 0 {
		fdsInUse.Add(-1)
		return nil, hideLimit(e)
	}
	if sameMount {
		return r.enterBelow(parent, fd)
	}
	return r.enter(fd)
}

// openPath makes an O_PATH descriptor of name in dir without following a link.
func (r *request) openPath(dir int, name []byte, resolve uint64) (int, unix.Errno) {
	r.how = unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_SYMLINKS | resolve,
	}
	return sysOpenat2(dir, name, &r.how)
}

// hideLimit turns our own limit of open files into the system's, because the
// guest's process has not exceeded its own.
func hideLimit(e unix.Errno) unix.Errno {
	if e == unix.EMFILE {
		return unix.ENFILE
	}
	return e
}

// enter makes an inode of a new O_PATH descriptor, which it owns from now on
// and for which takeFD was called. It leaves the attributes in r.st.
func (r *request) enter(fd int) (*inode, unix.Errno) {
	return r.enterStat(fd, sysFstatx(fd, &r.st))
}

// enterBelow is enter for a file of the same mount as its parent directory.
func (r *request) enterBelow(parent *inode, fd int) (*inode, unix.Errno) {
	e := r.fstat(fd)
	r.st.Mnt_id = parent.key.mnt
	return r.enterStat(fd, e)
}

// enterStat is enter with the attributes in r.st already, unless reading them failed
// with e.
func (r *request) enterStat(fd int, e unix.Errno) (*inode, unix.Errno) {
	i := &inode{fd: fd}
	i.refs.Store(1)
	if e != 0 {
		i.put()
		return nil, e
	}
	i.key = keyOf(&r.st)
	i.fmt = uint32(r.st.Mode) & unix.S_IFMT
	r.d.noteMount(i)
	i.dax = i.isFile() && r.st.Size >= r.d.cfg.DAXMinFile && r.d.flag(initHasInodeDAX)
	return r.d.nodes.add(i), 0
}

// readlink serves READLINK.
func (r *request) readlink() (int, unix.Errno) {
	i, e := r.node()
	if e != 0 {
		return 0, e
	}
	defer i.put()
	if i.fmt != unix.S_IFLNK {
		return 0, unix.EINVAL
	}
	n, e := sysReadlink(i.fd, r.room(unix.PathMax))
	if e == 0 && n > r.fits(unix.PathMax) {
		return 0, unix.ENAMETOOLONG
	}
	return n, e
}
