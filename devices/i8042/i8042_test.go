package i8042

import "testing"

func newRig() (c *Controller, resets *int) {
	resets = new(int)
	return New(func() { *resets++ }), resets
}

// TestReset: the commands with which systems reset a PC.
func TestReset(t *testing.T) {
	for v := range uint64(256) {
		c, resets := newRig()
		c.Command().Write(0, 1, v)
		want := 0
		if v >= 0xf0 && v&1 == 0 {
			want = 1
		}
		if *resets != want {
			t.Errorf("command %#x: %d resets", v, *resets)
		}
	}
	c, resets := newRig()
	c.Command().Write(0, 1, 0xd1)
	c.Data().Write(0, 1, 0xdf)
	c.Data().Write(0, 1, 0xfe) // no parameter any more
	if *resets != 0 {
		t.Error("enabling A20 reset the machine")
	}
	c.Command().Write(0, 1, 0xd1)
	c.Data().Write(0, 1, 0xde)
	if *resets != 1 {
		t.Error("output port bit 0 did not reset the machine")
	}
}

// TestProbe: a driver finds a controller that answers at once and no devices.
func TestProbe(t *testing.T) {
	c, _ := newRig()
	ask := func(cmd uint64) uint64 {
		t.Helper()
		c.Command().Write(0, 1, cmd)
		if c.Command().Read(0, 1)&3 != 1 {
			t.Errorf("command %#x: no answer", cmd)
		}
		v := c.Data().Read(0, 1)
		if c.Command().Read(0, 1)&1 != 0 {
			t.Errorf("command %#x: answer stays", cmd)
		}
		return v
	}
	if c.Command().Read(0, 1)&3 != 0 {
		t.Error("not ready after reset")
	}
	if ask(0xaa) != 0x55 || ask(0xab) == 0 || ask(0xa9) == 0 {
		t.Error("tests")
	}
	c.Command().Write(0, 1, 0x60)
	c.Data().Write(0, 1, 0x47)
	if ask(0x20) != 0x47 {
		t.Error("configuration byte")
	}
	c.Data().Write(0, 1, 0xf2) // identify keyboard
	if c.Command().Read(0, 1)&0x41 != 0x41 || c.Data().Read(0, 1) != 0xfe {
		t.Error("a silent keyboard is not reported")
	}
}

func FuzzAccess(f *testing.F) {
	f.Add([]byte{0x60, 0xd1, 0xfe})
	f.Fuzz(func(t *testing.T, ops []byte) {
		c, _ := newRig()
		for i, v := range ops {
			d := c.Data()
			if i%2 == 0 {
				d = c.Command()
			}
			d.Write(0, 1, uint64(v))
			d.Read(0, 1)
		}
	})
}

// A keyboard acknowledges everything, and says who it is.
func TestKeyboard(t *testing.T) {
	c := New(func() {})
	c.PlugKeyboard()
	for _, row := range []struct {
		send uint64
		want []uint64
	}{{0xf4, []uint64{0xfa}}, {0xff, []uint64{0xfa, 0xaa}}, {0xf2, []uint64{0xfa, 0xab, 0x83}}, {0, []uint64{0xfa}}} {
		c.Data().Write(0, 1, row.send)
		for _, want := range row.want {
			if st := c.Command().Read(0, 1); st&uint64(statusOBF|statusTimeout) != uint64(statusOBF) {
				t.Errorf("%#x: status %#x", row.send, st)
			}
			if got := c.Data().Read(0, 1); got != want {
				t.Errorf("%#x: %#x, want %#x", row.send, got, want)
			}
		}
		if c.Command().Read(0, 1)&uint64(statusOBF) != 0 {
			t.Errorf("%#x: there is more", row.send)
		}
	}
	c.Command().Write(0, 1, cmdTestKeyboard)
	if got := c.Data().Read(0, 1); got != 0 {
		t.Errorf("interface test %#x", got)
	}
}
