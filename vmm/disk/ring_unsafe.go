package disk

import (
	"io"
	"runtime"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// io_uring (linux/io_uring.h): the parts that are used.
const (
	ringEntries = QueueDepth

	ioringOffSQRing   = 0
	ioringOffSQEs     = 0x10000000
	ioringEnterGetEv  = 1 << 0
	ioringFeatSingle  = 1 << 0
	ioringFeatStable  = 1 << 2 // IORING_FEAT_SUBMIT_STABLE
	ioringFsyncData   = 1 << 0
	ioringOpNop       = 0
	ioringOpReadv     = 1
	ioringOpWritev    = 2
	ioringOpFsync     = 3
	ioringStop        = ^uint64(0) // user_data of the NOP that ends the reaper
	ringVectorBuffers = 254        // data buffers of a request
)

// sqe is struct io_uring_sqe.
type sqe struct {
	opcode, flags uint8
	ioprio        uint16
	fd            int32
	off, addr     uint64
	len           uint32
	opFlags       uint32
	userData      uint64
	_             [3]uint64
}

// cqe is struct io_uring_cqe.
type cqe struct {
	userData uint64
	res      int32
	flags    uint32
}

// ringParams is struct io_uring_params.
type ringParams struct {
	sqEntries, cqEntries, flags, threadCPU, threadIdle, features, wqFD uint32
	_                                                                  [3]uint32
	sq                                                                 struct {
		head, tail, mask, entries, flags, dropped, array, _ uint32
		_                                                   uint64
	}
	cq struct {
		head, tail, mask, entries, overflow, cqes, flags, _ uint32
		_                                                   uint64
	}
}

// ring is the io_uring of a Queue. Only its owner queues and submits; one
// goroutine of the ring reaps.
type ring struct {
	q      *Queue
	fd     int // of the io_uring
	file   int32
	direct bool
	rings  []byte
	sqeMem []byte

	sqTail, sqMask, cqHead, cqTail, cqMask *uint32
	sqArray                                []uint32
	sqes                                   []sqe
	cqes                                   []cqe

	// slots hold the requests in flight with their vectors. free lists those
	// without one; the channel is the hand-over from the reaper.
	slots  []slot
	free   chan uint32
	queued uint32 // entries not yet submitted
	done   chan struct{}
}

type slot struct {
	// r goes from the owner to the reaper by way of the kernel, which Go's
	// memory model does not know; so the pointer itself orders the two.
	r   atomic.Pointer[Request]
	vec [ringVectorBuffers]unix.Iovec
}

// newRing returns a ring for a file, or nil if the host has none to offer.
func newRing(q *Queue, file *Raw) *ring {
	var p ringParams
	fd, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, ringEntries, uintptr(unsafe.Pointer(&p)), 0)
	if errno != 0 {
		return nil
	}
	r := &ring{q: q, fd: int(fd), file: int32(file.fd), direct: file.direct, done: make(chan struct{})}
	if p.features&(ioringFeatSingle|ioringFeatStable) != ioringFeatSingle|ioringFeatStable || r.mapRings(&p) != nil {
		r.unmap()
		return nil
	}
	r.slots = make([]slot, ringEntries)
	r.free = make(chan uint32, ringEntries)
	for i := range uint32(ringEntries) {
		r.free <- i
	}
	go r.reap()
	return r
}

func (r *ring) mapRings(p *ringParams) error {
	size := max(int(p.sq.array+p.sqEntries*4), int(p.cq.cqes+p.cqEntries*uint32(unsafe.Sizeof(cqe{}))))
	var err error
	const prot, flags = unix.PROT_READ | unix.PROT_WRITE, unix.MAP_SHARED | unix.MAP_POPULATE
	if r.rings, err = unix.Mmap(r.fd, ioringOffSQRing, size, prot, flags); err != nil {
		return err
	}
	if r.sqeMem, err = unix.Mmap(r.fd, ioringOffSQEs, int(p.sqEntries)*int(unsafe.Sizeof(sqe{})), prot, flags); err != nil {
		return err
	}
	word := func(off uint32) *uint32 { return (*uint32)(unsafe.Pointer(&r.rings[off])) }
	r.sqTail, r.sqMask = word(p.sq.tail), word(p.sq.mask)
	r.cqHead, r.cqTail, r.cqMask = word(p.cq.head), word(p.cq.tail), word(p.cq.mask)
	r.sqArray = unsafe.Slice(word(p.sq.array), p.sqEntries)
	r.sqes = unsafe.Slice((*sqe)(unsafe.Pointer(&r.sqeMem[0])), p.sqEntries)
	r.cqes = unsafe.Slice((*cqe)(unsafe.Pointer(&r.rings[p.cq.cqes])), p.cqEntries)
	return nil
}

