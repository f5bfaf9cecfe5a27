package ioapic

import (
	"testing"

	"github.com/gvmspawn/gvmspawn/vmm/bus"
	"github.com/gvmspawn/gvmspawn/vmm/layout"
)

type sent struct {
	addr uint64
	data uint32
}

type rig struct {
	*IOAPIC
	sent   []sent
	routes map[int]Message
}

func newRig() *rig {
	r := &rig{routes: map[int]Message{}}
	r.IOAPIC = New(Config{
		Send:   func(addr uint64, data uint32) { r.sent = append(r.sent, sent{addr, data}) },
		Routed: func(pin int, m Message) { r.routes[pin] = m },
	})
	return r
}

func (r *rig) set(index uint8, v uint32) {
	r.Write(regSelect, 4, uint64(index))
	r.Write(regWindow, 4, uint64(v))
}

func (r *rig) get(index uint8) uint32 {
	r.Write(regSelect, 4, uint64(index))
	return uint32(r.Read(regWindow, 4))
}

// route writes a pin's entry, the high half first.
func (r *rig) route(pin int, e uint64) {
	r.set(uint8(0x11+2*pin), uint32(e>>32))
	r.set(uint8(0x10+2*pin), uint32(e))
}

func (r *rig) take() (s []sent) { s, r.sent = r.sent, nil; return s }

// TestRegisters: 82093AA §3.2.
func TestRegisters(t *testing.T) {
	r := newRig()
	if v := r.get(1); v != 0x170020 {
		t.Errorf("version %#x", v)
	}
	r.set(0, 0xffff_ffff)
	if v := r.get(0); v != 0x0f00_0000 {
		t.Errorf("ID %#x", v)
	}
	for pin := range Pins {
		if r.get(uint8(0x10+2*pin)) != 0x10000 || r.get(uint8(0x11+2*pin)) != 0 {
			t.Errorf("pin %d is not masked after reset", pin)
		}
		r.route(pin, ^uint64(0))
		if lo, hi := r.get(uint8(0x10+2*pin)), r.get(uint8(0x11+2*pin)); lo != 0x1afff || hi != 0xff00_0000 {
			t.Errorf("pin %d: %#x %#x, read-only or reserved bits were written", pin, lo, hi)
		}
	}
	if r.get(0x10+2*Pins) != 0 || r.get(0xff) != 0 {
		t.Error("registers behind the table")
	}
}

// TestEdge: a rising edge sends once; masked, it is lost.
func TestEdge(t *testing.T) {
	r := newRig()
	l := r.NewLine(4)
	l.Set(true)
	l.Set(false)
	r.route(4, 0x03<<56|0x0941) // lowest priority, logical
	if len(r.take()) != 0 {
		t.Error("an edge on a masked pin was held")
	}
	l.Set(true)
	l.Set(true)
	l.Set(false)
	if s := r.take(); len(s) != 1 || s[0] != (sent{0xfee03004, 0x141}) {
		t.Errorf("sent %#x", s)
	}
	r.EOI(0x41)
	if len(r.take()) != 0 {
		t.Error("EOI of an edge sent")
	}
}

// TestLevel: sent once until its EOI, again while still asserted, and held
// while masked.
func TestLevel(t *testing.T) {
	r := newRig()
	l := r.NewLine(9)
	l.Set(true)
	r.route(9, 1<<56|1<<16|0x8031)
	if len(r.take()) != 0 {
		t.Fatal("sent while masked")
	}
	r.route(9, 1<<56|0x8031)
	if s := r.take(); len(s) != 1 || s[0] != (sent{0xfee01000, 0xc031}) {
		t.Fatalf("sent %#x", s)
	}
	if r.get(0x22)&(1<<14) == 0 {
		t.Error("no remote IRR")
	}
	l.Set(false)
	l.Set(true)
	r.EOI(0x30)
	if len(r.take()) != 0 {
		t.Error("sent again before EOI")
	}
	r.EOI(0x31)
	if len(r.take()) != 1 {
		t.Error("not sent again after EOI")
	}
	l.Set(false)
	r.Write(regEOI, 4, 0x31)
	if len(r.take()) != 0 || r.get(0x22)&(1<<14) != 0 {
		t.Error("EOI register")
	}
}

