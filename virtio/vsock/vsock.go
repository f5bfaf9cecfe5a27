// Package vsock is the virtio socket device with its host side in user space:
// no /dev/vhost-vsock is needed. Documents: virtio 1.2 §5.10, and virtio 1.3
// §5.10 for seqpacket.
//
// The guest's connections to the host (CID 2) go to a listener inside this
// process ([Device.Listen]), else to a unix socket named after the port, else
// they are refused. The host's connections to the guest come from
// [Device.Dial] or through a unix socket ([Device.ServeMux]).
//
// # Locks
//
// Device.mu guards all connections and is held only to look at or change
// their state. rx.mu guards the receiveq: whoever has something for the guest
// takes it, moves the bytes straight into the guest's buffers and composes the
// header, so that headers and bytes of one connection are in order. Order:
// Conn.writeMu, rx.mu, Device.mu.
package vsock

import (
	"errors"
	"fmt"
	"net"
	"sync"
	"syscall"

	"github.com/gvmspawn/gvmspawn/virtio"
	"github.com/gvmspawn/gvmspawn/virtio/virtq"
)

const (
	queueSize = 256

	// maxConns bounds the connections, whatever their state.
	maxConns = 1024
	// maxOrphans bounds the RST answers to packets of unknown connections
	// that wait for a buffer. The transmitq waits when there are as many.
	maxOrphans = 64

	// A connection may hold window bytes that its reader has not taken.
	// When all connections together were promised windowBudget, further
	// ones get smallWindow. So the guest can make the host hold no more
	// than windowBudget + maxConns*smallWindow = 96 MiB.
	window       = 256 << 10
	smallWindow  = 32 << 10
	windowBudget = 64 << 20
)

// MaxForward is the longest Config.Forward, which a port must fit behind.
const MaxForward = len(syscall.RawSockaddrUnix{}.Path) - len("_4294967295") - 1

// Config describes the device.
type Config struct {
	// CID is the guest's context ID, 3 to 4294967294.
	CID uint32
	// Forward, if set, is a path prefix: a connection of the guest's to port
	// P that has no listener goes to the unix socket Forward_P.
	Forward string
}

// Device is a virtio socket device. It implements virtio.Device.
type Device struct {
	cfg     Config
	rx      rx
	workers sync.WaitGroup // queue workers, between Activate and Reset
	bg      sync.WaitGroup // bridges and forwarders

	mu        sync.Mutex // guards all below
	closed    bool
	act       *virtio.Activation
	seqpacket bool // VIRTIO_VSOCK_F_SEQPACKET negotiated
	conns     map[key]*Conn
	live      int // connections that are in conns or not closed by the host
	promised  int // sum of their windows
	listeners map[listenKey]*Listener
	nextPort  uint32 // next host port to try
	// ctlHead and ctlTail list the connections with control packets to send.
	ctlHead, ctlTail *Conn
	orphans          orphans
	roomy            sync.Cond                  // an orphan was sent, or the device is reset
	shaking          map[*net.UnixConn]struct{} // mux clients before their bridge
	eventDue         bool
	event            sync.Cond
}

// key tells connections apart; the CIDs are always the same.
type key struct{ guest, host uint32 }

// orphan is an RST for a connection that does not exist.
type orphan struct {
	key
	typ uint16
}

// orphans is a bounded queue.
type orphans struct {
	q       [maxOrphans]orphan
	head, n int
}

// New returns the device.
func New(cfg Config) (*Device, error) {
	if cfg.CID < 3 || cfg.CID == 1<<32-1 {
		return nil, fmt.Errorf("vsock: context ID %d is reserved, use 3 to 4294967294", cfg.CID)
	}
	if len(cfg.Forward) > MaxForward {
		return nil, fmt.Errorf("vsock: the unix socket path prefix %q is too long", cfg.Forward)
	}
	d := &Device{
		cfg: cfg, conns: make(map[key]*Conn), listeners: make(map[listenKey]*Listener),
		shaking: make(map[*net.UnixConn]struct{}), nextPort: firstHostPort,
	}
	d.roomy.L, d.event.L = &d.mu, &d.mu
	d.rx.init(d)
	return d, nil
}

// CID is the guest's context ID.
func (d *Device) CID() uint32 { return d.cfg.CID }

