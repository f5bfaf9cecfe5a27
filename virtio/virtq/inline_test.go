package virtq_test

import (
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/gvmspawn/gvmspawn/virtio/virtq"
	"github.com/gvmspawn/gvmspawn/virtio/virtq/virtqtest"
)

// echo answers requests in a worker and, every second one, on the driver's
// thread. left is the chain that the driver's thread gave up.
type echo struct {
	q      *virtq.Queue
	chain  virtq.Chain
	left   bool
	turns  int
	inline atomic.Int64
	worker atomic.Int64
}

func (e *echo) answer() {
	var b [1]byte
	e.chain.ReadAt(b[:], 0)
	n := e.chain.WriteAt(b[:], 0)
	e.q.Push(&e.chain, uint32(n))
	e.q.Notify()
}

func (e *echo) serve() (wake bool) {
	for {
		if !e.q.Pop(&e.chain) {
			if e.q.Idle() {
				return false
			}
			continue
		}
		if e.turns++; e.turns%3 == 0 {
			e.left = true
			return true
		}
		e.inline.Add(1)
		e.answer()
	}
}

func (e *echo) run() {
	for e.q.WaitAny() {
		for e.left || e.q.Pop(&e.chain) {
			e.left = false
			e.worker.Add(1)
			e.answer()
		}
	}
}

// TestInline: whoever serves a chain, each is answered once and none is
// forgotten, while others ring, too.
func TestInline(t *testing.T) {
	for _, o := range []virtqtest.Options{{}, {EventIdx: true}, {Packed: true}} {
		d := virtqtest.New(t, 64, o)
		e := &echo{q: d.Queue}
		d.Queue.Inline(e.serve)
		var wg sync.WaitGroup
		wg.Go(e.run)
		var stop atomic.Bool
		wg.Go(func() {
			for !stop.Load() {
				d.Queue.Ring()
				runtime.Gosched()
			}
		})
		for i := range 1000 {
			got := d.Do([][]byte{{byte(i)}}, []int{1}).Bytes()
			if len(got) != 1 || got[0] != byte(i) {
				t.Errorf("%+v: request %d: %v", o, i, got)
				break
			}
		}
		stop.Store(true)
		for i := range 100 {
			d.Do([][]byte{{byte(i)}}, []int{1})
		}
		d.Queue.Close()
		wg.Wait()
		if e.inline.Load() == 0 || e.worker.Load() == 0 {
			t.Errorf("%+v: %d on the driver's thread, %d in the worker", o, e.inline.Load(), e.worker.Load())
		}
	}
}
