package virtq_test

import (
	"bytes"
	"errors"
	"fmt"
	"testing"

	"github.com/gvmspawn/gvmspawn/virtio/virtq"
	"github.com/gvmspawn/gvmspawn/virtio/virtq/virtqtest"
	"github.com/gvmspawn/gvmspawn/vmm/mem"
)

// modes are the ring features that change what is on the wire.
var modes = []virtqtest.Options{
	{}, {EventIdx: true}, {Indirect: true}, {EventIdx: true, Indirect: true},
	{Packed: true}, {Packed: true, EventIdx: true}, {Packed: true, Indirect: true}, {Packed: true, EventIdx: true, Indirect: true},
}

func eachMode(t *testing.T, f func(*testing.T, virtqtest.Options)) {
	for _, o := range modes {
		t.Run(fmt.Sprintf("packed=%v,event_idx=%v,indirect=%v", o.Packed, o.EventIdx, o.Indirect), func(t *testing.T) { f(t, o) })
	}
}

// §2.7.4, §2.7.13: chains arrive in order, readable before writable parts, with
// the lengths that the driver gave; used elements name head and length.
func TestPopAndPush(t *testing.T) {
	eachMode(t, func(t *testing.T, o virtqtest.Options) {
		d := virtqtest.New(t, 8, o)
		var c virtq.Chain
		if d.Queue.Pop(&c) {
			t.Fatal("a chain out of nothing")
		}
		for i := range 100 { // the indices pass the ring's end many times
			id := d.Add([][]byte{{byte(i), 1}, {2}}, []int{3, 5})
			if !d.Queue.Pop(&c) {
				t.Fatalf("chain %d: %v", i, d.Broken())
			}
			if c.ReadableLen != 3 || c.WritableLen != 8 || len(c.Readable) != 2 || len(c.Writable) != 2 {
				t.Fatalf("chain %+v", c)
			}
			got := make([]byte, 8)
			if n := c.ReadAt(got, 1); n != 2 || got[0] != 1 || got[1] != 2 {
				t.Fatalf("ReadAt: %x", got[:n])
			}
			if n := c.WriteAt([]byte{9, 8, 7, 6}, 2); n != 4 {
				t.Fatalf("WriteAt wrote %d", n)
			}
			if d.Queue.Pop(&c) {
				t.Fatal("a chain twice")
			}
			d.Queue.Push(&c, 6)
			u, ok := d.Used()
			want := [][]byte{{virtqtest.Fill, virtqtest.Fill, 9}, {8, 7, 6, virtqtest.Fill, virtqtest.Fill}}
			if !ok || u.ID != id || u.Written != 6 || !bytes.Equal(bytes.Join(u.In, nil), bytes.Join(want, nil)) {
				t.Fatalf("used %+v (%v)", u, ok)
			}
		}
	})
}

// §2.7.8: a device may use chains in another order than they came.
func TestOutOfOrder(t *testing.T) {
	eachMode(t, func(t *testing.T, o virtqtest.Options) {
		d := virtqtest.New(t, 16, o)
		for range 50 {
			var c [4]virtq.Chain
			var id [4]uint16
			for i := range c {
				id[i] = d.Add([][]byte{{byte(i)}}, []int{1})
				if !d.Queue.Pop(&c[i]) {
					t.Fatal("no chain")
				}
			}
			for _, i := range []int{2, 0, 3, 1} {
				d.Queue.Push(&c[i], uint32(i))
				if u, ok := d.Used(); !ok || u.ID != id[i] || u.Written != uint32(i) {
					t.Fatalf("used %+v, want chain %d", u, id[i])
				}
			}
		}
	})
}