// TestEOIByTriggerMode: software without the EOI register switches to edge and
// back to clear the remote IRR.
func TestEOIByTriggerMode(t *testing.T) {
	r := newRig()
	l := r.NewLine(9)
	r.route(9, 0x8031)
	l.Set(true)
	r.take()
	r.set(0x22, 0x10031)
	r.set(0x22, 0x8031)
	if len(r.take()) != 1 {
		t.Error("remote IRR survived edge mode")
	}
}

// TestSharedLine: a pin is asserted while any of its lines is.
func TestSharedLine(t *testing.T) {
	r := newRig()
	a, b := r.NewLine(16), r.NewLine(16)
	r.route(16, 0x8050)
	a.Set(true)
	b.Set(true)
	a.Set(false)
	r.EOI(0x50)
	if len(r.take()) != 2 {
		t.Error("the second line does not hold the pin")
	}
	b.Set(false)
	r.EOI(0x50)
	if len(r.take()) != 0 {
		t.Error("the pin stays asserted")
	}
}

// TestRouted: what an engine with routes in the kernel is told.
func TestRouted(t *testing.T) {
	r := newRig()
	if len(r.routes) != Pins || !r.routes[0].Masked {
		t.Error("not told of the masked pins")
	}
	r.route(4, 2<<56|0x41)
	if r.routes[4] != (Message{Addr: 0xfee02000, Data: 0x41}) {
		t.Errorf("route %+v", r.routes[4])
	}
}

// TestEveryAccess: row 1 of the hostile guest, with every index.
func TestEveryAccess(t *testing.T) {
	r := newRig()
	l := r.NewLine(3)
	for index := range uint64(256) {
		for _, size := range []int{1, 2, 4, 8} {
			for _, off := range []uint64{0, 1, 0xf, 0x10, 0x11, 0x14, 0x20, 0x40, 0x41, layout.IOAPICSize - uint64(size)} {
				for _, v := range []uint64{0, ^uint64(0), 0x8000} {
					r.Write(regSelect, 1, index)
					r.Write(off, size, v)
					if got := r.Read(off, size); got&^bus.Ones(size) != 0 {
						t.Fatalf("%d bytes at %#x read %#x", size, off, got)
					}
					l.Set(v == 0)
				}
			}
		}
	}
}

func TestNoAllocations(t *testing.T) {
	io := New(Config{Send: func(uint64, uint32) {}})
	l := io.NewLine(4)
	if n := testing.AllocsPerRun(100, func() {
		io.Write(regSelect, 4, 0x18)
		io.Write(regWindow, 4, 0x8041)
		l.Set(true)
		io.EOI(0x41)
		l.Set(false)
		io.Read(regWindow, 4)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func FuzzAccess(f *testing.F) {
	f.Add([]byte{0x10, 0x80, 0x41, 0xf0, 1, 0})
	f.Fuzz(func(t *testing.T, ops []byte) {
		r := newRig()
		var lines [Pins]*Line
		for i := range lines {
			lines[i] = r.NewLine(i)
		}
		for ; len(ops) >= 3; ops = ops[3:] {
			if ops[0]&0x80 != 0 {
				lines[int(ops[0])%Pins].Set(ops[1]&1 != 0)
				r.EOI(ops[2])
				continue
			}
			r.set(ops[0], uint32(ops[1])<<8|uint32(ops[2]))
			for pin, e := range r.entries {
				if e&entryRemoteIRR != 0 && e&entryLevel == 0 {
					t.Fatalf("pin %d: remote IRR on an edge", pin)
				}
			}
		}
	})
}
