package pvpanic

import "testing"

func TestEvents(t *testing.T) {
	n := 0
	d := &Device{Func: func() { n++ }}
	if v := d.Read(0, 1); v != 3 {
		t.Errorf("events %#x", v)
	}
	for _, c := range []struct {
		v    uint64
		want int
	}{{0, 0}, {CrashLoaded, 0}, {1 << 2, 0}, {Panicked | CrashLoaded, 0}, {Panicked, 1}, {0xff &^ CrashLoaded, 2}} {
		if d.Write(0, 1, c.v); n != c.want {
			t.Errorf("after %#x %d reports, want %d", c.v, n, c.want)
		}
	}
}

func FuzzAccess(f *testing.F) {
	f.Add(uint64(1), uint8(1))
	f.Fuzz(func(t *testing.T, v uint64, size uint8) {
		d := &Device{Func: func() {}}
		s := 1 << (size & 3)
		d.Write(0, s, v)
		if d.Read(0, s)&0xff != 3 {
			t.Error("events")
		}
	})
}
