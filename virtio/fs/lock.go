package fs

import (
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Locks of the guest become locks of the host, where host processes see them.
// A POSIX lock belongs to a process; the guest names it by a lock owner. Each
// owner gets its own open file description of the inode, and open file
// description locks (fcntl(2), F_OFD_*) on it: they conflict as those of
// processes would, and closing it frees them all. flock(2) belongs to the open
// file, so it is taken on the handle.
//
// A request that has to wait does so in the kernel, on a thread of its own, and
// is interrupted by a signal to that thread.

// Bounds of what a guest can make us keep.
const (
	maxLockWaits  = 256
	maxLockOwners = 16384
)

type lockKey struct {
	inode *inode
	owner uint64
}

// lockOwner is one process of the guest with locks on one inode.
type lockOwner struct {
	key  lockKey // with a reference to the inode
	fd   int
	pid  atomic.Uint32 // the guest's, for F_GETLK
	fh   uint64        // the handle that it locked through last; guarded by lockTable.mu
	refs atomic.Int64
}

func (o *lockOwner) put() {
	if o.refs.Add(-1) == 0 {
		sysClose(o.fd)
		fdsInUse.Add(-1)
		o.key.inode.put()
	}
}

// lockTable holds the owners, and the requests that wait.
type lockTable struct {
	mu       sync.Mutex // guards the rest
	owners   map[lockKey]*lockOwner
	waits    map[uint64]*lockWait // by the request's unique
	stopping bool                 // a reset is under way: nobody may wait
}

// lockWait is a request waiting for a lock.
type lockWait struct {
	tid         int
	interrupted atomic.Bool
	done        chan struct{}
}

func (t *lockTable) init() {
	t.owners = make(map[lockKey]*lockOwner)
	t.waits = make(map[uint64]*lockWait)
}

// find returns the owner with a reference, or nil. From now on it belongs to
// the handle fh: the release of an earlier one, which may arrive late, has no
// effect on it.
func (t *lockTable) find(k lockKey, fh uint64) *lockOwner {
	t.mu.Lock()
	defer t.mu.Unlock()
	o := t.owners[k]
	if o != nil {
		o.refs.Add(1)
		o.fh = fh
	}
	return o
}

// keep makes sure that an owner which got a lock is in the table: it may have
// been dropped while it waited. It reports false when there is another one by
// now, so that the lock must be taken again.
func (t *lockTable) keep(o *lockOwner) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.owners[o.key] == nil {
		t.owners[o.key] = o
		o.refs.Add(1)
	}
	return t.owners[o.key] == o
}

// drop gives all POSIX locks of an owner on an inode back.
func (t *lockTable) drop(i *inode, owner uint64) {
	t.mu.Lock()
	k := lockKey{i, owner}
	o := t.owners[k]
	delete(t.owners, k)
	t.mu.Unlock()
	if o != nil {
		o.put()
	}
}

// released drops the owners that locked through a handle that the guest has
// closed for good. The kernel tells of the end of a process's locks by FLUSH, but
// not of that of its own open file description locks, which end here.
func (t *lockTable) released(h *handle) {
	if !h.locked.Load() {
		return
	}
	var old []*lockOwner
	t.mu.Lock()
	for k, o := range t.owners {
		if k.inode == h.inode && o.fh == h.id {
			delete(t.owners, k)
			old = append(old, o)
		}
	}
	t.mu.Unlock()
	for _, o := range old {
		o.put()
	}
}

// clear drops all owners.
func (t *lockTable) clear() {
	t.mu.Lock()
	old := t.owners
	t.owners = make(map[lockKey]*lockOwner)
	t.stopping = false
	t.mu.Unlock()
	for _, o := range old {
		o.put()
	}
}

// otherPID is the process of some other owner of the inode, or 0.
func (t *lockTable) otherPID(k lockKey) uint32 {
	t.mu.Lock()
	defer t.mu.Unlock()
	for other, o := range t.owners {
		if other.inode == k.inode && other.owner != k.owner {
			return o.pid.Load()
		}
	}
	return 0
}

// lockOwner returns the owner for the request with a reference, made if need be.
func (r *request) lockOwner(h *handle, owner uint64) (*lockOwner, unix.Errno) {
	t, k := &r.d.locks, lockKey{h.inode, owner}
	h.locked.Store(true)
	if o := t.find(k, h.id); o != nil {
		return o, 0
	}
	fd, e := r.openForLocks(h.inode)
	if e != 0 {
		return nil, e
	}
	n := &lockOwner{key: k, fd: fd, fh: h.id}
	h.inode.refs.Add(1)
	n.refs.Store(1)
	if o := t.add(n); o != nil {
		return o, 0
	}
	n.put()
	return nil, unix.ENOLCK
}