func (r *ring) unmap() {
	if r.sqeMem != nil {
		_ = unix.Munmap(r.sqeMem)
	}
	if r.rings != nil {
		_ = unix.Munmap(r.rings)
	}
	_ = unix.Close(r.fd)
}

// queue takes a request that needs one operation of the kernel's; false means
// that the pool must take it.
func (r *ring) queue(q *Request) bool {
	var e sqe
	switch {
	case q.Op == OpFlush && r.q.drive.cfg.NoFlush, q.Op > OpFlush:
		return false
	case q.Op == OpFlush:
		e = sqe{opcode: ioringOpFsync, opFlags: ioringFsyncData}
	case r.direct && !aligned(q.Bufs, q.Off), len(q.Bufs) > ringVectorBuffers:
		return false
	case q.Op == OpRead:
		e = sqe{opcode: ioringOpReadv}
	case !q.Through:
		e = sqe{opcode: ioringOpWritev}
	default:
		return false
	}
	var i uint32
	select {
	case i = <-r.free:
	default:
		return false // more in flight than the queue is long: cannot be
	}
	s := &r.slots[i]
	s.r.Store(q)
	e.fd, e.userData = r.file, uint64(i)
	if e.opcode != ioringOpFsync {
		for j, b := range q.Bufs {
			s.vec[j] = unix.Iovec{Base: unsafe.SliceData(b), Len: uint64(len(b))}
		}
		e.off, e.len, e.addr = q.Off, uint32(len(q.Bufs)), uint64(uintptr(unsafe.Pointer(&s.vec)))
	}
	r.push(e)
	return true
}

// push appends an entry. There is always room: no more than the slots are in
// flight, and submit hands all of them over.
func (r *ring) push(e sqe) {
	tail := *r.sqTail
	i := tail & *r.sqMask
	r.sqes[i] = e
	r.sqArray[i] = i
	// The release store orders the entry before the tail.
	atomic.StoreUint32(r.sqTail, tail+1)
	if r.queued++; r.queued == ringEntries {
		r.submit()
	}
}

// submit hands what is queued to the kernel, which copies the vectors.
func (r *ring) submit() {
	for r.queued > 0 {
		n, _, errno := unix.Syscall6(unix.SYS_IO_URING_ENTER, uintptr(r.fd), uintptr(r.queued), 0, 0, 0, 0)
		if errno != 0 && errno != unix.EINTR && errno != unix.EAGAIN && errno != unix.EBUSY {
			panic("disk: io_uring_enter of valid entries fails: " + errno.Error())
		}
		if errno == 0 {
			r.queued -= uint32(n)
		} else {
			runtime.Gosched() // the reaper makes room
		}
	}
	runtime.KeepAlive(r.slots)
}

// reap finishes requests as the kernel completes them.
func (r *ring) reap() {
	defer close(r.done)
	for {
		_, _, errno := unix.Syscall6(unix.SYS_IO_URING_ENTER, uintptr(r.fd), 0, 1, ioringEnterGetEv, 0, 0)
		if errno != 0 && errno != unix.EINTR {
			panic("disk: waiting for io_uring fails: " + errno.Error())
		}
		head := *r.cqHead
		stop := false
		// The acquire load orders the tail before the entries.
		for tail := atomic.LoadUint32(r.cqTail); head != tail; head++ {
			e := r.cqes[head&*r.cqMask]
			if e.userData == ioringStop {
				stop = true
				continue
			}
			r.complete(uint32(e.userData), e.res)
		}
		atomic.StoreUint32(r.cqHead, head)
		r.q.notify()
		if stop {
			return
		}
	}
}

// complete finishes a request; what the kernel did only in part goes to the pool.
func (r *ring) complete(i uint32, res int32) {
	q := r.slots[i].r.Swap(nil)
	r.free <- i
	var err error
	switch {
	case res == -int32(unix.EAGAIN), res == -int32(unix.EINTR), res > 0 && uint64(res) < q.N:
		r.q.drive.pool.submit(q)
		return
	case res < 0:
		err = unix.Errno(-res)
	case res == 0 && q.Op == OpRead:
		err = io.ErrUnexpectedEOF
	case res == 0 && q.Op == OpWrite:
		err = io.ErrShortWrite
	}
	r.q.drive.finish(q, err)
}

// close waits until all requests are done and ends the ring. Nothing
// is queued any more.
func (r *ring) close() {
	r.submit()
	for range ringEntries {
		<-r.free
	}
	r.push(sqe{opcode: ioringOpNop, userData: ioringStop})
	r.submit()
	<-r.done
	r.unmap()
}
