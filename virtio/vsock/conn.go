package vsock

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/gvmspawn/gvmspawn/virtio"
)

// errClosed is returned by operations on what the host closed.
var errClosed = fmt.Errorf("vsock: %w", net.ErrClosed)

// closeTimeout is how long a closed connection waits for the guest's RST
// before it is broken with our own (§5.10.6.5).
const closeTimeout = 8 * time.Second

// maxRecords bounds the seqpacket messages that wait for a reader. A guest that
// sends more, each of a few bytes, loses the connection.
const maxRecords = 16 << 10

// Addr is a socket address.
type Addr struct{ CID, Port uint32 }

// Network is "vsock".
func (Addr) Network() string { return "vsock" }

// String is CID:port in decimal.
func (a Addr) String() string { return fmt.Sprintf("%d:%d", a.CID, a.Port) }

// state of a connection.
type state uint8

const (
	connecting  state = iota // the host asked, the guest has not answered
	forwarding               // the guest asked, a unix socket is being connected
	established              // bytes may flow
	closing                  // the host closed, the guest has not confirmed
	dead                     // broken or finished; an RST may be left to send
)

// Control packets that a connection has yet to send, in this order.
const (
	wantRequest = 1 << iota
	wantResponse
	wantCreditRequest
	wantCreditUpdate
	wantShutdown
	wantRST
)

// Conn is a connection with the guest. It implements net.Conn; all methods
// may be called from any goroutine. On a seqpacket connection each Write is a
// message, and each Read returns one, cut to the length of its argument.
type Conn struct {
	dev *Device
	key key
	typ uint16

	writeMu sync.Mutex // one writer at a time

	// Device.mu guards the rest.
	cond    sync.Cond // broadcast after changes that a reader or writer waits for
	state   state
	err     error // why it is dead; nil for a clean end
	closed  bool  // by the host
	mapped  bool  // in Device.conns
	peer    uint32
	local   uint32 // SHUTDOWN flags that the guest and we sent
	pending uint8  // control packets to send
	queued  bool
	next    *Conn
	timer   *time.Timer

	// §5.10.6.3: what the guest sends.
	in       virtio.FIFO
	window   uint32
	fwdCnt   uint32 // bytes that left in
	fwdSent  uint32 // fwdCnt as the guest knows it
	records  []uint32
	partial  uint32 // bytes of the message that is not complete yet
	pipe     *pipe  // where the guest's bytes go without waiting, or nil
	deadline [2]deadline

	// What the guest lets us send.
	txCnt, peerAlloc, peerFwd uint32
}

// newConn makes a connection, or returns nil when there are too many.
// Preconditions: d.mu held, d.act not nil.
func (d *Device) newConn(k key, typ uint16, s state) *Conn {
	if d.live >= maxConns || d.conns[k] != nil || d.closed {
		return nil
	}
	c := &Conn{dev: d, key: k, typ: typ, state: s, window: window, mapped: true}
	if d.promised+window > windowBudget {
		c.window = smallWindow
	}
	c.in = virtio.NewFIFO(int(c.window))
	c.cond.L = &d.mu
	d.live++
	d.promised += int(c.window)
	d.conns[k] = c
	return c
}

// unmap forgets the connection; its key may be used again.
// Preconditions: d.mu held.
func (c *Conn) unmap() {
	if c.mapped {
		c.mapped = false
		delete(c.dev.conns, c.key)
		c.release()
	}
}

// release takes it out of the count when neither side knows it any more.
// Preconditions: d.mu held.
func (c *Conn) release() {
	if !c.mapped && c.closed {
		c.dev.live--
		c.dev.promised -= int(c.window)
		c.in, c.records = virtio.FIFO{}, nil
	}
}

// kill ends the connection at once, with an RST to the guest if asked for;
// then it keeps its key until that is sent. Preconditions: d.mu held.
func (c *Conn) kill(err error, rst bool) {
	if c.state != dead {
		c.state, c.err = dead, err
		c.pending = 0
		if c.timer != nil {
			c.timer.Stop()
		}
		if c.pipe != nil && err != nil {
			c.pipe.abort()
		}
	}
	if rst {
		c.want(wantRST)
	} else {
		c.pending = 0
		c.unmap()
	}
	c.cond.Broadcast()
}

// want notes control packets to send; rx.kick sends them.
// Preconditions: d.mu held.
func (c *Conn) want(flags uint8) {
	c.pending |= flags
	if c.queued {
		return
	}
	c.queued = true
	d := c.dev
	if d.ctlTail != nil && d.ctlHead != nil {
		d.ctlTail.next = c
	} else {
		d.ctlHead = c
	}
	d.ctlTail = c
}

// header is a packet of this connection's, with the credit of now.
// Preconditions: d.mu held.
func (c *Conn) header(op uint16, flags uint32) header {
	c.fwdSent = c.fwdCnt
	return header{
		srcCID: HostCID, dstCID: uint64(c.dev.cfg.CID), srcPort: c.key.host, dstPort: c.key.guest,
		typ: c.typ, op: op, flags: flags, bufAlloc: c.window, fwdCnt: c.fwdCnt,
	}
}

