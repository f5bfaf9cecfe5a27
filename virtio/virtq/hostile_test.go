package virtq_test

import (
	"errors"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/gvmspawn/gvmspawn/virtio/virtq"
	"github.com/gvmspawn/gvmspawn/virtio/virtq/virtqtest"
	"github.com/gvmspawn/gvmspawn/vmm/mem"
)

const (
	next     = virtqtest.DescNext
	write    = virtqtest.DescWrite
	indirect = virtqtest.DescIndirect
	ramSize  = 1 << 20
)

// breaks pops until nothing comes and expects the ring to be given up, once,
// with an ErrRing, and for good.
func breaks(t *testing.T, d *virtqtest.Driver) {
	t.Helper()
	var c virtq.Chain
	for range 1 << 16 {
		if !d.Queue.Pop(&c) {
			break
		}
	}
	if !errors.Is(d.Broken(), virtq.ErrRing) {
		t.Errorf("the ring is not broken: %v", d.Broken())
		return
	}
	d.Split.SetAvailIdx(d.Split.UsedIdx())
	if d.Queue.Pop(&c) || d.Queue.Wait() || d.Queue.WaitAny() {
		t.Error("a broken ring goes on")
	}
	used := d.Split.UsedIdx()
	d.Queue.Push(&c, 1)
	d.Queue.Notify()
	if d.Split.UsedIdx() != used || d.Interrupts() != 0 {
		t.Error("a broken ring answers")
	}
}

func hostile(t *testing.T, o virtqtest.Options) *virtqtest.Driver {
	o.Memory = virtqtest.NewMemory(t, ramSize)
	return virtqtest.New(t, 4, o)
}

// hostile-guest.md row 11: the available index jumps or goes back.
func TestHostileAvailIndex(t *testing.T) {
	for _, idx := range []uint16{5, 6, 0x8000, 0xffff, 0xfffc} {
		d := hostile(t, virtqtest.Options{})
		d.Split.SetAvailIdx(idx)
		breaks(t, d)
	}
	d := hostile(t, virtqtest.Options{})
	var c virtq.Chain
	d.Add(nil, []int{1})
	d.Queue.Pop(&c)
	d.Split.SetAvailIdx(0)
	breaks(t, d)
}

// Rows 12, 14, 15, 16, 17: what descriptors may hold.
func TestHostileDescriptors(t *testing.T) {
	type desc = virtqtest.Desc
	for _, c := range []struct {
		name     string
		head     uint16
		table    map[int]desc
		inner    []desc // an indirect table at 0x8000
		indirect bool   // negotiated
	}{
		{name: "head = size", head: 4},
		{name: "head 65535", head: 65535},
		{name: "next = size", table: map[int]desc{0: {Addr: 0x1000, Len: 1, Flags: next, Next: 4}}},
		{name: "next 65535", table: map[int]desc{0: {Addr: 0x1000, Len: 1, Flags: next, Next: 65535}}},
		{name: "self loop", table: map[int]desc{0: {Addr: 0x1000, Len: 1, Flags: next}}},
		{name: "self loop, no bytes", table: map[int]desc{0: {Addr: 0x1000, Flags: next | write}}},
		{name: "cycle of two", table: map[int]desc{0: {Addr: 0x1000, Len: 1, Flags: next, Next: 1}, 1: {Addr: 0x1000, Len: 1, Flags: next}}},
		{name: "wraps 2^64", table: map[int]desc{0: {Addr: 1<<64 - 8, Len: 16}}},
		{name: "outside RAM", table: map[int]desc{0: {Addr: 1 << 40, Len: 1}}},
		{name: "straddles the end", table: map[int]desc{0: {Addr: ramSize - 8, Len: 9}}},
		{name: "2^32-1 bytes", table: map[int]desc{0: {Addr: 0x1000, Len: 1<<32 - 1}}},
		{name: "no bytes outside RAM", table: map[int]desc{0: {Addr: 1 << 40}}},
		{name: "readable after writable", table: map[int]desc{0: {Addr: 0x1000, Len: 1, Flags: write | next, Next: 1}, 1: {Addr: 0x1000, Len: 1}}},

		{name: "indirect not negotiated", table: map[int]desc{0: {Addr: 0x8000, Len: 16, Flags: indirect}}, inner: []desc{{Addr: 0x1000, Len: 1}}},
		{name: "indirect with next", indirect: true, table: map[int]desc{0: {Addr: 0x8000, Len: 16, Flags: indirect | next, Next: 1}}, inner: []desc{{Addr: 0x1000, Len: 1}}},
		{name: "nested indirect", indirect: true, table: map[int]desc{0: {Addr: 0x8000, Len: 16, Flags: indirect}}, inner: []desc{{Addr: 0x8000, Len: 16, Flags: indirect}}},
		{name: "table of 0 bytes", indirect: true, table: map[int]desc{0: {Addr: 0x8000, Flags: indirect}}},
		{name: "table of 17 bytes", indirect: true, table: map[int]desc{0: {Addr: 0x8000, Len: 17, Flags: indirect}}},
		{name: "table of 65536 entries", indirect: true, table: map[int]desc{0: {Addr: 0, Len: 1 << 20, Flags: indirect}}},
		{name: "table of 4 GiB", indirect: true, table: map[int]desc{0: {Addr: 0, Len: 1<<32 - 16, Flags: indirect}}},
		{name: "table outside RAM", indirect: true, table: map[int]desc{0: {Addr: ramSize, Len: 16, Flags: indirect}}},
		{name: "table straddles the end", indirect: true, table: map[int]desc{0: {Addr: ramSize - 16, Len: 32, Flags: indirect}}},
		{name: "inner next beyond the table", indirect: true, table: map[int]desc{0: {Addr: 0x8000, Len: 16, Flags: indirect}}, inner: []desc{{Addr: 0x1000, Len: 1, Flags: next, Next: 1}}},
		{name: "inner loop", indirect: true, table: map[int]desc{0: {Addr: 0x8000, Len: 16, Flags: indirect}}, inner: []desc{{Addr: 0x1000, Len: 1, Flags: next}}},
		{name: "inner buffer outside RAM", indirect: true, table: map[int]desc{0: {Addr: 0x8000, Len: 16, Flags: indirect}}, inner: []desc{{Addr: ramSize, Len: 1}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := hostile(t, virtqtest.Options{Indirect: c.indirect})
			for i, e := range c.table {
				d.Split.SetDesc(i, e)
			}
			for i, e := range c.inner {
				copy(d.Mem.Bytes(mem.GPA(0x8000+16*i), 16), e.Bytes())
			}
			d.Split.SetAvail(0, c.head)
			d.Split.SetAvailIdx(1)
			breaks(t, d)
		})
	}
}

