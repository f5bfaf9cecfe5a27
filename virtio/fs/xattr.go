package fs

import (
	"bytes"
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// Limits of xattr(7).
const (
	xattrNameMax = 255
	xattrSizeMax = 64 << 10
)

var (
	userPrefix     = []byte("user.")
	trustedPrefix  = []byte("trusted.")
	capabilityName = []byte("security.capability")
	aclPrefix      = []byte("system.posix_acl_")
)

// xattrAllowed says which attributes the guest may use: its own (user), its
// root's (trusted, which the host's kernel grants root only), file
// capabilities, and ACLs when they were negotiated. The rest of security.*
// belongs to the host's own security modules.
func (d *Device) xattrAllowed(name []byte) bool {
	switch {
	case bytes.HasPrefix(name, userPrefix), bytes.HasPrefix(name, trustedPrefix), bytes.Equal(name, capabilityName):
		return true
	case bytes.HasPrefix(name, aclPrefix):
		return d.flag(initPosixACL)
	}
	return false
}

// xattrNode returns the inode of the request and the checked name at the front
// of b, with its NUL.
func (r *request) xattrNode(b []byte) (i *inode, name, rest []byte, e unix.Errno) {
	name, rest, e = takeString(b)
	switch {
	case e != 0:
		return nil, nil, nil, e
	case len(name) == 1 || len(name) > xattrNameMax+1:
		return nil, nil, nil, unix.ERANGE
	case !r.d.xattrAllowed(name[:len(name)-1]):
		return nil, nil, nil, unix.EOPNOTSUPP
	}
	if i, e = r.node(); e != 0 {
		return nil, nil, nil, e
	}
	if i.synthetic() {
		i.put()
		return nil, nil, nil, unix.EOPNOTSUPP
	}
	return i, name, rest, 0
}

// setxattr serves SETXATTR.
func (r *request) setxattr() (int, unix.Errno) {
	var in setxattrIn
	head := compatSetxattrIn
	if r.d.flag(initSetxattrExt) {
		if head = sizeOf[setxattrIn](); len(r.in) < head {
			return 0, unix.EINVAL
		}
		in = *view[setxattrIn](r.in)
	} else {
		in.Size, in.Flags = view[getxattrIn](r.in).Size, binary.LittleEndian.Uint32(r.in[4:])
	}
	i, name, value, e := r.xattrNode(r.in[head:])
	if e != 0 {
		return 0, e
	}
	defer i.put()
	switch {
	case in.Size > xattrSizeMax:
		return 0, unix.E2BIG
	case uint64(in.Size) != uint64(len(value)), in.Flags&^(unix.XATTR_CREATE|unix.XATTR_REPLACE) != 0:
		return 0, unix.EINVAL
	}
	if e := r.mayChange(i); e != 0 {
		return 0, e
	}
	if value, e = r.xattrToHost(name[:len(name)-1], value); e != 0 {
		return 0, e
	}
	if in.SetxattrFlags&setxattrACLKillSgid != 0 {
		r.d.host.dropFSETID()
		defer r.d.host.restoreFSETID()
	}
	return 0, sysSetxattr(r.procPath(i.fd), name, value, in.Flags)
}

// getxattr serves GETXATTR: the value, or its size if the driver gives no room.
func (r *request) getxattr() (int, unix.Errno) {
	size := view[getxattrIn](r.in).Size
	i, name, _, e := r.xattrNode(r.in[sizeOf[getxattrIn]():])
	if e != 0 {
		return 0, e
	}
	defer i.put()
	// The value is read even for its size: the guest's form may be shorter.
	n, e := sysGetxattr(r.procPath(i.fd), name, r.room(min(int(size)+xattrGrowth, xattrSizeMax)))
	if e == unix.ERANGE || e == 0 && size == 0 {
		n, e = sysGetxattr(r.procPath(i.fd), name, r.room(xattrSizeMax))
	}
	if e != 0 {
		return 0, e
	}
	if n, e = r.xattrToGuest(name[:len(name)-1], r.room(n)); e != 0 {
		return 0, e
	}
	return r.answerXattr(n, size)
}

// answerXattr replies with n bytes that are in place already.
func (r *request) answerXattr(n int, size uint32) (int, unix.Errno) {
	if size == 0 {
		o, m := answer[getxattrOut](r, 0)
		o.Size = uint32(n)
		return m, 0
	}
	if n > r.fits(size) {
		return 0, unix.ERANGE
	}
	return n, 0
}

// listxattr serves LISTXATTR. Names that the guest cannot use are left out.
func (r *request) listxattr() (int, unix.Errno) {
	i, e := r.node()
	if e != 0 {
		return 0, e
	}
	defer i.put()
	if i.synthetic() {
		return r.answerXattr(0, view[getxattrIn](r.in).Size)
	}
	n, e := sysListxattr(r.procPath(i.fd), r.room(xattrSizeMax))
	if e != 0 {
		return 0, e
	}
	b := r.room(n)
	kept := 0
	for len(b) > 0 {
		name, rest, e := takeString(b)
		if e != 0 {
			break
		}
		if r.d.xattrAllowed(name[:len(name)-1]) {
			kept += copy(r.room(n)[kept:], name)
		}
		b = rest
	}
	return r.answerXattr(kept, view[getxattrIn](r.in).Size)
}

// removexattr serves REMOVEXATTR.
func (r *request) removexattr() (int, unix.Errno) {
	i, name, _, e := r.xattrNode(r.in)
	if e != 0 {
		return 0, e
	}
	defer i.put()
	if e := r.mayChange(i); e != 0 {
		return 0, e
	}
	return 0, sysRemovexattr(r.procPath(i.fd), name)
}

// File capabilities (struct vfs_cap_data, capabilities(7)): revision 2 counts
// for everybody, revision 3 only where its rootid is root. With an IDMap the
// guest's revision 2 is the host's revision 3.
const (
	capRevisionMask = 0xff000000
	capRevision2    = 0x02000000
	capRevision3    = 0x03000000
	cap2Size        = 20
	cap3Size        = 24
	// xattrGrowth is how much longer a value may be on the host.
	xattrGrowth = cap3Size - cap2Size
)

// POSIX ACLs in xattrs (include/uapi/linux/posix_acl_xattr.h): a version, then
// entries of tag, permissions and id.
const (
	aclHeader = 4
	aclEntry  = 8
	aclUser   = 0x02
	aclGroup  = 0x08
)

// xattrToHost translates the ids in a value, in place if it does not grow.
func (r *request) xattrToHost(name, value []byte) ([]byte, unix.Errno) {
	h := &r.d.host
	switch {
	case bytes.HasPrefix(name, aclPrefix):
		return value, mapACL(value, h.hostID)
	case h.ids.Range != 0 && bytes.Equal(name, capabilityName):
		if len(value) != cap2Size && len(value) != cap3Size {
			return nil, unix.EINVAL
		}
		var root uint32
		if len(value) == cap3Size {
			root = binary.LittleEndian.Uint32(value[cap2Size:])
		}
		id, ok := h.hostID(root, ofUser)
		if !ok {
			return nil, unix.EPERM
		}
		v := make([]byte, cap3Size)
		copy(v, value[:cap2Size])
		magic := binary.LittleEndian.Uint32(v)
		binary.LittleEndian.PutUint32(v, magic&^capRevisionMask|capRevision3)
		binary.LittleEndian.PutUint32(v[cap2Size:], id)
		return v, 0
	}
	return value, 0
}

// xattrToGuest translates the ids in a value in place and returns its length.
func (r *request) xattrToGuest(name, value []byte) (int, unix.Errno) {
	h := &r.d.host
	switch {
	case bytes.HasPrefix(name, aclPrefix):
		return len(value), mapACL(value, func(id uint32, k idKind) (uint32, bool) { return h.guestID(id, k), true })
	case h.ids.Range != 0 && bytes.Equal(name, capabilityName):
		// Others than the guest's have no effect in it.
		if len(value) != cap3Size || binary.LittleEndian.Uint32(value[cap2Size:]) != h.ids.Shift {
			return 0, unix.ENODATA
		}
		magic := binary.LittleEndian.Uint32(value)
		binary.LittleEndian.PutUint32(value, magic&^capRevisionMask|capRevision2)
		return cap2Size, 0
	}
	return len(value), 0
}

// mapACL maps the users and groups of an ACL in place.
func mapACL(b []byte, mapID func(id uint32, k idKind) (uint32, bool)) unix.Errno {
	if len(b) == 0 {
		return 0
	}
	if len(b) < aclHeader || (len(b)-aclHeader)%aclEntry != 0 {
		return unix.EINVAL
	}
	for e := b[aclHeader:]; len(e) > 0; e = e[aclEntry:] {
		kind := ofUser
		switch binary.LittleEndian.Uint16(e) {
		case aclUser:
		case aclGroup:
			kind = ofGroup
		default:
			continue
		}
		id, ok := mapID(binary.LittleEndian.Uint32(e[4:]), kind)
		if !ok {
			return unix.EINVAL
		}
		binary.LittleEndian.PutUint32(e[4:], id)
	}
	return 0
}
