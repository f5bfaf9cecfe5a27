package pit

// Read/write modes of the control word (figure 7).
const (
	rwLatch = 0
	rwLow   = 1
	rwHigh  = 2
	rwBoth  = 3
)

// Modes (8254 datasheet, "mode definitions").
const (
	modeTerminal = 0 // interrupt on terminal count
	modeOneShot  = 1 // hardware retriggerable one-shot
	modeRate     = 2
	modeSquare   = 3
	modeStrobe   = 4
	modeHWStrobe = 5
)

// counter is one of the three. Times are in input clocks.
type counter struct {
	mode, rw uint8
	bcd      bool
	gate     bool
	null     bool   // no count was loaded since the control word
	reload   uint32 // 1 to 65536
	counting bool
	start    uint64 // when the count began, while counting
	held     uint64 // how far it got, while not

	low       uint8 // first byte of a two-byte write
	writeHigh bool
	readHigh  bool
	latched   uint16
	latchLeft uint8 // bytes of latched to read
	status    uint8
	hasStatus bool
}

// control is a control word for this counter.
func (c *counter) control(v uint8) {
	mode := v >> 1 & 7
	if mode > modeHWStrobe {
		mode &= 3
	}
	*c = counter{mode: mode, rw: v >> 4 & 3, bcd: v&1 != 0, gate: c.gate, null: true}
}

// write takes a byte of the count and reports whether the count is complete.
func (c *counter) write(v uint8, now uint64) bool {
	var n uint32
	switch c.rw {
	case rwLow:
		n = uint32(v)
	case rwHigh:
		n = uint32(v) << 8
	default:
		c.writeHigh = !c.writeHigh
		if c.writeHigh {
			c.low = v
			return false
		}
		n = uint32(v)<<8 | uint32(c.low)
	}
	c.load(n, now)
	return true
}

// load starts a count. 0 is the largest. Modes 1 and 5 wait for the gate.
func (c *counter) load(n uint32, now uint64) {
	if c.bcd {
		n = fromBCD(n)
	}
	if n == 0 {
		n = c.modulus()
	}
	c.reload, c.null = n, false
	if c.mode == modeOneShot || c.mode == modeHWStrobe {
		return
	}
	c.counting, c.start, c.held = c.gate, now, 0
}

// setGate drives the gate (figure 21).
func (c *counter) setGate(level bool, now uint64) {
	rising, falling := level && !c.gate, !level && c.gate
	if falling && c.mode != modeOneShot && c.mode != modeHWStrobe && c.counting {
		c.held, c.counting = now-c.start, false
	}
	c.gate = level
	if !rising || c.null {
		return
	}
	switch c.mode {
	case modeTerminal, modeStrobe:
		c.start = now - c.held
	default:
		c.start = now
	}
	c.counting = true
}

// elapsed is how long the count has gone on.
func (c *counter) elapsed(now uint64) uint64 {
	if c.counting {
		return now - c.start
	}
	return c.held
}

// idle is whether nothing was counted yet.
func (c *counter) idle() bool { return c.null || !c.counting && c.held == 0 }

func (c *counter) modulus() uint32 {
	if c.bcd {
		return 10000
	}
	return 65536
}

// value is the counting element.
func (c *counter) value(now uint64) uint16 {
	n, d := uint64(c.reload), c.elapsed(now)
	var v uint64
	switch m := uint64(c.modulus()); {
	case c.null:
	case c.mode == modeRate:
		v = n - d%n
	case c.mode == modeSquare:
		v = n - 2*d%n
	default:
		v = (n + m - d%m) % m
	}
	v %= uint64(c.modulus())
	if c.bcd {
		return toBCD(uint16(v))
	}
	return uint16(v)
}

// out is the output pin.
func (c *counter) out(now uint64) bool {
	n, d := uint64(c.reload), c.elapsed(now)
	switch c.mode {
	case modeTerminal:
		return !c.null && d >= n
	case modeOneShot:
		return c.idle() || d >= n
	case modeRate:
		return c.idle() || !c.gate || d%n != n-1
	case modeSquare:
		return c.idle() || !c.gate || d%n < (n+1)/2
	}
	return c.idle() || d != n
}

// rises is when the output goes high next, which interrupts.
func (c *counter) rises(now uint64) (at uint64, ok bool) {
	if c.null || !c.counting {
		return 0, false
	}
	n, d := uint64(c.reload), c.elapsed(now)
	switch c.mode {
	case modeRate, modeSquare:
		return c.start + (d/n+1)*n, true
	case modeStrobe, modeHWStrobe:
		n++ // the strobe is low for one clock
	}
	return c.start + n, d < n
}

// latch is the counter latch command: a second one before the count was read
// is ignored.
func (c *counter) latch(now uint64) {
	if c.latchLeft > 0 {
		return
	}
	c.latched = c.value(now)
	c.latchLeft = 1
	if c.rw == rwBoth {
		c.latchLeft, c.readHigh = 2, false
	}
}

// latchStatus latches the status byte (figure 12).
func (c *counter) latchStatus(now uint64) {
	if c.hasStatus {
		return
	}
	c.status = c.rw<<4 | c.mode<<1
	if c.bcd {
		c.status |= 1
	}
	if c.null {
		c.status |= 1 << 6
	}
	if c.out(now) {
		c.status |= 1 << 7
	}
	c.hasStatus = true
}

// read gives the status, then the latched count, else the count itself.
func (c *counter) read(now uint64) uint8 {
	if c.hasStatus {
		c.hasStatus = false
		return c.status
	}
	v := c.latched
	if c.latchLeft > 0 {
		c.latchLeft--
	} else {
		v = c.value(now)
	}
	high := c.rw == rwHigh
	if c.rw == rwBoth {
		high = c.readHigh
		c.readHigh = !c.readHigh
	}
	if high {
		return uint8(v >> 8)
	}
	return uint8(v)
}

func fromBCD(v uint32) uint32 {
	return v&0xf + v>>4&0xf*10 + v>>8&0xf*100 + v>>12&0xf*1000
}

func toBCD(v uint16) uint16 {
	return v%10 | v/10%10<<4 | v/100%10<<8 | v/1000%10<<12
}
