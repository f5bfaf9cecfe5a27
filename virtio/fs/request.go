package fs

import (
	"golang.org/x/sys/unix"

	"github.com/gvmspawn/gvmspawn/virtio/virtq"
)

// maxIn bounds what is copied of a request, file data apart: SETXATTR with a
// value of XATTR_SIZE_MAX (64 KiB) is the longest, after BATCH_FORGET.
const maxIn = 128 << 10

// Starting sizes of a request's buffers, enough for everything but xattrs and
// directories.
const (
	inStart  = 8 << 10
	outStart = 8 << 10
)

// request is one request and all that serving it needs. A worker makes it once
// and reuses it, so that requests allocate nothing.
type request struct {
	d     *Device
	w     *worker // nil where a test drives the dispatch itself
	chain virtq.Chain

	hdr inHeader
	in  []byte // our copy of what follows the header, without WRITE's data
	out []byte // the reply: header and payload
	// direct is set by READ, whose payload is in place already.
	direct bool
	// stuck is set by an operation that cannot go on without waiting, on a
	// thread that must not; it has done nothing.
	stuck bool

	inBuf []byte
	iov   []unix.Iovec
	dents []byte   // raw directory entries, made when first needed
	path  [32]byte // see proc and procPath
	st    unix.Statx_t
	fst   unix.Stat_t
	how   unix.OpenHow
	lk    unix.Flock_t
	times [2]unix.Timespec
	fsst  unix.Statfs_t
	offs  [2]int64
	mk    creation
}

func (r *request) init(d *Device, w *worker) {
	r.d, r.w = d, w
	r.inBuf = make([]byte, inStart)
	r.out = make([]byte, outStart)
	r.mk.done = make(chan unix.Errno, 1)
}

// operation says how an opcode is served.
type operation struct {
	serve func(*request) (int, unix.Errno)
	// in and out are the least sizes of the arguments and of the reply's
	// payload; both are checked before serve runs.
	in, out int
	// changes marks what a read-only share refuses. (OPEN and the like look
	// at their flags.)
	changes bool
	// silent operations get no reply (FORGET).
	silent bool
}

// operations is indexed by opcode; an empty entry is answered with ENOSYS, and
// so are the opcodes of BMAP and POLL.
var operations [opcodes]operation

// It is filled here because handlers start workers, which serve requests.
func init() {
	operations = [opcodes]operation{
		opLookup:          {serve: (*request).lookup, in: 2, out: entryOutSize},
		opForget:          {serve: (*request).forget, in: sizeOf[forgetIn](), silent: true},
		opGetattr:         {serve: (*request).getattr, in: sizeOf[getattrIn](), out: sizeOf[attrOut]()},
		opSetattr:         {serve: (*request).setattr, in: sizeOf[setattrIn](), out: sizeOf[attrOut](), changes: true},
		opReadlink:        {serve: (*request).readlink},
		opSymlink:         {serve: (*request).symlink, in: 4, out: entryOutSize, changes: true},
		opMknod:           {serve: (*request).mknod, in: sizeOf[mknodIn]() + 2, out: entryOutSize, changes: true},
		opMkdir:           {serve: (*request).mkdir, in: sizeOf[mkdirIn]() + 2, out: entryOutSize, changes: true},
		opUnlink:          {serve: (*request).unlink, in: 2, changes: true},
		opRmdir:           {serve: (*request).rmdir, in: 2, changes: true},
		opRename:          {serve: (*request).rename, in: sizeOf[renameIn]() + 4, changes: true},
		opLink:            {serve: (*request).link, in: sizeOf[linkIn]() + 2, out: entryOutSize, changes: true},
		opOpen:            {serve: (*request).open, in: sizeOf[openIn](), out: sizeOf[openOut]()},
		opRead:            {serve: (*request).read, in: sizeOf[readIn]()},
		opWrite:           {serve: (*request).write, in: sizeOf[writeIn](), out: sizeOf[writeOut](), changes: true},
		opStatfs:          {serve: (*request).statfs, out: sizeOf[kstatfs]()},
		opRelease:         {serve: (*request).release, in: sizeOf[releaseIn]()},
		opFsync:           {serve: (*request).fsync, in: sizeOf[fsyncIn]()},
		opSetxattr:        {serve: (*request).setxattr, in: compatSetxattrIn + 2, changes: true},
		opGetxattr:        {serve: (*request).getxattr, in: sizeOf[getxattrIn]() + 2},
		opListxattr:       {serve: (*request).listxattr, in: sizeOf[getxattrIn]()},
		opRemovexattr:     {serve: (*request).removexattr, in: 2, changes: true},
		opFlush:           {serve: (*request).flush, in: sizeOf[flushIn]()},
		opInit:            {serve: (*request).initSession, in: compatInitIn, out: sizeOf[initOut]()},
		opOpendir:         {serve: (*request).opendir, in: sizeOf[openIn](), out: sizeOf[openOut]()},
		opReaddir:         {serve: (*request).readdir, in: sizeOf[readIn]()},
		opReleasedir:      {serve: (*request).release, in: sizeOf[releaseIn]()},
		opFsyncdir:        {serve: (*request).fsync, in: sizeOf[fsyncIn]()},
		opGetlk:           {serve: (*request).getlk, in: sizeOf[lkIn](), out: sizeOf[lkOut]()},
		opSetlk:           {serve: (*request).setlk, in: sizeOf[lkIn]()},
		opSetlkw:          {serve: (*request).setlk, in: sizeOf[lkIn]()},
		opAccess:          {serve: (*request).access, in: sizeOf[accessIn]()},
		opCreate:          {serve: (*request).create, in: sizeOf[createIn]() + 2, out: entryOutSize + sizeOf[openOut](), changes: true},
		opInterrupt:       {serve: (*request).interrupt, in: sizeOf[interruptIn]()},
		opDestroy:         {serve: (*request).destroy},
		opIoctl:           {serve: (*request).ioctl},
		opBatchForget:     {serve: (*request).batchForget, in: sizeOf[batchForgetIn](), silent: true},
		opFallocate:       {serve: (*request).fallocate, in: sizeOf[fallocateIn](), changes: true},
		opReaddirplus:     {serve: (*request).readdirplus, in: sizeOf[readIn]()},
		opRename2:         {serve: (*request).rename, in: sizeOf[rename2In]() + 4, changes: true},
		opLseek:           {serve: (*request).lseek, in: sizeOf[lseekIn](), out: sizeOf[lseekOut]()},
		opCopyFileRange:   {serve: (*request).copyFileRange, in: sizeOf[copyFileRangeIn](), out: sizeOf[writeOut](), changes: true},
		opSetupmapping:    {serve: (*request).setupmapping, in: sizeOf[setupmappingIn]()},
		opRemovemapping:   {serve: (*request).removemapping, in: sizeOf[removemappingIn]()},
		opSyncfs:          {serve: (*request).syncfs},
		opTmpfile:         {serve: (*request).tmpfile, in: sizeOf[createIn](), out: entryOutSize + sizeOf[openOut](), changes: true},
		opStatx:           {serve: (*request).statx, in: sizeOf[statxIn](), out: sizeOf[statxOut]()},
		opCopyFileRange64: {serve: (*request).copyFileRange, in: sizeOf[copyFileRangeIn](), out: sizeOf[copyFileRangeOut](), changes: true},
	}
}

