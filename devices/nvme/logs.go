package nvme

import (
	"encoding/binary"
	"sync"
)

// logPage is Get Log Page (§5.14).
func (c *Controller) logPage(cmd *command) status {
	id := uint8(cmd.dword(10))
	n := (uint64(cmd.dword(10)>>16) + uint64(cmd.dword(11)&0xffff)<<16 + 1) * 4
	off := cmd.qword(12)
	var b [pageSize]byte
	size := uint64(512)
	switch id {
	case logErrors:
		size = 64 // one entry, without an error
	case logHealth:
		c.health(b[:])
	case logFirmware:
		b[0] = 1 // slot 1 is active
		pad(b[8:16], "1")
	case logEffects:
		size = pageSize
		c.effects(b[:])
	default:
		return statusBadLogPage
	}
	if off > size || off%4 != 0 || n > maxTransfer {
		return statusInvalidField
	}
	const retain = 1 << 15 // RAE
	if cmd.dword(10)&retain == 0 {
		c.events.read(id)
	}
	return cmd.answer(b[off:size], n)
}

// health fills the SMART / Health Information log in (§5.14.1.2): a disk that
// does not wear, at 300 K.
func (c *Controller) health(b []byte) {
	binary.LittleEndian.PutUint16(b[1:], 300)
	b[3], b[4] = 100, 10 // available spare, its threshold
}

// effects fills the Commands Supported and Effects log in (§5.14.1.5).
func (c *Controller) effects(b []byte) {
	const supported, changes = 1 << 0, 1 << 1
	set := func(at int, opcode uint8, v uint32) { binary.LittleEndian.PutUint32(b[at+4*int(opcode):], v) }
	for _, op := range []uint8{adminDeleteSQ, adminCreateSQ, adminGetLogPage, adminDeleteCQ, adminCreateCQ, adminIdentify,
		adminAbort, adminSetFeatures, adminGetFeatures, adminAsyncEvent, adminDoorbellBuf} {
		set(0, op, supported)
	}
	const io = 1024
	set(io, nvmFlush, supported)
	set(io, nvmRead, supported)
	set(io, nvmWrite, supported|changes)
	set(io, nvmWriteZeroes, supported|changes)
	if c.cfg.Drive.Discards() {
		set(io, nvmDatasetMgmt, supported|changes)
	}
}

// events are the asynchronous events of a controller (§5.2). There is one type,
// errors: "When the controller posts a completion queue entry for an
// outstanding Asynchronous Event Request command […] subsequent events of that
// event type are automatically masked" until the host reads the log page.
type events struct {
	mu        sync.Mutex // guards the rest; completionQueue.mu is taken under it
	listeners []*command
	pending   uint32
	raised    bool
	masked    bool
}

// listen keeps an Asynchronous Event Request.
func (e *events) listen(cmd *command) status {
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.listeners) >= maxAsyncEvents {
		return statusTooManyEvents
	}
	e.listeners = append(e.listeners, cmd)
	e.deliver()
	return noStatus
}

// raise reports an event, unless one of its type is on its way.
func (e *events) raise(c *Controller, event uint32) {
	e.mu.Lock()
	if e.raised || e.masked {
		e.mu.Unlock()
		return
	}
	e.pending, e.raised = event, true
	posted := e.deliver()
	e.mu.Unlock()
	if posted {
		if cq := c.cqs[0].Load(); cq != nil {
			cq.notify()
		}
	}
}

// deliver answers a listener, if there is an event and a listener.
//
// Preconditions: e.mu is held.
func (e *events) deliver() bool {
	if !e.raised || len(e.listeners) == 0 {
		return false
	}
	cmd := e.listeners[0]
	e.listeners = e.listeners[1:]
	e.raised, e.masked = false, true
	cmd.sq.cq.post(cmd, e.pending, statusOK)
	return true
}

// read tells that the host has read a log page.
func (e *events) read(log uint8) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if log == logErrors {
		e.masked = false
	}
}

func (e *events) clear() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.listeners, e.raised, e.masked = nil, false, false
}
