package vsock

import (
	"syscall"

	"github.com/gvmspawn/gvmspawn/virtio/virtq"
)

// transmit is the worker of the transmitq: packets from the guest.
func (d *Device) transmit(q *virtq.Queue) {
	var c virtq.Chain
	for q.Wait() {
		for q.Pop(&c) {
			if !d.packet(&c) {
				return
			}
			q.Push(&c, 0)
		}
		q.Notify()
		d.rx.kick()
	}
}

// packet acts on one packet. It returns false when the device was reset.
func (d *Device) packet(c *virtq.Chain) bool {
	var b [headerSize]byte
	var h header
	// The header is read once; what is checked is the copy.
	if c.ReadAt(b[:], 0) < headerSize {
		return true
	}
	h.parse(&b)
	// §5.10.6.4: a packet from another CID, or to another, is not for us.
	if h.srcCID != uint64(d.cfg.CID) || h.dstCID != HostCID {
		return true
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.act == nil {
		return false
	}
	k := key{guest: h.srcPort, host: h.dstPort}
	conn := d.conns[k]
	if conn != nil && conn.typ == h.typ {
		if uint64(h.len) > c.ReadableLen-headerSize && h.op == VIRTIO_VSOCK_OP_RW {
			conn.kill(syscall.EPROTO, true)
			return true
		}
		conn.receive(&h, c)
		return true
	}
	if h.op == VIRTIO_VSOCK_OP_RST {
		return true // never an answer to an RST
	}
	if conn == nil && h.op == VIRTIO_VSOCK_OP_REQUEST && d.request(k, &h) {
		return true
	}
	// §5.10.6.4: RST for an unknown type or connection.
	return d.refuse(orphan{k, h.typ})
}

// refuse queues an RST for a connection that does not exist, waiting for room
// among those that wait for a buffer. It returns false on reset.
// Preconditions: d.mu held; it is dropped meanwhile.
func (d *Device) refuse(o orphan) bool {
	act := d.act
	for d.orphans.n == maxOrphans {
		d.mu.Unlock()
		d.rx.kick()
		d.mu.Lock()
		if d.act != act {
			return false
		}
		if d.orphans.n == maxOrphans {
			d.roomy.Wait()
		}
		if d.act != act {
			return false
		}
	}
	d.orphans.q[(d.orphans.head+d.orphans.n)%maxOrphans] = o
	d.orphans.n++
	return true
}

// controlDue reports whether a control packet waits to be sent.
func (d *Device) controlDue() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.orphans.n > 0 || d.ctlHead != nil
}

// nextControl composes the next control packet.
func (d *Device) nextControl() (header, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.orphans.n > 0 {
		o := d.orphans.q[d.orphans.head]
		d.orphans.head = (d.orphans.head + 1) % maxOrphans
		d.orphans.n--
		d.roomy.Signal()
		return header{
			srcCID: HostCID, dstCID: uint64(d.cfg.CID), srcPort: o.host, dstPort: o.guest,
			typ: o.typ, op: VIRTIO_VSOCK_OP_RST,
		}, true
	}
	for c := d.ctlHead; c != nil; c = d.ctlHead {
		flag := c.pending & -c.pending
		c.pending &^= flag
		if c.pending == 0 {
			d.ctlHead, c.next, c.queued = c.next, nil, false
		}
		switch flag {
		case wantRequest:
			return c.header(VIRTIO_VSOCK_OP_REQUEST, 0), true
		case wantResponse:
			return c.header(VIRTIO_VSOCK_OP_RESPONSE, 0), true
		case wantCreditRequest:
			return c.header(VIRTIO_VSOCK_OP_CREDIT_REQUEST, 0), true
		case wantCreditUpdate:
			return c.header(VIRTIO_VSOCK_OP_CREDIT_UPDATE, 0), true
		case wantShutdown:
			return c.header(VIRTIO_VSOCK_OP_SHUTDOWN, c.local), true
		case wantRST:
			h := c.header(VIRTIO_VSOCK_OP_RST, 0)
			c.unmap()
			return h, true
		}
	}
	return header{}, false
}

// request opens a connection that the guest asks for, if anyone listens.
// Preconditions: d.mu held.
func (d *Device) request(k key, h *header) bool {
	if h.typ != VIRTIO_VSOCK_TYPE_STREAM && (h.typ != VIRTIO_VSOCK_TYPE_SEQPACKET || !d.seqpacket) {
		return false
	}
	if l := d.listeners[listenKey{k.host, h.typ}]; l != nil {
		if len(l.backlog) >= maxBacklog {
			return false
		}
		c := d.newConn(k, h.typ, established)
		if c == nil {
			return false
		}
		c.setCredit(h)
		c.want(wantResponse)
		l.backlog = append(l.backlog, c)
		l.cond.Signal()
		return true
	}
	if d.cfg.Forward == "" {
		return false
	}
	c := d.newConn(k, h.typ, forwarding)
	if c == nil {
		return false
	}
	c.setCredit(h)
	d.bg.Go(func() { d.forward(c) })
	return true
}

