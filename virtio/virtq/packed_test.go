package virtq_test

import (
	"errors"
	"testing"

	"github.com/gvmspawn/gvmspawn/virtio/virtq"
	"github.com/gvmspawn/gvmspawn/virtio/virtq/virtqtest"
	"github.com/gvmspawn/gvmspawn/vmm/mem"
)

func packedHostile(t *testing.T, o virtqtest.Options) *virtqtest.Driver {
	o.Packed = true
	return hostile(t, o)
}

// §2.8.1: descriptors are available only with the wrap counter of their round.
func TestPackedWrapCounter(t *testing.T) {
	d := packedHostile(t, virtqtest.Options{})
	var c virtq.Chain
	for round := range 5 {
		wrap := round%2 == 0
		for i := range 4 {
			for _, flags := range []uint16{virtqtest.Available(!wrap), 0, virtqtest.DescAvail | virtqtest.DescUsed} {
				d.Packed.SetDesc(i, virtqtest.Desc{Addr: 0x1000, Len: 1, Flags: flags}, 9)
				if d.Queue.Pop(&c) {
					t.Fatalf("round %d: flags %#x are available", round, flags)
				}
			}
			d.Packed.SetDesc(i, virtqtest.Desc{Addr: 0x1000, Len: 1, Flags: virtqtest.Available(wrap) | write}, 9)
			if !d.Queue.Pop(&c) {
				t.Fatalf("round %d: not available", round)
			}
			d.Queue.Push(&c, 1)
			want := uint16(write)
			if wrap {
				want |= virtqtest.DescAvail | virtqtest.DescUsed
			}
			if got := d.Packed.Ring.LoadUint16(uint64(16*i + 14)); got != want {
				t.Fatalf("round %d: used flags %#x, want %#x", round, got, want)
			}
		}
	}
}

// §2.8.6: "the buffer ID is included in the last descriptor in the list", and
// §2.8.1: the used descriptor skips the rest of the list.
func TestPackedChain(t *testing.T) {
	d := packedHostile(t, virtqtest.Options{})
	f := virtqtest.Available(true)
	d.Packed.SetDesc(1, virtqtest.Desc{Addr: 0x2000, Len: 2, Flags: f | next}, 1)
	d.Packed.SetDesc(2, virtqtest.Desc{Addr: 0x3000, Len: 4, Flags: f | write}, 7)
	d.Packed.SetDesc(3, virtqtest.Desc{Addr: 0x3000, Len: 4, Flags: f | write}, 8)
	d.Packed.SetDesc(0, virtqtest.Desc{Addr: 0x1000, Len: 1, Flags: f | next}, 0xffff)
	var a, b virtq.Chain
	if !d.Queue.Pop(&a) || !d.Queue.Pop(&b) || a.ReadableLen != 3 || a.WritableLen != 4 || b.WritableLen != 4 {
		t.Fatalf("%+v %+v %v", a, b, d.Broken())
	}
	d.Queue.Push(&a, 4)
	d.Queue.Push(&b, 0)
	if id := d.Packed.Ring.LoadUint16(12); id != 7 {
		t.Errorf("first used ID %d", id)
	}
	if id, flags := d.Packed.Ring.LoadUint16(3*16+12), d.Packed.Ring.LoadUint16(3*16+14); id != 8 || flags&virtqtest.DescUsed == 0 || flags&write != 0 {
		t.Errorf("second used ID %d, flags %#x", id, flags)
	}
}

