package pic

import (
	"testing"

	"github.com/gvmspawn/gvmspawn/vmm/bus"
)

type rig struct {
	*Pair
	out   bool
	edges int
}

// newRig is a pair as firmware sets it up: vectors 8 and 0x70, nothing masked.
func newRig() *rig {
	r := &rig{}
	r.Pair = New(func(level bool) { r.out = level; r.edges++ })
	r.init(0x11, 0x01)
	return r
}

func (r *rig) init(icw1, icw4 uint8) {
	for n, base := range []uint64{8, 0x70} {
		p := r.Ports(n)
		p.Write(0, 1, uint64(icw1))
		p.Write(1, 1, base)
		p.Write(1, 1, []uint64{4, 2}[n])
		p.Write(1, 1, uint64(icw4))
		p.Write(1, 1, 0)
	}
}

func (r *rig) pulse(irq int) { r.Line(irq).Set(true); r.Line(irq).Set(false) }
func (r *rig) eoi(n int)     { r.Ports(n).Write(0, 1, 0x20) }

func (r *rig) take(t *testing.T, want uint8) {
	t.Helper()
	if !r.out {
		t.Fatalf("no request, want vector %#x", want)
	}
	if v := r.Ack(); v != want {
		t.Fatalf("vector %#x, want %#x", v, want)
	}
}

func (r *rig) idle(t *testing.T) {
	t.Helper()
	if r.out {
		t.Fatal("a request")
	}
}

// TestPriority: fully nested mode; higher ones interrupt, lower ones wait.
func TestPriority(t *testing.T) {
	r := newRig()
	r.idle(t)
	r.pulse(4)
	r.take(t, 12)
	r.idle(t)
	r.pulse(5)
	r.idle(t)
	r.pulse(1)
	r.take(t, 9)
	r.eoi(0)
	r.idle(t)
	r.eoi(0)
	r.take(t, 13)
	r.eoi(0)
	r.idle(t)
}

// TestCascade: inputs 8 to 15 come through input 2.
func TestCascade(t *testing.T) {
	r := newRig()
	r.pulse(12)
	r.pulse(3)
	r.pulse(0)
	r.take(t, 8)
	r.eoi(0)
	r.take(t, 0x74)
	r.pulse(8)
	r.idle(t) // the first chip still serves input 2
	r.eoi(1)
	r.idle(t)
	r.eoi(0)
	r.take(t, 0x70)
	r.eoi(1)
	r.eoi(0)
	r.take(t, 11)
}

// TestMask: OCW1; an edge is held while masked.
func TestMask(t *testing.T) {
	r := newRig()
	r.Ports(0).Write(1, 1, 0xff)
	r.pulse(6)
	r.idle(t)
	if r.Ports(0).Read(1, 1) != 0xff || r.Ports(0).Read(0, 1) != 0x40 {
		t.Error("IMR or IRR reads wrong")
	}
	r.Ports(0).Write(1, 1, 0xbf)
	r.take(t, 14)
	r.Ports(0).Write(0, 1, 0x0b) // read ISR
	if r.Ports(0).Read(0, 1) != 0x40 {
		t.Error("ISR reads wrong")
	}
}

// TestLevel: ELCR, a level asks as long as it lasts and withdraws.
func TestLevel(t *testing.T) {
	r := newRig()
	r.ELCR().Write(0, 2, 0xffff)
	if got := r.ELCR().Read(0, 2); got != 0xdef8 {
		t.Errorf("ELCR %#x", got)
	}
	l := r.Line(5)
	l.Set(true)
	r.take(t, 13)
	r.idle(t)
	r.eoi(0)
	r.take(t, 13)
	l.Set(false)
	r.eoi(0)
	r.idle(t)
	l.Set(true)
	l.Set(false)
	r.idle(t)
}

// TestSpurious: an acknowledge without a request gives input 7.
func TestSpurious(t *testing.T) {
	r := newRig()
	if v := r.Ack(); v != 15 {
		t.Errorf("vector %#x", v)
	}
	r.Ports(0).Write(0, 1, 0x0b)
	if r.Ports(0).Read(0, 1) != 0 {
		t.Error("a spurious interrupt is in service")
	}
}

