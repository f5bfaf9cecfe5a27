package tpm

// crbBuffer is the size of the data buffer, which holds the command and then
// the response.
const crbBuffer = 1<<localityShift - crbData

// CRB is the command response buffer. It implements bus.Device.
type CRB struct {
	engine  // mu guards all below
	base    uint64
	loc     localities
	idle    bool
	cancels bool // TPM_CRB_CTRL_CANCEL
	data    [crbBuffer]byte
}

// NewCRB returns the buffer of a TPM that has just been powered on, whose
// registers are at a guest physical address: the chip tells the driver where
// its data buffer is.
func NewCRB(b Backend, base uint64) (*CRB, error) {
	c := &CRB{loc: newLocalities(), idle: true, base: base}
	return c, c.open(b, crbBuffer, c.completed)
}

// Read implements bus.Device.
func (c *CRB) Read(off uint64, size int) uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	var v uint64
	for i := range size {
		v |= uint64(c.readByte(off+uint64(i))) << (8 * i)
	}
	return v
}

// Write implements bus.Device.
func (c *CRB) Write(off uint64, size int, v uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range size {
		c.writeByte(off+uint64(i), uint8(v>>(8*i)))
	}
}

func (c *CRB) readByte(off uint64) uint8 {
	locality, reg := int(off>>localityShift), off&localityMask
	if reg >= crbData {
		if !c.owns(locality) || c.busy {
			return 0xff
		}
		return c.data[reg-crbData]
	}
	return uint8(c.register(locality, reg&^3) >> (8 * (reg & 3)))
}

// owns is whether the locality may use control area and data buffer.
func (c *CRB) owns(locality int) bool { return c.loc.active == int8(locality) }

// register is a register of four bytes. What does not exist, or belongs to
// another locality, reads as ones.
func (c *CRB) register(locality int, reg uint64) uint32 {
	switch reg {
	case crbLocState:
		return c.locState()
	case crbLocCtrl:
		return 0
	case crbLocSts:
		return c.locSts(locality)
	case crbIntfID:
		return interfaceIDCRB
	case crbIntfIDHigh:
		return didVID
	}
	if !c.owns(locality) {
		return 0xffff_ffff
	}
	return c.control(reg, uint64(locality)<<localityShift)
}

func (c *CRB) locState() uint32 {
	s := uint32(locStateValid | locStateEstablished)
	if c.loc.active >= 0 {
		s |= locStateAssigned | uint32(c.loc.active)<<locStateActiveShift
	}
	return s
}

func (c *CRB) locSts(locality int) uint32 {
	var s uint32
	if c.owns(locality) {
		s |= locStsGranted
	}
	if c.loc.seized&(1<<locality) != 0 {
		s |= locStsBeenSeized
	}
	return s
}

// control is a register of the control area in the page at an offset.
func (c *CRB) control(reg, page uint64) uint32 {
	flag := func(set bool, bit uint32) uint32 {
		if set {
			return bit
		}
		return 0
	}
	switch reg {
	case crbCtrlExt, crbCtrlExt + 4, crbCtrlReq, crbIntEnable, crbIntSts:
		return 0 // requests are granted at once
	case crbCtrlSts:
		return flag(c.idle, ctrlStsIdle)
	case crbCtrlCancel:
		return flag(c.cancels, ctrlCancel)
	case crbCtrlStart:
		return flag(c.busy, ctrlStart)
	case crbCmdSize, crbRspSize:
		return crbBuffer
	case crbCmdLow, crbRspLow:
		return uint32(c.base + page + crbData)
	case crbCmdHigh, crbRspHigh:
		return uint32((c.base + page + crbData) >> 32)
	}
	return 0xffff_ffff
}

// writeByte changes a register; all that can be written have their bits in
// the first byte. Preconditions: mu is held.
func (c *CRB) writeByte(off uint64, v uint8) {
	locality, reg := int(off>>localityShift), off&localityMask
	switch {
	case locality >= hardwareLocality:
	case reg == crbLocCtrl:
		c.setLocality(locality, v)
	case !c.owns(locality):
	case reg >= crbData:
		if !c.busy && !c.idle {
			c.data[reg-crbData] = v
		}
	default:
		c.setControl(reg, v)
	}
}

// setLocality obeys one bit of TPM_LOC_CTRL_x. Asking for the locality that
// one has clears beenSeized, as does getting it.
func (c *CRB) setLocality(locality int, v uint8) {
	changed := false
	switch v {
	case locCtrlRequest:
		changed = c.loc.request(locality)
		c.loc.seized &^= 1 << locality
	case locCtrlRelinquish:
		changed = c.loc.relinquish(locality)
	case locCtrlSeize:
		changed = c.loc.seize(locality)
	}
	if changed {
		c.abandon()
		c.reset()
	}
}

// reset makes the interface idle and forgets the data: the next locality is
// not to see it.
func (c *CRB) reset() {
	c.idle, c.cancels = true, false
	clear(c.data[:])
}

// setControl obeys a register of the control area. While a command runs only
// its end can be asked for.
func (c *CRB) setControl(reg uint64, v uint8) {
	switch reg {
	case crbCtrlReq:
		switch {
		case c.busy:
		case v == ctrlReqCmdReady:
			c.idle = false
		case v == ctrlReqGoIdle:
			c.reset()
		}
	case crbCtrlCancel:
		c.cancels = v&ctrlCancel != 0
		if c.cancels {
			c.cancel()
		}
	case crbCtrlStart:
		if v&ctrlStart != 0 && !c.busy && !c.idle {
			c.begin()
		}
	}
}

// begin starts the command in the data buffer.
func (c *CRB) begin() {
	n := int(min(commandSize(c.data[:]), crbBuffer))
	copy(c.command[:n], c.data[:n])
	c.execute(int(c.loc.active), n)
}

// completed is called when the backend is done.
func (c *CRB) completed(stale bool) {
	if !stale {
		copy(c.data[:], c.response[:c.size])
	}
}
