// Package pit is the PC's 8254 interval timer and the port that gates its
// speaker channel (Intel 8254 datasheet, September 1993; port 0x61 as in the
// ICH9 datasheet §13.7.1).
//
// Counters are computed from the clock when someone looks. Channel 0 alone
// has a timer, armed while it counts towards an interrupt. A new count takes
// effect at once in every mode.
package pit

import (
	"math/bits"
	"sync"

	"github.com/gvmspawn/gvmspawn/vmm/bus"
)

// Hz is the counters' input frequency, a third of NTSC's colour carrier.
const Hz = 1_193_182

// minPeriod is the shortest time in nanoseconds between two interrupts of a
// periodic channel 0: a guest must not keep the host busy with its timers.
const minPeriod = 100_000

// PIT is the chip. It implements bus.Device for ports 0x40 to 0x43.
type PIT struct {
	line  bus.Line
	clock bus.Clock
	timer bus.Timer

	mu       sync.Mutex // guards all below, held while line is called
	counters [3]counter
	port61   uint8
	deadline uint64 // of channel 0's next interrupt, bus.Never if none
}

// New returns the chip after power-on: no counter counts. line is the
// interrupt of channel 0, which gets a pulse when its output rises.
func New(clock bus.Clock, line bus.Line) *PIT {
	p := &PIT{line: line, clock: clock}
	p.timer = clock.NewTimer(p.expired)
	p.Reset()
	return p
}

// Reset is power-on.
func (p *PIT) Reset() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.port61 = 0
	for i := range p.counters {
		p.counters[i] = counter{gate: i != 2, rw: rwBoth, null: true}
	}
	p.arm()
}

// ticks is the number of input clocks at a time in nanoseconds.
func ticks(ns uint64) uint64 {
	hi, lo := bits.Mul64(ns, Hz)
	q, _ := bits.Div64(hi, lo, 1e9)
	return q
}

// nanoseconds is the time at which ticks gets to t.
func nanoseconds(t uint64) uint64 {
	hi, lo := bits.Mul64(t, 1e9)
	lo, carry := bits.Add64(lo, Hz-1, 0)
	if hi += carry; hi >= Hz {
		return bus.Never
	}
	q, _ := bits.Div64(hi, lo, Hz)
	return q
}

func (p *PIT) now() uint64 { return ticks(p.clock.Now()) }

// Read implements bus.Device.
func (p *PIT) Read(off uint64, size int) uint64 { return bus.ReadBytes(p, off, size) }

// Write implements bus.Device.
func (p *PIT) Write(off uint64, size int, v uint64) { bus.WriteBytes(p, off, size, v) }

// ReadByteAt implements bus.ByteChip. The control word at 3 is write-only.
func (p *PIT) ReadByteAt(off uint64) uint8 {
	if off > 2 {
		return 0xff
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.counters[off].read(p.now())
}

// WriteByteAt implements bus.ByteChip.
func (p *PIT) WriteByteAt(off uint64, v uint8) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.now()
	switch {
	case off < 3:
		if p.counters[off].write(v, now) && off == 0 {
			p.arm()
		}
	case off > 3:
	case v>>6 == 3:
		p.readBack(v, now)
	default:
		c := &p.counters[v>>6]
		if v>>4&3 == rwLatch {
			c.latch(now)
			return
		}
		c.control(v)
		if v>>6 == 0 {
			p.arm()
		}
	}
}

// readBack is the read-back command (figure 11): bits 5 and 4 are active low.
func (p *PIT) readBack(v uint8, now uint64) {
	for i := range p.counters {
		c := &p.counters[i]
		if v&(2<<i) == 0 {
			continue
		}
		if v&(1<<5) == 0 {
			c.latch(now)
		}
		if v&(1<<4) == 0 {
			c.latchStatus(now)
		}
	}
}

// arm sets the timer for channel 0.
func (p *PIT) arm() {
	p.deadline = bus.Never
	if at, ok := p.counters[0].rises(p.now()); ok {
		p.deadline = nanoseconds(at)
	}
	p.timer.Arm(p.deadline)
}

// expired is called by the clock, perhaps early.
func (p *PIT) expired() {
	p.mu.Lock()
	defer p.mu.Unlock()
	ns := p.clock.Now()
	if ns < p.deadline {
		p.timer.Arm(p.deadline)
		return
	}
	p.line.Set(true)
	p.line.Set(false)
	p.arm()
	if p.deadline != bus.Never {
		p.deadline = max(p.deadline, ns+minPeriod)
		p.timer.Arm(p.deadline)
	}
}

// Port61 is system control port B.
func (p *PIT) Port61() bus.Device { return (*port61)(p) }

type port61 PIT

// Bits of port 0x61.
const (
	port61Gate2    = 1 << 0
	port61Writable = 0xf
	port61Refresh  = 1 << 4
	port61Out2     = 1 << 5

	// refreshPeriod is half the period of the memory refresh bit in nanoseconds.
	refreshPeriod = 15_085
)

// Read implements bus.Device.
func (d *port61) Read(uint64, int) uint64 {
	p := (*PIT)(d)
	p.mu.Lock()
	defer p.mu.Unlock()
	v := p.port61
	if p.clock.Now()/refreshPeriod&1 != 0 {
		v |= port61Refresh
	}
	if p.counters[2].out(p.now()) {
		v |= port61Out2
	}
	return uint64(v)
}

// Write implements bus.Device.
func (d *port61) Write(_ uint64, _ int, v uint64) {
	p := (*PIT)(d)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.port61 = uint8(v) & port61Writable
	p.counters[2].setGate(v&port61Gate2 != 0, p.now())
}