// setCredit takes the guest's credit from a header (§5.10.6.3). It returns
// false for a forward count beyond what was sent.
func (c *Conn) setCredit(h *header) bool {
	if int32(c.txCnt-h.fwdCnt) < 0 {
		return false
	}
	c.peerAlloc, c.peerFwd = h.bufAlloc, h.fwdCnt
	c.cond.Broadcast()
	return true
}

// receive acts on a packet of the connection's. Preconditions: Device.mu held;
// it may be dropped meanwhile.
func (c *Conn) receive(h *header, chain *virtq.Chain) {
	if h.op == VIRTIO_VSOCK_OP_RST {
		c.reset()
		return
	}
	if c.state == dead {
		return // our RST is on its way
	}
	if !c.setCredit(h) {
		c.kill(syscall.EPROTO, true)
		return
	}
	switch {
	case h.op == VIRTIO_VSOCK_OP_RESPONSE && c.state == connecting:
		c.state = established
	case h.op == VIRTIO_VSOCK_OP_RW && c.state == established:
		c.data(h, chain)
	case h.op == VIRTIO_VSOCK_OP_RW && c.state == closing:
		// Sent before the guest knew; nobody will read it.
		c.fwdCnt += h.len
	case h.op == VIRTIO_VSOCK_OP_CREDIT_UPDATE && c.state != connecting:
	case h.op == VIRTIO_VSOCK_OP_CREDIT_REQUEST && c.state != connecting:
		c.want(wantCreditUpdate)
	case h.op == VIRTIO_VSOCK_OP_SHUTDOWN && (c.state == established || c.state == closing):
		c.peer |= h.flags & shutdownBoth
		if c.state == closing && c.peer == shutdownBoth {
			c.kill(nil, true)
		}
		c.finish()
	default:
		// An operation that does not fit the state, or is unknown.
		c.kill(syscall.EPROTO, true)
	}
	c.cond.Broadcast()
}

// reset is the guest's RST.
func (c *Conn) reset() {
	var err error = syscall.ECONNRESET
	switch {
	case c.state == connecting:
		err = syscall.ECONNREFUSED
	case c.state == closing || (c.peer&VIRTIO_VSOCK_SHUTDOWN_F_SEND != 0 && c.in.Len() == 0):
		err = nil
	}
	c.kill(err, false)
}

// data takes the payload of an RW packet. Preconditions: Device.mu held; it is
// dropped while bytes go straight to a pipe.
func (c *Conn) data(h *header, chain *virtq.Chain) {
	// §5.10.6.3: the guest keeps to the credit that it was given, and
	// sends nothing after it said so.
	if int64(h.len) > int64(c.in.Room()) || c.peer&VIRTIO_VSOCK_SHUTDOWN_F_SEND != 0 {
		c.kill(syscall.EPROTO, true)
		return
	}
	if c.local&VIRTIO_VSOCK_SHUTDOWN_F_RECEIVE != 0 {
		c.fwdCnt += h.len
		c.want(wantCreditUpdate)
		return
	}
	if c.typ == VIRTIO_VSOCK_TYPE_SEQPACKET {
		c.store(chain, 0, int(h.len))
		c.message(h)
		return
	}
	done := 0
	if p := c.pipe; p != nil && c.in.Len() == 0 && h.len > 0 {
		c.dev.mu.Unlock()
		done = p.write(chain, int(h.len))
		c.dev.mu.Lock()
		if c.state != established {
			return
		}
		if c.local&VIRTIO_VSOCK_SHUTDOWN_F_RECEIVE != 0 {
			done = int(h.len)
		}
	}
	if done < int(h.len) {
		c.store(chain, done, int(h.len)-done)
	}
	if done > 0 {
		c.taken(done)
	}
}

// store appends n bytes of the payload, from byte off on, to the buffer.
// Preconditions: Device.mu held.
func (c *Conn) store(chain *virtq.Chain, off, n int) {
	off += headerSize
	for _, b := range chain.Readable {
		k := min(off, len(b.Bytes))
		off -= k
		p := b.Bytes[k:]
		p = p[:min(len(p), n)]
		c.in.Put(p)
		n -= len(p)
	}
	c.cond.Broadcast()
}

// message accounts for h.len more bytes of a seqpacket message.
// Preconditions: Device.mu held.
func (c *Conn) message(h *header) {
	c.partial += h.len
	if h.flags&VIRTIO_VSOCK_SEQ_EOM == 0 {
		return
	}
	if len(c.records) >= maxRecords {
		c.kill(syscall.ENOBUFS, true)
		return
	}
	c.records = append(c.records, c.partial)
	c.partial = 0
	c.cond.Broadcast()
}
