package pci_test

import (
	"sync"
	"testing"

	"github.com/gvmspawn/gvmspawn/devices/pci"
)

const hotplugBase = 0xfed3_0000

// hotplugMachine has slots 2 to 4 for what comes and goes.
func hotplugMachine(t *testing.T) (m *machine, h *pci.Hotplug, raised *int, ejected *[]*pci.Function) {
	m, raised, ejected = newMachine(t, nil), new(int), new([]*pci.Function)
	m.add(newCard(t).Function) // slot 1
	h = pci.NewHotplug(m.host, 1<<0|1<<2|1<<3|1<<4, func() { *raised++ }, func(f *pci.Function) { *ejected = append(*ejected, f) })
	m.check(m.MMIO.Map("hot-plug", hotplugBase, pci.HotplugSize, h))
	return m, h, raised, ejected
}

func (m *machine) hot(off uint64) uint64 { return m.MMIORead(hotplugBase+off, 4) }

// A function comes, is used, is asked to go, and goes when the guest says so.
func TestHotplug(t *testing.T) {
	m, h, raised, ejected := hotplugMachine(t)
	m.expect("slots", uint64(h.Slots()), 1<<2|1<<3|1<<4)
	a, c := pci.Address{Slot: 2}, newCard(t)
	m.expect("before", uint64(m.cfg32(a, 0)), 0xffffffff)
	m.check(h.Add(c.Function))
	m.expect("events", uint64(*raised), 1)
	m.expect("up", m.hot(0), 1<<2)
	m.expect("up, read again", m.hot(0), 0)
	m.expect("ID", uint64(m.cfg32(a, 0)), 0x10411af4)
	m.setCfg(a, 4, 2, memoryOn)
	bar := c.BARAddress(0)
	m.MMIOWrite(bar+8, 4, 0x1234)
	m.expect("BAR", m.MMIORead(bar+8, 4), 0x1234)

	if !h.Remove(c.Function) {
		t.Error("not found")
	}
	m.expect("events", uint64(*raised), 2)
	m.expect("down", m.hot(4), 1<<2)
	m.expect("still there", uint64(m.cfg32(a, 0)), 0x10411af4)
	m.MMIOWrite(hotplugBase+8, 4, 1<<2)
	m.expect("gone", uint64(m.cfg32(a, 0)), 0xffffffff)
	m.expect("BAR gone", m.MMIORead(bar+8, 4), 0xffffffff)
	if len(*ejected) != 1 || (*ejected)[0] != c.Function || c.on || h.Remove(c.Function) {
		t.Errorf("ejected %v, decoding %v", *ejected, c.on)
	}
	c.WriteConfig(4, 2, memoryOn) // by a CPU that was inside
	m.expect("BAR after a late write", m.MMIORead(bar+8, 4), 0xffffffff)
	m.check(h.Add(newCard(t).Function))
	m.expect("the slot again", uint64(m.cfg32(a, 0)), 0x10411af4)
}

// What a guest must not do does nothing, and a full bus says so.
func TestHotplugHostile(t *testing.T) {
	m, h, _, ejected := hotplugMachine(t)
	for range 3 {
		m.check(h.Add(newCard(t).Function))
	}
	if h.Add(newCard(t).Function) == nil {
		t.Error("a fourth function in three slots")
	}
	m.MMIOWrite(hotplugBase+8, 4, 1<<0|1<<1|1<<5|1<<31) // the bridge, a fixed one, nothing
	for off := range uint64(pci.HotplugSize) {
		for _, size := range []int{1, 2, 4, 8} {
			if off+uint64(size) <= pci.HotplugSize && (off != 8 || size != 4) {
				m.MMIOWrite(hotplugBase+off, size, ^uint64(0))
				m.MMIORead(hotplugBase+off, size)
			}
		}
	}
	if len(*ejected) != 0 || len(m.host.Functions()) != 5 {
		t.Errorf("%d ejected, %d functions", len(*ejected), len(m.host.Functions()))
	}
	m.MMIOWrite(hotplugBase+8, 4, 0xffffffff)
	m.MMIOWrite(hotplugBase+8, 4, 0xffffffff)
	if len(*ejected) != 3 || len(m.host.Functions()) != 2 {
		t.Errorf("%d ejected, %d functions", len(*ejected), len(m.host.Functions()))
	}
}

// Addresses come back: more functions than the window has room for, one after
// the other.
func TestHotplugAddresses(t *testing.T) {
	m, h, _, _ := hotplugMachine(t)
	for range 300 {
		f := pci.NewFunction("card", pci.ID{Vendor: 1})
		m.check(f.AddBAR(0, pci.BAR{Size: 4 << 20, Device: new(scratch)}))
		m.check(h.Add(f))
		if a := f.BARAddress(0); a < lowStart || a >= lowEnd {
			t.Fatalf("BAR at %#x", a)
		}
		m.MMIOWrite(hotplugBase+8, 4, 1<<2)
	}
}

// The host adds and asks while CPUs eject, configure and look.
func TestHotplugRace(t *testing.T) {
	m := newMachine(t, nil)
	h := pci.NewHotplug(m.host, 0xfffffffe, func() {}, func(*pci.Function) {})
	m.check(m.MMIO.Map("hot-plug", hotplugBase, pci.HotplugSize, h))
	var wg sync.WaitGroup
	for cpu := range 2 {
		wg.Go(func() {
			for i := range 2000 {
				a := pci.Address{Slot: uint8(i % 32)}
				m.setCfg(a, 4, 2, memoryOn)
				m.setCfg(a, 0x10, 4, uint64(lowStart+0x4000*i))
				m.cfg32(a, 0x10)
				m.hot(uint64(4 * cpu))
				if i%16 == 0 {
					m.MMIOWrite(hotplugBase+8, 4, uint64(i)*0x9e3779b1)
				}
			}
		})
	}
	for range 500 {
		c := newCard(t)
		if h.Add(c.Function) == nil {
			h.Remove(c.Function)
		}
		m.host.Functions()
	}
	wg.Wait()
}
