package scsi

import (
	"sync"

	"github.com/gvmspawn/gvmspawn/virtio/virtq"
	"github.com/gvmspawn/gvmspawn/vmm/disk"
)

// worker serves one request queue.
type worker struct {
	dev   *Device
	q     *virtq.Queue
	disks []*disk.Queue // by target

	free disk.FreeList[request]

	mu   sync.Mutex // guards the rest; cond is signalled when a count becomes 0
	cond *sync.Cond
	// flight counts the commands in flight of the present age and of the one
	// before it: who wants to see the end of all that there are begins an age.
	flight [2]int
	age    int
}

func newWorker(d *Device, q *virtq.Queue) *worker {
	w := &worker{dev: d, q: q}
	w.cond = sync.NewCond(&w.mu)
	w.free.New = func() *request {
		r := &request{w: w}
		r.Done = r.done
		return r
	}
	for _, u := range d.units {
		w.disks = append(w.disks, u.drive.NewQueue(q.Notify))
	}
	return w
}

// begin counts a command in.
func (w *worker) begin(r *request) {
	w.mu.Lock()
	r.age = w.age
	w.flight[r.age]++
	w.mu.Unlock()
}

// end counts a command out and frees it.
func (w *worker) end(r *request) {
	w.mu.Lock()
	if w.flight[r.age]--; w.flight[r.age] == 0 {
		w.cond.Broadcast()
	}
	w.mu.Unlock()
	w.free.Put(r)
}

// drain waits until every command is done that is in flight now. One goroutine
// calls it, the control queue's.
func (w *worker) drain() {
	w.mu.Lock()
	defer w.mu.Unlock()
	old := w.age
	w.age ^= 1
	for w.flight[old] > 0 {
		w.cond.Wait()
	}
}

// notifyBytes is after how much data the driver is told, even when more
// commands are waiting.
const notifyBytes = 512 << 10

// inlineMost is how many commands a CPU starts at once. When there are more, it
// is better to do them beside it.
const inlineMost = 4

// inline starts commands on the thread of the CPU that rang, while run waits:
// what needs no waiting is answered at once.
func (w *worker) inline() (wake bool) {
	r := w.free.Get()
	n := 0
	for n < inlineMost && w.q.Pop(&r.chain) {
		w.begin(r)
		r.start(true)
		r = w.free.Get()
		n++
	}
	w.free.Put(r)
	w.submit()
	return n == inlineMost || !w.q.Idle()
}

// submit hands on what was started, and tells the driver what is done.
func (w *worker) submit() {
	for _, d := range w.disks {
		d.Submit()
	}
	w.q.Notify()
}

// run takes commands until the queue is closed. It looks one ahead: a command
// behind which another waits must not block this goroutine.
func (w *worker) run() {
	cur := w.free.Get()
	moved := uint64(0)
	for w.q.WaitAny() {
		for ok := w.q.Pop(&cur.chain); ok; {
			next := w.free.Get()
			more := w.q.Pop(&next.chain)
			w.begin(cur)
			moved += cur.start(more)
			cur, ok = next, more
			if moved >= notifyBytes {
				moved = 0
				w.q.Notify()
			}
		}
		moved = 0
		w.submit()
	}
	for _, d := range w.disks {
		d.Close()
	}
}
