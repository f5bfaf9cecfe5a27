package virtq_test

import (
	"encoding/binary"
	"fmt"
	"slices"
	"sync"
	"testing"

	"github.com/gvmspawn/gvmspawn/virtio/virtq"
	"github.com/gvmspawn/gvmspawn/virtio/virtq/virtqtest"
	"github.com/gvmspawn/gvmspawn/vmm/mem"
)

// recycle makes the same chain available for ever, with little cost of a
// driver's: buffers and descriptors stay, only indices or flags move.
func recycle(t testing.TB, o virtqtest.Options, buffers int) (d *virtqtest.Driver, again func()) {
	d = virtqtest.New(t, 256, o)
	if o.Packed {
		return d, recyclePacked(d, o, buffers)
	}
	head := d.Add(nil, slices.Repeat([]int{512}, buffers))
	idx := uint16(0)
	for i := range d.Config.Size {
		d.Split.SetAvail(i, head)
	}
	return d, func() { idx++; d.Split.SetAvailIdx(idx) }
}

func recyclePacked(d *virtqtest.Driver, o virtqtest.Options, buffers int) func() {
	at, wrap := 0, true
	chain := slices.Repeat([]virtqtest.Desc{{Addr: 0x1000, Len: 512, Flags: write}}, buffers)
	for i := range buffers - 1 {
		chain[i].Flags |= next
	}
	if o.Indirect {
		for i, e := range chain {
			b := d.Mem.Bytes(mem.GPA(0x2000+16*i), 16)
			binary.LittleEndian.PutUint64(b, uint64(e.Addr))
			binary.LittleEndian.PutUint32(b[8:], e.Len)
			binary.LittleEndian.PutUint16(b[14:], e.Flags)
		}
		chain = []virtqtest.Desc{{Addr: 0x2000, Len: uint32(16 * buffers), Flags: indirect}}
	}
	return func() {
		for _, e := range chain {
			e.Flags |= virtqtest.Available(wrap)
			d.Packed.SetDesc(at, e, 0)
			if at++; at == int(d.Config.Size) {
				at, wrap = 0, !wrap
			}
		}
	}
}

// A request costs no allocation.
func TestNoAllocations(t *testing.T) {
	eachMode(t, func(t *testing.T, o virtqtest.Options) {
		d, again := recycle(t, o, 4)
		var c virtq.Chain
		if n := testing.AllocsPerRun(1000, func() {
			again()
			if !d.Queue.Wait() || !d.Queue.Pop(&c) {
				t.Fatal(d.Broken())
			}
			d.Queue.Push(&c, 512)
			d.Queue.Notify()
		}); n != 0 {
			t.Errorf("%v allocations", n)
		}
	})
}

func BenchmarkPopPush(b *testing.B) {
	for _, o := range []virtqtest.Options{{}, {EventIdx: true, Indirect: true}, {Packed: true}, {Packed: true, EventIdx: true, Indirect: true}} {
		for _, n := range []int{1, 4} {
			b.Run(fmt.Sprintf("packed=%v/indirect=%v/buffers=%d", o.Packed, o.Indirect, n), func(b *testing.B) {
				d, again := recycle(b, o, n)
				var c virtq.Chain
				b.ReportAllocs()
				for b.Loop() {
					again()
					d.Queue.Pop(&c)
					d.Queue.Push(&c, 512)
				}
			})
		}
	}
}

func BenchmarkRequest(b *testing.B) {
	for _, packed := range []bool{false, true} {
		b.Run(fmt.Sprintf("packed=%v", packed), func(b *testing.B) {
			d, again := recycle(b, virtqtest.Options{EventIdx: true, Packed: packed}, 3)
			var c virtq.Chain
			b.ReportAllocs()
			for b.Loop() {
				again()
				d.Queue.Wait()
				d.Queue.Pop(&c)
				d.Queue.Push(&c, 512)
				d.Queue.Notify()
			}
		})
	}
}

// TestHammer runs a driver and a device with one popping and two pushing
// goroutines against each other, with interrupts and kicks suppressed as they
// like: nothing is lost, nothing comes twice, and neither side sleeps for ever.
func TestHammer(t *testing.T) {
	total := 20_000
	if testing.Short() {
		total = 2000
	}
	eachMode(t, func(t *testing.T, o virtqtest.Options) {
		d := virtqtest.New(t, 64, o)
		work := make(chan *virtq.Chain, 64)
		free := make(chan *virtq.Chain, 64)
		for range 64 {
			free <- new(virtq.Chain)
		}
		var wg sync.WaitGroup
		wg.Go(func() {
			defer close(work)
			c := <-free
			for d.Queue.Wait() {
				for d.Queue.Pop(c) {
					work <- c
					c = <-free
				}
			}
		})
		for range 2 {
			wg.Go(func() {
				var b [8]byte
				for c := range work {
					c.ReadAt(b[:], 0)
					d.Queue.Push(c, uint32(c.WriteAt(b[:], 0)))
					free <- c
					if len(work) == 0 {
						d.Queue.Notify()
					}
				}
			})
		}
		drive(t, d, total)
		d.Queue.Close()
		wg.Wait()
	})
}

// drive sends total numbered requests and checks that each comes back once.
func drive(t *testing.T, d *virtqtest.Driver, total int) {
	seen := make([]bool, total)
	sent := 0
	for done := 0; done < total; done++ {
		for sent < total && d.Room(2) && d.InFlight() < 1+sent%40 {
			d.Add([][]byte{binary.LittleEndian.AppendUint64(nil, uint64(sent))}, []int{8})
			sent++
			if sent%3 == 0 {
				d.Kick()
			}
		}
		d.Kick()
		u := d.Wait()
		n := binary.LittleEndian.Uint64(u.In[0])
		if u.Written != 8 || n >= uint64(total) || seen[n] {
			t.Fatalf("request %d, %d bytes", n, u.Written)
		}
		seen[n] = true
		if done%7 == 0 {
			d.SetInterrupts(false)
		}
	}
}