// PushAll shows all chains or none, in order, over the end of the ring.
func TestPushAll(t *testing.T) {
	eachMode(t, func(t *testing.T, o virtqtest.Options) {
		d := virtqtest.New(t, 8, o)
		for range 20 {
			var cs []*virtq.Chain
			for range 3 {
				d.Add(nil, []int{1, 1})
				c := new(virtq.Chain)
				if !d.Queue.Pop(c) {
					t.Fatal(d.Broken())
				}
				cs = append(cs, c)
				if _, ok := d.Used(); ok {
					t.Fatal("used before its time")
				}
				if len(cs) == 2 && !o.Indirect {
					break // 8 descriptors hold two of these, and two more
				}
			}
			d.Queue.PushAll(cs, []uint32{1, 2, 0}[:len(cs)])
			for i := range cs {
				if u, ok := d.Used(); !ok || u.Written != []uint32{1, 2, 0}[i] {
					t.Fatalf("chain %d: %+v", i, u)
				}
			}
		}
		d.Queue.PushAll(nil, nil)
		if _, ok := d.Used(); ok {
			t.Error("a chain out of nothing")
		}
		d.Queue.Notify()
		if d.Interrupts() != 1 {
			t.Errorf("%d interrupts", d.Interrupts())
		}
	})
}

// PushAll under a driver that polls: it sees the first chain of a group only
// with the rest.
func TestPushAllAtOnce(t *testing.T) {
	eachMode(t, func(t *testing.T, o virtqtest.Options) {
		d := virtqtest.New(t, 8, o)
		groups := 3000
		go func() {
			cs := []*virtq.Chain{new(virtq.Chain), new(virtq.Chain)}
			for n := 0; d.Queue.Wait(); {
				for n < 2 && d.Queue.Pop(cs[n]) {
					n++
				}
				if n == 2 {
					d.Queue.PushAll(cs, []uint32{0, 0})
					n = 0
				}
			}
		}()
		for range groups {
			d.Add(nil, []int{1})
			d.Add(nil, []int{1})
			d.Kick()
			for {
				if _, ok := d.Used(); ok {
					break
				}
			}
			if _, ok := d.Used(); !ok {
				t.Fatal("the second chain came later")
			}
		}
	})
}

// §2.7.13.3: a full ring of chains at once, and a queue of one descriptor.
func TestFullRing(t *testing.T) {
	eachMode(t, func(t *testing.T, o virtqtest.Options) {
		for _, size := range []uint16{1, 2, 5, 256, 1000} {
			if !virtq.ValidSize(uint32(size), o.Packed) {
				continue
			}
			d := virtqtest.New(t, size, o)
			for range 3 {
				chains := make([]virtq.Chain, size)
				for range size {
					d.Add(nil, []int{1})
				}
				if d.Room(1) {
					t.Fatal("the driver has room in a full ring")
				}
				for i := range chains {
					if !d.Queue.Pop(&chains[i]) {
						t.Fatalf("chain %d of %d: %v", i, size, d.Broken())
					}
				}
				for i := range chains {
					d.Queue.Push(&chains[i], 1)
				}
				for range size {
					if _, ok := d.Used(); !ok {
						t.Fatal("a chain is missing")
					}
				}
			}
		}
	})
}

// The longest chains that are promised: as many descriptors as the queue has,
// and 1024 in an indirect table on a shorter queue.
func TestLongChains(t *testing.T) {
	for _, c := range []struct {
		packed   bool
		size     uint16
		indirect bool
		n        int
	}{
		{false, 4, false, 4}, {false, 1024, false, 1024}, {false, 2048, false, 2048}, {false, 4, true, 1024}, {false, 256, true, 256},
		{true, 4, false, 4}, {true, 3, false, 3}, {true, 2048, false, 2048}, {true, 4, true, 1024},
	} {
		d := virtqtest.New(t, c.size, virtqtest.Options{Indirect: c.indirect, Packed: c.packed})
		in := make([]int, c.n)
		for i := range in {
			in[i] = 1
		}
		d.Add(nil, in)
		var chain virtq.Chain
		if !d.Queue.Pop(&chain) || len(chain.Writable) != c.n {
			t.Errorf("%+v: %d buffers, %v", c, len(chain.Writable), d.Broken())
		}
	}
}

