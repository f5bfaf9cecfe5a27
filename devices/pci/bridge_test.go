package pci_test

import (
	"testing"

	"github.com/gvmspawn/gvmspawn/devices/pci"
)

// firmwareMachine is a bus whose ECAM firmware places.
func firmwareMachine(t testing.TB) *machine {
	m := &machine{TB: t}
	h, err := pci.NewHost(&m.MMIO, pci.Config{
		Low: pci.Window{Start: 0x8000_0000, End: 0xfc00_0000}, High: pci.Window{Start: highStart, End: highEnd},
	})
	m.check(err)
	m.host = h
	m.check(m.Port.Map("pci address", 0xcf8, 4, h.AddressPort()))
	m.check(m.Port.Map("pci data", 0xcfc, 4, h.DataPort()))
	return m
}

// bridge writes a register of the host bridge by configuration mechanism #1.
func (m *machine) bridge(reg, v uint32) {
	m.PortOut(0xcf8, 4, 1<<31|reg)
	m.PortOut(0xcfc, 4, v)
}

// What OVMF does (PciExBarInitialization): off, high half, low half with the
// enable. 3 Series chipset datasheet §5.1.17.
func TestPCIEXBAR(t *testing.T) {
	m := firmwareMachine(t)
	const nothing, id = 0xffffffff, 0x29c08086
	at := func(base uint64) uint64 { return m.MMIORead(base, 4) }
	m.expect("ECAM before", at(0xb000_0000), nothing)
	m.bridge(0x60, 0)
	m.bridge(0x64, 0)
	m.bridge(0x60, 0xb000_0001)
	m.expect("ECAM", at(0xb000_0000), id)
	m.expect("its base", m.host.ECAMBase(), 0xb000_0000)
	m.expect("the last bus", at(0xbff0_0000), nothing)
	m.bridge(0x60, 0xe000_0003)
	m.expect("ECAM moved", at(0xe000_0000), id)
	m.expect("ECAM where it was", at(0xb000_0000), nothing)
	m.MMIOWrite(0xe000_0060, 4, 0xb000_0001) // from where it goes away
	m.expect("ECAM moved by itself", at(0xb000_0000), id)
	for _, v := range []uint32{0xb000_0000, 0xf000_0001, 0x1000_0001, 0x7000_0001} {
		m.bridge(0x60, v)
		m.expect("ECAM off or outside", m.host.ECAMBase(), 0)
	}
	m.bridge(0x60, 0xc000_0001)
	m.host.Reset()
	m.expect("ECAM after reset", at(0xc000_0000), nothing)
	m.bridge(0x9c, 0xffff_ffff)
	m.expect("SMRAM with its writable bits", uint64(m.PortIn(0xcfc, 4)), 0x00ff_5a00)
}

// A BAR where ECAM would be keeps it away, and the other way round.
func TestECAMOverlap(t *testing.T) {
	m := firmwareMachine(t)
	c := newCard(t)
	a := m.add(c.Function)
	m.PortOut(0xcf8, 4, 1<<31|uint32(a.Slot)<<11|4)
	m.PortOut(0xcfc, 2, memoryOn)
	m.bridge(0x60, uint32(c.BARAddress(0))&0xf000_0000|1)
	m.expect("ECAM over a BAR", m.host.ECAMBase(), 0)
	low, high := m.host.BARs()
	if len(low) != 1 || len(high) != 1 || low[0].Start != c.BARAddress(0) || high[0].Start != c.BARAddress(2) {
		t.Errorf("BARs %v, %v", low, high)
	}
}
