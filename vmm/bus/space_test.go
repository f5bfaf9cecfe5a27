package bus_test

import (
	"strings"
	"sync"
	"testing"

	"github.com/gvmspawn/gvmspawn/vmm/bus"
)

// chip remembers the last access and reads as its own number in every byte.
type chip struct {
	id   byte
	off  uint64
	size int
	val  uint64
}

func (c *chip) Read(off uint64, size int) uint64 {
	c.off, c.size = off, size
	return uint64(c.id) * 0x0101010101010101
}

func (c *chip) Write(off uint64, size int, v uint64) { c.off, c.size, c.val = off, size, v }

func TestSpace(t *testing.T) {
	var b bus.Bus
	var a, z, last chip
	a.id, z.id, last.id = 1, 2, 3
	for _, m := range []struct {
		name       string
		base, size uint64
		dev        bus.Device
	}{{"z", 0x2000, 0x100, &z}, {"a", 0x1000, 0x1000, &a}, {"last", ^uint64(0) - 0xf, 0x10, &last}} {
		if err := b.MMIO.Map(m.name, m.base, m.size, m.dev); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		addr uint64
		size int
		want uint64
	}{
		{0x1000, 1, 1}, {0x1ffc, 4, 0x01010101}, {0x1fff, 1, 1}, {0x2000, 8, 0x0202020202020202}, {0x20ff, 1, 2},
		{0xfff, 1, 0xff}, {0x2100, 4, 0xffffffff}, {0, 8, ^uint64(0)}, // nobody
		{0x1ffe, 4, 0xffffffff}, {0xffe, 4, 0xffffffff}, {0x20fc, 8, ^uint64(0)}, // across ends
		{^uint64(0), 1, 3}, {^uint64(0) - 7, 8, 0x0303030303030303}, {^uint64(0) - 1, 4, 0xffffffff}, // wraps
	} {
		if got := b.MMIORead(c.addr, c.size); got != c.want {
			t.Errorf("read %#x, %d bytes: %#x, want %#x", c.addr, c.size, got, c.want)
		}
	}
	b.MMIOWrite(0x2004, 2, 0xabcdef12)
	if z.off != 4 || z.size != 2 || z.val != 0xef12 {
		t.Errorf("the chip saw %+v", z)
	}
	b.MMIOWrite(0x20ff, 2, 1) // dropped
	if z.off != 4 {
		t.Error("a write across the end reached the chip")
	}
	if got := b.PortIn(0x80, 2); got != 0xffff {
		t.Errorf("port: %#x", got)
	}
}

func TestMapErrors(t *testing.T) {
	var s bus.Space
	if err := s.Map("first", 0x1000, 0x1000, new(chip)); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		base, size uint64
		want       string
	}{
		{0x1000, 1, "overlaps first"}, {0x1fff, 1, "overlaps first"}, {0, 0x1001, "overlaps first"}, {0, 1 << 63, "overlaps first"},
		{0x1800, 0x10, "overlaps first"}, {0, 0, "bad range"}, {^uint64(0), 2, "bad range"},
	} {
		if err := s.Map("second", c.base, c.size, new(chip)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%#x+%#x: %v", c.base, c.size, err)
		}
	}
	for _, base := range []uint64{0, 0x2000} {
		if err := s.Map("beside", base, 0x1000, new(chip)); err != nil {
			t.Error(err)
		}
	}
	s.Unmap(0x1800) // not a base
	if s.Read(0x1000, 1) != 0 {
		t.Error("Unmap took what it was not asked for")
	}
	s.Unmap(0x1000)
	if s.Read(0x1000, 1) != 0xff {
		t.Error("still there")
	}
}

func TestUnclaimed(t *testing.T) {
	type access struct {
		addr  uint64
		size  int
		write bool
	}
	var seen []access
	var s bus.Space
	s.Unclaimed = func(addr uint64, size int, write bool) { seen = append(seen, access{addr, size, write}) }
	s.Read(5, 2)
	s.Write(6, 8, 1)
	if len(seen) != 2 || seen[0] != (access{5, 2, false}) || seen[1] != (access{6, 8, true}) {
		t.Errorf("%+v", seen)
	}
}

// Devices come and go while CPUs access the space, as PCI BARs do.
func TestConcurrentRemap(t *testing.T) {
	var s bus.Space
	fixed := stateless{}
	if err := s.Map("fixed", 0x10000, 0x1000, fixed); err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			for i := uint64(0); ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				s.Read(i%0x40000, 4)
				if got := s.Read(0x10010, 1); got != 7 {
					t.Errorf("the fixed device read as %#x", got)
					return
				}
			}
		})
	}
	for i := range uint64(2000) {
		base := 0x20000 + i%16*0x1000
		if err := s.Map("moving", base, 0x1000, fixed); err != nil {
			t.Fatal(err)
		}
		s.Unmap(base)
	}
	close(stop)
	wg.Wait()
}

type stateless struct{}

func (stateless) Read(uint64, int) uint64   { return 7 }
func (stateless) Write(uint64, int, uint64) {}

func TestSpaceDoesNotAllocate(t *testing.T) {
	var b bus.Bus
	_ = b.MMIO.Map("a", 0x1000, 0x1000, new(chip))
	if n := testing.AllocsPerRun(100, func() {
		b.MMIOWrite(0x1000, 4, b.MMIORead(0x1ff8, 8))
		b.PortOut(1, 1, b.PortIn(2, 4))
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
