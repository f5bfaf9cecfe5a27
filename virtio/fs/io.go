package fs

import (
	"golang.org/x/sys/unix"
)

// maxOffset is the end of the largest file (loff_t).
const maxOffset = 1<<63 - 1

// read serves READ. What the page cache has is read at once; only what is
// missing there makes the request step aside.
func (r *request) read() (int, unix.Errno) {
	in := view[readIn](r.in)
	h, e := r.handle(in.FH, unix.S_IFREG)
	if e != 0 {
		return 0, e
	}
	defer h.put()
	size := uint64(in.Size)
	if r.chain.WritableLen < outHeaderSize+size || in.Offset > maxOffset-size {
		return 0, unix.EINVAL
	}
	// A driver that asks for more than a request may carry, as OVMF's does for a
	// whole file, gets its beginning.
	size = min(size, maxWrite)
	if most := r.d.cfg.InlineRead; most != 0 && size > uint64(most) && r.here() {
		r.stuck = true
		return 0, unix.EAGAIN
	}
	iov, _ := r.vec(r.chain.Writable, outHeaderSize, size)
	r.direct = true
	if h.mustWait.Load() {
		return r.readRest(h, iov, in.Offset, 0, size)
	}
	done, e := sysPreadv2(h.fd, iov, in.Offset, unix.RWF_NOWAIT)
	switch e {
	case 0:
		if uint64(done) == size {
			return done, 0
		}
	case unix.EOPNOTSUPP:
		h.mustWait.Store(true)
		done = 0
	case unix.EAGAIN:
		done = 0
	default:
		return 0, e
	}
	return r.readRest(h, advance(iov, done), in.Offset, done, size)
}

// readRest goes on after done bytes, which may already be the end of the file.
func (r *request) readRest(h *handle, iov []unix.Iovec, off uint64, done int, size uint64) (int, unix.Errno) {
	if done > 0 {
		n, e := sysPreadv2(h.fd, iov, off+uint64(done), unix.RWF_NOWAIT)
		if e == 0 && n == 0 {
			return done, 0
		}
		if e == 0 {
			done += n
			iov = advance(iov, n)
		}
	}
	if uint64(done) < size {
		if r.here() {
			r.stuck = true
			return 0, unix.EAGAIN
		}
		if !h.mustWait.Load() {
			r.w.detach() // what comes now is not in the page cache
		}
	}
	for uint64(done) < size {
		n, e := sysPreadv2(h.fd, iov, off+uint64(done), 0)
		if e != 0 && done == 0 {
			return 0, e
		}
		if e != 0 || n == 0 {
			break
		}
		done += n
		iov = advance(iov, n)
	}
	return done, 0
}

// bigWrite is the size from which a write steps aside before it starts: such
// ones meet the host's limit for dirty pages.
const bigWrite = 256 << 10

// write serves WRITE.
func (r *request) write() (int, unix.Errno) {
	in := view[writeIn](r.in)
	h, e := r.handle(in.FH, unix.S_IFREG)
	if e != 0 {
		return 0, e
	}
	defer h.put()
	size := uint64(in.Size)
	const head = inHeaderSize + writeInSize
	if size > maxWrite || r.chain.ReadableLen != head+size || in.Offset > maxOffset-size {
		return 0, unix.EINVAL
	}
	if !h.writable {
		return 0, unix.EBADF
	}
	iov, _ := r.vec(r.chain.Readable, head, size)
	if size >= bigWrite {
		r.w.detach()
	}
	if in.WriteFlags&writeKillSuidgid != 0 && r.keepsSetID(h) {
		r.d.host.dropFSETID()
		defer r.d.host.restoreFSETID()
	}
	done, e := r.writeAll(h, iov, in)
	if e != 0 {
		return 0, e
	}
	o, n := answer[writeOut](r, 0)
	o.Size = uint32(done)
	return n, 0
}

// writeAll writes as much as goes. O_APPEND is not a flag of our descriptor:
// written-back pages of the guest's cache (WRITE_CACHE) go to their own place
// even through a handle that was opened for appending.
func (r *request) writeAll(h *handle, iov []unix.Iovec, in *writeIn) (int, unix.Errno) {
	flags := 0
	if h.append && in.WriteFlags&writeCache == 0 && !r.d.flag(initWritebackCache) {
		flags = unix.RWF_APPEND
	}
	done := 0
	for done < int(in.Size) {
		n, e := sysPwritev2(h.fd, iov, in.Offset+uint64(done), flags)
		if e != 0 && done == 0 {
			return 0, e
		}
		if e != 0 || n == 0 {
			break
		}
		done += n
		iov = advance(iov, n)
	}
	return done, 0
}

// keepsSetID reports whether the file has set-ID bits that a write must clear
// and that our capabilities would let it keep.
func (r *request) keepsSetID(h *handle) bool {
	return r.d.host.caps.base.has(unix.CAP_FSETID) &&
		r.fstat(h.fd) == 0 && r.st.Mode&(unix.S_ISUID|unix.S_ISGID) != 0
}

