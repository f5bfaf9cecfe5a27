package blk

import (
	"sync"
	"time"

	"github.com/gvmspawn/gvmspawn/virtio/virtq"
)

// worker serves one queue.
type worker struct {
	dev      *Device
	q        *virtq.Queue
	pool     *pool
	writable bool
	ring     *ring // nil without io_uring
	slow     int   // requests that are not carried out here: see inline

	mu   sync.Mutex // guards free
	free []*request // requests not in use, at most as many as the queue is long
}

// request is one request in flight.
type request struct {
	w     *worker
	chain virtq.Chain
	bufs  [][]byte // its data
	typ   uint32
	off   uint64 // byte offset on the disk
	n     uint64 // bytes of data
}

func (w *worker) get() *request {
	w.mu.Lock()
	defer w.mu.Unlock()
	if n := len(w.free); n > 0 {
		r := w.free[n-1]
		w.free = w.free[:n-1]
		return r
	}
	return &request{w: w}
}

func (w *worker) put(r *request) {
	w.mu.Lock()
	w.free = append(w.free, r)
	w.mu.Unlock()
}

// notifyBytes is after how much data the driver is told, even when more
// requests are waiting.
const notifyBytes = 512 << 10

// run takes requests until the queue is closed. It looks one request ahead: a
// request behind which another waits must not block this goroutine.
func (w *worker) run() {
	cur := w.get()
	moved := uint64(0)
	for w.q.Wait() {
		for ok := w.q.Pop(&cur.chain); ok; {
			next := w.get()
			more := w.q.Pop(&next.chain)
			if w.start(cur, more) {
				moved += cur.n
				w.put(cur)
			}
			cur, ok = next, more
			if moved >= notifyBytes {
				moved = 0
				w.q.Notify()
			}
		}
		moved = 0
		if w.ring != nil {
			w.ring.submit()
		}
		w.q.Notify()
	}
	w.put(cur)
	if w.ring != nil {
		w.ring.close()
	}
}

// start carries the request out, or gives it to others and returns false.
func (w *worker) start(r *request, more bool) bool {
	status, valid := r.parse()
	if !valid {
		r.finish(status)
		return true
	}
	err := r.attempt()
	switch {
	case w.dev.cfg.InOrder && (err == ErrWouldBlock || err == ErrCannotTry):
		r.finish(r.status(r.execute()))
	case err == ErrCannotTry && w.inline(r, more):
		w.timed(r, more)
	case err == ErrWouldBlock, err == ErrCannotTry:
		w.later(r)
		return false
	default:
		r.finish(r.status(err))
	}
	return true
}

// later gives a request that may wait to the ring or the pool.
func (w *worker) later(r *request) {
	if w.ring == nil || !w.ring.queue(r) {
		w.pool.submit(r)
	}
}

// timed carries a request out here, and notes when that took long.
func (w *worker) timed(r *request, more bool) {
	begin := time.Now()
	r.finish(r.status(r.execute()))
	if more && time.Since(begin) > slowInline {
		w.slow = slowPenalty
	}
}

const (
	// slowInline is how long a request may take here while others wait
	// before the next slowPenalty ones go elsewhere.
	slowInline  = 500 * time.Microsecond
	slowPenalty = 64
)

// inline reports whether a request that cannot be tried is carried out here.
// Some file systems cannot say beforehand whether an access to the page cache
// blocks: ext4 for writes, tmpfs for both. It hardly ever does, and they take
// one write per file at a time anyhow.
func (w *worker) inline(r *request, more bool) bool {
	data := r.typ == VIRTIO_BLK_T_IN || r.typ == VIRTIO_BLK_T_OUT
	if !more || !data {
		return data
	}
	if w.dev.try == nil || !w.dev.writeback.Load() {
		return false
	}
	if w.slow > 0 {
		w.slow--
		return false
	}
	return true
}

// attempt tries reads, and writes that need no flush, without waiting.
func (r *request) attempt() error {
	d := r.w.dev
	switch {
	case d.try == nil:
	case r.typ == VIRTIO_BLK_T_IN:
		return d.try.TryReadAt(r.bufs, r.off)
	case r.typ == VIRTIO_BLK_T_OUT && d.writeback.Load():
		return d.try.TryWriteAt(r.bufs, r.off)
	}
	return ErrCannotTry
}

// pool carries out requests that may wait for the host.
type pool struct {
	dev  *Device
	jobs chan *request
	wg   sync.WaitGroup

	mu      sync.Mutex // guards running and pending
	running int        // goroutines
	pending int        // requests submitted and not finished
}

func newPool(d *Device) *pool {
	return &pool{dev: d, jobs: make(chan *request, queueSize)}
}

// submit hands a request over, starting a goroutine if all are busy.
func (p *pool) submit(r *request) {
	p.mu.Lock()
	if p.pending++; p.pending > p.running && p.running < poolSize {
		p.running++
		p.wg.Go(p.work)
	}
	p.mu.Unlock()
	p.jobs <- r
}

func (p *pool) work() {
	for r := range p.jobs {
		w := r.w
		r.finish(r.status(r.execute()))
		w.put(r)
		w.q.Notify()
		p.mu.Lock()
		p.pending--
		p.mu.Unlock()
	}
}

// close waits until all requests are done. Nobody submits any more.
func (p *pool) close() {
	close(p.jobs)
	p.wg.Wait()
}
