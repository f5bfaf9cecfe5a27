package soft

// Debug registers and single-step (SDM vol. 3B chapter 17).

const (
	dr6BS = 1 << 14
	dr6BD = 1 << 13
	dr7GD = 1 << 13
)

func (c *CPU) debugAccess(n uint8) (uint8, bool) {
	s := c.s
	if n == 4 || n == 5 {
		if s.CR4&cr4DE != 0 {
			return n, c.fault(vecUD)
		}
		n += 2
	}
	if n > 7 {
		return n, c.fault(vecUD)
	}
	if s.DR[7]&dr7GD != 0 {
		s.DR[6] |= dr6BD
		s.DR[7] &^= dr7GD
		return n, c.fault(vecDB)
	}
	return n, true
}

func (c *CPU) readDR(n uint8) (uint64, bool) {
	n, ok := c.debugAccess(n)
	if !ok {
		return 0, false
	}
	return c.s.DR[n], true
}

func (c *CPU) writeDR(n uint8, v uint64) bool {
	n, ok := c.debugAccess(n)
	if !ok {
		return false
	}
	switch n {
	case 6:
		if v>>32 != 0 {
			return c.faultErr(vecGP, 0)
		}
		v = v&0xe00f | 0xffff0ff0
	case 7:
		if v>>32 != 0 {
			return c.faultErr(vecGP, 0)
		}
		v = v&0xffff2fff | 0x400
	}
	c.s.DR[n] = v
	c.setDataBreaks()
	return true
}

// Kinds of breakpoint in DR7's R/W fields (SDM vol. 3B §17.2.4).
const (
	breakExec = iota
	breakWrite
	breakIO
	breakAccess
)

// breakpoint is the kind of breakpoint i and whether it is enabled.
func (s *State) breakpoint(i uint) (kind uint64, on bool) {
	return s.DR[7] >> (16 + 4*i) & 3, s.DR[7]>>(2*i)&3 != 0
}

// setDataBreaks makes all accesses slow while a data breakpoint is enabled, so
// that checkAccess sees them.
func (c *CPU) setDataBreaks() {
	c.dataBreaks = c.debug.watching()
	for i := range uint(4) {
		kind, on := c.s.breakpoint(i)
		c.dataBreaks = c.dataBreaks || on && kind&1 != 0
	}
	c.setTLBMode()
}

// checkAccess notes the data or I/O breakpoints that size bytes at a linear
// address or port meet. They are reported behind the instruction.
func (c *CPU) checkAccess(a uint64, size uint8, kinds uint8) {
	if c.debug.watching() && kinds&(1<<breakAccess) != 0 && c.debug.watch(a, size, kinds&(1<<breakWrite) != 0) {
		c.breakHits |= breakWatch
	}
	for i := range uint(4) {
		kind, on := c.s.breakpoint(i)
		if !on || kinds>>kind&1 == 0 {
			continue
		}
		n := uint64([4]uint8{1, 2, 8, 4}[c.s.DR[7]>>(18+4*i)&3])
		if base := c.s.DR[i] &^ (n - 1); a < base+n && base < a+uint64(size) {
			c.breakHits |= 1 << i
		}
	}
}

// ioBreak is checkAccess for a port.
func (c *CPU) ioBreak(port uint16, size uint8) {
	if c.s.DR[7]&0xff != 0 && c.s.CR4&cr4DE != 0 {
		c.checkAccess(uint64(port), size, 1<<breakIO)
	}
}

// stepping reports whether instructions run one by one: for the guest's TF and
// breakpoints, or for a debugger.
func (c *CPU) stepping() bool {
	s := c.s
	return s.Flags&flagTF != 0 || s.DR[7]&0xff != 0 || c.debug != nil && (c.debug.Step || c.debug.watching())
}

// execBreakpoint raises #DB for an enabled instruction breakpoint at la.
func (c *CPU) execBreakpoint(la uint64) bool {
	s := c.s
	if s.Flags&flagRF != 0 || s.DR[7]&0xff == 0 {
		return false
	}
	hit := uint64(0)
	for i := range uint(4) {
		if s.DR[7]>>(2*i)&3 != 0 && s.DR[7]>>(16+4*i)&15 == 0 && s.DR[i] == la {
			hit |= 1 << i
		}
	}
	if hit == 0 {
		return false
	}
	s.DR[6] = s.DR[6]&^0xf | hit
	c.fault(vecDB)
	return true
}