// openForLocks makes a new open file description. A write lock needs a
// writable one, a read lock a readable one.
func (r *request) openForLocks(i *inode) (int, unix.Errno) {
	if e := r.d.takeFD(); e != 0 {
		return -1, unix.ENOLCK
	}
	fd, e := -1, unix.Errno(unix.EROFS)
	if !r.d.cfg.ReadOnly {
		fd, e = sysOpenat(r.d.host.proc, r.proc(i.fd), unix.O_RDWR|unix.O_NONBLOCK, 0)
	}
	if e != 0 {
		fd, e = sysOpenat(r.d.host.proc, r.proc(i.fd), unix.O_RDONLY|unix.O_NONBLOCK, 0)
	}
	if e != 0 {
		fdsInUse.Add(-1)
	}
	return fd, hideLimit(e)
}

// add enters a new owner and takes a second reference to it for the caller. If
// another request was faster it returns that one's with a reference, and n is
// dropped; it returns nil when there are too many.
func (t *lockTable) add(n *lockOwner) *lockOwner {
	t.mu.Lock()
	o := t.owners[n.key]
	if o == nil && len(t.owners) < maxLockOwners {
		o = n
		t.owners[n.key] = n
	}
	if o != nil {
		o.refs.Add(1)
		o.fh = n.fh
	}
	t.mu.Unlock()
	if o != nil && o != n {
		n.put()
	}
	return o
}

// hostLock fills in r.lk. The protocol's end is inclusive, and OFFSET_MAX for
// the end of the file.
func (r *request) hostLock(l *fileLock) unix.Errno {
	if l.Start > l.End || l.Start > maxOffset || l.End > maxOffset || l.Type > unix.F_UNLCK {
		return unix.EINVAL
	}
	r.lk = unix.Flock_t{Type: int16(l.Type), Whence: unix.SEEK_SET, Start: int64(l.Start)}
	if l.End != maxOffset {
		r.lk.Len = int64(l.End-l.Start) + 1
	}
	return 0
}

// getlk serves GETLK.
func (r *request) getlk() (int, unix.Errno) {
	in := view[lkIn](r.in)
	h, e := r.lockHandle(in)
	if e != 0 {
		return 0, e
	}
	defer h.put()
	if e := r.hostLock(&in.Lk); e != 0 {
		return 0, e
	}
	own, e := r.lockOwner(h, in.Owner)
	if e != 0 {
		return 0, e
	}
	defer own.put()
	if e := sysFlock(own.fd, &r.lk, unix.F_OFD_GETLK); e != 0 {
		return 0, e
	}
	o, n := answer[lkOut](r, 0)
	o.Lk.Type = uint32(r.lk.Type)
	if r.lk.Type != unix.F_UNLCK {
		o.Lk.Start, o.Lk.End = uint64(r.lk.Start), maxOffset
		if r.lk.Len != 0 {
			o.Lk.End = uint64(r.lk.Start + r.lk.Len - 1)
		}
		o.Lk.PID = r.d.locks.otherPID(own.key)
	}
	return n, 0
}

func (r *request) lockHandle(in *lkIn) (*handle, unix.Errno) {
	if !r.d.cfg.Locks {
		return nil, unix.ENOSYS
	}
	h, e := r.handle(in.FH, 0)
	if e != 0 {
		return nil, e
	}
	if h.fd < 0 {
		h.put()
		return nil, unix.ENOLCK
	}
	return h, 0
}

// setlk serves SETLK and SETLKW.
func (r *request) setlk() (int, unix.Errno) {
	in := view[lkIn](r.in)
	h, e := r.lockHandle(in)
	if e != 0 {
		return 0, e
	}
	defer h.put()
	if e := r.hostLock(&in.Lk); e != 0 {
		return 0, e
	}
	c := lockCall{fd: h.fd, flock: true, lk: &r.lk}
	if in.Flags&lkFlock != 0 {
		return 0, r.lock(&c)
	}
	if h.inode.isDir() {
		return 0, unix.EBADF
	}
	if r.lk.Type == unix.F_UNLCK && !r.d.locks.has(h.inode, in.Owner) {
		return 0, 0
	}
	c.flock = false
	for {
		own, e := r.lockOwner(h, in.Owner)
		if e != 0 {
			return 0, e
		}
		own.pid.Store(in.Lk.PID)
		c.fd = own.fd
		e = r.lock(&c)
		done := e != 0 || r.d.locks.keep(own)
		own.put()
		if done {
			return 0, e
		}
	}
}

