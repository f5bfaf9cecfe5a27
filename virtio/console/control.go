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

// next takes the next message to send, or returns flag 0 when the device
// stops. Preconditions: Device.mu held.
func (c *control) next() (port int, flag uint8) {
	for c.active {
		for i, w := range c.wants {
			if w != 0 {
				flag = w & -w
				c.wants[i] &^= flag
				return i, flag
			}
		}
		c.cond.Wait()
	}
	return 0, 0
}

// controlReceive is the worker of the control receiveq: it sends messages to
// the driver.
func (d *Device) controlReceive(q *virtq.Queue) {
	var c virtq.Chain
	var msg [controlSize + maxName]byte
	for {
		d.mu.Lock()
		port, flag := d.control.next()
		n := d.message(&msg, port, flag)
		d.mu.Unlock()
		// A message waits for a buffer; what the driver asks for meanwhile
		// is only flags.
		if flag == 0 || !q.Wait() || !q.Pop(&c) {
			return
		}
		q.Push(&c, uint32(c.WriteAt(msg[:n], 0)))
		q.Notify()
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
func (d *Device) controlTransmit(q *virtq.Queue) {
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
