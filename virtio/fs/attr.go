package fs

import (
	"time"

	"golang.org/x/sys/unix"
)

// alwaysValid is the timeout of CacheAlways: a day.
const alwaysValid = 24 * time.Hour

// timeout is how long the guest may keep attributes and names.
func (d *Device) timeout() time.Duration {
	switch d.cfg.Cache {
	case CacheAlways:
		return alwaysValid
	case CacheNever:
		return 0
	}
	return d.cfg.Timeout
}

// fill makes the guest's view of r.st.
func (r *request) fill(a *attr, i *inode) {
	st, h := &r.st, &r.d.host
	a.Ino, a.Size, a.Blocks = st.Ino, st.Size, st.Blocks
	a.Atime, a.Atimensec = uint64(st.Atime.Sec), st.Atime.Nsec
	a.Mtime, a.Mtimensec = uint64(st.Mtime.Sec), st.Mtime.Nsec
	a.Ctime, a.Ctimensec = uint64(st.Ctime.Sec), st.Ctime.Nsec
	a.Mode, a.Nlink = uint32(st.Mode), st.Nlink
	a.UID, a.GID = h.guestID(st.Uid, ofUser), h.guestID(st.Gid, ofGroup)
	// The protocol has the kernel's 32-bit encoding (new_encode_dev).
	a.Rdev = st.Rdev_minor&0xff | st.Rdev_major<<8 | (st.Rdev_minor&^0xff)<<12
	a.Blksize = st.Blksize
	a.Flags = 0
	if i.dax {
		a.Flags = attrDAX
	}
}

// stat reads the attributes of i into r.st.
func (r *request) stat(i *inode) unix.Errno {
	if i.synthetic() {
		r.st = unix.Statx_t{Mask: unix.STATX_BASIC_STATS, Mode: unix.S_IFDIR | 0o555, Nlink: 2, Ino: rootID, Blksize: pageSize}
		r.st.Uid, _ = r.d.host.hostID(0, ofUser)
		r.st.Gid, _ = r.d.host.hostID(0, ofGroup)
		return 0
	}
	return r.fstat(i.fd)
}

// fstat reads the attributes of our descriptor fd into r.st: all but the mount's ID.
func (r *request) fstat(fd int) unix.Errno {
	s := &r.fst
	if e := sysFstat(fd, s); e != 0 {
		return e
	}
	r.st = unix.Statx_t{
		Mask: unix.STATX_BASIC_STATS, Mode: uint16(s.Mode), Nlink: uint32(s.Nlink), Uid: s.Uid, Gid: s.Gid,
		Ino: s.Ino, Size: uint64(s.Size), Blocks: uint64(s.Blocks), Blksize: uint32(s.Blksize),
		Atime: statTime(s.Atim), Mtime: statTime(s.Mtim), Ctime: statTime(s.Ctim),
		Dev_major: unix.Major(s.Dev), Dev_minor: unix.Minor(s.Dev), Rdev_major: unix.Major(s.Rdev), Rdev_minor: unix.Minor(s.Rdev),
	}
	return 0
}

func statTime(t unix.Timespec) unix.StatxTimestamp {
	return unix.StatxTimestamp{Sec: t.Sec, Nsec: uint32(t.Nsec)}
}

// getattr serves GETATTR. The handle, if any, is of no use: the inode's own
// descriptor shows the same file.
func (r *request) getattr() (int, unix.Errno) {
	i, e := r.node()
	if e != 0 {
		return 0, e
	}
	defer i.put()
	return r.answerAttr(i)
}

func (r *request) answerAttr(i *inode) (int, unix.Errno) {
	if e := r.stat(i); e != 0 {
		return 0, e
	}
	o, n := answer[attrOut](r, 0)
	t := r.d.timeout()
	o.AttrValid, o.AttrValidNsec = uint64(t/time.Second), uint32(t%time.Second)
	r.fill(&o.Attr, i)
	return n, 0
}

// statx serves STATX, which Linux sends when a birth time is asked for.
func (r *request) statx() (int, unix.Errno) {
	i, e := r.node()
	if e != 0 {
		return 0, e
	}
	defer i.put()
	st, h := &r.st, &r.d.host
	if i.synthetic() {
		_ = r.stat(i)
	} else if e := sysStatx(i.fd, empty[:], unix.AT_EMPTY_PATH, statMask|unix.STATX_BTIME, st); e != 0 {
		return 0, e
	}
	o, n := answer[statxOut](r, 0)
	t := r.d.timeout()
	o.AttrValid, o.AttrValidNsec = uint64(t/time.Second), uint32(t%time.Second)
	s := &o.Stat
	s.Mask = st.Mask & (unix.STATX_BASIC_STATS | unix.STATX_BTIME)
	s.Blksize, s.Nlink, s.Mode = st.Blksize, st.Nlink, st.Mode
	s.Attributes, s.AttributesMask = st.Attributes, st.Attributes_mask
	s.UID, s.GID = h.guestID(st.Uid, ofUser), h.guestID(st.Gid, ofGroup)
	s.Ino, s.Size, s.Blocks = st.Ino, st.Size, st.Blocks
	s.Atime, s.Btime = statxTime(st.Atime), statxTime(st.Btime)
	s.Ctime, s.Mtime = statxTime(st.Ctime), statxTime(st.Mtime)
	s.RdevMajor, s.RdevMinor = st.Rdev_major, st.Rdev_minor
	s.DevMajor, s.DevMinor = st.Dev_major, st.Dev_minor
	return n, 0
}

func statxTime(t unix.StatxTimestamp) sxTime { return sxTime{Sec: t.Sec, Nsec: t.Nsec} }

