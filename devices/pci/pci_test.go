package pci_test

import (
	"bytes"
	"testing"

	"github.com/gvmspawn/gvmspawn/devices/pci"
	"github.com/gvmspawn/gvmspawn/vmm/bus"
	"github.com/gvmspawn/gvmspawn/vmm/bus/bustest"
)

const (
	lowStart, lowEnd   = 0xc000_0000, 0xe000_0000
	highStart, highEnd = 0x10_0000_0000, 0x20_0000_0000
	portStart, portEnd = 0x1000, 0x1_0000
	ecamBase           = 0xe000_0000
)

// scratch is a device that is plain memory and remembers the last access.
type scratch struct {
	bytes [0x4000]byte
	off   uint64
	size  int
}

func (s *scratch) Read(off uint64, size int) uint64 {
	s.off, s.size = off, size
	v := uint64(0)
	for i := range size {
		v |= uint64(s.bytes[off+uint64(i)]) << (8 * i)
	}
	return v
}

func (s *scratch) Write(off uint64, size int, v uint64) {
	s.off, s.size = off, size
	for i := range size {
		s.bytes[off+uint64(i)] = byte(v >> (8 * i))
	}
}

// machine is a bus with a host bridge, reached as a guest does.
type machine struct {
	testing.TB
	bus.Bus
	host *pci.Host
}

func newMachine(t testing.TB, reset bus.Device) *machine {
	m := &machine{TB: t}
	h, err := pci.NewHost(&m.MMIO, pci.Config{
		Low: pci.Window{Start: lowStart, End: lowEnd}, High: pci.Window{Start: highStart, End: highEnd},
		Ports: pci.Window{Start: portStart, End: portEnd}, PortSpace: &m.Port,
		ECAM: ecamBase, Reset: reset,
	})
	m.check(err)
	m.host = h
	m.check(m.Port.Map("pci address", 0xcf8, 4, h.AddressPort()))
	m.check(m.Port.Map("pci data", 0xcfc, 4, h.DataPort()))
	m.check(m.MMIO.Map("ecam", ecamBase, 16<<20, h.ECAM()))
	return m
}

func (m *machine) check(err error) {
	m.Helper()
	if err != nil {
		m.Fatal(err)
	}
}

func (m *machine) add(f *pci.Function) pci.Address {
	m.Helper()
	a, err := m.host.Add(f)
	m.check(err)
	return a
}

func ecamOf(a pci.Address) uint64 { return ecamBase + uint64(a.Slot)<<15 + uint64(a.Function)<<12 }

func (m *machine) cfg32(a pci.Address, reg uint64) uint32 {
	return uint32(m.MMIORead(ecamOf(a)+reg, 4))
}

func (m *machine) setCfg(a pci.Address, reg uint64, size int, v uint64) {
	m.MMIOWrite(ecamOf(a)+reg, size, v)
}

func (m *machine) expect(what string, got, want uint64) {
	m.Helper()
	if got != want {
		m.Errorf("%s: got %#x, want %#x", what, got, want)
	}
}

// card is a function with one 32-bit and one 64-bit BAR.
type card struct {
	*pci.Function
	low, high scratch
	at        uint64
	on        bool
	moves     int
}