// TestAckEdge: the output falls with each acknowledge, so that an edge-
// triggered CPU pin sees the next request.
func TestAckEdge(t *testing.T) {
	r := newRig()
	r.init(0x11, 0x03) // automatic EOI
	r.pulse(3)
	r.pulse(4)
	n := r.edges
	r.take(t, 11)
	if !r.out || r.edges != n+2 {
		t.Errorf("output %v after %d edges", r.out, r.edges-n)
	}
	r.take(t, 12)
	r.idle(t)
}

// TestRotation: OCW2.
func TestRotation(t *testing.T) {
	r := newRig()
	r.Ports(0).Write(0, 1, 0xc4) // set priority: 4 lowest, 5 highest
	r.pulse(4)
	r.pulse(5)
	r.take(t, 13)
	r.Ports(0).Write(0, 1, 0xa0) // rotate on EOI: 5 lowest, 6 highest
	r.take(t, 12)
	r.Ports(0).Write(0, 1, 0x64) // specific EOI of 4
	r.Ports(0).Write(0, 1, 0x0b)
	if r.Ports(0).Read(0, 1) != 0 {
		t.Error("specific EOI")
	}
}

// TestSpecialMask: OCW3, a masked one in service blocks nothing.
func TestSpecialMask(t *testing.T) {
	r := newRig()
	r.pulse(3)
	r.take(t, 11)
	r.pulse(5)
	r.idle(t)
	r.Ports(0).Write(1, 1, 0x08)
	r.idle(t)
	r.Ports(0).Write(0, 1, 0x68)
	r.take(t, 13)
}

// TestPoll: OCW3's poll command.
func TestPoll(t *testing.T) {
	r := newRig()
	r.pulse(6)
	r.Ports(0).Write(0, 1, 0x0c)
	if got := r.Ports(0).Read(0, 1); got != 0x86 {
		t.Errorf("poll %#x", got)
	}
	r.idle(t)
	r.eoi(0)
	r.Ports(0).Write(0, 1, 0x0c)
	if got := r.Ports(0).Read(0, 1); got != 0 {
		t.Errorf("poll %#x without a request", got)
	}
}

// TestEveryAccess: rows 1 and 26 of the hostile guest: every value at every
// port, in every state of the initialization.
func TestEveryAccess(t *testing.T) {
	r := newRig()
	for v := range uint64(256) {
		for n := range 2 {
			for _, a := range [][2]uint64{{0, 1}, {1, 1}, {0, 2}} {
				r.Ports(n).Write(a[0], int(a[1]), v|v<<8)
				r.pulse(int(v%8&^2) | 8*n)
				r.Ports(n).Read(a[0], int(a[1]))
				r.Ack()
			}
			r.ELCR().Write(uint64(n), 1, v)
			r.ELCR().Read(0, 2)
		}
	}
}

func TestNoAllocations(t *testing.T) {
	r := newRig()
	p, l := r.Ports(0), r.Line(4)
	if n := testing.AllocsPerRun(100, func() {
		l.Set(true)
		r.Ack()
		l.Set(false)
		p.Write(0, 1, 0x20)
		p.Read(1, 1)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func FuzzAccess(f *testing.F) {
	f.Add([]byte{0, 0x11, 1, 8, 1, 4, 1, 1, 0x84, 0})
	f.Fuzz(func(t *testing.T, ops []byte) {
		r := newRig()
		devices := []bus.Device{r.Ports(0), r.Ports(1), r.ELCR()}
		for ; len(ops) >= 2; ops = ops[2:] {
			switch op := ops[0]; {
			case op&0x80 != 0 && op&0xf != cascade:
				r.Line(int(op & 0xf)).Set(ops[1]&1 != 0)
			case op&0x40 != 0:
				r.Ack()
			default:
				d := devices[op/2%3]
				d.Write(uint64(op&1), 1, uint64(ops[1]))
				d.Read(uint64(op&1), 1)
			}
			if _, level := r.chips[0].pending(); level != r.out {
				t.Fatal("output and chip disagree")
			}
		}
	})
}
