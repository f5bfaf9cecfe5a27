package fs

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/gvmspawn/gvmspawn/virtio/virtq"
)

// Workers of one queue at most, not counting those that wait for a lock. Each
// is a goroutine, and an OS thread only while its request blocks in the kernel.
const (
	requestWorkers = 32
	hiprioWorkers  = 2
)

// stallAfter is how long a request may keep its queue to itself. A warm
// LOOKUP, GETATTR or READ takes a few microseconds.
const stallAfter = 200 * time.Microsecond

// queue serves one virtqueue by leader and followers. The leader waits for
// chains and serves them in place, so that a fast request costs no goroutine
// switch. When a request is going to block (detach) or turns out to (the stall
// timer), the lead passes on to another worker and the request goes on beside it.
type queue struct {
	dev   *Device
	run   *run
	vq    *virtq.Queue
	limit int32

	lead    sync.Mutex // held by the leader; released by it or its stall timer
	leader  atomic.Pointer[worker]
	idle    atomic.Int32 // workers that want the lead
	workers atomic.Int32 // workers, without those that wait for a lock
}

// worker is a goroutine with the state of one request, which it reuses.
type worker struct {
	q     *queue
	req   request
	stall *time.Timer
	// detached is set when the request has given up the lead itself.
	detached bool
	// here: the request runs on a CPU's thread, which must not wait. left: it
	// was given up there, and is this worker's.
	here, left bool
}

// spawn starts another worker.
func (q *queue) spawn() {
	q.workers.Add(1)
	q.run.wg.Add(1)
	go q.work()
}

func (q *queue) work() {
	defer q.run.wg.Done()
	defer q.workers.Add(-1)
	w := &worker{q: q}
	w.req.init(q.dev, w)
	w.stall = time.AfterFunc(time.Hour, q.passOn)
	w.stall.Stop()
	q.takeLead()
	for w.wait() {
		for w.take() {
			w.serve()
		}
	}
	q.lead.Unlock()
}

// wait waits for chains. Preconditions: w has the lead.
func (w *worker) wait() bool {
	w.q.leader.Store(w)
	return w.q.vq.WaitAny()
}

// take takes the next chain, first of all one that inline left.
func (w *worker) take() bool {
	if w.left {
		w.left = false
		return true
	}
	return w.q.vq.Pop(&w.req.chain)
}

// inlineMost is how many requests a CPU serves at once. When there are more, it
// is better to do them beside it.
const inlineMost = 4

// inline serves quick requests on the thread of the CPU that rang, while the
// leader waits. A network's file system that hangs must not stop a CPU.
func (q *queue) inline() (wake bool) {
	if !q.dev.local.Load() {
		return true
	}
	w := q.leader.Load()
	for n := 0; n < inlineMost; {
		if !q.vq.Pop(&w.req.chain) {
			if q.vq.Idle() {
				return false
			}
			n++
			continue
		}
		n++
		w.here = true
		wrote, ok := w.req.try()
		w.here = false
		if !ok {
			w.left = true
			return true
		}
		q.vq.Push(&w.req.chain, wrote)
		q.vq.Notify()
	}
	return true
}

func (q *queue) takeLead() {
	q.idle.Add(1)
	q.lead.Lock()
	q.idle.Add(-1)
}

// passOn gives the lead to another worker, a new one if need be and possible.
// It runs at most once for each request: from detach or from the stall timer.
// The worker it acts for is alive until it has the lead again.
func (q *queue) passOn() {
	if q.idle.Load() == 0 && q.workers.Load() < q.limit {
		q.spawn()
	}
	q.lead.Unlock()
}

// serve runs the request in w.req.chain. Preconditions: w has the lead, and
// has it again on return.
func (w *worker) serve() {
	w.detached = false
	timed := !w.q.dev.cfg.InOrder
	if timed {
		w.stall.Reset(stallAfter)
	}
	n := w.req.serve()
	w.q.vq.Push(&w.req.chain, n)
	w.q.vq.Notify()
	if w.detached || timed && !w.stall.Stop() {
		w.q.takeLead()
	}
}

// detach is called by a request that is going to block: others go on without it.
func (w *worker) detach() {
	if w == nil || w.here || w.detached || w.q.dev.cfg.InOrder {
		return
	}
	w.detached = true
	if w.stall.Stop() {
		w.q.passOn()
	}
}

// park and unpark enclose a wait of any length, for a lock: the worker does not
// count against the limit meanwhile.
func (w *worker) park() {
	if w == nil {
		return
	}
	w.detach()
	if !w.detached { // in order: a lock is the exception
		w.detached = true
		w.q.passOn()
	}
	w.q.workers.Add(-1)
}

func (w *worker) unpark() {
	if w != nil {
		w.q.workers.Add(1)
	}
}
