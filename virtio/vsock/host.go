package vsock

import (
	"context"
	"fmt"
	"net"
	"sync"
	"syscall"
)

const (
	// firstHostPort is where the search for a free port of ours begins: far
	// from the ports that have a meaning.
	firstHostPort = 1 << 30
	// maxBacklog bounds the connections that wait for Accept.
	maxBacklog = 128
)

type listenKey struct {
	port uint32
	typ  uint16
}

// Listener accepts the guest's connections to one port. It implements net.Listener.
type Listener struct {
	dev *Device
	key listenKey
	// Device.mu guards the rest.
	cond    sync.Cond
	backlog []*Conn
	closed  bool
}

// Listen accepts the guest's stream connections to a port of the host's. Port 0
// means any free one: see Listener.Addr. Only this machine's guest can connect.
func (d *Device) Listen(port uint32) (*Listener, error) {
	return d.listen(port, VIRTIO_VSOCK_TYPE_STREAM)
}

// ListenSeqpacket is Listen for seqpacket connections (virtio 1.3 §5.10.6.4).
func (d *Device) ListenSeqpacket(port uint32) (*Listener, error) {
	return d.listen(port, VIRTIO_VSOCK_TYPE_SEQPACKET)
}

func (d *Device) listen(port uint32, typ uint16) (*Listener, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return nil, errClosed
	}
	k := listenKey{port, typ}
	for port == 0 && (k.port == 0 || d.listeners[k] != nil) {
		k.port = d.takePort()
	}
	if d.listeners[k] != nil {
		return nil, fmt.Errorf("vsock: port %d has a listener already: %w", port, syscall.EADDRINUSE)
	}
	l := &Listener{dev: d, key: k}
	l.cond.L = &d.mu
	d.listeners[k] = l
	return l, nil
}

// takePort is the next host port to try, never below firstHostPort.
// Preconditions: d.mu held.
func (d *Device) takePort() uint32 {
	p := d.nextPort
	if d.nextPort++; d.nextPort == 1<<32-1 {
		d.nextPort = firstHostPort
	}
	return p
}

// Accept waits for the next connection, a *Conn.
func (l *Listener) Accept() (net.Conn, error) { return l.AcceptVsock() }

// AcceptVsock is Accept.
func (l *Listener) AcceptVsock() (*Conn, error) {
	l.dev.mu.Lock()
	defer l.dev.mu.Unlock()
	for len(l.backlog) == 0 && !l.closed {
		l.cond.Wait()
	}
	if l.closed {
		return nil, &net.OpError{Op: "accept", Net: "vsock", Addr: l.Addr(), Err: errClosed}
	}
	c := l.backlog[0]
	l.backlog = append(l.backlog[:0], l.backlog[1:]...)
	return c, nil
}

// Addr is the address listened on: CID 2 and the port.
func (l *Listener) Addr() net.Addr { return Addr{HostCID, l.key.port} }

// Close stops listening and refuses what was not accepted. Accepted
// connections live on.
func (l *Listener) Close() error {
	l.dev.mu.Lock()
	if !l.closed {
		l.close()
	}
	l.dev.mu.Unlock()
	l.dev.rx.kick()
	return nil
}

// close does it. Preconditions: Device.mu held.
func (l *Listener) close() {
	l.closed = true
	delete(l.dev.listeners, l.key)
	for _, c := range l.backlog {
		c.closed = true
		if c.state == dead {
			c.release()
		} else {
			c.kill(nil, true)
		}
	}
	l.backlog = nil
	l.cond.Broadcast()
}

// Dial opens a stream connection to a port of the guest's. It fails at once
// when the guest's driver is not up or nobody listens there.
func (d *Device) Dial(ctx context.Context, port uint32) (*Conn, error) {
	return d.dial(ctx, port, VIRTIO_VSOCK_TYPE_STREAM)
}

// DialSeqpacket is Dial for a seqpacket connection.
func (d *Device) DialSeqpacket(ctx context.Context, port uint32) (*Conn, error) {
	return d.dial(ctx, port, VIRTIO_VSOCK_TYPE_SEQPACKET)
}

func (d *Device) dial(ctx context.Context, port uint32, typ uint16) (*Conn, error) {
	fail := func(err error) (*Conn, error) {
		return nil, &net.OpError{Op: "dial", Net: "vsock", Addr: Addr{d.cfg.CID, port}, Err: err}
	}
	c, err := d.open(port, typ)
	if err != nil {
		return fail(err)
	}
	d.rx.kick()
	stop := context.AfterFunc(ctx, func() {
		d.mu.Lock()
		c.cond.Broadcast()
		d.mu.Unlock()
	})
	defer stop()
	d.mu.Lock()
	for c.state == connecting && ctx.Err() == nil {
		c.cond.Wait()
	}
	switch {
	case c.state == dead:
		err = c.err
		if err == nil {
			err = syscall.ECONNRESET
		}
	case c.state == connecting:
		err = ctx.Err()
	}
	d.mu.Unlock()
	if err != nil {
		_ = c.Close()
		return fail(err)
	}
	return c, nil
}

// open makes the connection and asks the guest for it.
func (d *Device) open(port uint32, typ uint16) (*Conn, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case d.closed:
		return nil, errClosed
	case d.act == nil:
		return nil, syscall.ENETDOWN
	case typ == VIRTIO_VSOCK_TYPE_SEQPACKET && !d.seqpacket:
		return nil, syscall.EPROTONOSUPPORT
	case d.live >= maxConns:
		return nil, syscall.ENOBUFS
	}
	for {
		// There are more ports than connections, so one is free.
		k := key{guest: port, host: d.takePort()}
		if c := d.newConn(k, typ, connecting); c != nil {
			c.want(wantRequest)
			return c, nil
		}
	}
}
