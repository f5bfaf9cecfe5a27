package virtiotest_test

import (
	"sync"
	"testing"

	"github.com/gvmspawn/gvmspawn/virtio"
	"github.com/gvmspawn/gvmspawn/virtio/virtiotest"
	"github.com/gvmspawn/gvmspawn/virtio/virtq"
)

// zeros is a device with one queue that answers with zeros.
type zeros struct{ wg sync.WaitGroup }

func (*zeros) Type() virtio.Type          { return virtio.TypeEntropy }
func (*zeros) Features() virtio.Features  { return 0 }
func (*zeros) QueueSizes() []uint16       { return []uint16{16, 16} }
func (*zeros) ReadConfig(uint64, []byte)  {}
func (*zeros) WriteConfig(uint64, []byte) {}
func (z *zeros) Reset()                   { z.wg.Wait() }
func (z *zeros) Activate(a *virtio.Activation) error {
	z.wg.Go(func() {
		var c virtq.Chain
		zero := make([]byte, 100)
		for q := a.Queues[0]; q.Wait(); q.Notify() {
			for q.Pop(&c) {
				q.Push(&c, uint32(c.WriteAt(zero, 0)))
			}
		}
	})
	a.ConfigChanged()
	return nil
}

func TestMachine(t *testing.T) {
	m := virtiotest.New(t, new(zeros), virtiotest.Options{EventIdx: true, Skip: []int{1}})
	for range 3 {
		for range 50 {
			if u := m.Queue[0].Do(nil, []int{50}); u.Written != 50 || u.In[0][49] != 0 {
				t.Fatalf("got %+v", u)
			}
		}
		m.Reset()
		if err := m.Activate(); err != nil {
			t.Fatal(err)
		}
	}
	<-m.ConfigChanged()
	if m.Queue[1] != nil || m.NeedsReset() || m.ConfigChanges() != 4 {
		t.Errorf("queue 1 %v, needs reset %v, %d config changes", m.Queue[1], m.NeedsReset(), m.ConfigChanges())
	}
}
