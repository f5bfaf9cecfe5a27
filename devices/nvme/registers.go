package nvme

import "github.com/gvmspawn/gvmspawn/vmm/bus"

// registers is the controller in BAR 0.
type registers struct{ c *Controller }

// Read reads BAR 0. §3: properties are read in dwords, or qwords where they
// are that wide; other accesses get the bytes that are there.
func (r registers) Read(off uint64, size int) uint64 {
	at := off % partSize
	switch off - at {
	case 0:
		v := uint64(0)
		for i := 0; i < size; {
			w := at + uint64(i)
			v |= uint64(r.c.readDword(w&^3)) >> (8 * (w & 3)) << (8 * i)
			i += int(4 - w&3)
		}
		return v & bus.Ones(size)
	case tableAt:
		return r.c.msix.Table().Read(at, size)
	case pbaAt:
		return r.c.msix.PBA().Read(at, size)
	}
	return 0 // §3.1.16: doorbells read as anything
}

// Write writes BAR 0. Parts of properties are ignored.
func (r registers) Write(off uint64, size int, v uint64) {
	at := off % partSize
	switch off - at {
	case 0:
		if at%4 != 0 || size < 4 {
			return
		}
		r.c.writeDword(at, uint32(v))
		if size == 8 {
			r.c.writeDword(at+4, uint32(v>>32))
		}
	case doorbellAt:
		if at%4 == 0 && size == 4 {
			r.c.doorbell(at/4, uint32(v))
		}
	case tableAt:
		r.c.msix.Table().Write(at, size, v)
	}
}

// capabilities is CAP (§3.1.1): doorbells 4 bytes apart, pages of 4 KiB only.
const capabilities uint64 = capMaxEntry | capCQR | capTimeout | capNVM

func (c *Controller) readDword(at uint64) uint32 {
	switch at {
	case regCAP:
		return uint32(capabilities & 0xffff_ffff)
	case regCAP + 4:
		return uint32(capabilities >> 32)
	case regVS:
		return versionOne4
	case regCSTS:
		return c.csts.Load()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	switch at {
	case regCC:
		return c.cc
	case regAQA:
		return c.aqa
	case regASQ:
		return uint32(c.asq)
	case regASQ + 4:
		return uint32(c.asq >> 32)
	case regACQ:
		return uint32(c.acq)
	case regACQ + 4:
		return uint32(c.acq >> 32)
	}
	return 0
}

func (c *Controller) writeDword(at uint64, v uint32) {
	if at == regCC {
		c.setCC(v)
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	switch at {
	case regAQA:
		c.aqa = v & 0x0fff_0fff
	case regASQ:
		c.asq = c.asq&^0xffff_ffff | uint64(v&^(pageSize-1))
	case regASQ + 4:
		c.asq = c.asq&0xffff_ffff | uint64(v)<<32
	case regACQ:
		c.acq = c.acq&^0xffff_ffff | uint64(v&^(pageSize-1))
	case regACQ + 4:
		c.acq = c.acq&0xffff_ffff | uint64(v)<<32
	}
}

// doorbell is a write to doorbell i (§3.1.16, §3.1.17): the tail of submission
// queue i/2, or the head of completion queue i/2. What no good driver writes
// is ignored, with an event (§5.2.1).
func (c *Controller) doorbell(i uint64, v uint32) {
	id := i / 2
	if id >= uint64(len(c.sqs)) {
		c.events.raise(c, eventBadDoorbell)
		return
	}
	if i%2 == 1 {
		if q := c.cqs[id].Load(); q == nil {
			c.events.raise(c, eventBadDoorbell)
		} else if !q.setHead(v) {
			c.events.raise(c, eventBadValue)
		}
		return
	}
	s := c.sqs[id].Load()
	switch {
	case s == nil:
		c.events.raise(c, eventBadDoorbell)
	case v >= s.size:
		c.events.raise(c, eventBadValue)
	default:
		s.tail.Store(v)
		s.rung()
	}
}

// moved follows BAR 0 with the bells that are bound to doorbells.
func (c *Controller) moved(addr uint64, on bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.base, c.decoding = addr, on
	for i := range c.sqs {
		if s := c.sqs[i].Load(); s != nil {
			c.bind(s)
		}
	}
}

// bind lets the engine ring the bell of a queue whose tail is in the shadow
// doorbells, so that a write to the doorbell need not leave the kernel. A bell
// that cannot be bound rings by the write itself.
//
// Preconditions: c.mu is held.
func (c *Controller) bind(s *submissionQueue) {
	if s.id == 0 || c.shadow.Load() == nil || !c.decoding {
		_ = s.bell.Unbind()
		return
	}
	_ = s.bell.Bind(c.base + doorbellAt + 8*uint64(s.id))
}