// Row 15: the sum of a chain of small descriptors over large memory. 4 GiB and
// more are refused (§2.7.4.2 allows up to 2^32 bytes; used lengths have 32 bits).
func TestHostileChainLength(t *testing.T) {
	m := mem.New()
	t.Cleanup(func() { _ = m.Close() })
	if _, err := m.Add("RAM", 0, 2<<30, mem.RAM); err != nil {
		t.Fatal(err)
	}
	d := virtqtest.New(t, 4, virtqtest.Options{Memory: virtqtest.Use(t, m, 0x1000, 1<<20)})
	d.Split.SetDesc(0, virtqtest.Desc{Len: 1 << 31, Flags: next, Next: 1})
	d.Split.SetDesc(1, virtqtest.Desc{Len: 1<<31 - 1})
	d.Split.SetAvailIdx(1)
	var c virtq.Chain
	if !d.Queue.Pop(&c) || c.ReadableLen != 1<<32-1 {
		t.Errorf("4 GiB - 1: %d bytes, %v", c.ReadableLen, d.Broken())
	}
	d.Split.SetDesc(1, virtqtest.Desc{Len: 1 << 31, Flags: write})
	d.Split.SetAvailIdx(2)
	breaks(t, d)
}

// Odd but harmless: empty buffers in RAM, unknown flag bits, all readable, all
// writable, an indirect table inside the ring itself.
func TestOddDescriptors(t *testing.T) {
	d := hostile(t, virtqtest.Options{Indirect: true})
	pop := func(what string, readable, writable int) {
		t.Helper()
		var c virtq.Chain
		if !d.Queue.Pop(&c) || len(c.Readable) != readable || len(c.Writable) != writable {
			t.Fatalf("%s: %d readable, %d writable, %v", what, len(c.Readable), len(c.Writable), d.Broken())
		}
		d.Queue.Push(&c, 0)
	}
	d.Split.SetDesc(0, virtqtest.Desc{Addr: 0x1000, Flags: next | 0xfff8, Next: 1})
	d.Split.SetDesc(1, virtqtest.Desc{Addr: ramSize, Flags: 0xfff8})
	d.Split.SetAvailIdx(1)
	pop("empty buffers", 2, 0)
	d.Split.SetDesc(0, virtqtest.Desc{Addr: 0x1000, Flags: write})
	d.Split.SetAvailIdx(2)
	pop("writable", 0, 1)
	d.Split.SetDesc(0, virtqtest.Desc{Addr: d.Split.DescGPA + 16, Len: 16, Flags: indirect})
	d.Split.SetDesc(1, virtqtest.Desc{Addr: 0x1000, Len: 1})
	d.Split.SetAvailIdx(3)
	pop("table in the ring", 1, 0)
}

// Row 12: the same head again and again, while the device holds what it got.
func TestHostileInFlight(t *testing.T) {
	d := hostile(t, virtqtest.Options{})
	d.Split.SetDesc(0, virtqtest.Desc{Addr: 0x1000, Len: 1})
	var c virtq.Chain
	held := 0
	for idx := uint16(1); ; idx++ {
		d.Split.SetAvailIdx(idx)
		if !d.Queue.Pop(&c) {
			break
		}
		held++
	}
	if held != 4 {
		t.Errorf("a device holds %d chains of a queue of 4", held)
	}
	breaks(t, d)
}

