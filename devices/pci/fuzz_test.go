package pci_test

import (
	"encoding/binary"
	"testing"
)

// FuzzAccesses drives random accesses to both configuration mechanisms and to
// the BARs, wherever they are then. Nothing may panic, and a BAR stays inside
// the windows.
func FuzzAccesses(f *testing.F) {
	f.Add([]byte{0, 0x10, 0x80, 0, 4, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0})
	f.Add([]byte{0, 4, 0x80, 0, 2, 2, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 3, 1, 2, 3, 4, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, in []byte) {
		m, _, x, a, bar := msixMachine(t, 3)
		c := newCard(t)
		m.add(c.Function)
		for ; len(in) >= 13; in = in[13:] {
			off := uint64(binary.LittleEndian.Uint32(in[1:]) & 0xffffff)
			size := 1 << (in[4] & 3)
			v := binary.LittleEndian.Uint64(in[5:])
			switch in[0] & 7 {
			case 0:
				m.MMIOWrite(ecamBase+off, size, v)
			case 1:
				m.MMIORead(ecamBase+off, size)
			case 2:
				m.MMIOWrite(bar+off&0x3fff, size, v)
			case 3:
				m.MMIORead(bar+off&0x3fff, size)
			case 4:
				m.PortOut(0xcf8+uint16(off)&7, min(size, 4), uint32(v))
			case 5:
				m.PortIn(0xcf8+uint16(off)&7, min(size, 4))
			case 6:
				x.Trigger(uint16(v))
			case 7:
				m.MMIOWrite(ecamOf(a)+off&0xff, size, v)
			}
			if c.on && (c.at < lowStart || c.at+0x4000 > lowEnd) && (c.at < highStart || c.at+0x4000 > highEnd) {
				t.Fatalf("BAR 0 decodes at %#x", c.at)
			}
		}
	})
}
