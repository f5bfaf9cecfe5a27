package fs

import (
	"fmt"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"
)

// Acting for a guest's user.
//
// The system call that creates a file runs with the caller's file system uid
// and gid, which are a property of the thread (setfsuid(2)): the goroutine is
// locked to its thread around it. Compared with creating first and chown(2)
// afterwards this is atomic, lets the kernel apply set-group-ID directories and
// default ACLs as it does for local users, and needs no repair when something
// fails in between.
//
// Leaving uid 0 drops the capabilities over files; of those the thread takes
// CAP_DAC_OVERRIDE back, because the guest's kernel has checked the
// permissions already, with the groups of the caller that we do not know.

// capSets are the effective sets that threads switch between.
type capSets struct {
	base     capData // as the process has them
	caller   capData // while acting for another user
	root     capData // while acting for the guest's uid 0 under another uid
	noFSETID capData // while writing to a file whose setuid bit shall go
}

func capBit(c int) (word int, bit uint32) { return c / 32, 1 << (c % 32) }

func (c *capData) has(caps ...int) bool {
	for _, n := range caps {
		if w, b := capBit(n); c[w].Effective&b == 0 {
			return false
		}
	}
	return true
}

func (c capData) without(caps ...int) capData {
	for _, n := range caps {
		w, b := capBit(n)
		c[w].Effective &^= b
	}
	return c
}

func (s *capSets) read(deviceNodes bool) error {
	if e := sysCapget(&s.base); e != 0 {
		return fmt.Errorf("read capabilities: %w", e)
	}
	s.root = s.base.without(unix.CAP_CHOWN, unix.CAP_FOWNER, unix.CAP_LINUX_IMMUTABLE, unix.CAP_MAC_OVERRIDE)
	if !deviceNodes {
		s.root = s.root.without(unix.CAP_MKNOD)
	}
	s.caller = s.root.without(unix.CAP_FSETID)
	s.noFSETID = s.base.without(unix.CAP_FSETID)
	return nil
}

// forOthers reports whether we can own files for others.
func (s *capSets) forOthers() bool {
	return s.base.has(unix.CAP_CHOWN, unix.CAP_DAC_OVERRIDE, unix.CAP_FOWNER, unix.CAP_FSETID, unix.CAP_SETUID, unix.CAP_SETGID)
}

// creation is a system call that makes a directory entry.
type creation struct {
	kind     uint8
	dir      int
	name     []byte
	target   []byte
	mode     uint32
	flags    int
	dev      uint64
	uid, gid uint32 // the guest's
	umask    uint32

	fd   int             // result of createFile and createTmp
	done chan unix.Errno // from the masked thread
}

const (
	createFile = iota
	createTmp
	createDir
	createNode
	createLink
)

// create runs r.mk as the calling user with the umask in r.mk.
func (r *request) createAs() unix.Errno {
	h, c := &r.d.host, &r.mk
	c.fd = -1
	uid, okU := h.hostID(c.uid, ofUser)
	gid, okG := h.hostID(c.gid, ofGroup)
	if !okU || !okG {
		return unix.EOVERFLOW // as the kernel says for ids that are not mapped
	}
	root := c.uid == 0
	c.uid, c.gid = uid, gid
	// The umask is the whole process's. Where it makes no difference the call
	// runs right here, otherwise on a thread that has a umask of its own.
	if c.kind == createLink || h.umask == c.umask || c.umask == 0 && h.umask&c.mode == 0 {
		return h.createHere(c, root)
	}
	if r.here() {
		r.stuck = true
		return unix.EAGAIN
	}
	return h.masked.run(h, c, root)
}

