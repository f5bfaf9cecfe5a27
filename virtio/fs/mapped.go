package fs

import "golang.org/x/sys/unix"

// With an IDMap the guest's root is not the host's: what belongs to a host user
// outside the map is used as others may, as in a user namespace. (The guest's
// kernel sees the overflow user and lets its root override the mode; the
// device has all rights on the host. So the check is here.)

// foreign reports whether i belongs to nobody the guest has. It fills r.st.
func (r *request) foreign(i *inode) (bool, unix.Errno) {
	ids := r.d.host.ids
	if ids.Range == 0 || i.synthetic() {
		return false, 0
	}
	if e := r.fstat(i.fd); e != 0 {
		return false, e
	}
	return r.st.Uid-ids.Shift >= ids.Range, 0
}

// mayChange checks a change of attributes, which takes the owner.
func (r *request) mayChange(i *inode) unix.Errno {
	foreign, e := r.foreign(i)
	if e == 0 && foreign {
		return unix.EPERM
	}
	return e
}

// mayUse checks reading (4), writing (2) and searching (1).
func (r *request) mayUse(i *inode, bits uint16) unix.Errno {
	foreign, e := r.foreign(i)
	if e == 0 && foreign && r.st.Mode&bits != bits {
		return unix.EACCES
	}
	return e
}

// mayRemove checks taking name out of parent: like mayUse for a change, and
// in a foreign directory with the sticky bit only what is the guest's own.
func (r *request) mayRemove(parent *inode, name []byte) unix.Errno {
	foreign, e := r.foreign(parent)
	switch {
	case e != 0 || !foreign:
		return e
	case r.st.Mode&3 != 3:
		return unix.EACCES
	case r.st.Mode&unix.S_ISVTX == 0:
		return 0
	}
	if e := sysStatx(parent.fd, name, 0, statMask, &r.st); e != 0 {
		return e
	}
	if ids := r.d.host.ids; r.st.Uid-ids.Shift >= ids.Range {
		return unix.EPERM
	}
	return 0
}
