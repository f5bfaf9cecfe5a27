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
	slow     int // writes that go to the pool: see quickWrite

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
		w.q.Notify()
	}
	w.put(cur)
}

// start carries the request out, or gives it to the pool and returns false.
func (w *worker) start(r *request, more bool) bool {
	status, valid := r.parse()
	if !valid {
		r.finish(status)
		return true
	}
	wait := r.typ == VIRTIO_BLK_T_FLUSH || r.typ == VIRTIO_BLK_T_DISCARD || r.typ == VIRTIO_BLK_T_WRITE_ZEROES
	if !wait && w.dev.try != nil {
		done, err := r.attempt(w.dev.try)
		if done {
			r.finish(r.status(err))
			return true
		}
	}
	if !w.dev.cfg.InOrder && (wait || (more && !w.quickWrite(r))) {
		w.pool.submit(r)
		return false
	}
	begin := time.Now()
	r.finish(r.status(r.execute()))
	if w.slow > 0 {
		w.slow--
	}
	if more && time.Since(begin) > slowWrite {
		w.slow = slowPenalty
	}
	return true
}

const (
	// slowWrite is how long a write into the page cache may take before
	// the next slowPenalty ones go to the pool.
	slowWrite   = 500 * time.Microsecond
	slowPenalty = 64
)

// quickWrite reports whether a write is worth doing here although other
// requests wait. File systems such as ext4 cannot say beforehand whether a
// write into the page cache blocks; it hardly ever does, and they take one
// write per file at a time anyhow.
func (w *worker) quickWrite(r *request) bool {
	if r.typ != VIRTIO_BLK_T_OUT || w.dev.try == nil || !w.dev.writeback.Load() {
		return false
	}
	if w.slow > 0 {
		w.slow--
		return false
	}
	return true
}

// attempt tries reads, and writes that need no flush, without waiting.
func (r *request) attempt(try TryImage) (done bool, err error) {
	switch {
	case r.typ == VIRTIO_BLK_T_IN:
		err = try.TryReadAt(r.bufs, r.off)
	case r.typ == VIRTIO_BLK_T_OUT && r.w.dev.writeback.Load():
		err = try.TryWriteAt(r.bufs, r.off)
	default:
		return false, nil
	}
	return err != ErrWouldBlock, err
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