// §2.7.5.3.2: "The device MUST handle the case of zero or more normal chained
// descriptors followed by a single descriptor with flags&VIRTQ_DESC_F_INDIRECT",
// and "MUST ignore the write-only flag in the descriptor that refers to an
// indirect table".
func TestMixedIndirect(t *testing.T) {
	d := virtqtest.New(t, 8, virtqtest.Options{Indirect: true})
	table := d.Mem.Alloc(32)
	put := func(i int, e virtqtest.Desc) { copy(d.Mem.Bytes(table+mem.GPA(16*i), 16), e.Bytes()) }
	put(0, virtqtest.Desc{Addr: 0x3000, Len: 2, Flags: virtqtest.DescNext, Next: 1})
	put(1, virtqtest.Desc{Addr: 0x4000, Len: 4, Flags: virtqtest.DescWrite})
	d.Split.SetDesc(5, virtqtest.Desc{Addr: 0x2000, Len: 1, Flags: virtqtest.DescNext, Next: 2})
	d.Split.SetDesc(2, virtqtest.Desc{Addr: table, Len: 32, Flags: virtqtest.DescIndirect | virtqtest.DescWrite})
	d.Split.SetAvail(0, 5)
	d.Split.SetAvailIdx(1)
	var c virtq.Chain
	if !d.Queue.Pop(&c) || c.ReadableLen != 3 || c.WritableLen != 4 || c.Readable[0].GPA != 0x2000 || c.Writable[0].GPA != 0x4000 {
		t.Errorf("%+v, %v", c, d.Broken())
	}
}

// §2.7.7: used buffer notification suppression by flag.
func TestInterruptFlag(t *testing.T) {
	d := virtqtest.New(t, 8, virtqtest.Options{})
	use := func(n int) {
		var c virtq.Chain
		for range n {
			d.Add(nil, []int{1})
			d.Queue.Pop(&c)
			d.Queue.Push(&c, 1)
			d.Used()
		}
		d.Queue.Notify()
	}
	for i, c := range []struct {
		flags uint16
		n     int
		want  int64
	}{{0, 1, 1}, {0, 5, 2}, {0, 0, 2}, {1, 3, 2}, {0, 0, 2}, {0, 1, 3}} {
		d.Split.SetAvailFlags(c.flags)
		use(c.n)
		if d.Interrupts() != c.want {
			t.Errorf("step %d: %d interrupts, want %d", i, d.Interrupts(), c.want)
		}
	}
}

// §2.7.7.2, §2.7.8: with EVENT_IDX "if the idx field in the used ring (which
// determines where that descriptor index was placed) was equal to used_event,
// the device MUST send a notification", else it should not; also where the
// indices wrap.
func TestUsedEvent(t *testing.T) {
	for _, c := range []struct {
		before uint16 // used index at the start
		push   int
		event  uint16
		want   bool
	}{
		{0, 1, 0, true}, {0, 1, 1, false}, {0, 1, 0xffff, false}, {0, 2, 1, true}, {0, 2, 2, false},
		{7, 3, 7, true}, {7, 3, 9, true}, {7, 3, 10, false}, {7, 3, 6, false},
		{0xfffe, 4, 0xffff, true}, {0xfffe, 4, 0, true}, {0xfffe, 4, 1, true}, {0xfffe, 4, 2, false}, {0xfffe, 4, 0xfffd, false},
	} {
		d := virtqtest.New(t, 8, virtqtest.Options{EventIdx: true})
		var ch virtq.Chain
		use := func() {
			d.Add(nil, []int{1})
			d.Queue.Pop(&ch)
			d.Queue.Push(&ch, 1)
			d.Used()
		}
		for range c.before {
			use()
		}
		d.Split.SetUsedEvent(c.before - 1)
		d.Queue.Notify()
		d.Split.SetUsedEvent(c.event)
		n := d.Interrupts()
		for range c.push {
			use()
		}
		d.Split.SetAvailFlags(1) // §2.7.7.2: "the device MUST ignore the flags" then
		d.Queue.Notify()
		if got := d.Interrupts() > n; got != c.want {
			t.Errorf("%+v: interrupt %v", c, got)
		}
	}
}