// creditNow is how many bytes the guest has room for (§5.10.6.3).
// Preconditions: d.mu held.
func (c *Conn) creditNow() int {
	used := c.txCnt - c.peerFwd
	if used >= c.peerAlloc {
		return 0
	}
	return int(c.peerAlloc - used)
}

// writableNow says why nothing can be sent. Preconditions: d.mu held.
func (c *Conn) writableNow() error {
	switch {
	case c.closed:
		return errClosed
	case c.state == dead && c.err != nil:
		return c.err
	case c.state == dead || c.local&VIRTIO_VSOCK_SHUTDOWN_F_SEND != 0 || c.peer&VIRTIO_VSOCK_SHUTDOWN_F_RECEIVE != 0:
		return syscall.EPIPE
	case c.deadline[writes].expired:
		return os.ErrDeadlineExceeded
	}
	return nil
}

func (c *Conn) writable() error {
	c.dev.mu.Lock()
	defer c.dev.mu.Unlock()
	return c.writableNow()
}

// credit is what can be sent now, 0 if nothing may.
func (c *Conn) credit() int {
	c.dev.mu.Lock()
	defer c.dev.mu.Unlock()
	if c.writableNow() != nil {
		return 0
	}
	return c.creditNow()
}

// reserve takes credit for a packet of up to n of the left bytes and composes
// its header. With no credit it returns 0. The packet that holds the last byte
// is the end of the message if eom is set.
func (c *Conn) reserve(n, left int, eom bool) (header, int, error) {
	c.dev.mu.Lock()
	defer c.dev.mu.Unlock()
	if err := c.writableNow(); err != nil {
		return header{}, 0, err
	}
	n = min(n, c.creditNow())
	flags := uint32(0)
	if eom && n == left {
		flags = VIRTIO_VSOCK_SEQ_EOM
	}
	c.txCnt += uint32(n)
	return c.header(VIRTIO_VSOCK_OP_RW, flags), n, nil
}

// commit is reserve for n bytes that credit was seen for.
func (c *Conn) commit(n int) (header, bool) {
	c.dev.mu.Lock()
	defer c.dev.mu.Unlock()
	if c.writableNow() != nil {
		return header{}, false
	}
	c.txCnt += uint32(n)
	return c.header(VIRTIO_VSOCK_OP_RW, 0), true
}

// waitCredit waits until something can be sent.
func (c *Conn) waitCredit() error {
	d := c.dev
	d.mu.Lock()
	defer d.mu.Unlock()
	asked := false
	for {
		if err := c.writableNow(); err != nil {
			return err
		}
		if c.state == established && c.creditNow() > 0 {
			return nil
		}
		if !asked && c.state == established {
			asked = true
			c.want(wantCreditRequest)
			d.mu.Unlock()
			d.rx.kick()
			d.mu.Lock()
			continue
		}
		c.cond.Wait()
	}
}

// Write sends p. It waits while the guest has no room for it.
func (c *Conn) Write(p []byte) (int, error) {
	c.writeMu.Lock()
	defer c.writeMu.Unlock()
	message := c.typ == VIRTIO_VSOCK_TYPE_SEQPACKET
	if message {
		if err := c.fits(len(p)); err != nil {
			return 0, c.opError("write", err)
		}
	}
	n := 0
	for first := true; len(p) > n || (message && first); first = false {
		var err error
		if len(p) > n {
			err = c.waitCredit()
		}
		m := 0
		if err == nil {
			m, err = c.dev.rx.send(c, p[n:], message)
		}
		n += m
		if err != nil {
			return n, c.opError("write", err)
		}
	}
	return n, nil
}

// fits reports an error for a message that the guest can never receive.
func (c *Conn) fits(n int) error {
	c.dev.mu.Lock()
	defer c.dev.mu.Unlock()
	if err := c.writableNow(); err != nil {
		return err
	}
	if uint64(n) > uint64(c.peerAlloc) {
		return syscall.EMSGSIZE
	}
	return nil
}

// readableNow is the number of bytes that a Read may take; an error tells of
// the end. 0 without an error means to wait. Preconditions: d.mu held.
func (c *Conn) readableNow() (int, error) {
	seq := c.typ == VIRTIO_VSOCK_TYPE_SEQPACKET
	switch {
	case c.closed:
		return 0, errClosed
	case c.local&VIRTIO_VSOCK_SHUTDOWN_F_RECEIVE != 0:
		return 0, io.EOF
	case c.deadline[reads].expired:
		return 0, os.ErrDeadlineExceeded
	case seq && len(c.records) > 0:
		return int(c.records[0]), nil
	case !seq && c.in.Len() > 0:
		return c.in.Len(), nil
	case c.state == dead && c.err != nil:
		return 0, c.err
	case c.state == dead || c.peer&VIRTIO_VSOCK_SHUTDOWN_F_SEND != 0:
		return 0, io.EOF
	}
	return 0, nil
}

