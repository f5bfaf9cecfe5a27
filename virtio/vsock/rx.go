package vsock

import (
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/gvmspawn/gvmspawn/virtio/virtq"
)

// rxBatch is the most receive buffers that are held at a time: 64 KiB of
// Linux's 4 KiB buffers.
const rxBatch = 17

// rx is the way to the guest. Every sender does its own work under mu; the
// worker only sleeps on the queue for those that found no buffer.
type rx struct {
	dev *Device

	mu sync.Mutex // guards all below
	q  *virtq.Queue
	// held are buffers taken from the queue and not yet used, from head on.
	held    [rxBatch]virtq.Chain
	head, n int
	need    bool // somebody waits for a buffer
	waiting int  // senders in space.Wait
	needed  sync.Cond
	space   sync.Cond
	iov     [128]unix.Iovec
}

func (r *rx) init(d *Device) {
	r.dev = d
	r.needed.L, r.space.L = &r.mu, &r.mu
}

func (r *rx) start(q *virtq.Queue) {
	r.mu.Lock()
	r.q, r.head, r.n, r.need = q, 0, 0, false
	r.mu.Unlock()
}

func (r *rx) stop() {
	r.mu.Lock()
	r.q, r.n = nil, 0
	r.needed.Broadcast()
	r.space.Broadcast()
	r.mu.Unlock()
}

// work waits for buffers when somebody needs one.
func (r *rx) work(q *virtq.Queue) {
	for {
		r.mu.Lock()
		for r.q == q && !r.need {
			q.Away()
			r.needed.Wait()
		}
		active := r.q == q
		r.mu.Unlock()
		if !active || !q.Wait() {
			return
		}
		r.mu.Lock()
		r.need = false
		r.mu.Unlock()
		r.kick()
	}
}

// kick sends what control packets it can and wakes the senders, to look at
// their buffers and the state of their connections again. It is called after
// every change of a connection's state, without locks.
func (r *rx) kick() {
	r.mu.Lock()
	if r.q != nil && r.control() {
		r.q.Notify()
	}
	if r.waiting > 0 {
		r.space.Broadcast()
	}
	r.mu.Unlock()
}

// fetch makes sure that at least one buffer is held, and up to want if there
// are as many. Preconditions: r.mu held, r.q not nil.
func (r *rx) fetch(want int) bool {
	for r.n < min(want, rxBatch) {
		c := &r.held[(r.head+r.n)%rxBatch]
		if !r.q.Pop(c) {
			break
		}
		if c.WritableLen <= headerSize {
			// Too small for any data: the driver gets it back unused.
			r.q.Push(c, 0)
			continue
		}
		r.n++
	}
	if r.n == 0 {
		r.need = true
		r.needed.Signal()
	}
	return r.n > 0
}

// first is the next buffer held. Preconditions: r.mu held, r.n > 0.
func (r *rx) first() *virtq.Chain { return &r.held[r.head] }

// push gives the first buffer to the driver as a packet of h and n bytes that
// are in place behind the header. Preconditions: r.mu held, r.n > 0.
func (r *rx) push(h *header, n int) {
	var b [headerSize]byte
	h.len = uint32(n)
	h.put(&b)
	c := r.first()
	c.WriteAt(b[:], 0)
	r.q.Push(c, uint32(headerSize+n))
	r.head = (r.head + 1) % rxBatch
	r.n--
}

// control sends pending control packets while there are buffers, and reports
// whether it sent any. Preconditions: r.mu held, r.q not nil.
func (r *rx) control() bool {
	sent := false
	for {
		if !r.dev.controlDue() || !r.fetch(1) {
			return sent
		}
		if h, ok := r.dev.nextControl(); ok {
			r.push(&h, 0)
			sent = true
		}
	}
}

// wait waits for a change. Preconditions: r.mu held.
func (r *rx) wait() {
	r.waiting++
	r.space.Wait()
	r.waiting--
}

// send copies as much of p to the guest as credit and buffers allow, at least
// one packet, waiting for a buffer but not for credit: with none it returns 0.
// With eom the last packet is marked as the end of a message; then p may be empty.
func (r *rx) send(c *Conn, p []byte, eom bool) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	total, packets := 0, 0
	for len(p) > 0 || packets == 0 {
		if r.q == nil {
			return total, syscall.ECONNRESET
		}
		r.control()
		if !r.fetch(1) {
			if packets > 0 {
				break
			}
			if err := c.writable(); err != nil {
				return total, err
			}
			r.wait()
			continue
		}
		chain := r.first()
		n := min(len(p), int(min(chain.WritableLen, 1<<20))-headerSize)
		h, n, err := c.reserve(n, len(p), eom)
		if err != nil {
			return total, err
		}
		if n == 0 && len(p) > 0 {
			break
		}
		chain.WriteAt(p[:n], headerSize)
		r.push(&h, n)
		p = p[n:]
		total += n
		packets++
	}
	r.q.Notify()
	return total, nil
}

// Results of fill.
const (
	fillDone  = iota // n bytes went to the guest; 0 is the end of the file
	fillAgain        // the descriptor has nothing to read now
	fillSpace        // no buffer
	fillStop         // no credit, or the connection does not take more
)

// fill reads from the non-blocking descriptor fd straight into guest buffers,
// as far as credit and buffers reach. It does not wait.
func (r *rx) fill(c *Conn, fd int) (n, result int, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.q == nil {
		return 0, fillStop, nil
	}
	r.control()
	credit := c.credit()
	if credit == 0 {
		return 0, fillStop, nil
	}
	if !r.fetch(rxBatch) {
		return 0, fillSpace, nil
	}
	n, err = readv(fd, r.vector(credit))
	switch {
	case err == unix.EAGAIN:
		return 0, fillAgain, nil
	case err == unix.EINTR:
		return 0, fillStop, nil
	case err != nil || n == 0:
		return 0, fillDone, err
	}
	for left := n; left > 0; {
		k := min(left, int(min(r.first().WritableLen, 1<<20))-headerSize)
		h, ok := c.commit(k)
		if !ok {
			// The guest ended the connection meanwhile; the bytes go with it.
			break
		}
		r.push(&h, k)
		left -= k
	}
	r.q.Notify()
	return n, fillDone, nil
}

// vector is the room behind the headers of the buffers held, up to limit
// bytes. Preconditions: r.mu held, r.n > 0.
func (r *rx) vector(limit int) []unix.Iovec {
	iov := r.iov[:0]
	for i := 0; i < r.n && limit > 0; i++ {
		c := &r.held[(r.head+i)%rxBatch]
		room := int(min(c.WritableLen, 1<<20))
		skip := headerSize
		for _, b := range c.Writable {
			p := b.Bytes[:min(len(b.Bytes), room)]
			room -= len(p)
			k := min(skip, len(p))
			skip -= k
			p = p[k:]
			p = p[:min(len(p), limit)]
			if len(p) == 0 {
				continue
			}
			if len(iov) == cap(iov) {
				return iov
			}
			limit -= len(p)
			iov = append(iov, iovec(p))
		}
	}
	return iov
}

// waitSpace waits until there is a buffer, or the connection takes no more.
func (r *rx) waitSpace(c *Conn) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for {
		if r.q == nil {
			return syscall.ECONNRESET
		}
		if err := c.writable(); err != nil {
			return err
		}
		if r.fetch(1) {
			return nil
		}
		r.wait()
	}
}