// A batch of 65536 chains brings the used index back to where it was. It still
// needs an interrupt.
func TestInterruptAfterWrap(t *testing.T) {
	eachMode(t, func(t *testing.T, o virtqtest.Options) {
		d := virtqtest.New(t, 4, o)
		var c virtq.Chain
		for range 1 << 16 {
			d.Add(nil, []int{1})
			d.Queue.Pop(&c)
			d.Queue.Push(&c, 1)
			d.Used()
		}
		d.Queue.Notify()
		if d.Interrupts() != 1 {
			t.Errorf("%d interrupts", d.Interrupts())
		}
	})
}

// §2.7.10: available buffer notification suppression. While a worker is busy
// kicks are off; when it waits they are on, and a chain that came in between
// is found.
func TestKickSuppression(t *testing.T) {
	eachMode(t, func(t *testing.T, o virtqtest.Options) {
		d := virtqtest.New(t, 8, o)
		var c virtq.Chain
		d.Add(nil, []int{1})
		if !d.KickNeeded() {
			t.Fatal("the first chain needs a kick")
		}
		if !d.Queue.Wait() { // finds it without the bell
			t.Fatal("Wait found nothing")
		}
		for range 3 { // the worker is busy
			d.Add(nil, []int{1})
			if d.KickNeeded() {
				t.Error("a kick is wanted while the device is busy")
			}
		}
		for d.Queue.Pop(&c) {
			d.Queue.Push(&c, 0)
		}
		for range 4 {
			d.Used()
		}
		waiting := make(chan bool)
		go func() { waiting <- d.Queue.Wait() }()
		d.UntilKickWanted()
		d.Add(nil, []int{1})
		if !d.Kick() {
			t.Error("no kick is wanted while the device waits")
		}
		if !<-waiting {
			t.Error("Wait gave up")
		}
	})
}

// §2.7.10.2: with EVENT_IDX "the device MUST set flags to 0", whatever was in
// memory before.
func TestUsedFlagsWithEventIdx(t *testing.T) {
	d := virtqtest.New(t, 8, virtqtest.Options{EventIdx: true, NoQueue: true})
	d.Split.Used.StoreUint16(0, 0xffff)
	q, err := virtq.New(d.Config)
	if err != nil {
		t.Fatal(err)
	}
	d.Add(nil, []int{1})
	q.Wait()
	if f := d.Split.UsedFlags(); f != 0 {
		t.Errorf("used flags are %#x", f)
	}
}

func TestCloseEndsWait(t *testing.T) {
	for _, wait := range []func(*virtq.Queue) bool{(*virtq.Queue).Wait, (*virtq.Queue).WaitAny} {
		d := virtqtest.New(t, 8, virtqtest.Options{})
		done := make(chan bool)
		go func() { done <- wait(d.Queue) }()
		var c virtq.Chain
		d.Add(nil, []int{1})
		d.Add(nil, []int{1})
		d.Bell.Ring()
		if !<-done || !d.Queue.Pop(&c) {
			t.Fatal("no chain")
		}
		go func() { done <- wait(d.Queue) }()
		<-done
		d.Queue.Close()
		d.Queue.Close()
		if wait(d.Queue) || d.Queue.Pop(&c) {
			t.Error("a closed queue gives chains")
		}
		d.Queue.Push(&c, 1)
		d.Queue.Notify()
		d.Queue.Kick()
		if _, ok := d.Used(); ok || d.Interrupts() != 0 {
			t.Error("a closed queue answers")
		}
	}
}

// WaitAny returns for a Kick without a chain; Wait does not.
func TestWaitAny(t *testing.T) {
	d := virtqtest.New(t, 8, virtqtest.Options{})
	d.Queue.Kick()
	var c virtq.Chain
	if !d.Queue.WaitAny() || d.Queue.Pop(&c) {
		t.Error("WaitAny")
	}
}