// flush serves FLUSH, the close(2) of one descriptor: it gives the POSIX locks
// of the caller back. Without locks on the host there is nothing to do, ever:
// ENOSYS tells the guest to stop asking.
func (r *request) flush() (int, unix.Errno) {
	if !r.d.cfg.Locks {
		return 0, unix.ENOSYS
	}
	in := view[flushIn](r.in)
	h, e := r.handle(in.FH, 0)
	if e != 0 {
		return 0, e
	}
	defer h.put()
	r.d.locks.drop(h.inode, in.LockOwner)
	return 0, 0
}

// fsync serves FSYNC and FSYNCDIR.
func (r *request) fsync() (int, unix.Errno) {
	in := view[fsyncIn](r.in)
	h, e := r.handle(in.FH, 0)
	if e != 0 {
		return 0, e
	}
	defer h.put()
	if h.fd < 0 {
		return 0, 0
	}
	r.w.detach()
	trap := uintptr(unix.SYS_FSYNC)
	if in.Flags&fsyncDatasync != 0 {
		trap = unix.SYS_FDATASYNC
	}
	return 0, sysCall(trap, h.fd, 0, 0, 0)
}

// fallocate serves FALLOCATE.
func (r *request) fallocate() (int, unix.Errno) {
	in := view[fallocateIn](r.in)
	h, e := r.handle(in.FH, unix.S_IFREG)
	if e != 0 {
		return 0, e
	}
	defer h.put()
	const modes = unix.FALLOC_FL_KEEP_SIZE | unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_ZERO_RANGE |
		unix.FALLOC_FL_COLLAPSE_RANGE | unix.FALLOC_FL_INSERT_RANGE | unix.FALLOC_FL_UNSHARE_RANGE
	switch {
	case in.Mode&^modes != 0:
		return 0, unix.EOPNOTSUPP
	case !h.writable:
		return 0, unix.EBADF
	case in.Length > maxOffset || in.Offset > maxOffset-in.Length:
		return 0, unix.EFBIG
	}
	r.w.detach()
	// The request does not say whether the caller has CAP_FSETID (nor, with
	// ALLOW_IDMAP, who it is); clearing the bits is the safe side.
	if r.hdr.UID != 0 && r.keepsSetID(h) {
		r.d.host.dropFSETID()
		defer r.d.host.restoreFSETID()
	}
	return 0, sysCall(unix.SYS_FALLOCATE, h.fd, uint64(in.Mode), in.Offset, in.Length)
}

// lseek serves LSEEK, which Linux sends for SEEK_DATA and SEEK_HOLE.
func (r *request) lseek() (int, unix.Errno) {
	in := view[lseekIn](r.in)
	if in.Whence != unix.SEEK_DATA && in.Whence != unix.SEEK_HOLE {
		return 0, unix.EINVAL
	}
	h, e := r.handle(in.FH, unix.S_IFREG)
	if e != 0 {
		return 0, e
	}
	defer h.put()
	off, e := sysLseek(h.fd, int64(in.Offset), int(in.Whence))
	if e != 0 {
		return 0, e
	}
	o, n := answer[lseekOut](r, 0)
	o.Offset = uint64(off)
	return n, 0
}

// maxCopy bounds one COPY_FILE_RANGE; the guest asks again for the rest.
const maxCopy = 1 << 30

// copyFileRange serves COPY_FILE_RANGE and its 64-bit form.
func (r *request) copyFileRange() (int, unix.Errno) {
	in := view[copyFileRangeIn](r.in)
	src, e := r.handle(in.FHIn, unix.S_IFREG)
	if e != 0 {
		return 0, e
	}
	defer src.put()
	i, e := r.nodeByID(in.NodeIDOut)
	if e != 0 {
		return 0, e
	}
	defer i.put()
	dst := r.d.handles.get(in.FHOut, i)
	if dst == nil {
		return 0, unix.EBADF
	}
	defer dst.put()
	switch {
	case !dst.writable || !dst.inode.isFile():
		return 0, unix.EBADF
	case in.Flags != 0 || in.OffIn > maxOffset || in.OffOut > maxOffset:
		return 0, unix.EINVAL
	}
	r.w.detach()
	if r.hdr.UID != 0 && r.keepsSetID(dst) { // as in fallocate
		r.d.host.dropFSETID()
		defer r.d.host.restoreFSETID()
	}
	r.offs = [2]int64{int64(in.OffIn), int64(in.OffOut)}
	done, e := sysCopyFileRange(src.fd, &r.offs[0], dst.fd, &r.offs[1], min(in.Len, maxCopy))
	if e != 0 {
		return 0, e
	}
	if r.hdr.Opcode == opCopyFileRange64 {
		o, n := answer[copyFileRangeOut](r, 0)
		o.BytesCopied = uint64(done)
		return n, 0
	}
	o, n := answer[writeOut](r, 0)
	o.Size = uint32(done)
	return n, 0
}

// ioctl serves IOCTL: no file of ours has any.
func (r *request) ioctl() (int, unix.Errno) { return 0, unix.ENOTTY }
