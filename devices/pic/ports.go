package pic

import "github.com/gvmspawn/gvmspawn/vmm/bus"

// Ports is a chip's two ports, 0x20 for the first (n = 0) and 0xa0 for the
// second (n = 1).
func (p *Pair) Ports(n int) bus.Device { return &ports{p, n} }

type ports struct {
	p *Pair
	n int
}

// Read implements bus.Device.
func (d *ports) Read(off uint64, size int) uint64 { return bus.ReadBytes(d, off, size) }

// Write implements bus.Device.
func (d *ports) Write(off uint64, size int, v uint64) { bus.WriteBytes(d, off, size, v) }

// ReadByteAt implements bus.ByteChip.
func (d *ports) ReadByteAt(off uint64) uint8 {
	d.p.mu.Lock()
	defer d.p.mu.Unlock()
	c := &d.p.chips[d.n]
	v := c.read(off)
	d.p.update()
	return v
}

func (c *chip) read(off uint64) uint8 {
	switch {
	case c.poll:
		// The datasheet's poll command: the read acknowledges.
		c.poll = false
		input, ok := c.pending()
		if !ok {
			return 0
		}
		c.serve(input)
		return 0x80 | input
	case off == 1:
		return c.imr
	case off != 0:
		return 0xff
	case c.readISR:
		return c.isr
	}
	return c.irr
}

// WriteByteAt implements bus.ByteChip.
func (d *ports) WriteByteAt(off uint64, v uint8) {
	d.p.mu.Lock()
	defer d.p.mu.Unlock()
	c := &d.p.chips[d.n]
	switch {
	case off == 1:
		c.writeData(v)
	case off != 0:
	case v&icw1 != 0:
		c.init(v)
	case v&ocw3Select != 0:
		c.writeOCW3(v)
	default:
		c.writeOCW2(v)
	}
	d.p.update()
}

// init is ICW1: it clears the masks and the edge detectors and starts the
// sequence.
func (c *chip) init(v uint8) {
	*c = chip{
		lines: c.lines, elcr: c.elcr, elcrMask: c.elcrMask, master: c.master, base: c.base,
		icw: 2, icw4Needed: v&icw1ICW4 != 0, single: v&icw1Single != 0,
	}
	c.irr = c.lines & c.elcr
}

// writeData is the next initialization word, or OCW1.
func (c *chip) writeData(v uint8) {
	switch c.icw {
	case 2:
		c.base = v & 0xf8
		switch {
		case !c.single:
			c.icw = 3
		case c.icw4Needed:
			c.icw = 4
		default:
			c.icw = 0
		}
	case 3:
		// The wiring of the cascade is fixed on a PC.
		c.icw = 0
		if c.icw4Needed {
			c.icw = 4
		}
	case 4:
		c.autoEOI = v&icw4AutoEOI != 0
		c.fullyNested = v&icw4FullyNested != 0
		c.icw = 0
	default:
		c.imr = v
	}
}

// writeOCW2 is the end of interrupt and the rotation of priorities.
func (c *chip) writeOCW2(v uint8) {
	const rotate, specific, eoi = 1 << 7, 1 << 6, 1 << 5
	input := v & 7
	switch v & (rotate | specific | eoi) {
	case eoi, rotate | eoi:
		busy := c.isr
		if c.specialMask {
			busy &^= c.imr
		}
		if busy == 0 {
			return
		}
		input = c.first(busy)
		c.isr &^= 1 << input
		if v&rotate != 0 {
			c.priority = (input + 1) & 7
		}
	case specific | eoi:
		c.isr &^= 1 << input
	case rotate | specific | eoi:
		c.isr &^= 1 << input
		c.priority = (input + 1) & 7
	case rotate | specific:
		c.priority = (input + 1) & 7
	case rotate:
		c.rotateAuto = true
	case 0:
		c.rotateAuto = false
	}
}

func (c *chip) writeOCW3(v uint8) {
	if v&ocw3ESMM != 0 {
		c.specialMask = v&ocw3SMM != 0
	}
	c.poll = v&ocw3Poll != 0
	if v&ocw3Read != 0 {
		c.readISR = v&ocw3ISR != 0
	}
}

// ELCR is the two edge/level registers at port 0x4d0.
func (p *Pair) ELCR() bus.Device { return &elcr{p} }

type elcr struct{ p *Pair }

// Read implements bus.Device.
func (e *elcr) Read(off uint64, size int) uint64 { return bus.ReadBytes(e, off, size) }

// Write implements bus.Device.
func (e *elcr) Write(off uint64, size int, v uint64) { bus.WriteBytes(e, off, size, v) }

// ReadByteAt implements bus.ByteChip.
func (e *elcr) ReadByteAt(off uint64) uint8 {
	if off > 1 {
		return 0xff
	}
	e.p.mu.Lock()
	defer e.p.mu.Unlock()
	return e.p.chips[off].elcr
}

// WriteByteAt implements bus.ByteChip.
func (e *elcr) WriteByteAt(off uint64, v uint8) {
	if off > 1 {
		return
	}
	e.p.mu.Lock()
	defer e.p.mu.Unlock()
	c := &e.p.chips[off]
	c.elcr = v & c.elcrMask
	c.irr |= c.lines & c.elcr
	e.p.update()
}
