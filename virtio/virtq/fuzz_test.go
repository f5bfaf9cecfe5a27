package virtq_test

import (
	"errors"
	"testing"

	"github.com/gvmspawn/gvmspawn/virtio/virtq"
	"github.com/gvmspawn/gvmspawn/virtio/virtq/virtqtest"
	"github.com/gvmspawn/gvmspawn/vmm/mem"
)

// FuzzRing fills the ring's memory, and an indirect table, with the input and
// runs a device over it. Buffers must lie in RAM and obey the lengths; the
// device must come to an end.
func FuzzRing(f *testing.F) {
	f.Add([]byte{0, 0x10, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 1, 0, 1, 0}, uint8(0))
	f.Add([]byte{0, 0x80, 0, 0, 0, 0, 0, 0, 16, 0, 0, 0, 4, 0, 0, 0}, uint8(3))
	f.Fuzz(func(t *testing.T, in []byte, bits uint8) {
		const size = 8
		o := virtqtest.Options{Memory: virtqtest.NewMemory(t, ramSize), EventIdx: bits&1 != 0, Indirect: bits&2 != 0}
		d := virtqtest.New(t, size, o)
		s := d.Split
		areas := [][]byte{s.Table, s.Avail, s.Used, d.Mem.Bytes(0x8000, 16*16)}
		for len(in) > 0 {
			for _, a := range areas {
				in = in[copy(a, in):]
			}
			var c virtq.Chain
			for range 2 * size {
				if !d.Queue.Pop(&c) {
					break
				}
				checkChain(t, d.Mem, &c)
				d.Queue.Push(&c, uint32(c.WriteAt([]byte{1, 2, 3}, 0)))
			}
			d.Queue.Notify()
		}
		if err := d.Broken(); err != nil && !errors.Is(err, virtq.ErrRing) {
			t.Error(err)
		}
	})
}

func checkChain(t *testing.T, m *virtqtest.Memory, c *virtq.Chain) {
	for _, part := range []struct {
		bufs []virtq.Buffer
		sum  uint64
	}{{c.Readable, c.ReadableLen}, {c.Writable, c.WritableLen}} {
		sum := uint64(0)
		for _, b := range part.bufs {
			sum += uint64(len(b.Bytes))
			if r := m.Find(b.GPA); len(b.Bytes) > 0 && (r == nil || r.Kind != mem.RAM || b.GPA+mem.GPA(len(b.Bytes)) > r.End()) {
				t.Fatalf("a buffer at %#x+%#x", b.GPA, len(b.Bytes))
			}
		}
		if sum != part.sum {
			t.Fatalf("lengths add up to %d, not %d", sum, part.sum)
		}
	}
}
