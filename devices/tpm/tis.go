package tpm

import "encoding/binary"

// tisState is where the active locality is in the life of a command (PTP, FIFO
// Interface, "TPM State Diagram").
type tisState uint8

const (
	tisIdle       tisState = iota
	tisReady               // takes the first byte of a command
	tisReception           // has some of it
	tisExecution           // the backend works for us
	tisCompletion          // the response can be read
)

// TIS is the FIFO interface. It implements bus.Device.
type TIS struct {
	engine   // mu guards all below
	loc      localities
	state    tisState
	received int  // bytes of the command that are there
	read     int  // bytes of the response that the driver has
	ready    bool // enter tisReady when the backend is done with what was abandoned
	tested   bool // TPM2_SelfTest has succeeded
}

// NewTIS returns the interface of a TPM that has just been powered on.
func NewTIS(b Backend) (*TIS, error) {
	t := &TIS{loc: newLocalities()}
	return t, t.open(b, bufferSize, t.completed)
}

// Read implements bus.Device.
func (t *TIS) Read(off uint64, size int) uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	var v uint64
	for i := range size {
		v |= uint64(t.readByte(off+uint64(i))) << (8 * i)
	}
	return v
}

// Write implements bus.Device.
func (t *TIS) Write(off uint64, size int, v uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for i := range size {
		t.writeByte(off+uint64(i), uint8(v>>(8*i)))
	}
}

// isFIFO is whether a register is one of the windows to the FIFO.
func isFIFO(reg uint64) bool {
	return reg >= regDataFIFO && reg < regDataFIFO+4 || reg >= regXDataFIFO && reg < regXDataFIFOEnd
}

// readByte makes every access one of bytes, lowest first: a FIFO of bytes it
// is. Preconditions: mu is held.
func (t *TIS) readByte(off uint64) uint8 {
	locality, reg := int(off>>localityShift), off&localityMask
	if isFIFO(reg) {
		return t.pop(locality)
	}
	return uint8(t.register(locality, reg&^3) >> (8 * (reg & 3)))
}

// register is a register of four bytes. What does not exist reads as ones.
func (t *TIS) register(locality int, reg uint64) uint32 {
	switch reg {
	case regAccess:
		return uint32(t.access(locality)) | 0xffff_ff00
	case regIntEnable, regIntVector, regIntStatus:
		return 0
	case regIntfCap:
		return intfCap
	case regSTS:
		return uint32(t.status(locality))
	case regInterfaceID:
		return interfaceIDFIFO
	case regDIDVID:
		return didVID
	case regRID:
		return revisionID | 0xffff_ff00
	}
	return 0xffff_ffff
}

func (t *TIS) access(locality int) access {
	a := tpmRegValidSts | tpmEstablishment
	if t.loc.active == int8(locality) {
		a |= activeLocality
	}
	if t.loc.seized&(1<<locality) != 0 {
		a |= beenSeized
	}
	if t.loc.requested&(1<<locality) != 0 {
		a |= requestUse
	}
	if t.loc.others(locality) {
		a |= pendingRequest
	}
	return a
}

// status is TPM_STS_x, which only the active locality sees.
func (t *TIS) status(locality int) sts {
	if t.loc.active != int8(locality) {
		return 0xffff_ffff
	}
	s := stsFamily2 | stsValid
	if t.tested {
		s |= stsSelfTestDone
	}
	burst := 0
	switch t.state {
	case tisReady:
		s |= stsCommandReady
		burst = bufferSize
	case tisReception:
		if t.expects() {
			s |= stsExpect
			burst = bufferSize - t.received
		}
	case tisCompletion:
		if burst = t.size - t.read; burst > 0 {
			s |= stsDataAvail
		}
	}
	return s | sts(burst)<<stsBurstShift
}

// expects is whether the command, as far as it is there, says that there is more.
func (t *TIS) expects() bool {
	return t.received < headerSize || uint32(t.received) < commandSize(t.command[:])
}

// pop is the next byte of the response.
func (t *TIS) pop(locality int) uint8 {
	if t.loc.active != int8(locality) || t.state != tisCompletion || t.read >= t.size {
		return 0xff
	}
	v := t.response[t.read]
	t.read++
	return v
}

// writeByte is readByte's counterpart. Preconditions: mu is held.
func (t *TIS) writeByte(off uint64, v uint8) {
	locality, reg := int(off>>localityShift), off&localityMask
	switch {
	case locality >= hardwareLocality:
	case reg == regAccess:
		t.setAccess(locality, access(v))
	case t.loc.active != int8(locality):
	case isFIFO(reg):
		t.push(v)
	case reg&^3 == regSTS:
		t.setStatus(sts(v) << (8 * (reg & 3)))
	}
}

// setAccess obeys one bit of TPM_ACCESS_x: more than one at a time is a mistake
// of the driver's, and nothing happens.
func (t *TIS) setAccess(locality int, v access) {
	changed := false
	switch v {
	case activeLocality:
		changed = t.loc.relinquish(locality)
	case beenSeized:
		t.loc.seized &^= 1 << locality
	case seize:
		changed = t.loc.seize(locality)
	case requestUse:
		changed = t.loc.request(locality)
	}
	if changed {
		t.abandon()
		t.state, t.ready = tisIdle, false
	}
}

// setStatus obeys one bit of TPM_STS_x, likewise.
func (t *TIS) setStatus(v sts) {
	switch v {
	case stsCommandReady:
		t.makeReady()
	case stsGo:
		if t.state == tisReception && !t.expects() {
			t.state = tisExecution
			t.execute(int(t.loc.active), t.received)
		}
	case stsResponseRetry:
		if t.state == tisCompletion {
			t.read = 0
		}
	case stsCommandCancel:
		if t.state == tisExecution {
			t.cancel()
		}
	}
}

// makeReady drops what there is of a command and its response. While the
// backend still works the interface stays idle.
func (t *TIS) makeReady() {
	t.abandon()
	t.state, t.ready = tisIdle, t.busy
	if !t.busy {
		t.state, t.received = tisReady, 0
	}
}

// push takes the next byte of a command; what comes after its end is ignored.
func (t *TIS) push(v uint8) {
	switch {
	case t.state == tisReady:
		t.state = tisReception
	case t.state != tisReception || !t.expects() || t.received == bufferSize:
		return
	}
	t.command[t.received] = v
	t.received++
}

// completed is called when the backend is done.
func (t *TIS) completed(stale bool) {
	if stale {
		if t.ready {
			t.state, t.received, t.ready = tisReady, 0, false
		}
		return
	}
	t.state, t.read = tisCompletion, 0
	if t.received >= headerSize && binary.BigEndian.Uint32(t.command[6:]) == tpmCCSelfTest && binary.BigEndian.Uint32(t.response[6:]) == 0 {
		t.tested = true
	}
}