// hostile-guest.md rows 14 to 17 and 19 in a packed ring.
func TestPackedHostile(t *testing.T) {
	type desc = virtqtest.Desc
	f := virtqtest.Available(true)
	for _, c := range []struct {
		name     string
		ring     []desc
		indirect bool
	}{
		{name: "a list longer than the ring", ring: []desc{{Addr: 0x1000, Len: 1, Flags: next}, {Addr: 0x1000, Len: 1, Flags: next}, {Addr: 0x1000, Len: 1, Flags: next}, {Addr: 0x1000, Len: 1, Flags: next}}},
		{name: "outside RAM", ring: []desc{{Addr: 1 << 40, Len: 1}}},
		{name: "wraps 2^64", ring: []desc{{Addr: 1<<64 - 8, Len: 16}}},
		{name: "straddles the end", ring: []desc{{Addr: ramSize - 8, Len: 9}}},
		{name: "readable after writable", ring: []desc{{Addr: 0x1000, Len: 1, Flags: write | next}, {Addr: 0x1000, Len: 1}}},
		{name: "indirect not negotiated", ring: []desc{{Addr: 0x8000, Len: 16, Flags: indirect}}},
		{name: "indirect with next", indirect: true, ring: []desc{{Addr: 0x8000, Len: 16, Flags: indirect | next}, {Addr: 0x1000, Len: 1}}},
		{name: "table of 0 bytes", indirect: true, ring: []desc{{Addr: 0x8000, Flags: indirect}}},
		{name: "table of 17 bytes", indirect: true, ring: []desc{{Addr: 0x8000, Len: 17, Flags: indirect}}},
		{name: "table of 1025 entries", indirect: true, ring: []desc{{Addr: 0x8000, Len: 1025 * 16, Flags: indirect}}},
		{name: "table of 4 GiB", indirect: true, ring: []desc{{Len: 1<<32 - 16, Flags: indirect}}},
		{name: "table outside RAM", indirect: true, ring: []desc{{Addr: ramSize, Len: 16, Flags: indirect}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := packedHostile(t, virtqtest.Options{Indirect: c.indirect})
			for i, e := range c.ring {
				e.Flags |= f
				d.Packed.SetDesc(i, e, 0xffff)
			}
			var chain virtq.Chain
			if d.Queue.Pop(&chain) || !errors.Is(d.Broken(), virtq.ErrRing) || d.Queue.Wait() {
				t.Errorf("not broken: %v", d.Broken())
			}
		})
	}
}

// Row 12: descriptors made available again while the device holds them.
func TestPackedInFlight(t *testing.T) {
	d := packedHostile(t, virtqtest.Options{})
	var c virtq.Chain
	held := 0
	for i := 0; ; i++ {
		d.Packed.SetDesc(i%4, virtqtest.Desc{Addr: 0x1000, Len: 1, Flags: virtqtest.Available(i/4%2 == 0)}, 0)
		if !d.Queue.Pop(&c) {
			break
		}
		held++
	}
	if held != 4 || !errors.Is(d.Broken(), virtq.ErrRing) {
		t.Errorf("a device holds %d chains of a queue of 4: %v", held, d.Broken())
	}
}

// An indirect table's entries: WRITE alone counts (§2.8.7), no entry ends it.
func TestPackedIndirectFlags(t *testing.T) {
	d := packedHostile(t, virtqtest.Options{Indirect: true})
	for i, flags := range []uint16{next | indirect | 0x8080, 0, write | next, write} {
		b := d.Mem.Bytes(mem.GPA(0x8000+16*i), 16)
		b[1], b[8], b[14], b[15] = 0x10, 1, byte(flags), byte(flags>>8)
	}
	d.Packed.SetDesc(0, virtqtest.Desc{Addr: 0x8000, Len: 64, Flags: indirect | write | virtqtest.Available(true)}, 3)
	var c virtq.Chain
	if !d.Queue.Pop(&c) || len(c.Readable) != 2 || len(c.Writable) != 2 {
		t.Errorf("%+v %v", c, d.Broken())
	}
}