// createHere runs the call on the current thread.
func (h *hostAccess) createHere(c *creation, root bool) unix.Errno {
	if !h.privileged || c.uid == h.uid && c.gid == h.gid {
		return c.call()
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if e := h.become(c.uid, c.gid, root); e != 0 {
		h.comeBack()
		return e
	}
	e := c.call()
	h.comeBack()
	return e
}

// become gives this thread the identity of a host uid and gid.
func (h *hostAccess) become(uid, gid uint32, root bool) unix.Errno {
	const ask = ^uint32(0) // an invalid id changes nothing
	if gid != h.gid {
		sysSetfsid(unix.SYS_SETFSGID, gid)
		if sysSetfsid(unix.SYS_SETFSGID, ask) != gid {
			return unix.EPERM
		}
	}
	if uid != h.uid {
		sysSetfsid(unix.SYS_SETFSUID, uid)
		if sysSetfsid(unix.SYS_SETFSUID, ask) != uid {
			return unix.EPERM
		}
		set := &h.caps.caller
		if root {
			set = &h.caps.root
		}
		return sysCapset(set)
	}
	return 0
}

// comeBack undoes become. A thread that cannot come back must not go on.
func (h *hostAccess) comeBack() {
	sysSetfsid(unix.SYS_SETFSUID, h.uid)
	sysSetfsid(unix.SYS_SETFSGID, h.gid)
	if e := sysCapset(&h.caps.base); e != 0 {
		panic("virtio-fs: a thread that acted for a guest user cannot get its capabilities back: " + e.Error())
	}
}

// withoutFSETID runs a ftruncate or write with CAP_FSETID off, so that the
// kernel clears set-user-ID and set-group-ID bits as for any user.
func (h *hostAccess) dropFSETID() {
	runtime.LockOSThread()
	if h.caps.base.has(unix.CAP_FSETID) {
		_ = sysCapset(&h.caps.noFSETID) // dropping cannot fail
	}
}

func (h *hostAccess) restoreFSETID() {
	if h.caps.base.has(unix.CAP_FSETID) {
		h.comeBack()
	}
	runtime.UnlockOSThread()
}

// call is the system call itself. Nothing in it can block on a FIFO or follow
// a symbolic link: O_EXCL refuses whatever is there.
func (c *creation) call() unix.Errno {
	var e unix.Errno
	switch c.kind {
	case createFile:
		c.fd, e = sysOpenat(c.dir, c.name, c.flags|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_NONBLOCK, c.mode)
	case createTmp:
		c.fd, e = sysOpenat(c.dir, dot[:], c.flags|unix.O_TMPFILE, c.mode)
	case createDir:
		e = sysMkdirat(c.dir, c.name, c.mode)
	case createNode:
		e = sysMknodat(c.dir, c.name, c.mode, c.dev)
	case createLink:
		e = sysSymlinkat(c.target, c.dir, c.name)
	}
	return e
}

// maskedThread is a thread with its own umask, for the rare case that the
// process's umask would take bits away which the guest wants. It is started
// when first needed.
type maskedThread struct {
	mu   sync.Mutex // guards jobs and its closing
	jobs chan maskedJob
}

type maskedJob struct {
	h    *hostAccess
	c    *creation
	root bool
}

func (t *maskedThread) run(h *hostAccess, c *creation, root bool) unix.Errno {
	t.mu.Lock()
	if t.jobs == nil {
		t.jobs = make(chan maskedJob)
		go serveMasked(t.jobs, make(chan struct{}))
	}
	t.mu.Unlock()
	t.jobs <- maskedJob{h, c, root}
	return <-c.done
}

func (t *maskedThread) stop() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.jobs != nil {
		close(t.jobs)
		t.jobs = nil
	}
}

// serveMasked never unlocks its thread, so that it ends with the goroutine.
func serveMasked(jobs <-chan maskedJob, locked chan<- struct{}) {
	runtime.LockOSThread()
	if unix.Gettid() == unix.Getpid() {
		// The main thread cannot end, and its umask is what the world takes
		// for the process's. Keep it until another thread has the job.
		other := make(chan struct{})
		go serveMasked(jobs, other)
		<-other
		runtime.UnlockOSThread()
		close(locked)
		return
	}
	close(locked)
	err := unix.Unshare(unix.CLONE_FS)
	for j := range jobs {
		if err != nil {
			j.c.done <- err.(unix.Errno)
			continue
		}
		unix.Umask(int(j.c.umask))
		j.c.done <- j.h.createHere(j.c, j.root)
	}
}