// Row 13: random suppression fields cost at most a wrong number of
// notifications.
func TestHostileEvents(t *testing.T) {
	d := hostile(t, virtqtest.Options{EventIdx: true})
	var c virtq.Chain
	for i := range 1000 {
		d.Split.SetUsedEvent(uint16(i * 40503))
		d.Split.SetAvailFlags(uint16(i))
		d.Add(nil, []int{1})
		if !d.Queue.Wait() || !d.Queue.Pop(&c) {
			t.Fatal(d.Broken())
		}
		d.Queue.Push(&c, 1)
		d.Queue.Notify()
		d.Used()
	}
}

// What New refuses (§2.7: sizes, alignment, RAM only).
func TestNew(t *testing.T) {
	m := mem.New()
	t.Cleanup(func() { _ = m.Close() })
	for _, r := range []struct {
		base mem.GPA
		kind mem.Kind
	}{{0, mem.RAM}, {1 << 20, mem.ROM}, {2 << 20, mem.Window}} {
		if _, err := m.Add(r.kind.String(), r.base, 1<<20, r.kind); err != nil {
			t.Fatal(err)
		}
	}
	good := virtq.Config{Mem: m, Size: 64, Desc: 0x1000, Avail: 0x2000, Used: 0x3000}
	if _, err := virtq.New(good); err != nil {
		t.Fatal(err)
	}
	for name, f := range map[string]func(*virtq.Config){
		"size 0":         func(c *virtq.Config) { c.Size = 0 },
		"size 3":         func(c *virtq.Config) { c.Size = 3 },
		"size 65535":     func(c *virtq.Config) { c.Size = 65535 },
		"desc odd":       func(c *virtq.Config) { c.Desc = 0x1008 },
		"avail odd":      func(c *virtq.Config) { c.Avail = 0x2001 },
		"used odd":       func(c *virtq.Config) { c.Used = 0x3002 },
		"desc in ROM":    func(c *virtq.Config) { c.Desc = 1 << 20 },
		"used in ROM":    func(c *virtq.Config) { c.Used = 1 << 20 },
		"avail in DAX":   func(c *virtq.Config) { c.Avail = 2 << 20 },
		"desc straddles": func(c *virtq.Config) { c.Desc = 1<<20 - 512 },
		"used straddles": func(c *virtq.Config) { c.Used = 1<<20 - 64 },
		"avail wraps":    func(c *virtq.Config) { c.Avail = 1<<64 - 2 },
		"desc wraps":     func(c *virtq.Config) { c.Desc = 1<<64 - 16 },
	} {
		c := good
		f(&c)
		if _, err := virtq.New(c); !errors.Is(err, virtq.ErrRing) {
			t.Errorf("%s: %v", name, err)
		}
	}
	good.Desc, good.Avail, good.Used = 0x1000, 0x1000, 0x1000 // overlap is the guest's own loss
	if _, err := virtq.New(good); err != nil {
		t.Error(err)
	}
}

// Row 18: another CPU rewrites everything while the device looks. Whatever
// comes out lies in RAM, and the device comes to an end.
func TestHostileRewrite(t *testing.T) {
	for _, packed := range []bool{false, true} {
		m := virtqtest.NewMemory(t, ramSize)
		d := virtqtest.New(t, 8, virtqtest.Options{Memory: m, Packed: packed, Indirect: true, EventIdx: true, NoQueue: true})
		area := m.Bytes(d.Config.Desc, 8*16)
		stop := make(chan struct{})
		var wg sync.WaitGroup
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(1, 2))
			for {
				select {
				case <-stop:
					return
				default:
				}
				// Mostly plausible values, so that chains get long.
				area[rng.IntN(len(area))] = [...]byte{0, 1, 2, 3, 0x80, 0x81, 0x10, 0xff}[rng.IntN(8)]
			}
		})
		chains := 0
		for end := time.Now().Add(150 * time.Millisecond); time.Now().Before(end); {
			q, err := virtq.New(d.Config)
			if err != nil {
				t.Fatal(err)
			}
			var c virtq.Chain
			for i := range uint16(200) {
				good := virtqtest.Desc{Addr: 0x1000, Len: 1}
				if packed {
					good.Flags = virtqtest.Available(i/8%2 == 0)
					d.Packed.SetDesc(int(i%8), good, 0)
				} else {
					d.Split.SetDesc(int(i%8), good)
					d.Split.SetAvail(i, i%8)
					d.Split.SetAvailIdx(i + 1)
				}
				if q.Pop(&c) {
					chains++
					checkChain(t, m, &c)
					q.Push(&c, 0)
					q.Notify()
				}
			}
		}
		close(stop)
		wg.Wait()
		if chains == 0 {
			t.Errorf("packed %v: no chain came out", packed)
		}
	}
}
