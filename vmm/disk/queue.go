package disk

import (
	"sync"
	"time"
)

// QueueDepth is how many requests of one Queue may be in flight.
const QueueDepth = 256

// Queue is one stream of requests to a drive. One goroutine at a time starts,
// submits and closes.
type Queue struct {
	drive  *Drive
	notify func()
	ring   *ring          // nil without io_uring
	pooled sync.WaitGroup // requests in the pool
	slow   int            // requests that are not carried out here: see inline
}

// NewQueue returns a queue. notify is called after requests were done on
// another goroutine than the one that started them.
func (d *Drive) NewQueue(notify func()) *Queue {
	q := &Queue{drive: d, notify: notify}
	raw, ok := d.cfg.Image.(*Raw)
	if ok && !d.cfg.InOrder && (d.cfg.Engine == EngineURing || (d.cfg.Engine == EngineAuto && raw.direct)) {
		q.ring = newRing(q, raw)
	}
	return q
}

// Start carries a request out, or gives it to others and returns false; Submit
// must follow. more says that another request is waiting already, so that the
// caller should not be held up.
func (q *Queue) Start(r *Request, more bool) bool {
	d := q.drive
	err := d.attempt(r)
	switch {
	case d.cfg.InOrder && (err == ErrWouldBlock || err == ErrCannotTry):
		d.finish(r, d.execute(r))
	case err == ErrCannotTry && q.inline(r, more):
		q.timed(r, more)
	case err == ErrWouldBlock, err == ErrCannotTry:
		r.queue = q
		if q.ring == nil || !q.ring.queue(r) {
			d.pool.submit(r)
		}
		return false
	default:
		d.finish(r, err)
	}
	return true
}

// Submit hands over what Start has gathered.
func (q *Queue) Submit() {
	if q.ring != nil {
		q.ring.submit()
	}
}

// Close waits until all requests are done.
func (q *Queue) Close() {
	if q.ring != nil {
		q.ring.close()
	}
	q.pooled.Wait()
}

// timed carries a request out here, and notes when that took long.
func (q *Queue) timed(r *Request, more bool) {
	begin := time.Now()
	q.drive.finish(r, q.drive.execute(r))
	if more && time.Since(begin) > slowInline {
		q.slow = slowPenalty
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
func (q *Queue) inline(r *Request, more bool) bool {
	data := r.Op == OpRead || r.Op == OpWrite
	if !more || !data {
		return data
	}
	if q.drive.try == nil || r.Through {
		return false
	}
	if q.slow > 0 {
		q.slow--
		return false
	}
	return true
}