// lock takes or frees a lock, and for SETLKW waits.
func (r *request) lock(c *lockCall) unix.Errno {
	e := c.try(false)
	if (e == unix.EAGAIN || e == unix.EACCES) && r.hdr.Opcode == opSetlkw {
		return r.waitLock(c)
	}
	return e
}

// has reports whether the owner has ever locked the inode.
func (t *lockTable) has(i *inode, owner uint64) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.owners[lockKey{i, owner}] != nil
}

// lockCall is the system call that takes or frees a lock.
type lockCall struct {
	fd    int
	flock bool
	lk    *unix.Flock_t
}

func (c *lockCall) try(wait bool) unix.Errno {
	if !c.flock {
		cmd := unix.F_OFD_SETLK
		if wait {
			cmd = unix.F_OFD_SETLKW
		}
		return sysFlock(c.fd, c.lk, cmd)
	}
	op := [...]uint64{unix.F_RDLCK: unix.LOCK_SH, unix.F_WRLCK: unix.LOCK_EX, unix.F_UNLCK: unix.LOCK_UN}[c.lk.Type]
	if !wait {
		op |= unix.LOCK_NB
	}
	return sysCall(unix.SYS_FLOCK, c.fd, op, 0, 0)
}

// waitLock waits for the lock, aside from the queue and the other workers.
func (r *request) waitLock(c *lockCall) unix.Errno {
	if e := interruptible(); e != 0 {
		return e
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	w := &lockWait{tid: unix.Gettid(), done: make(chan struct{})}
	if e := r.d.locks.enter(r.hdr.Unique, w); e != 0 {
		return e
	}
	r.w.park()
	var e unix.Errno
	for {
		if w.interrupted.Load() {
			e = unix.EINTR
			break
		}
		if e = c.try(true); e != unix.EINTR {
			break
		}
	}
	r.d.locks.leave(r.hdr.Unique, w)
	r.w.unpark()
	return e
}

func (t *lockTable) enter(unique uint64, w *lockWait) unix.Errno {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case t.stopping:
		return unix.EINTR
	case len(t.waits) >= maxLockWaits || t.waits[unique] != nil:
		return unix.ENOLCK
	}
	t.waits[unique] = w
	return 0
}

func (t *lockTable) leave(unique uint64, w *lockWait) {
	t.mu.Lock()
	delete(t.waits, unique)
	t.mu.Unlock()
	close(w.done)
}

// interruptAll ends all waits, and those to come until clear.
func (t *lockTable) interruptAll() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.stopping = true
	for _, w := range t.waits {
		w.interrupt()
	}
}

// interrupt ends the wait; it does not block.
func (w *lockWait) interrupt() {
	if !w.interrupted.Swap(true) {
		go w.signal()
	}
}

// signal interrupts the thread until it noticed: the first signal may come
// between its look at the flag and its entry into the kernel.
func (w *lockWait) signal() {
	for pause := 100 * time.Microsecond; ; pause = min(2*pause, 100*time.Millisecond) {
		_ = unix.Tgkill(unix.Getpid(), w.tid, lockSignal)
		select {
		case <-w.done:
			return
		case <-time.After(pause):
		}
	}
}

// lockSignal interrupts a thread that waits for a lock. The Go runtime handles
// the signal by ignoring it, but with SA_RESTART, which makes the kernel go on
// waiting; interruptible takes that flag off, once, for this signal alone.
const lockSignal = unix.Signal(45)

const saRestart = 0x10000000

var interruptible = sync.OnceValue(func() unix.Errno {
	var act kernelSigaction
	if e := sysSigaction(int(lockSignal), nil, &act); e != 0 {
		return e
	}
	if act.Handler <= 1 { // SIG_DFL would kill us, SIG_IGN not interrupt
		return unix.ENOLCK
	}
	act.Flags &^= saRestart
	return sysSigaction(int(lockSignal), &act, nil)
})

// interrupt serves INTERRUPT. Only waits for locks can be interrupted; for
// what is not waiting (any more, or yet) EAGAIN lets the guest decide.
func (r *request) interrupt() (int, unix.Errno) {
	t := &r.d.locks
	t.mu.Lock()
	w := t.waits[view[interruptIn](r.in).Unique]
	t.mu.Unlock()
	if w == nil {
		return 0, unix.EAGAIN
	}
	w.interrupt()
	return 0, 0
}