// waitReadable waits for readableNow, or, on a seqpacket connection, for an
// empty message. Preconditions: d.mu held.
func (c *Conn) waitReadable() (int, error) {
	for {
		n, err := c.readableNow()
		if n > 0 || err != nil || len(c.records) > 0 {
			return n, err
		}
		c.cond.Wait()
	}
}

// taken accounts for n bytes that left the buffer and reports whether the
// guest must be told. Preconditions: d.mu held.
func (c *Conn) taken(n int) bool {
	c.fwdCnt += uint32(n)
	if c.finish() {
		return true
	}
	if c.state == established && c.fwdCnt-c.fwdSent >= c.window/4 && c.peer&VIRTIO_VSOCK_SHUTDOWN_F_SEND == 0 {
		c.want(wantCreditUpdate)
		return true
	}
	return false
}

// finish ends a connection that the guest shut down in both directions, once
// all its bytes are taken (§5.10.6.5). Preconditions: d.mu held.
func (c *Conn) finish() bool {
	if c.state != established || c.peer != shutdownBoth || c.in.Len() > 0 {
		return false
	}
	c.kill(nil, true)
	return true
}

// Read reads what the guest sent.
func (c *Conn) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	d := c.dev
	d.mu.Lock()
	n, err := c.waitReadable()
	if err != nil {
		d.mu.Unlock()
		if err == io.EOF {
			return 0, err
		}
		return 0, c.opError("read", err)
	}
	got := c.in.Get(p[:min(n, len(p))])
	total := got
	if len(c.records) > 0 {
		c.in.Drop(n - got)
		total = n
		c.dropRecord()
	}
	kick := c.taken(total)
	d.mu.Unlock()
	if kick {
		d.rx.kick()
	}
	return got, nil
}

// dropRecord forgets the oldest message's length. Preconditions: d.mu held.
func (c *Conn) dropRecord() {
	copy(c.records, c.records[1:])
	c.records = c.records[:len(c.records)-1]
}

// CloseRead tells the guest that no more bytes are wanted and drops those that
// have come.
func (c *Conn) CloseRead() error { return c.shutdown(VIRTIO_VSOCK_SHUTDOWN_F_RECEIVE) }

// CloseWrite tells the guest that no more bytes will come.
func (c *Conn) CloseWrite() error { return c.shutdown(VIRTIO_VSOCK_SHUTDOWN_F_SEND) }

func (c *Conn) shutdown(flags uint32) error {
	d := c.dev
	d.mu.Lock()
	if c.closed {
		d.mu.Unlock()
		return c.opError("shutdown", errClosed)
	}
	c.shutdownNow(flags)
	d.mu.Unlock()
	d.rx.kick()
	return nil
}

// shutdownNow sends SHUTDOWN with the flags that are new.
// Preconditions: d.mu held.
func (c *Conn) shutdownNow(flags uint32) {
	if flags&^c.local == 0 {
		return
	}
	c.local |= flags
	if flags&VIRTIO_VSOCK_SHUTDOWN_F_RECEIVE != 0 {
		c.fwdCnt += uint32(c.in.Len())
		c.in.Drop(c.in.Len())
		c.records, c.partial = nil, 0
		c.finish()
	}
	if c.state == established {
		c.want(wantShutdown)
	}
	c.cond.Broadcast()
}

// Close ends the connection: bytes that the guest sent and nobody read are lost.
func (c *Conn) Close() error {
	d := c.dev
	d.mu.Lock()
	if c.closed {
		d.mu.Unlock()
		return c.opError("close", errClosed)
	}
	switch c.state {
	case established:
		c.shutdownNow(shutdownBoth)
		if c.state == established {
			c.state = closing
			c.timer = time.AfterFunc(closeTimeout, c.giveUp)
		}
	case connecting, forwarding:
		c.kill(nil, true)
	}
	c.closed = true
	c.deadline[reads].stop()
	c.deadline[writes].stop()
	c.release()
	c.cond.Broadcast()
	d.mu.Unlock()
	d.rx.kick()
	return nil
}

// giveUp breaks a closed connection whose end the guest did not confirm.
func (c *Conn) giveUp() {
	c.dev.mu.Lock()
	if c.state == closing {
		c.kill(nil, true)
	}
	c.dev.mu.Unlock()
	c.dev.rx.kick()
}

// LocalAddr is the host's end: CID 2.
func (c *Conn) LocalAddr() net.Addr { return Addr{HostCID, c.key.host} }

// RemoteAddr is the guest's end. Below port 1024 it was a privileged process.
func (c *Conn) RemoteAddr() net.Addr { return Addr{c.dev.cfg.CID, c.key.guest} }

func (c *Conn) opError(op string, err error) error {
	var errno syscall.Errno
	if errors.As(err, &errno) {
		err = os.NewSyscallError(op, errno)
	}
	return &net.OpError{Op: op, Net: "vsock", Source: c.LocalAddr(), Addr: c.RemoteAddr(), Err: err}
}
