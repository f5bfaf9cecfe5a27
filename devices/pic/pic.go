// Package pic is the PC's pair of 8259A interrupt controllers, the second
// behind input 2 of the first, with the edge/level registers of later PCs
// (Intel 8259A datasheet, December 1988; ICH9 datasheet §13.4 for ELCR).
//
// Firmware and old boot code use it; a kernel that knows of the I/O APIC masks
// it. 8080 mode does not exist: every interrupt is an 8086 vector.
package pic

import (
	"math/bits"
	"sync"

	"github.com/gvmspawn/gvmspawn/vmm/bus"
)

// cascade is the first chip's input that the second is on.
const cascade = 2

// chip is one 8259A.
type chip struct {
	irr, isr, imr uint8
	lines         uint8 // levels of the inputs
	elcr          uint8 // inputs that are level-triggered
	elcrMask      uint8 // inputs that may be
	master        bool
	base          uint8 // vector of input 0 (ICW2)
	priority      uint8 // input with the highest priority
	icw           uint8 // initialization word that comes next: 2 to 4, or 0
	icw4Needed    bool
	single        bool
	autoEOI       bool
	rotateAuto    bool // rotate on automatic EOI
	specialMask   bool
	fullyNested   bool // special fully nested mode
	poll          bool // the next read is a poll
	readISR       bool
}

// ICW1, ICW4, OCW2 and OCW3 bits.
const (
	icw1ICW4   = 1 << 0
	icw1Single = 1 << 1
	icw1Level  = 1 << 3
	icw1       = 1 << 4

	icw4AutoEOI     = 1 << 1
	icw4FullyNested = 1 << 4

	ocw3Select = 1 << 3
	ocw3ISR    = 1 << 0
	ocw3Read   = 1 << 1
	ocw3Poll   = 1 << 2
	ocw3SMM    = 1 << 5
	ocw3ESMM   = 1 << 6
)

// Pair is the two chips. Use [Pair.Ports] and [Pair.ELCR] for what to map.
type Pair struct {
	out func(level bool)

	mu    sync.Mutex // guards all below, held while out is called
	chips [2]chip
	level bool
}

// New returns the pair after power-on: all inputs masked. out drives the
// CPU's INTR pin; it is called with the lock held and must not call the pair.
func New(out func(level bool)) *Pair {
	p := &Pair{out: out}
	// Inputs 0, 1, 2, 8 and 13 are edge-triggered on every PC.
	p.chips[0].elcrMask = 0xf8
	p.chips[1].elcrMask = 0xde
	p.Reset()
	return p
}

// Reset is power-on. Lines keep their levels.
func (p *Pair) Reset() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := range p.chips {
		c := &p.chips[i]
		*c = chip{imr: 0xff, lines: c.lines, elcrMask: c.elcrMask, master: i == 0}
	}
	p.update()
}

// Line returns the input irq, 0 to 15. Input 2 is the second chip.
func (p *Pair) Line(irq int) bus.Line {
	if irq < 0 || irq > 15 || irq == cascade {
		panic("pic: no such input")
	}
	return &line{p, irq}
}

type line struct {
	p   *Pair
	irq int
}

// Set implements bus.Line.
func (l *line) Set(level bool) {
	l.p.mu.Lock()
	defer l.p.mu.Unlock()
	l.p.chips[l.irq/8].set(uint(l.irq%8), level)
	l.p.update()
}

// set drives an input. A rising edge is latched; a level is a request as long
// as it lasts.
func (c *chip) set(input uint, level bool) {
	bit := uint8(1) << input
	was := c.lines&bit != 0
	switch {
	case level && (!was || c.elcr&bit != 0):
		c.irr |= bit
	case !level && c.elcr&bit != 0:
		c.irr &^= bit
	}
	c.lines &^= bit
	if level {
		c.lines |= bit
	}
}

// rank is how far an input is from the highest priority, 0 to 7.
func (c *chip) rank(input uint8) uint8 { return (input - c.priority) & 7 }

// first is the input with the highest priority in set, which is not empty.
func (c *chip) first(set uint8) uint8 {
	rotated := bits.RotateLeft8(set, -int(c.priority))
	return (uint8(bits.TrailingZeros8(rotated)) + c.priority) & 7
}

// pending is the input that the chip asks for, if any: an unmasked request
// above what is in service.
func (c *chip) pending() (input uint8, ok bool) {
	req := c.irr &^ c.imr
	if req == 0 || c.icw != 0 {
		return 0, false
	}
	input = c.first(req)
	busy := c.isr
	if c.specialMask {
		busy &^= c.imr // masked ones in service do not block
	}
	if c.fullyNested && c.master {
		busy &^= 1 << cascade // the second chip may ask again
	}
	if busy != 0 && c.rank(c.first(busy)) <= c.rank(input) {
		return 0, false
	}
	return input, true
}

// update passes the second chip's request to the first, and its to the CPU.
func (p *Pair) update() {
	_, ask := p.chips[1].pending()
	p.chips[0].setCascade(ask)
	_, level := p.chips[0].pending()
	if level != p.level {
		p.level = level
		p.out(level)
	}
}

// setCascade is the input from the second chip, a level.
func (c *chip) setCascade(ask bool) {
	c.irr &^= 1 << cascade
	if ask {
		c.irr |= 1 << cascade
	}
}

// Ack is the CPU's interrupt acknowledge cycle: it returns the vector and puts
// the input into service. Without a request the vector is the spurious one,
// input 7, as on the real chip. The output goes low, and high again if there
// is more.
func (p *Pair) Ack() (vector uint8) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.level {
		p.level = false
		p.out(false)
	}
	c := &p.chips[0]
	input, ok := c.ack()
	if ok && input == cascade && !c.single {
		c = &p.chips[1]
		input, _ = c.ack()
	}
	vector = c.base | input
	p.update()
	return vector
}

// ack serves the chip's request. Without one, input 7 is not in service.
func (c *chip) ack() (input uint8, ok bool) {
	input, ok = c.pending()
	if !ok {
		return 7, false
	}
	c.serve(input)
	return input, true
}

// serve puts an input into service.
func (c *chip) serve(input uint8) {
	bit := uint8(1) << input
	if c.elcr&bit == 0 || c.lines&bit == 0 {
		c.irr &^= bit
	}
	if c.autoEOI {
		if c.rotateAuto {
			c.priority = (input + 1) & 7
		}
		return
	}
	c.isr |= bit
}