// §2.8.10, §2.8.14: used buffer notification suppression in a packed ring of 8.
// Positions are counted from the start; each chain is one descriptor.
func TestPackedDriverEvent(t *testing.T) {
	for _, c := range []struct {
		before, push int
		event        uint16 // offset, bit 15 the wrap counter
		flags        uint16
		want         bool
	}{
		{0, 1, 0, 0, true}, {0, 1, 0, 1, false},
		{0, 1, 0x8000, 2, true}, {0, 1, 0x8001, 2, false}, {0, 1, 0, 2, false}, {0, 2, 0x8001, 2, true},
		{3, 4, 0x8003, 2, true}, {3, 4, 0x8006, 2, true}, {3, 4, 0x8007, 2, false}, {3, 4, 0x8002, 2, false},
		{6, 4, 0x8007, 2, true}, {6, 4, 0, 2, true}, {6, 4, 1, 2, true}, {6, 4, 2, 2, false}, {6, 4, 0x8001, 2, false},
		{14, 4, 0x8000, 2, true}, {14, 4, 7, 2, true}, {14, 4, 0x8007, 2, false},
		{0, 16, 5, 2, true}, {0, 40, 5, 2, true},
		{0, 1, 0x7fff, 2, false}, {0, 1, 0, 3, true}, {0, 1, 0, 0xffff, true},
	} {
		d := virtqtest.New(t, 8, virtqtest.Options{Packed: true, EventIdx: true})
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
		d.Packed.SetDriverEvent(0, 1)
		d.Queue.Notify()
		d.Packed.SetDriverEvent(c.event, c.flags)
		for range c.push {
			use()
		}
		d.Queue.Notify()
		if got := d.Interrupts() > 0; got != c.want {
			t.Errorf("%+v: interrupt %v", c, got)
		}
	}
	// Without EVENT_IDX only DISABLE silences the device.
	d := virtqtest.New(t, 8, virtqtest.Options{Packed: true})
	var ch virtq.Chain
	d.Packed.SetDriverEvent(5, 2)
	d.Add(nil, []int{1})
	d.Queue.Pop(&ch)
	d.Queue.Push(&ch, 1)
	d.Queue.Notify()
	if d.Interrupts() != 1 {
		t.Error("RING_EVENT_FLAGS_DESC without EVENT_IDX silences the device")
	}
}

func TestNewPacked(t *testing.T) {
	m := virtqtest.NewMemory(t, 1<<20)
	good := virtq.Config{Mem: m.Memory, Packed: true, Size: 100, Desc: 0x1000, Avail: 0x2000, Used: 0x3000}
	for name, f := range map[string]func(*virtq.Config){
		"good":           func(*virtq.Config) {},
		"size 0":         func(c *virtq.Config) { c.Size = 0 },
		"size 32769":     func(c *virtq.Config) { c.Size = 32769 },
		"desc odd":       func(c *virtq.Config) { c.Desc = 0x1008 },
		"avail odd":      func(c *virtq.Config) { c.Avail = 0x2002 },
		"used odd":       func(c *virtq.Config) { c.Used = 0x3002 },
		"desc straddles": func(c *virtq.Config) { c.Desc = 1<<20 - 512 },
		"used outside":   func(c *virtq.Config) { c.Used = 1 << 20 },
		"avail wraps":    func(c *virtq.Config) { c.Avail = 1<<64 - 4 },
	} {
		c := good
		f(&c)
		if _, err := virtq.New(c); (err == nil) != (name == "good") || (err != nil && !errors.Is(err, virtq.ErrRing)) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// FuzzPacked fills a packed ring, and an indirect table, with the input and
// runs a device over it.
func FuzzPacked(f *testing.F) {
	f.Add([]byte{0, 0x10, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 1, 0, 0x80, 0}, uint8(0))
	f.Add([]byte{0, 0x80, 0, 0, 0, 0, 0, 0, 16, 0, 0, 0, 4, 0, 0x84, 0}, uint8(3))
	f.Fuzz(func(t *testing.T, in []byte, bits uint8) {
		const size = 7
		d := virtqtest.New(t, size, virtqtest.Options{
			Memory: virtqtest.NewMemory(t, ramSize), Packed: true, EventIdx: bits&1 != 0, Indirect: bits&2 != 0,
		})
		p := d.Packed
		for len(in) > 0 {
			for _, a := range [][]byte{p.Ring, p.Driver, p.Device, d.Mem.Bytes(0x8000, 16*16)} {
				in = in[copy(a, in):]
			}
			var held [2 * size]virtq.Chain
			n := 0
			for n < len(held) && d.Queue.Pop(&held[n]) {
				checkChain(t, d.Mem, &held[n])
				n++
			}
			if n > size {
				t.Fatalf("%d chains in flight", n)
			}
			for i := range n {
				d.Queue.Push(&held[i], uint32(held[i].WriteAt([]byte{1, 2, 3}, 0)))
			}
			d.Queue.Notify()
		}
		if err := d.Broken(); err != nil && !errors.Is(err, virtq.ErrRing) {
			t.Error(err)
		}
	})
}
