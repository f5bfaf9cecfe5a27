package fs

import "golang.org/x/sys/unix"

// Operations on directory entries. Every name is one component and every call
// takes the parent's descriptor; none of them follows a symbolic link.

// begin checks the parent of a new entry and fills in who makes it.
func (r *request) begin(kind uint8, name []byte, mode, umask uint32) (*inode, unix.Errno) {
	parent, e := r.changeable(r.hdr.NodeID)
	if e != 0 {
		return nil, e
	}
	if e := r.mayUse(parent, 3); e != 0 {
		parent.put()
		return nil, e
	}
	if !r.d.flag(initDontMask) {
		umask = 0 // the guest's kernel has applied it
	}
	c := &r.mk
	c.kind, c.dir, c.name, c.mode, c.umask = kind, parent.fd, name, mode, umask&0o777
	c.uid, c.gid = r.hdr.UID, r.hdr.GID
	return parent, 0
}

// finish makes the entry and the reply.
func (r *request) finish(parent *inode) (int, unix.Errno) {
	defer parent.put()
	if e := r.createAs(); e != 0 {
		return 0, e
	}
	i, e := r.resolveNew(parent, parent.fd, r.mk.name)
	if e != 0 {
		return 0, e
	}
	return r.answerKnown(parent, i)
}

// mkdir serves MKDIR.
func (r *request) mkdir() (int, unix.Errno) {
	in := view[mkdirIn](r.in)
	name, e := onlyName(r.in[sizeOf[mkdirIn]():])
	if e != 0 {
		return 0, e
	}
	parent, e := r.begin(createDir, name, in.Mode&0o7777, in.Umask)
	if e != 0 {
		return 0, e
	}
	return r.finish(parent)
}

// mknod serves MKNOD: regular files, FIFOs and sockets, and with DeviceNodes
// devices. The device 0,0 is a whiteout of overlayfs and opens nothing.
func (r *request) mknod() (int, unix.Errno) {
	in := view[mknodIn](r.in)
	name, e := onlyName(r.in[sizeOf[mknodIn]():])
	if e != 0 {
		return 0, e
	}
	switch in.Mode & unix.S_IFMT {
	case unix.S_IFREG, unix.S_IFIFO, unix.S_IFSOCK, 0:
		in.Rdev = 0
	case unix.S_IFCHR, unix.S_IFBLK:
		whiteout := in.Mode&unix.S_IFMT == unix.S_IFCHR && in.Rdev == 0
		if !whiteout && !(r.d.cfg.DeviceNodes && r.d.host.privileged) {
			return 0, unix.EPERM
		}
	default:
		return 0, unix.EINVAL
	}
	parent, e := r.begin(createNode, name, in.Mode&(unix.S_IFMT|0o7777), in.Umask)
	if e != 0 {
		return 0, e
	}
	r.mk.dev = uint64(in.Rdev)
	return r.finish(parent)
}

// symlink serves SYMLINK. The target is the guest's own business.
func (r *request) symlink() (int, unix.Errno) {
	name, rest, e := takeName(r.in)
	if e != 0 {
		return 0, e
	}
	target, _, e := takeString(rest)
	if e != 0 {
		return 0, e
	}
	parent, e := r.begin(createLink, name, 0o777, 0)
	if e != 0 {
		return 0, e
	}
	r.mk.target = target
	return r.finish(parent)
}

// link serves LINK. The link is to the inode, whatever its names are now.
func (r *request) link() (int, unix.Errno) {
	name, e := onlyName(r.in[sizeOf[linkIn]():])
	if e != 0 {
		return 0, e
	}
	i, e := r.nodeByID(view[linkIn](r.in).OldNodeID)
	if e != 0 {
		return 0, e
	}
	defer i.put()
	if i.synthetic() || i.isDir() {
		return 0, unix.EPERM
	}
	if e := r.mayUse(i, 6); e != 0 {
		return 0, unix.EPERM // as fs.protected_hardlinks has it
	}
	parent, e := r.changeable(r.hdr.NodeID)
	if e != 0 {
		return 0, e
	}
	defer parent.put()
	if e := r.mayUse(parent, 3); e != 0 {
		return 0, e
	}
	if e := sysLinkat(r.d.host.proc, r.proc(i.fd), parent.fd, name, unix.AT_SYMLINK_FOLLOW); e != 0 {
		return 0, e
	}
	return r.answerEntry(parent, name)
}

// unlink serves UNLINK, rmdir serves RMDIR.
func (r *request) unlink() (int, unix.Errno) { return r.remove(0) }
func (r *request) rmdir() (int, unix.Errno)  { return r.remove(unix.AT_REMOVEDIR) }

func (r *request) remove(flags int) (int, unix.Errno) {
	name, e := onlyName(r.in)
	if e != 0 {
		return 0, e
	}
	parent, e := r.changeable(r.hdr.NodeID)
	if e != 0 {
		return 0, e
	}
	defer parent.put()
	if e := r.mayRemove(parent, name); e != 0 {
		return 0, e
	}
	return 0, sysUnlinkat(parent.fd, name, flags)
}

// rename serves RENAME and RENAME2.
func (r *request) rename() (int, unix.Errno) {
	newdir, flags, names := view[renameIn](r.in).Newdir, uint32(0), r.in[sizeOf[renameIn]():]
	if r.hdr.Opcode == opRename2 {
		flags, names = view[rename2In](r.in).Flags, r.in[sizeOf[rename2In]():]
	}
	if flags&^(unix.RENAME_NOREPLACE|unix.RENAME_EXCHANGE|unix.RENAME_WHITEOUT) != 0 {
		return 0, unix.EINVAL
	}
	from, rest, e := takeName(names)
	if e != 0 {
		return 0, e
	}
	to, e := onlyName(rest)
	if e != 0 {
		return 0, e
	}
	src, e := r.changeable(r.hdr.NodeID)
	if e != 0 {
		return 0, e
	}
	defer src.put()
	dst, e := r.changeable(newdir)
	if e != 0 {
		return 0, e
	}
	defer dst.put()
	if e := r.mayRemove(src, from); e != 0 {
		return 0, e
	}
	// The target is removed too, if there is one.
	if e := r.mayRemove(dst, to); e != 0 && e != unix.ENOENT {
		return 0, e
	}
	return 0, sysRenameat2(src.fd, from, dst.fd, to, flags)
}