// serve answers the request in r.chain and returns how many bytes it wrote.
func (r *request) serve() uint32 {
	if r.chain.ReadableLen < inHeaderSize {
		r.d.warn("request without a whole header", "bytes", r.chain.ReadableLen)
		return 0
	}
	// The header and the arguments are copied once; only the copies are used.
	r.chain.ReadAt(r.inBuf[:inHeaderSize], 0)
	r.hdr = *view[inHeader](r.inBuf)
	r.direct = false
	if r.hdr.Opcode >= opcodes || operations[r.hdr.Opcode].serve == nil {
		return r.reply(0, unix.ENOSYS)
	}
	op := &operations[r.hdr.Opcode]
	n, e := r.dispatch(op)
	r.d.dax.regain()
	if op.silent || r.stuck {
		return 0
	}
	return r.reply(n, e)
}

// quickWrite is how many bytes of a request, WRITE's data with them, are quick.
const quickWrite = 160 << 10

// quick are the operations that wait for nothing but, now and then, the host's
// disk: for a directory, an inode, or room in the journal.
var quick = [opcodes]bool{
	opCreate: true, opMkdir: true, opMknod: true, opSymlink: true, opLink: true, opUnlink: true, opRmdir: true, opRename: true, opRename2: true,
	opSetattr: true,
	opLookup:  true, opForget: true, opGetattr: true, opReadlink: true, opOpen: true, opRead: true, opWrite: true, opStatfs: true,
	opRelease: true, opGetxattr: true, opListxattr: true, opOpendir: true, opReaddir: true, opReleasedir: true, opAccess: true,
	opBatchForget: true, opReaddirplus: true, opStatx: true, opSetupmapping: true, opRemovemapping: true,
}

// here reports whether the request runs on a thread that must not wait. What would
// wait sets stuck then, before it has done anything.
func (r *request) here() bool { return r.w != nil && r.w.here }

// try is serve for requests that are quick. ok is false if the request in
// r.chain has still to be served.
func (r *request) try() (n uint32, ok bool) {
	if r.chain.ReadableLen < inHeaderSize || r.chain.ReadableLen > quickWrite {
		return 0, false
	}
	r.chain.ReadAt(r.inBuf[:inHeaderSize], 0)
	op := view[inHeader](r.inBuf).Opcode
	if op >= opcodes || !quick[op] {
		return 0, false
	}
	p := &r.w.q.looks
	if operations[op].changes {
		p = &r.w.q.changes
	}
	a, ok := p.begin()
	if !ok {
		return 0, false
	}
	n = r.serve()
	p.end(a)
	ok = !r.stuck
	r.stuck = false
	return n, ok
}

