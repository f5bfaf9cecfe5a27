package fs

import (
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gvmspawn/gvmspawn/virtio/virtq"
)

// Workers of one queue at most, not counting those that wait for a lock. Each
// is a goroutine, and an OS thread only while its request blocks in the kernel.
const (
	requestWorkers = 32
	hiprioWorkers  = 2
)

// stallTick is the time between two looks at a busy queue: a request that has it
// to itself at both is stalled. A warm LOOKUP, GETATTR or READ takes a few
// microseconds. The looks come in a row only while the queue is busy, because
// setting a timer of Go's for each request costs more than serving it: it wakes a
// thread.
const stallTick = 2 * time.Millisecond

// queue serves one virtqueue by leader and followers. The leader waits for
// chains and serves them in place, so that a fast request costs no goroutine
// switch. When a request is going to block (detach) or turns out to (look), the
// lead passes on to another worker and the request goes on beside it.
type queue struct {
	dev   *Device
	run   *run
	vq    *virtq.Queue
	limit int32

	lead    sync.Mutex // held by the leader; released by it or by look
	leader  atomic.Pointer[worker]
	turn    uint64       // requests that leaders began to serve; guarded by lead
	idle    atomic.Int32 // workers that want the lead
	workers atomic.Int32 // workers, without those that wait for a lock

	looks, changes patience // of inline: requests that change nothing, and others

	watch  *time.Timer // calls look
	armed  atomic.Bool
	lookMu sync.Mutex // guards seen
	seen   uint64     // the leader's state at the last look
}

// worker is a goroutine with the state of one request, which it reuses.
type worker struct {
	q   *queue
	req request
	// state is the turn of the request and in its low bits what is with it.
	state atomic.Uint64
	// detached is set when the request has given up the lead itself.
	detached bool
	// here: the request runs on a CPU's thread, which must not wait. left: it
	// was given up there, and is this worker's.
	here, left bool
}

// The low bits of worker.state. Who changes serving has the lead to give back or
// to pass on.
const (
	serving   = 1
	passedOn  = 2
	turnShift = 2
)

func newQueue(d *Device, r *run, vq *virtq.Queue, limit int32) *queue {
	q := &queue{dev: d, run: r, vq: vq, limit: limit}
	q.watch = time.AfterFunc(time.Hour, q.look)
	q.watch.Stop()
	return q
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
	w.takeLead()
	for w.wait() {
		for w.take() {
			w.serve()
		}
	}
	q.lead.Unlock()
}

// wait waits for chains. Preconditions: w has the lead.
func (w *worker) wait() bool { return w.q.vq.WaitAny() }

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

// A CPU whose requests waited longer than inlineSlow, as they do when the host's disk
// or its limit of dirty pages makes them, leaves such requests to the worker for as
// long as that took, and for up to inlineRest times as long when it comes again and
// again: the guest's other programs have that CPU meanwhile. Time alone does not tell
// waiting from a host that has no CPU to spare. So after a slow request the
// thread's switches are counted, for inlineDoubt, and a second one decides.
const (
	inlineSlow  = 10 * time.Millisecond
	inlineRest  = 16
	inlineDoubt = time.Second
)

// patience is what inline knows of slow requests of a kind; times are since started.
type patience struct {
	rest  time.Duration // CPUs do not serve them until then
	doubt time.Duration // switches are counted until then
	times time.Duration // a rest is so many times as long as its cause
}

// started is the origin of patience's times.
var started = time.Now()

// attempt is one request under a patience.
type attempt struct {
	begin  time.Duration
	counts bool
	waits  int64
}

// begin reports whether CPUs serve requests of the kind at present.
func (p *patience) begin() (a attempt, ok bool) {
	a.begin = time.Since(started)
	if a.begin < p.rest {
		return a, false
	}
	if a.counts = a.begin < p.doubt; a.counts {
		a.waits = threadWaits()
	}
	return a, true
}

// end looks at what the request took.
func (p *patience) end(a attempt) {
	end := time.Since(started)
	if end-a.begin <= inlineSlow {
		return
	}
	if !a.counts {
		p.times = 1
	} else if threadWaits() != a.waits {
		p.rest = end + p.times*(end-a.begin)
		p.times = min(2*p.times, inlineRest)
	}
	p.doubt = max(end, p.rest) + inlineDoubt
}

// threadWaits is how often this thread gave up its CPU to wait for something.
func threadWaits() int64 {
	var u unix.Rusage
	_ = unix.Getrusage(unix.RUSAGE_THREAD, &u)
	return u.Nvcsw
}

// inline serves quick requests on the thread of the CPU that rang, while the
// leader waits. A network's file system that hangs must not stop a CPU. It is never
// called twice at once.
func (q *queue) inline() (wake bool) {
	if !q.dev.local.Load() {
		return true
	}
	w := q.leader.Load()
	for range inlineMost {
		if q.vq.Pop(&w.req.chain) && !q.serveHere(w) {
			return true
		}
		if q.vq.Idle() {
			return false
		}
	}
	return true
}

// serveHere serves the request in w.req.chain if it is quick. If not it is w's.
func (q *queue) serveHere(w *worker) bool {
	w.here = true
	wrote, ok := w.req.try()
	w.here = false
	if !ok {
		w.left = true
		return false
	}
	q.vq.Push(&w.req.chain, wrote)
	q.vq.Notify()
	return true
}

func (w *worker) takeLead() {
	w.q.idle.Add(1)
	w.q.lead.Lock()
	w.q.idle.Add(-1)
	w.q.leader.Store(w)
}

// passOn gives the lead to another worker, a new one if need be and possible.
// It runs at most once for each request: from detach or from look.
// The worker it acts for is alive until it has the lead again.
func (q *queue) passOn() {
	if q.idle.Load() == 0 && q.workers.Load() < q.limit {
		q.spawn()
	}
	q.lead.Unlock()
}

// arm makes look run soon, unless it is going to.
func (q *queue) arm() {
	if !q.armed.Load() && q.armed.CompareAndSwap(false, true) {
		q.watch.Reset(stallTick)
	}
}

// look passes the lead of a stalled request on. It comes again while the leader
// serves.
func (q *queue) look() {
	q.lookMu.Lock()
	defer q.lookMu.Unlock()
	w := q.leader.Load()
	s := w.state.Load()
	if s&serving != 0 {
		if s == q.seen && w.state.CompareAndSwap(s, s^serving^passedOn) {
			q.passOn()
		}
		q.seen = s
		q.watch.Reset(stallTick)
		return
	}
	q.armed.Store(false)
	if q.leader.Load().state.Load()&serving != 0 { // it may have found armed set
		q.arm()
	}
}

// serve runs the request in w.req.chain. Preconditions: w has the lead, and
// has it again on return.
func (w *worker) serve() {
	q := w.q
	w.detached = false
	timed := !q.dev.cfg.InOrder
	if timed {
		q.turn++
		w.state.Store(q.turn<<turnShift | serving)
		q.arm()
	}
	n := w.req.serve()
	q.vq.Push(&w.req.chain, n)
	q.vq.Notify()
	if w.detached || timed && !w.served() {
		w.takeLead()
	}
}

// served ends the turn and reports whether the lead was w's until now.
func (w *worker) served() bool {
	s := w.state.Load()
	return s&serving != 0 && w.state.CompareAndSwap(s, s^serving)
}

// detach is called by a request that is going to block: others go on without it.
func (w *worker) detach() {
	if w == nil || w.here || w.detached || w.q.dev.cfg.InOrder {
		return
	}
	w.detached = true
	if w.served() {
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
