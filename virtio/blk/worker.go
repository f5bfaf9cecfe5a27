package blk

import (
	"github.com/gvmspawn/gvmspawn/virtio/virtq"
	"github.com/gvmspawn/gvmspawn/vmm/disk"
)

// worker serves one queue.
type worker struct {
	dev      *Device
	q        *virtq.Queue
	disk     *disk.Queue
	writable bool

	free disk.FreeList[request]
}

func newWorker(d *Device, q *virtq.Queue) *worker {
	w := &worker{dev: d, q: q, disk: d.cfg.Drive.NewQueue(q.Notify), writable: !d.image.ReadOnly()}
	w.free.New = func() *request {
		r := &request{w: w}
		r.Done = r.done
		return r
	}
	return w
}

// request is one request in flight. It returns to its worker's free list when
// it is done.
type request struct {
	disk.Request
	w      *worker
	chain  virtq.Chain
	ranges [maxRanges]disk.Range
}

// notifyBytes is after how much data the driver is told, even when more
// requests are waiting.
const notifyBytes = 512 << 10

// inlineMost is how many requests a CPU starts at once. When there are more, it
// is better to do them beside it.
const inlineMost = 4

// inline starts requests on the thread of the CPU that rang, while run waits:
// what the page cache has is answered at once, nothing is waited for.
func (w *worker) inline() (wake bool) {
	r := w.free.Get()
	n := 0
	for n < inlineMost && w.q.Pop(&r.chain) {
		w.start(r, true)
		r = w.free.Get()
		n++
	}
	w.free.Put(r)
	w.disk.Submit()
	w.q.Notify()
	return n == inlineMost || !w.q.Idle()
}

// run takes requests until the queue is closed. It looks one request ahead: a
// request behind which another waits must not block this goroutine.
func (w *worker) run() {
	cur := w.free.Get()
	moved := uint64(0)
	for w.q.WaitAny() {
		for ok := w.q.Pop(&cur.chain); ok; {
			next := w.free.Get()
			more := w.q.Pop(&next.chain)
			moved += w.start(cur, more)
			cur, ok = next, more
			if moved >= notifyBytes {
				moved = 0
				w.q.Notify()
			}
		}
		moved = 0
		w.disk.Submit()
		w.q.Notify()
	}
	w.free.Put(cur)
	w.disk.Close()
}

// start answers a request or starts it on the disk. It returns how many bytes
// have moved already.
func (w *worker) start(r *request, more bool) uint64 {
	status, valid := r.parse()
	if !valid {
		r.finish(status)
		return 0
	}
	if n := r.N; w.disk.Start(&r.Request, more) {
		return n
	}
	return 0
}
