package console

import (
	"encoding/binary"
	"sync"

	"github.com/gvmspawn/gvmspawn/virtio/virtq"
)

// maxName bounds a port's name in bytes.
const maxName = 128

// Messages that a port has yet to send to the driver, in this order.
const (
	wantAdd = 1 << iota
	wantConsole
	wantName
	wantOpen
	wantResize
)

// control is the state of the control queues. What is to be sent is a set of
// flags per port, so it cannot grow. Its fields are guarded by Device.mu,
// which its condition shares.
type control struct {
	cond   sync.Cond
	active bool
	wants  []uint8
	ready  []bool // the driver sent PORT_READY

	sendMu sync.Mutex // held to send; guards the fields below; before Device.mu
	chain  virtq.Chain
	msg    [controlSize + maxName]byte
}

func (c *control) init(mu *sync.Mutex, ports int) {
	c.cond.L = mu
	c.wants, c.ready = make([]uint8, ports), make([]bool, ports)
}

// want notes messages to be sent for a port. Preconditions: Device.mu held.
func (c *control) want(port int, flags uint8) {
	c.wants[port] |= flags
	c.cond.Broadcast()
}

func (c *control) start() { c.active = true }

// stop forgets everything. Preconditions: Device.mu held.
func (c *control) stop() {
	c.active = false
	clear(c.wants)
	clear(c.ready)
	c.cond.Broadcast()
}

// next is the next message to send, or flag 0. Preconditions: Device.mu held.
func (c *control) next() (port int, flag uint8) {
	if !c.active {
		return 0, 0
	}
	for i, w := range c.wants {
		if w != 0 {
			return i, w & -w
		}
	}
	return 0, 0
}

// wait blocks until there is a message to send, or returns false when the
// device stops. Preconditions: Device.mu held.
func (c *control) wait(q *virtq.Queue) bool {
	for c.active {
		if _, flag := c.next(); flag != 0 {
			return true
		}
		q.Away()
		c.cond.Wait()
	}
	return false
}

// controlReceive is the worker of the control receiveq: it sends what waits for
// a buffer of the driver's, or was wanted by the host.
func (d *Device) controlReceive(q *virtq.Queue) {
	for {
		d.mu.Lock()
		active := d.control.wait(q)
		d.mu.Unlock()
		if !active || !q.Wait() {
			return
		}
		d.sendControl(q)
	}
}

// sendControl sends the messages for which there are buffers. What the driver
// asks for meanwhile is only flags. The worker of the control transmitq calls
// it as well: an answer does not wait for another worker to be scheduled.
func (d *Device) sendControl(q *virtq.Queue) {
	d.control.sendMu.Lock()
	defer d.control.sendMu.Unlock()
	c, msg := &d.control.chain, &d.control.msg
	for sent := false; ; sent = true {
		d.mu.Lock()
		_, flag := d.control.next()
		d.mu.Unlock()
		if flag == 0 || !q.Pop(c) {
			if sent {
				q.Notify()
			}
			return
		}
		d.mu.Lock()
		port, flag := d.control.next() // 0 if the device was stopped in between
		d.control.wants[port] &^= flag
		n := d.message(msg, port, flag)
		d.mu.Unlock()
		q.Push(c, uint32(c.WriteAt(msg[:n], 0)))
	}
}

// message composes a control message and returns its length.
// Preconditions: d.mu held.
func (d *Device) message(msg *[controlSize + maxName]byte, port int, flag uint8) int {
	event, value := uint16(0), uint16(1)
	n := controlSize
	switch flag {
	case wantAdd:
		event = VIRTIO_CONSOLE_DEVICE_ADD
	case wantConsole:
		event = VIRTIO_CONSOLE_CONSOLE_PORT
	case wantName:
		event = VIRTIO_CONSOLE_PORT_NAME
		n += copy(msg[controlSize:], d.ports[port].cfg.Name)
	case wantOpen:
		event = VIRTIO_CONSOLE_PORT_OPEN
	case wantResize:
		// struct virtio_console_resize: le16 cols, le16 rows (§5.3.6.2).
		event = VIRTIO_CONSOLE_RESIZE
		binary.LittleEndian.PutUint16(msg[controlSize:], d.size[0])
		binary.LittleEndian.PutUint16(msg[controlSize+2:], d.size[1])
		n += 4
	}
	binary.LittleEndian.PutUint32(msg[0:], uint32(port))
	binary.LittleEndian.PutUint16(msg[4:], event)
	binary.LittleEndian.PutUint16(msg[6:], value)
	return n
}

// controlTransmit is the worker of the control transmitq: the driver's messages.
func (d *Device) controlTransmit(q, answers *virtq.Queue) {
	var c virtq.Chain
	var msg [controlSize]byte
	for q.Wait() {
		for q.Pop(&c) {
			if c.ReadAt(msg[:], 0) == controlSize {
				d.handle(binary.LittleEndian.Uint32(msg[0:]),
					binary.LittleEndian.Uint16(msg[4:]), binary.LittleEndian.Uint16(msg[6:]))
			}
			q.Push(&c, 0)
		}
		q.Notify()
		if answers != nil {
			d.sendControl(answers)
		}
	}
}

// handle acts on a message of the driver's; unknown ones and unknown ports
// are ignored (§5.3.6.2).
func (d *Device) handle(id uint32, event, value uint16) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if event == VIRTIO_CONSOLE_DEVICE_READY {
		for i := range d.ports {
			if value == 1 {
				d.control.want(i, wantAdd)
			}
		}
		return
	}
	if id >= uint32(len(d.ports)) {
		return
	}
	p := d.ports[id]
	switch event {
	case VIRTIO_CONSOLE_PORT_READY:
		if value != 1 {
			return
		}
		d.control.ready[id] = true
		flags := uint8(wantOpen)
		if p.console() {
			flags |= wantConsole
		}
		if p.cfg.Name != "" {
			flags |= wantName
		}
		if id == 0 && d.act != nil && d.act.Features.Has(VIRTIO_CONSOLE_F_SIZE) {
			flags |= wantResize
		}
		d.control.want(int(id), flags)
	case VIRTIO_CONSOLE_PORT_OPEN:
		p.setOpen(value != 0)
	}
}