// Lend: a record keeps the buffers of chains that are available and not used, and no others, for
// a queue that somebody else serves; a ring that breaks the rules is an error.
func TestLend(t *testing.T) {
	d := virtqtest.New(t, 8, virtqtest.Options{Indirect: true})
	const base = 1 << 20
	b := d.Mem.Bytes(base, 8<<12)
	for i := range b {
		b[i] = 7
	}
	page := func(i int) virtqtest.Desc {
		return virtqtest.Desc{Addr: base + mem.GPA(i)<<12, Len: 4096, Flags: virtqtest.DescWrite}
	}
	d.Mem.OnRecord(d.Queue.Lend)
	d.AddAt(page(1))
	var c virtq.Chain
	if !d.Queue.Pop(&c) {
		t.Fatal(d.Broken())
	}
	d.Queue.Push(&c, 4096)
	d.AddAt(page(2), page(3))
	d.AddAt(page(5))
	w, err := d.Mem.Record()
	if errors.Is(err, mem.ErrNoRecord) {
		t.Skip(err)
	} else if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	w.Free(base, 8<<12)
	if n, _, err := w.Discard(1 << 30); n != 5<<12 || err != nil {
		t.Errorf("%d pages, %v", n>>12, err)
	}
	for i := range 8 {
		if stays := b[i<<12] == 7; stays != (i == 2 || i == 3 || i == 5) {
			t.Errorf("page %d stays: %v", i, stays)
		}
	}
	d.AddAt(virtqtest.Desc{Addr: 1 << 40, Len: 4096, Flags: virtqtest.DescWrite})
	w.Free(base, 8<<12)
	if n, _, err := w.Discard(1 << 30); n != 0 || !errors.Is(err, virtq.ErrRing) {
		t.Errorf("broken: %d bytes, %v", n, err)
	}
	if err := virtqtest.New(t, 8, virtqtest.Options{Packed: true}).Queue.Lend(); !errors.Is(err, virtq.ErrRing) {
		t.Errorf("packed: %v", err)
	}
}

// The dirty log sees everything that the device side writes.
func TestDirtyLog(t *testing.T) {
	eachMode(t, func(t *testing.T, o virtqtest.Options) {
		d := virtqtest.New(t, 8, o)
		d.Mem.SetDirtyLog(true)
		dirty := func(what string, pages ...mem.GPA) {
			t.Helper()
			got := make(map[mem.GPA]bool)
			d.Mem.TakeDirty(func(p mem.GPA) { got[p] = true })
			for _, p := range pages {
				if !got[p&^4095] {
					t.Errorf("%s: the page of %#x is not dirty", what, p)
				}
				delete(got, p&^4095)
			}
			if len(got) != 0 {
				t.Errorf("%s: dirty are also %v", what, got)
			}
		}
		d.Bell.Ring()
		d.Queue.WaitAny()
		dirty("asking for kicks", d.Config.Used)
		buf := d.Mem.Alloc(3 * 4096)
		d.AddAt(virtqtest.Desc{Addr: buf, Len: 3 * 4096, Flags: virtqtest.DescWrite})
		var c virtq.Chain
		if !d.Queue.Pop(&c) {
			t.Fatal(d.Broken())
		}
		d.Queue.Push(&c, 4097)
		used := d.Config.Used
		if o.Packed {
			used = d.Config.Desc
		}
		dirty("using a chain", buf, buf+4096, used)
	})
}

// TestAppendRange: any range of any buffers, empty ones among them.
func TestAppendRange(t *testing.T) {
	all := []byte("0123456789")
	bufs := []virtq.Buffer{{Bytes: all[:0]}, {Bytes: all[:3]}, {Bytes: all[3:4]}, {Bytes: all[4:4]}, {Bytes: all[4:]}}
	for off := range uint64(12) {
		for n := range uint64(12) {
			var got []byte
			for _, p := range virtq.AppendRange(nil, bufs, off, n) {
				if len(p) == 0 {
					t.Fatalf("an empty piece at %d, %d", off, n)
				}
				got = append(got, p...)
			}
			if want := all[min(off, 10):min(off+n, 10)]; string(got) != string(want) {
				t.Errorf("%d, %d: %q, want %q", off, n, got, want)
			}
		}
	}
}