func newCard(t testing.TB) *card {
	c := &card{Function: pci.NewFunction("card", pci.ID{Vendor: 0x1af4, Device: 0x1041, SubVendor: 0x1af4, Subsystem: 7, Revision: 1, Class: 0x020000})}
	for i, b := range map[int]pci.BAR{
		0: {Size: 0x4000, Device: &c.low, Moved: func(a uint64, on bool) { c.at, c.on = a, on; c.moves++ }},
		2: {Size: 0x4000, Wide: true, Prefetchable: true, Device: &c.high},
	} {
		if err := c.AddBAR(i, b); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

const memoryOn = pci.CommandMemory

// PCI 3.0 §6.1, §6.2.1: identification, and ones where nothing is.
func TestIdentification(t *testing.T) {
	m := newMachine(t, nil)
	a := m.add(newCard(t).Function)
	m.expect("bridge ID", uint64(m.cfg32(pci.Address{}, 0)), 0x29c08086)
	m.expect("bridge class", uint64(m.cfg32(pci.Address{}, 8)), 0x06000000)
	m.expect("PCIEXBAR", uint64(m.cfg32(pci.Address{}, 0x60)), ecamBase|1)
	m.expect("ID", uint64(m.cfg32(a, 0)), 0x10411af4)
	m.expect("class and revision", uint64(m.cfg32(a, 8)), 0x02000001)
	m.expect("subsystem", uint64(m.cfg32(a, 0x2c)), 0x00071af4)
	m.expect("interrupt pin", uint64(m.cfg32(a, 0x3c)), 0)
	m.expect("absent slot", uint64(m.cfg32(pci.Address{Slot: 9}, 0)), 0xffffffff)
	m.expect("absent bus", m.MMIORead(ecamBase+1<<20, 4), 0xffffffff)
	m.expect("extended space", uint64(m.cfg32(a, 0x100)), 0)
	m.expect("end of the function", m.MMIORead(ecamOf(a)+0xffe, 4), 0xffffffff)
	m.setCfg(a, 0, 4, 0)
	m.expect("ID after a write", uint64(m.cfg32(a, 0)), 0x10411af4)
}

// PCI 3.0 §3.2.2.3.2: configuration mechanism #1, with byte and word lanes.
func TestPorts(t *testing.T) {
	var reset scratch
	m := newMachine(t, &reset)
	a := m.add(newCard(t).Function)
	m.expect("data before an address", uint64(m.PortIn(0xcfc, 4)), 0xffffffff)
	m.PortOut(0xcf8, 4, 1<<31|uint32(a.Slot)<<11)
	m.expect("address", uint64(m.PortIn(0xcf8, 4)), 1<<31|uint64(a.Slot)<<11)
	m.expect("ID", uint64(m.PortIn(0xcfc, 4)), 0x10411af4)
	m.expect("device ID", uint64(m.PortIn(0xcfe, 2)), 0x1041)
	m.expect("a byte", uint64(m.PortIn(0xcfd, 1)), 0x1a)
	m.PortOut(0xcf8, 4, 1<<31|uint32(a.Slot)<<11|4)
	m.PortOut(0xcfc, 2, memoryOn)
	m.expect("command", uint64(m.PortIn(0xcfc, 2)), memoryOn)
	m.PortOut(0xcf8, 1, 0)
	m.PortOut(0xcfa, 2, 0)
	m.expect("address after odd writes", uint64(m.PortIn(0xcf8, 4)), 1<<31|uint64(a.Slot)<<11|4)
	m.PortOut(0xcf8, 4, 1<<31|1<<16|uint32(a.Slot)<<11)
	m.expect("another bus", uint64(m.PortIn(0xcfc, 4)), 0xffffffff)
	m.PortOut(0xcf9, 1, 6)
	m.expect("the reset register's byte", uint64(reset.bytes[0]), 6)
	m.PortOut(0xcf8, 4, 1<<31|uint32(a.Slot)<<11|0xfc)
	m.expect("across the last dword", uint64(m.PortIn(0xcfe, 4)), 0xffffffff)
}

// PCI 3.0 §6.2.5.1: size probing; and decoding follows the command register.
func TestBARs(t *testing.T) {
	m := newMachine(t, nil)
	c := newCard(t)
	a := m.add(c.Function)
	b := m.add(newCard(t).Function)
	low, high := c.BARAddress(0), c.BARAddress(2)
	m.expect("BAR 0", uint64(m.cfg32(a, 0x10)), low)
	m.expect("BAR 2", uint64(m.cfg32(a, 0x18)), high&0xffffffff|4|8)
	m.expect("BAR 3", uint64(m.cfg32(a, 0x1c)), high>>32)
	m.expect("second card's BAR 0", uint64(m.cfg32(b, 0x10)), low+0x4000)

	m.expect("before decoding", m.MMIORead(low, 4), 0xffffffff)
	m.setCfg(a, 4, 2, memoryOn)
	m.MMIOWrite(low+0x10, 4, 0x12345678)
	m.expect("offset, not address", c.low.off, 0x10)
	m.MMIOWrite(high+8, 8, 0x1122334455667788)
	m.expect("64-bit BAR", m.MMIORead(high+8, 8), 0x1122334455667788)
	m.expect("Moved", c.at, low)

	for reg, want := range map[uint64]uint32{0x10: 0xffffc000, 0x14: 0, 0x18: 0xffffc00c, 0x1c: 0xffffffff, 0x30: 0} {
		old := m.cfg32(a, reg)
		m.setCfg(a, reg, 4, 0xffffffff)
		m.expect("size probe", uint64(m.cfg32(a, reg)), uint64(want))
		m.setCfg(a, reg, 4, uint64(old))
	}
	m.expect("after probing", m.MMIORead(low+0x10, 4), 0x12345678)
	m.setCfg(a, 4, 2, 0)
	m.expect("decoding off", m.MMIORead(low+0x10, 4), 0xffffffff)
	if c.on {
		t.Error("Moved was not told that decoding stopped")
	}
}

// hostile-guest.md row 9: BARs moved in use, onto each other, over RAM and
// over the interrupt controllers.
func TestBARMoves(t *testing.T) {
	m := newMachine(t, nil)
	c, d := newCard(t), newCard(t)
	a, b := m.add(c.Function), m.add(d.Function)
	m.setCfg(a, 4, 2, memoryOn)
	m.setCfg(b, 4, 2, memoryOn)
	c.low.bytes[0], d.low.bytes[0] = 1, 2
	first, second := c.BARAddress(0), d.BARAddress(0)

	m.setCfg(a, 0x10, 4, 0xd000_0000)
	m.expect("moved", m.MMIORead(0xd000_0000, 1), 1)
	m.expect("old place", m.MMIORead(first, 1), 0xff)
	m.setCfg(a, 0x10, 4, second)
	m.expect("the other stays", m.MMIORead(second, 1), 2)
	if c.on {
		t.Error("a BAR that overlaps another decodes")
	}
	m.setCfg(b, 0x10, 4, first)
	m.expect("free again", m.MMIORead(second, 1), 1)
	m.expect("swapped", m.MMIORead(first, 1), 2)
	for _, addr := range []uint64{0, 0x10_0000, 0xfee0_0000, 0xfec0_0000, 0xe000_0000, 0xffff_c000, lowEnd, lowStart - 0x4000} {
		m.setCfg(a, 0x10, 4, addr)
		if c.on {
			t.Errorf("a BAR decodes at %#x, outside the windows", addr)
		}
	}
	m.host.Reset()
	m.expect("address after reset", uint64(m.cfg32(a, 0x10)), first)
	m.expect("command after reset", uint64(m.cfg32(a, 4)&0xffff), 0)
	m.setCfg(a, 4, 1, memoryOn)
	m.expect("decoding after reset", m.MMIORead(first, 1), 1)
}

// PCI 3.0 §6.2.2, §6.2.5.1: BARs of I/O space, which the command register's I/O bit
// turns on, and hostile-guest.md row 9 for them.
func TestPortBARs(t *testing.T) {
	m := newMachine(t, nil)
	cards := [2]*pci.Function{}
	var dev [2]scratch
	for i := range cards {
		f := newCard(t).Function
		m.check(f.AddBAR(1, pci.BAR{Size: 4, Ports: true, Device: &dev[i]}))
		cards[i] = f
	}
	a, b, plain := m.add(cards[0]), m.add(cards[1]), m.add(newCard(t).Function)
	first, second := uint16(cards[0].BARAddress(1)), uint16(cards[1].BARAddress(1))
	if first < portStart || first%4 != 0 || second < first+4 {
		t.Fatalf("ports at %#x and %#x", first, second)
	}
	m.expect("BAR", uint64(m.cfg32(a, 0x14)), uint64(first)|1)
	m.setCfg(a, 0x14, 4, 0xffffffff)
	m.expect("size probe", uint64(m.cfg32(a, 0x14)), 0xfffffffd)
	m.setCfg(a, 0x14, 4, uint64(first))
	m.setCfg(plain, 4, 2, pci.CommandIO)
	m.expect("command without ports", uint64(m.cfg32(plain, 4)&0xffff), 0)

	m.setCfg(a, 4, 2, pci.CommandMemory)
	m.expect("memory is on", uint64(m.PortIn(first, 4)), 0xffffffff)
	m.setCfg(a, 4, 2, pci.CommandIO)
	m.PortOut(first, 2, 0x1234)
	m.expect("written", uint64(m.PortIn(first, 4)), 0x1234)
	m.expect("its memory", m.MMIORead(cards[0].BARAddress(0), 1), 0xff)
	low, high := m.host.BARs()
	m.expect("memory of BARs", uint64(len(low)+len(high)), 0)

	m.setCfg(b, 4, 2, pci.CommandIO)
	m.setCfg(a, 0x14, 4, uint64(second))
	m.expect("the other stays", uint64(m.PortIn(second, 4)), 0)
	m.setCfg(b, 4, 2, 0)
	m.expect("free", uint64(m.PortIn(second, 4)), 0x1234)
	for _, at := range []uint64{0, 0x60, 0xcf8, 0xcfc, portStart - 4, portEnd, 0xffff_fffc} {
		m.setCfg(a, 0x14, 4, at)
		for _, p := range []uint64{at & 0xffff, uint64(first), uint64(second)} {
			if v := m.PortIn(uint16(p), 2); v == 0x1234 {
				t.Errorf("a BAR outside the window, at %#x, answers at %#x", at, p)
			}
		}
	}
	m.host.Reset()
	m.setCfg(a, 4, 2, pci.CommandIO)
	m.expect("after reset", uint64(m.PortIn(first, 4)), 0x1234)
	m.host.Remove(cards[0])
	m.expect("after removal", uint64(m.PortIn(first, 4)), 0xffffffff)
}

func TestWrongBARs(t *testing.T) {
	for _, b := range []pci.BAR{{}, {Size: 8}, {Size: 0x3000}, {Size: 1 << 31},
		{Ports: true}, {Ports: true, Size: 2}, {Ports: true, Size: 24}, {Ports: true, Size: 512},
		{Ports: true, Size: 16, Wide: true}, {Ports: true, Size: 16, Prefetchable: true}} {
		if pci.NewFunction("x", pci.ID{}).AddBAR(0, b) == nil {
			t.Errorf("BAR of %#x bytes was accepted", b.Size)
		}
	}
	f := pci.NewFunction("x", pci.ID{})
	if f.AddBAR(5, pci.BAR{Size: 4096, Wide: true}) == nil || f.AddBAR(6, pci.BAR{Size: 4096}) == nil || f.AddBAR(-1, pci.BAR{Size: 4096}) == nil {
		t.Error("a BAR outside the header was accepted")
	}
	if f.AddBAR(2, pci.BAR{Size: 4096, Wide: true}) != nil || f.AddBAR(3, pci.BAR{Size: 4096}) == nil {
		t.Error("a BAR inside another was accepted")
	}
	m := newMachine(t, nil)
	f = pci.NewFunction("huge", pci.ID{})
	if err := f.AddBAR(0, pci.BAR{Size: 1 << 40, Wide: true}); err != nil {
		t.Fatal(err)
	}
	if _, err := m.host.Add(f); err == nil {
		t.Error("a BAR larger than the window was given an address")
	}
}

// A BAR whose address the machine chose, because memory is there already.
func TestFixedBAR(t *testing.T) {
	m := newMachine(t, nil)
	at := func(addr uint64) (*pci.Function, error) {
		f := pci.NewFunction("fixed", pci.ID{})
		m.check(f.AddBAR(2, pci.BAR{Size: 1 << 32, Wide: true, Address: addr}))
		_, err := m.host.Add(f)
		return f, err
	}
	f, err := at(highStart + 2<<32)
	if err != nil || f.BARAddress(2) != highStart+2<<32 {
		t.Fatalf("at %#x: %v", f.BARAddress(2), err)
	}
	if f, err = at(0); err != nil || f.BARAddress(2) != highStart+3<<32 {
		t.Errorf("the next is at %#x: %v", f.BARAddress(2), err)
	}
	if f, err = at(highStart); err != nil || f.BARAddress(2) != highStart {
		t.Errorf("below is %#x: %v", f.BARAddress(2), err)
	}
	for _, addr := range []uint64{highStart + 2<<32, highStart + 4<<32 + 4096, lowStart, highEnd, 1 << 63} {
		if _, err := at(addr); err == nil {
			t.Errorf("a BAR at %#x", addr)
		}
	}
}

// PCI 3.0 §6.7: the capability list, its writable bits and its handlers.
func TestCapabilities(t *testing.T) {
	m := newMachine(t, nil)
	f := pci.NewFunction("caps", pci.ID{Vendor: 1})
	var reads, writes [][2]int
	_, err := f.AddCapability(pci.Capability{ID: 9, Body: []byte{1, 2, 3}})
	m.check(err)
	off, err := f.AddCapability(pci.Capability{
		ID: 9, Body: make([]byte, 6), Writable: []byte{0xff, 0, 0x0f},
		Reading: func(body []byte, off, n int) { reads = append(reads, [2]int{off, n}); body[5] = 0x77 },
		Written: func(_ []byte, off, n int) { writes = append(writes, [2]int{off, n}) },
	})
	m.check(err)
	a := m.add(f)
	m.expect("status", uint64(m.cfg32(a, 4)>>16), 0x10)
	m.expect("pointer", uint64(m.cfg32(a, 0x34)&0xff), 0x40)
	m.expect("first", uint64(m.cfg32(a, 0x40)), 0x02014809)
	m.expect("second's place", uint64(off), 0x48)
	m.setCfg(a, 0x48, 8, ^uint64(0))
	m.expect("second", m.MMIORead(ecamOf(a)+0x48, 8), 0x7700_000f_00ff_0009)
	if len(writes) != 1 || writes[0] != [2]int{0, 6} || len(reads) != 1 || reads[0] != [2]int{0, 6} {
		t.Errorf("handlers saw reads %v, writes %v", reads, writes)
	}
	m.setCfg(a, 0x4d, 4, 0)
	if writes[1] != [2]int{3, 3} {
		t.Errorf("a write across the end was seen as %v", writes[1])
	}
	if _, err := f.AddCapability(pci.Capability{ID: 9, Body: bytes.Repeat([]byte{0}, 200)}); err == nil {
		t.Error("a capability that does not fit was accepted")
	}
}

// PCI 3.0 §6.2.1: with more than 31 devices, slots become multi-function.
func TestManyFunctions(t *testing.T) {
	m := newMachine(t, nil)
	for i := range 31*8 + 1 {
		f := pci.NewFunction("f", pci.ID{Vendor: 1, Device: uint16(i)})
		a, err := m.host.Add(f)
		if i == 31*8 {
			if err == nil {
				t.Error("a function too many was accepted")
			}
			break
		}
		m.check(err)
		m.expect("device ID at "+a.String(), uint64(m.cfg32(a, 0)>>16), uint64(i))
	}
	m.expect("header type", uint64(m.cfg32(pci.Address{Slot: 3}, 0xc)>>16&0xff), 0x80)
	m.expect("bridge header type", uint64(m.cfg32(pci.Address{}, 0xc)>>16&0xff), 0)
	m.host.Reset()
	m.expect("header type after reset", uint64(m.cfg32(pci.Address{Slot: 3}, 0xc)>>16&0xff), 0x80)
}

func TestAccessesDoNotAllocate(t *testing.T) {
	m := newMachine(t, nil)
	c := newCard(t)
	x := msixOn(t, c)
	a := m.add(c.Function)
	if n := testing.AllocsPerRun(100, func() {
		m.cfg32(a, 0x10)
		m.setCfg(a, 0x3c, 1, 5)
		m.PortOut(0xcf8, 4, 1<<31)
		m.PortIn(0xcfc, 4)
		x.Trigger(0)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func msixOn(t testing.TB, c *card) *pci.MSIX {
	x, err := c.NewMSIX(3, 0, 0x1000, 0x2000, new(bustest.Wires))
	if err != nil {
		t.Fatal(err)
	}
	return x
}
