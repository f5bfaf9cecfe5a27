package lapic

// message is an interrupt on its way (§11.6.1, §11.11).
type message struct {
	dest    uint32
	wide    bool // dest has 32 bits, from an x2APIC; else 8
	logical bool
	mode    deliveryMode
	lowest  bool // deliver to one of the destinations
	vector  uint8
	level   bool
}

// Deliver sends a message-signalled interrupt: a write of data to addr
// (§11.11). It reports false, and does nothing, if addr is no such address.
func (c *Cluster) Deliver(addr uint64, data uint32) bool {
	if addr&^0xf_ffff != msiAddress {
		return false
	}
	const redirectionHint, destinationMode = 1 << 3, 1 << 2
	m := message{
		dest:    uint32(addr>>12) & 0xff,
		logical: addr&destinationMode != 0,
		mode:    deliveryMode(data >> 8 & 7),
		vector:  uint8(data),
		level:   data&(1<<15) != 0,
	}
	m.lowest = m.mode == modeLowest || m.mode == modeFixed && addr&redirectionHint != 0
	if m.mode == modeSIPI {
		return true // reserved in messages (§11.11.2)
	}
	c.send(m, nil)
	return true
}

// send routes a message to its targets, except the given APIC.
func (c *Cluster) send(m message, except *APIC) {
	if !m.wide && m.dest == broadcast8 {
		m.dest = broadcast32
	}
	if !m.logical && m.dest < uint32(len(c.byID)) {
		if t := c.byID[m.dest]; t != nil && t != except {
			t.receive(m)
		}
		return
	}
	if m.lowest {
		if t := c.arbitrate(m, except); t != nil {
			t.receive(m)
		}
		return
	}
	for _, t := range c.apics {
		if t != except && t.matches(m) {
			t.receive(m)
		}
	}
}

// arbitrate picks the enabled target with the lowest processor priority, the
// first of several (§11.6.2.4).
func (c *Cluster) arbitrate(m message, except *APIC) *APIC {
	var best *APIC
	for _, t := range c.apics {
		if t == except || !t.matches(m) || t.svr.Load()&svrEnabled == 0 {
			continue
		}
		if best == nil || t.ppr.Load() < best.ppr.Load() {
			best = t
		}
	}
	return best
}

// matches is whether a is among the message's destinations (§11.6.2).
func (a *APIC) matches(m message) bool {
	if m.dest == broadcast32 {
		return true
	}
	if !m.logical {
		return m.dest == a.id
	}
	ldr := a.ldr.Load()
	if a.x2apic() {
		// §11.12.10.2: cluster in the upper half, one bit each in the lower.
		return m.dest>>16 == ldr>>16 && m.dest&ldr&0xffff != 0
	}
	if m.dest > broadcast8 {
		return false
	}
	id := ldr >> 24
	if a.dfr.Load()>>28 == dfrFlat {
		return m.dest&id != 0
	}
	return m.dest>>4 == id>>4 && m.dest&id&0xf != 0
}

// receive acts on a message that has arrived. A disabled APIC still obeys
// what is not a fixed interrupt (§11.4.7.2).
func (a *APIC) receive(m message) {
	if !a.enabled() {
		return
	}
	switch m.mode {
	case modeFixed, modeLowest:
		if a.svr.Load()&svrEnabled != 0 {
			a.accept(m.vector, m.level)
		}
	case modeSMI:
		a.signal(EventSMI)
	case modeNMI:
		a.NMI()
	case modeINIT:
		a.deliverINIT()
	case modeSIPI:
		a.sipi.Store(uint32(m.vector))
		a.signal(EventSIPI)
	case modeExtINT:
		a.signal(EventExtINT)
	}
}

// deliverINIT makes an earlier SIPI void.
func (a *APIC) deliverINIT() {
	a.Take(EventSIPI)
	a.signal(EventINIT)
}

// command sends what was written to the interrupt command register (§11.6.1).
func (a *APIC) command(low, dest uint32, wide bool) {
	m := message{
		dest:    dest,
		wide:    wide,
		logical: low&icrLogical != 0,
		mode:    deliveryMode(low >> icrModeShift & 7),
		vector:  uint8(low),
		level:   low&icrLevel != 0 && low&icrAssert != 0,
	}
	m.lowest = m.mode == modeLowest
	fixed := m.mode == modeFixed || m.mode == modeLowest
	switch {
	case m.mode == modeINIT && low&(icrLevel|icrAssert) == icrLevel:
		return // INIT level de-assert does nothing on recent CPUs
	case m.mode == modeExtINT || m.mode == 3:
		return // reserved
	case fixed && m.vector < firstVector:
		a.fail(esrSendIllegal)
		return
	}
	// Table 11-3: IPIs are edge-triggered, whatever the bit says.
	m.level = false
	switch low >> icrShortShift & 3 {
	case shortNone:
		a.cluster.send(m, nil)
	case shortSelf:
		if fixed {
			a.receive(m)
		}
	case shortAll:
		if fixed {
			m.dest, m.wide, m.logical, m.lowest = broadcast32, true, false, false
			a.cluster.send(m, nil)
		}
	default:
		m.dest, m.wide, m.logical = broadcast32, true, false
		a.cluster.send(m, a)
	}
}