// setattr serves SETATTR: chmod, chown, truncate and utimensat, in this order.
func (r *request) setattr() (int, unix.Errno) {
	i, e := r.node()
	if e != 0 {
		return 0, e
	}
	defer i.put()
	if i.synthetic() {
		return 0, unix.EROFS
	}
	in := view[setattrIn](r.in)
	if in.Valid&fattrSize != 0 && r.here() {
		r.stuck = true // freeing the blocks of a big file takes its time
		return 0, unix.EAGAIN
	}
	if e := r.mayChange(i); e != 0 {
		return 0, e
	}
	if in.Valid&fattrMode != 0 {
		if e := sysFchmodat(r.d.host.proc, r.proc(i.fd), in.Mode&0o7777); e != 0 {
			return 0, e
		}
	}
	if in.Valid&(fattrUID|fattrGID) != 0 {
		if e := r.chown(i, in); e != 0 {
			return 0, e
		}
	}
	if in.Valid&fattrSize != 0 {
		if e := r.truncate(i, in); e != 0 {
			return 0, e
		}
	}
	if in.Valid&(fattrAtime|fattrMtime) != 0 {
		r.times[0] = setTime(in.Valid, fattrAtime, fattrAtimeNow, in.Atime, in.Atimensec)
		r.times[1] = setTime(in.Valid, fattrMtime, fattrMtimeNow, in.Mtime, in.Mtimensec)
		if e := sysUtimens(i.fd, &r.times); e != 0 {
			return 0, e
		}
	}
	return r.answerAttr(i)
}

func setTime(valid, set, now uint32, sec uint64, nsec uint32) unix.Timespec {
	switch {
	case valid&set == 0:
		return unix.Timespec{Nsec: unix.UTIME_OMIT}
	case valid&now != 0:
		return unix.Timespec{Nsec: unix.UTIME_NOW}
	}
	return unix.Timespec{Sec: int64(sec), Nsec: int64(nsec)}
}

// chown changes the owner. Squashed, an owner that stays what the guest sees is
// no change; the host's kernel refuses the others.
func (r *request) chown(i *inode, in *setattrIn) unix.Errno {
	h := &r.d.host
	uid, gid := ^uint32(0), ^uint32(0)
	ok := true
	if in.Valid&fattrUID != 0 {
		uid, ok = h.hostID(in.UID, ofUser)
	}
	if in.Valid&fattrGID != 0 && ok {
		gid, ok = h.hostID(in.GID, ofGroup)
	}
	if !ok {
		return unix.EINVAL // as chown(2) in a user namespace
	}
	if !h.privileged {
		if e := r.fstat(i.fd); e != 0 {
			return e
		}
		if uid != ^uint32(0) && h.guestID(r.st.Uid, ofUser) == in.UID {
			uid = ^uint32(0)
		}
		if gid != ^uint32(0) && h.guestID(r.st.Gid, ofGroup) == in.GID {
			gid = ^uint32(0)
		}
	}
	return sysFchown(i.fd, uid, gid)
}

// truncate changes the size, through the handle if the guest names one.
func (r *request) truncate(i *inode, in *setattrIn) unix.Errno {
	if !i.isFile() {
		return unix.EINVAL
	}
	if in.Size > 1<<63-1 {
		return unix.EFBIG
	}
	r.w.detach() // freeing the blocks of a big file takes its time
	fd := -1
	if in.Valid&fattrFH != 0 {
		if f := r.d.handles.get(in.FH, i); f != nil {
			defer f.put()
			fd = f.fd
		}
	}
	if fd < 0 {
		n, e := sysOpenat(r.d.host.proc, r.proc(i.fd), unix.O_WRONLY|unix.O_NONBLOCK, 0)
		if e != 0 {
			return e
		}
		defer sysClose(n)
		fd = n
	}
	if in.Valid&fattrKillSuidgid != 0 {
		r.d.host.dropFSETID()
		defer r.d.host.restoreFSETID()
	}
	return sysCall(unix.SYS_FTRUNCATE, fd, in.Size, 0, 0)
}

// access serves ACCESS. The guest's kernel checks the mode itself; this adds
// what the host knows better, such as a file system mounted read-only.
func (r *request) access() (int, unix.Errno) {
	i, e := r.node()
	if e != 0 {
		return 0, e
	}
	defer i.put()
	mask := view[accessIn](r.in).Mask
	if mask&unix.W_OK != 0 && (r.d.cfg.ReadOnly || i.synthetic()) {
		return 0, unix.EROFS
	}
	if i.synthetic() {
		return 0, 0
	}
	return 0, sysFaccess(i.fd, mask&(unix.R_OK|unix.W_OK|unix.X_OK))
}

// statfs serves STATFS.
func (r *request) statfs() (int, unix.Errno) {
	i, e := r.node()
	if e != 0 {
		return 0, e
	}
	defer i.put()
	fd := i.fd
	if i.synthetic() {
		fd = r.d.host.dir
	}
	if err := unix.Fstatfs(fd, &r.fsst); err != nil {
		return 0, err.(unix.Errno)
	}
	o, n := answer[kstatfs](r, 0)
	s := &r.fsst
	o.Blocks, o.Bfree, o.Bavail = s.Blocks, s.Bfree, s.Bavail
	o.Files, o.Ffree = s.Files, s.Ffree
	o.Bsize, o.Namelen, o.Frsize = uint32(s.Bsize), uint32(s.Namelen), uint32(s.Frsize)
	return n, 0
}

// syncfs serves SYNCFS.
func (r *request) syncfs() (int, unix.Errno) {
	if r.d.cfg.ReadOnly || r.d.host.sync < 0 {
		return 0, 0
	}
	r.w.detach()
	return 0, sysCall(unix.SYS_SYNCFS, r.d.host.sync, 0, 0, 0)
}
