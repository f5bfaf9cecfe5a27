package pci_test

import (
	"errors"
	"sync"
	"testing"

	"github.com/gvmspawn/gvmspawn/devices/pci"
	"github.com/gvmspawn/gvmspawn/vmm/bus"
	"github.com/gvmspawn/gvmspawn/vmm/bus/bustest"
)

// split passes accesses to MSI-X as a device's BAR handler does.
type split struct{ m **pci.MSIX }

func (s split) at(off uint64) (bus.Device, uint64) {
	if off >= 0x2000 {
		return (*s.m).PBA(), off - 0x2000
	}
	return (*s.m).Table(), off
}

func (s split) Read(off uint64, size int) uint64 {
	d, o := s.at(off)
	return d.Read(o, size)
}

func (s split) Write(off uint64, size int, v uint64) {
	d, o := s.at(off)
	d.Write(o, size, v)
}

// msixMachine is a function with n vectors, table at BAR offset 0.
func msixMachine(t testing.TB, n int) (*machine, *bustest.Wires, *pci.MSIX, pci.Address, uint64) {
	m, w := newMachine(t, nil), new(bustest.Wires)
	f := pci.NewFunction("msix", pci.ID{Vendor: 1})
	var x *pci.MSIX
	m.check(f.AddBAR(0, pci.BAR{Size: 0x4000, Device: split{&x}}))
	x, err := f.NewMSIX(n, 0, 0, 0x2000, w)
	m.check(err)
	a := m.add(f)
	m.setCfg(a, 4, 2, memoryOn)
	return m, w, x, a, f.BARAddress(0)
}

const msg = 0xfee0_1000

func TestMSIXCapability(t *testing.T) {
	m, _, x, a, _ := msixMachine(t, 5)
	m.expect("capability", uint64(m.cfg32(a, 0x40)), 0x0004_0011)
	m.expect("table", uint64(m.cfg32(a, 0x44)), 0)
	m.expect("PBA", uint64(m.cfg32(a, 0x48)), 0x2000)
	m.setCfg(a, 0x42, 2, 0xffff)
	m.expect("writable bits", uint64(m.cfg32(a, 0x40)>>16), 0xc004)
	if !x.Enabled() {
		t.Error("not enabled")
	}
	m.setCfg(a, 0x43, 1, 0) // the high byte alone
	if x.Enabled() {
		t.Error("still enabled")
	}
}

// PCI 3.0 §6.8.2.9, §6.8.3.4: masked vectors pend, unmasking sends once.
func TestMSIXMasking(t *testing.T) {
	m, w, x, a, bar := msixMachine(t, 70)
	pba := bar + 0x2000
	m.expect("vector control at reset", m.MMIORead(bar+16+12, 4), 1)
	x.Trigger(1)
	m.expect("pending while disabled", m.MMIORead(pba, 8), 0)
	m.setCfg(a, 0x42, 2, 0x8000)
	m.MMIOWrite(bar+16, 8, msg)
	m.MMIOWrite(bar+16+8, 4, 0x41)
	x.Trigger(1)
	x.Trigger(1)
	x.Trigger(69)
	m.expect("sent while masked", uint64(w.MSI(1).Sent()), 0)
	m.expect("pending", m.MMIORead(pba, 8), 2)
	m.expect("pending, odd access", m.MMIORead(pba+8, 1), 1<<5)
	m.MMIOWrite(pba, 8, 0)
	m.expect("PBA is read-only", m.MMIORead(pba, 8), 2)
	m.MMIOWrite(bar+16+12, 4, 0)
	m.expect("sent by unmasking", uint64(w.MSI(1).Sent()), 1)
	m.expect("pending bit clears", m.MMIORead(pba, 8), 0)
	addr, data := w.MSI(1).Message()
	m.expect("address", addr, msg)
	m.expect("data", uint64(data), 0x41)
	x.Trigger(1)
	m.expect("sent directly", uint64(w.MSI(1).Sent()), 2)

	m.setCfg(a, 0x42, 2, 0xc000) // function mask
	x.Trigger(1)
	m.expect("sent under the function mask", uint64(w.MSI(1).Sent()), 2)
	m.setCfg(a, 0x42, 2, 0x8000)
	m.expect("sent after it", uint64(w.MSI(1).Sent()), 3)
	m.expect("routes", uint64(w.MSI(1).Routes()), 1)

	m.MMIOWrite(bar+16+8, 4, 0x42) // while unmasked: takes effect at once
	m.expect("routes after a change", uint64(w.MSI(1).Routes()), 2)
	m.host.Reset()
	x.Trigger(1)
	m.expect("sent after reset", uint64(w.MSI(1).Sent()), 3)
}

