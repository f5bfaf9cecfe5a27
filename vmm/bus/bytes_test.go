package bus

import "testing"

type byteMemory [8]uint8

func (m *byteMemory) ReadByteAt(off uint64) uint8     { return m[off] }
func (m *byteMemory) WriteByteAt(off uint64, v uint8) { m[off] = v }

func TestByteChip(t *testing.T) {
	m := &byteMemory{}
	WriteBytes(m, 0, 8, 0x8877665544332211)
	for _, c := range []struct {
		off  uint64
		size int
		want uint64
	}{{0, 1, 0x11}, {7, 1, 0x88}, {1, 2, 0x3322}, {3, 4, 0x77665544}, {0, 8, 0x8877665544332211}} {
		if got := ReadBytes(m, c.off, c.size); got != c.want {
			t.Errorf("%d bytes at %d: %#x, want %#x", c.size, c.off, got, c.want)
		}
	}
	if n := testing.AllocsPerRun(100, func() { WriteBytes(m, 0, 4, ReadBytes(m, 0, 4)) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