// dispatch checks the sizes and runs the operation.
func (r *request) dispatch(op *operation) (int, unix.Errno) {
	if uint64(r.hdr.Len) != r.chain.ReadableLen {
		return 0, unix.EINVAL
	}
	body := int(r.hdr.Len) - inHeaderSize
	if r.hdr.Opcode == opWrite {
		body = min(body, writeInSize) // the data stays where it is
	}
	if body < op.in || body > maxIn {
		return 0, unix.EINVAL
	}
	if inHeaderSize+body > len(r.inBuf) {
		r.inBuf = make([]byte, inHeaderSize+maxIn)
	}
	r.in = r.inBuf[inHeaderSize : inHeaderSize+body]
	if r.chain.ReadAt(r.in, inHeaderSize) != body {
		return 0, unix.EINVAL
	}
	if !op.silent && r.chain.WritableLen < uint64(outHeaderSize+op.out) {
		return 0, unix.EINVAL
	}
	if r.hdr.Opcode != opInit && !r.d.flag(inited) {
		return 0, unix.EIO
	}
	if op.changes && r.d.cfg.ReadOnly {
		return 0, unix.EROFS
	}
	return op.serve(r)
}

// reply writes the header, and the payload of n bytes unless it is in guest
// memory already. It returns the length of the reply.
func (r *request) reply(n int, e unix.Errno) uint32 {
	if e != 0 {
		n = 0
	}
	total := outHeaderSize + n
	if r.chain.WritableLen < uint64(total) {
		if e == 0 && n > 0 {
			return r.reply(0, unix.EINVAL)
		}
		return 0
	}
	h := view[outHeader](r.out)
	h.Len, h.Error, h.Unique = uint32(total), -int32(e), r.hdr.Unique
	if r.direct && e == 0 {
		r.chain.WriteAt(r.out[:outHeaderSize], 0)
	} else {
		r.chain.WriteAt(r.out[:total], 0)
	}
	return uint32(total)
}

// room returns n bytes for the payload of the reply.
func (r *request) room(n int) []byte {
	if outHeaderSize+n > len(r.out) {
		r.out = make([]byte, outHeaderSize+n)
	}
	return r.out[outHeaderSize : outHeaderSize+n]
}

// answer returns the payload as a zeroed struct at byte offset off, and its size.
func answer[T wire](r *request, off int) (*T, int) {
	b := r.room(off + sizeOf[T]())[off:]
	clear(b)
	return view[T](b), len(b)
}

// fits is how many bytes of payload the driver has room for, at most limit.
func (r *request) fits(limit uint32) int {
	return int(min(uint64(limit), r.chain.WritableLen-min(r.chain.WritableLen, outHeaderSize)))
}

// vec describes the bytes of bufs from off on, n at most, as iovecs, and how many there are.
func (r *request) vec(bufs []virtq.Buffer, off, n uint64) ([]unix.Iovec, uint64) {
	r.iov = r.iov[:0]
	var sum uint64
	for _, b := range bufs {
		l := uint64(len(b.Bytes))
		if off >= l {
			off -= l
			continue
		}
		p := b.Bytes[off:]
		off = 0
		if uint64(len(p)) > n-sum {
			p = p[:n-sum]
		}
		if len(p) == 0 {
			continue
		}
		r.iov = append(r.iov, iovec(p))
		sum += uint64(len(p))
	}
	return r.iov, sum
}

// name takes a file name and its NUL from the front of b. It is one component
// of a path: not empty, "." or "..", and without a slash.
func takeName(b []byte) (name, rest []byte, e unix.Errno) {
	name, rest, e = takeString(b)
	if e != 0 {
		return nil, nil, e
	}
	s := name[:len(name)-1]
	switch {
	case len(s) == 0:
		return nil, nil, unix.EINVAL
	case len(s) > unix.NAME_MAX:
		return nil, nil, unix.ENAMETOOLONG
	case s[0] == '.' && (len(s) == 1 || len(s) == 2 && s[1] == '.'):
		return nil, nil, unix.EINVAL
	}
	for _, c := range s {
		if c == '/' {
			return nil, nil, unix.EINVAL
		}
	}
	return name, rest, 0
}

// takeString takes a string and its NUL from the front of b.
func takeString(b []byte) (s, rest []byte, e unix.Errno) {
	for i, c := range b {
		if c == 0 {
			return b[: i+1 : i+1], b[i+1:], 0
		}
	}
	return nil, nil, unix.EINVAL
}

// onlyName takes the name that is all of b.
func onlyName(b []byte) ([]byte, unix.Errno) {
	name, _, e := takeName(b)
	return name, e
}

const procPrefix = "/proc/self/fd/"

// procPath is the path of our descriptor fd with its NUL, for calls that take
// neither a descriptor nor a directory. It is valid until the next call.
func (r *request) procPath(fd int) []byte {
	i := len(r.path) - 1
	r.path[i] = 0
	n := uint(fd)
	for {
		i--
		r.path[i] = byte('0' + n%10)
		if n /= 10; n == 0 {
			break
		}
	}
	i -= len(procPrefix)
	copy(r.path[i:], procPrefix)
	return r.path[i:]
}

// proc is the name of our descriptor fd in host.proc, with its NUL.
func (r *request) proc(fd int) []byte { return r.procPath(fd)[len(procPrefix):] }