// hostile-guest.md row 9: no message leaves for anything but the local APICs;
// vectors and table accesses beyond the end are harmless.
func TestMSIXHostile(t *testing.T) {
	m, w, x, a, bar := msixMachine(t, 2)
	m.setCfg(a, 0x42, 2, 0x8000)
	for _, addr := range []uint64{0, 0x1000, 0xfed0_0000, 0xfef0_0000, 0x1_fee0_0000, ^uint64(0)} {
		m.MMIOWrite(bar, 8, addr)
		m.MMIOWrite(bar+12, 4, 0)
		x.Trigger(0)
	}
	m.expect("messages to elsewhere", uint64(w.MSI(0).Sent()), 0)
	m.MMIOWrite(bar, 8, msg)
	x.Trigger(0)
	m.expect("messages", uint64(w.MSI(0).Sent()), 1)
	x.Trigger(2)
	x.Trigger(0xffff)
	for off := uint64(0); off < 0x3000; off += 7 {
		for _, size := range []int{1, 2, 4, 8} {
			m.MMIOWrite(bar+off, size, ^uint64(0))
			m.MMIORead(bar+off, size)
		}
	}
	m.expect("vector control keeps reserved bits zero", m.MMIORead(bar+12, 4), 1)
	m.expect("behind the table", m.MMIORead(bar+32, 8), 0)
	// An access across two entries writes both.
	m.MMIOWrite(bar+14, 4, 0x11220000)
	m.expect("second entry", m.MMIORead(bar+16, 2), 0x1122)
}

// Triggers race with masking; nothing is lost.
func TestMSIXConcurrent(t *testing.T) {
	m, w, x, a, bar := msixMachine(t, 1)
	m.setCfg(a, 0x42, 2, 0x8000)
	m.MMIOWrite(bar, 8, msg)
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			for range 2000 {
				x.Trigger(0)
			}
		})
	}
	for i := range 2000 {
		m.MMIOWrite(bar+12, 4, uint64(i%2))
		if i%100 == 0 {
			m.setCfg(a, 0x42, 2, 0xc000)
			m.setCfg(a, 0x42, 2, 0x8000)
		}
	}
	m.MMIOWrite(bar+12, 4, 0)
	wg.Wait()
	before := w.MSI(0).Sent()
	x.Trigger(0)
	if before == 0 || w.MSI(0).Sent() != before+1 || m.MMIORead(bar+0x2000, 8) != 0 {
		t.Errorf("%d messages, then %d; pending %#x", before, w.MSI(0).Sent(), m.MMIORead(bar+0x2000, 8))
	}
}

// noMSI is a machine that has run out of interrupts.
type noMSI struct {
	bustest.Wires
	left int
}

func (n *noMSI) NewMSI() (bus.MSI, error) {
	if n.left == 0 {
		return nil, errors.New("no more")
	}
	n.left--
	return n.Wires.NewMSI()
}

func TestMSIXFailure(t *testing.T) {
	w := &noMSI{left: 2}
	f := pci.NewFunction("msix", pci.ID{})
	if _, err := f.NewMSIX(3, 0, 0, 0x2000, w); err == nil {
		t.Error("no error without interrupts")
	}
	if !w.MSI(0).Closed() || !w.MSI(1).Closed() {
		t.Error("message sources leak")
	}
	for _, n := range []int{0, 2049} {
		if _, err := f.NewMSIX(n, 0, 0, 0x2000, w); err == nil {
			t.Errorf("%d vectors were accepted", n)
		}
	}
}
