package power

import "testing"

// Firmware for a Q35 powers off by PM1_CNT with sleep type 0, and reads the
// timer at PMBASE + 8 (ICH9 datasheet §13.8.3).
func TestICH9(t *testing.T) {
	off := 0
	c := &ICH9{Timer: PMTimer{fixed(1e9)}, PowerOff: func() { off++ }}
	if got := c.Read(8, 4); got != 3579545 {
		t.Errorf("timer %d", got)
	}
	c.Write(8, 4, 1)
	for _, w := range []struct {
		off  uint64
		size int
		v    uint64
		want int
	}{
		{4, 2, 1 << 10, 0}, {4, 2, 1<<13 | 5<<10, 0}, {4, 2, 1<<13 | 1<<10, 0}, {4, 1, 0xff, 0}, {2, 2, 0xffff, 0},
		{4, 2, 1 << 13, 1}, {4, 4, 1 << 13, 1}, {5, 1, 1 << 5, 1}, {0, 8, 1 << (13 + 32), 1},
	} {
		off = 0
		c.Write(w.off, w.size, w.v)
		if off != w.want {
			t.Errorf("%d bytes %#x at %d: %d power-offs, want %d", w.size, w.v, w.off, off, w.want)
		}
	}
	c.Write(0, 4, 0x0123_ffff)
	if got := c.Read(0, 4); got != 0x0123_0000 {
		t.Errorf("PM1 status and enable %#x", got)
	}
	c.Write(4, 2, 1)
	if got := c.Read(4, 2); got != 1 {
		t.Errorf("SCI_EN: %#x", got)
	}
	c.Reset()
	if got := c.Read(0, 8); got != 0 {
		t.Errorf("after reset %#x", got)
	}
}

func TestAPM(t *testing.T) {
	var got []uint8
	a := &APM{Command: func(v uint8) { got = append(got, v) }}
	a.Write(1, 1, 7)
	a.Write(0, 2, 0x0902)
	if len(got) != 1 || got[0] != 2 || a.Read(0, 2) != 0x0902 {
		t.Errorf("commands %v, registers %#x", got, a.Read(0, 2))
	}
}

// FuzzICH9: hostile-guest.md row 26: the power-off comes from PM1_CNT alone.
func FuzzICH9(f *testing.F) {
	f.Add([]byte{5, 0, 0x20, 8, 3, 1})
	f.Fuzz(func(t *testing.T, ops []byte) {
		off := 0
		c := &ICH9{Timer: PMTimer{fixed(5)}, PowerOff: func() { off++ }}
		a := &APM{}
		for ; len(ops) >= 3; ops = ops[3:] {
			size := 1 << (ops[1] & 3)
			at := uint64(ops[0]) % (ICH9Size - uint64(size) + 1)
			before := off
			c.Write(at, size, uint64(ops[2])*0x0101010101010101)
			c.Read(at, size)
			a.Write(uint64(ops[0]&1), 1, uint64(ops[2]))
			if off != before && (at > 5 || at+uint64(size) <= 5) {
				t.Fatalf("a write at %d powered off", at)
			}
		}
	})
}