// Type is the socket device's ID (§5.10.1).
func (d *Device) Type() virtio.Type { return virtio.TypeVsock }

// Features are the feature bits offered (§5.10.3).
func (d *Device) Features() virtio.Features {
	return virtio.Bits(VIRTIO_VSOCK_F_STREAM, VIRTIO_VSOCK_F_SEQPACKET)
}

// QueueSizes are those of rx, tx and event (§5.10.2).
func (d *Device) QueueSizes() []uint16 { return []uint16{queueSize, queueSize, 16} }

// ReadConfig reads le64 guest_cid (§5.10.4).
func (d *Device) ReadConfig(off uint64, p []byte) {
	c := d.cfg.CID
	cfg := [8]byte{byte(c), byte(c >> 8), byte(c >> 16), byte(c >> 24)}
	virtio.ReadConfigBytes(p, cfg[:], off)
}

// WriteConfig ignores the write: the configuration is read-only.
func (d *Device) WriteConfig(off uint64, p []byte) {}

// Activate starts the workers.
func (d *Device) Activate(a *virtio.Activation) error {
	if len(a.Queues) < 2 || a.Queues[queueRx] == nil || a.Queues[queueTx] == nil {
		return errors.New("vsock: the driver left a data queue disabled")
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return errClosed
	}
	d.act = a
	d.seqpacket = a.Features.Has(VIRTIO_VSOCK_F_SEQPACKET)
	d.rx.start(a.Queues[queueRx])
	a.Queues[queueRx].Away()
	d.workers.Go(func() { d.rx.work(a.Queues[queueRx]) })
	d.workers.Go(func() { d.transmit(a.Queues[queueTx]) })
	if len(a.Queues) > queueEvent && a.Queues[queueEvent] != nil {
		a.Queues[queueEvent].Away()
		d.workers.Go(func() { d.events(a.Queues[queueEvent]) })
	}
	return nil
}

// Reset breaks every connection and stops the workers. Listeners stay.
func (d *Device) Reset() {
	d.mu.Lock()
	d.act = nil
	d.eventDue = false
	d.killAll()
	d.roomy.Broadcast()
	d.event.Broadcast()
	d.mu.Unlock()
	// No sender is inside guest memory once rx.stop has had the lock.
	d.rx.stop()
	d.workers.Wait()
}

// killAll breaks every connection without a word to the guest.
// Preconditions: d.mu held.
func (d *Device) killAll() {
	for _, c := range d.conns {
		c.kill(syscall.ECONNRESET, false)
	}
	for c := d.ctlHead; c != nil; c = d.ctlHead {
		d.ctlHead, c.next, c.pending, c.queued = c.next, nil, 0, false
	}
	d.ctlTail = nil
	d.orphans = orphans{}
}

// TransportReset tells the driver that its connections are gone and its CID
// may be another (§5.10.6.7), as after a snapshot was restored.
func (d *Device) TransportReset() {
	d.mu.Lock()
	d.killAll()
	d.roomy.Broadcast()
	d.eventDue = d.act != nil
	d.event.Broadcast()
	d.mu.Unlock()
	d.rx.kick()
}

// events is the worker of the event queue.
func (d *Device) events(q *virtq.Queue) {
	var c virtq.Chain
	event := [4]byte{VIRTIO_VSOCK_EVENT_TRANSPORT_RESET}
	for {
		d.mu.Lock()
		for d.act != nil && !d.eventDue {
			q.Away()
			d.event.Wait()
		}
		active := d.act != nil
		d.mu.Unlock()
		if !active || !q.Wait() || !q.Pop(&c) {
			return
		}
		q.Push(&c, uint32(c.WriteAt(event[:], 0)))
		q.Notify()
		d.mu.Lock()
		d.eventDue = false
		d.mu.Unlock()
	}
}

// Close ends the device after Reset: listeners and connections are closed, and
// bridges to unix sockets have ended when it returns.
func (d *Device) Close() error {
	d.Reset()
	d.mu.Lock()
	d.closed = true
	for _, l := range d.listeners {
		l.close()
	}
	for u := range d.shaking {
		(&pipe{u: u}).abort()
	}
	d.mu.Unlock()
	d.bg.Wait()
	return nil
}
