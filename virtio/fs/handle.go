package fs

import (
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// handle is an open file or directory of the guest.
type handle struct {
	id     uint64
	inode  *inode // with a reference
	fd     int
	append bool // the guest opened it with O_APPEND, see write

	writable bool
	refs     atomic.Int64
	// mustWait: the file system has no RWF_NOWAIT. Reads then run in place,
	// and the queue passes on the lead of slow ones.
	mustWait atomic.Bool
	// locked: POSIX locks were taken through it.
	locked atomic.Bool

	mu     sync.Mutex // a directory's: one READDIR at a time; guards the rest
	pos    uint64     // where the directory's descriptor stands
	looked int        // entries that READDIRPLUS has looked up since the beginning
}

func (h *handle) put() {
	if h.refs.Add(-1) == 0 {
		sysClose(h.fd)
		fdsInUse.Add(-1)
		h.inode.put()
	}
}

// handleTable holds what the guest has open.
type handleTable struct {
	mu   sync.RWMutex // guards the rest
	byID map[uint64]*handle
	next uint64 // never reused
}

func (t *handleTable) init() { t.byID = make(map[uint64]*handle) }

// add enters an open descriptor, for which takeFD was called.
func (t *handleTable) add(h *handle) {
	h.inode.refs.Add(1)
	h.refs.Store(1)
	t.mu.Lock()
	t.next++
	h.id = t.next
	t.byID[h.id] = h
	t.mu.Unlock()
}

// get returns the handle with a reference, if it is one of inode i, or nil.
func (t *handleTable) get(id uint64, i *inode) *handle {
	t.mu.RLock()
	h := t.byID[id]
	if h != nil && h.inode == i {
		h.refs.Add(1)
	} else {
		h = nil
	}
	t.mu.RUnlock()
	return h
}

// remove takes the handle out of the table; the caller gets its reference.
func (t *handleTable) remove(id uint64, i *inode) *handle {
	t.mu.Lock()
	h := t.byID[id]
	if h != nil && h.inode == i {
		delete(t.byID, id)
	} else {
		h = nil
	}
	t.mu.Unlock()
	return h
}

// clear drops all handles.
func (t *handleTable) clear() {
	t.mu.Lock()
	old := t.byID
	t.byID = make(map[uint64]*handle)
	t.mu.Unlock()
	for _, h := range old {
		h.put()
	}
}

// handle returns the handle fh of the inode that the request is about, which
// must be of the wanted type.
func (r *request) handle(fh uint64, format uint32) (*handle, unix.Errno) {
	i, e := r.node()
	if e != 0 {
		return nil, e
	}
	defer i.put()
	h := r.d.handles.get(fh, i)
	if h == nil {
		return nil, unix.EBADF
	}
	if format != 0 && i.fmt != format {
		h.put()
		if i.isDir() {
			return nil, unix.EISDIR
		}
		return nil, unix.ENOTDIR
	}
	return h, 0
}

// openFlags are the open(2) flags that the guest may pass on. O_DIRECT is not
// among them: it would ask for an alignment that the guest does not know of.
const openFlags = unix.O_ACCMODE | unix.O_TRUNC | unix.O_SYNC | unix.O_DSYNC | unix.O_NOATIME

// hostFlags turns the guest's open flags into ours.
func (r *request) hostFlags(flags uint32) int {
	f := int(flags) & openFlags
	if f&unix.O_ACCMODE == unix.O_ACCMODE {
		f &^= unix.O_ACCMODE // 3 means no access but ioctl; reading is the least
	}
	if r.d.flag(initWritebackCache) && f&unix.O_ACCMODE == unix.O_WRONLY {
		f = f&^unix.O_ACCMODE | unix.O_RDWR // the guest fills up partial pages
	}
	if !r.d.host.privileged {
		f &^= unix.O_NOATIME // owners only
	}
	// It is a regular file, but nothing shall ever block here.
	return f | unix.O_NONBLOCK
}

// open serves OPEN.
func (r *request) open() (int, unix.Errno) {
	i, e := r.node()
	if e != 0 {
		return 0, e
	}
	defer i.put()
	in := view[openIn](r.in)
	if e := r.openable(i, in.Flags); e != 0 {
		return 0, e
	}
	h, e := r.reopen(i, in.Flags, in.OpenFlags)
	if e != 0 {
		return 0, e
	}
	o, n := answer[openOut](r, 0)
	o.FH = h.id
	o.OpenFlags = r.cacheFlags(i, h.fd)
	return n, 0
}

// openable checks type and rights before a regular file is opened.
func (r *request) openable(i *inode, flags uint32) unix.Errno {
	changes := flags&unix.O_ACCMODE != unix.O_RDONLY || flags&unix.O_TRUNC != 0
	switch {
	case i.isDir():
		return unix.EISDIR
	case i.fmt == unix.S_IFLNK:
		return unix.ELOOP
	case !i.isFile():
		return unix.ENXIO // the guest's kernel opens these itself
	case changes && r.d.cfg.ReadOnly:
		return unix.EROFS
	case changes:
		return r.mayUse(i, 6)
	}
	return r.mayUse(i, 4)
}

// reopen opens the regular file i and enters the handle.
// Preconditions: openable.
func (r *request) reopen(i *inode, flags, openFlags uint32) (*handle, unix.Errno) {
	if flags&unix.O_TRUNC != 0 && r.here() {
		r.stuck = true
		return nil, unix.EAGAIN
	}
	if e := r.d.takeFD(); e != 0 {
		return nil, e
	}
	f := r.hostFlags(flags)
	if f&unix.O_TRUNC != 0 {
		r.w.detach()
		if openFlags&openKillSuidgid != 0 {
			r.d.host.dropFSETID()
			defer r.d.host.restoreFSETID()
		}
	}
	fd, e := sysOpenat(r.d.host.proc, r.proc(i.fd), f, 0)
	if e != 0 {
		fdsInUse.Add(-1)
		return nil, hideLimit(e)
	}
	return r.newHandle(i, fd, flags), 0
}

func (r *request) newHandle(i *inode, fd int, flags uint32) *handle {
	h := &handle{inode: i, fd: fd, writable: flags&unix.O_ACCMODE != unix.O_RDONLY}
	h.append = flags&unix.O_APPEND != 0
	r.d.handles.add(h)
	return h
}

// create serves CREATE. The file is made only if nothing is there; otherwise
// what is there is opened like any inode, if it is a regular file.
func (r *request) create() (int, unix.Errno) {
	in := view[createIn](r.in)
	name, e := onlyName(r.in[sizeOf[createIn]():])
	if e != 0 {
		return 0, e
	}
	parent, e := r.begin(createFile, name, in.Mode&0o7777, in.Umask)
	if e != 0 {
		return 0, e
	}
	defer parent.put()
	r.mk.flags = r.hostFlags(in.Flags)
	if e := r.d.takeFD(); e != 0 {
		return 0, e
	}
	if e = r.createAs(); e != 0 {
		fdsInUse.Add(-1)
		if e == unix.EEXIST && in.Flags&unix.O_EXCL == 0 {
			return r.createExisting(parent, in)
		}
		return 0, hideLimit(e)
	}
	return r.answerCreated(parent, in.Flags)
}

// createExisting opens the file that CREATE found.
func (r *request) createExisting(parent *inode, in *createIn) (int, unix.Errno) {
	i, e := r.resolve(parent, r.mk.name)
	if e != 0 {
		return 0, e
	}
	defer i.put()
	if e = r.openable(i, in.Flags); e == 0 {
		var h *handle
		if h, e = r.reopen(i, in.Flags, in.OpenFlags); e == 0 {
			if e := r.stat(i); e != 0 {
				return 0, e // handle and lookup stay until the session ends
			}
			return r.answerOpened(parent, i, h)
		}
	}
	r.d.nodes.forget(i.id, 1)
	return 0, e
}

// answerCreated enters inode and handle of the descriptor that createAs left.
func (r *request) answerCreated(parent *inode, flags uint32) (int, unix.Errno) {
	fd := r.mk.fd
	i, e := r.enterOpen(parent, fd)
	if e != 0 {
		sysClose(fd)
		fdsInUse.Add(-1)
		return 0, e
	}
	defer i.put()
	return r.answerOpened(parent, i, r.newHandle(i, fd, flags))
}

// enterOpen makes the inode for an open descriptor of ours, new in parent, and leaves
// the attributes in r.st. It is the same file for certain, whatever happened to its
// name since: that is only tried first because the way by /proc is longer.
func (r *request) enterOpen(parent *inode, fd int) (*inode, unix.Errno) {
	if e := r.d.takeFD(); e != 0 {
		return nil, e
	}
	if r.mk.name != nil && r.fstat(fd) == 0 {
		dev, ino := r.fst.Dev, r.fst.Ino
		if p, e := r.openPath(parent.fd, r.mk.name, unix.RESOLVE_NO_XDEV); e == 0 {
			if e = r.fstat(p); e == 0 && r.fst.Dev == dev && r.fst.Ino == ino {
				r.st.Mnt_id = parent.key.mnt
				return r.enterStat(p, 0)
			}
			sysClose(p)
		}
	}
	p, e := sysOpenat(r.d.host.proc, r.proc(fd), unix.O_PATH, 0)
	if e != 0 {
		fdsInUse.Add(-1)
		return nil, hideLimit(e)
	}
	return r.enter(p)
}

// answerOpened makes the reply of CREATE, entry and handle, with the attributes in r.st.
func (r *request) answerOpened(parent, i *inode, h *handle) (int, unix.Errno) {
	entry, n := answer[entryOut](r, 0)
	r.fillEntry(entry, parent, i)
	o, m := answer[openOut](r, n)
	o.FH = h.id
	o.OpenFlags = r.cacheFlagsNow(i)
	return n + m, 0
}

// tmpfile serves TMPFILE: a file without a name, which LINK may give it.
func (r *request) tmpfile() (int, unix.Errno) {
	in := view[createIn](r.in)
	parent, e := r.begin(createTmp, nil, in.Mode&0o7777, in.Umask)
	if e != 0 {
		return 0, e
	}
	defer parent.put()
	r.mk.flags = r.hostFlags(in.Flags)
	if r.mk.flags&unix.O_ACCMODE == unix.O_RDONLY {
		return 0, unix.EINVAL
	}
	if in.Flags&unix.O_EXCL != 0 {
		r.mk.flags |= unix.O_EXCL // never to be linked
	}
	if e := r.d.takeFD(); e != 0 {
		return 0, e
	}
	if e := r.createAs(); e != 0 {
		fdsInUse.Add(-1)
		return 0, hideLimit(e)
	}
	return r.answerCreated(parent, in.Flags)
}

// release serves RELEASE and RELEASEDIR.
func (r *request) release() (int, unix.Errno) {
	in := view[releaseIn](r.in)
	i, e := r.node()
	if e != 0 {
		return 0, e
	}
	defer i.put()
	h := r.d.handles.remove(in.FH, i)
	if h == nil {
		return 0, unix.EBADF
	}
	if in.ReleaseFlags&releaseFlush != 0 {
		r.d.locks.drop(i, in.LockOwner)
	}
	r.d.locks.released(h)
	// Closing the last descriptor frees the locks of flock(2) too.
	h.put()
	return 0, 0
}
