package vsock

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gvmspawn/gvmspawn/virtio/virtq"
)

const (
	// muxTimeout bounds the handshake of a mux connection, and the guest's answer.
	muxTimeout = 10 * time.Second
	// maxHandshakes bounds mux connections before their handshake is done.
	maxHandshakes = 64
	// maxPacket bounds a unix seqpacket message from the host, in bytes.
	maxPacket = 64 << 10
)

// forward connects a guest's connection to the unix socket of its port.
func (d *Device) forward(c *Conn) {
	network := "unix"
	if c.typ == VIRTIO_VSOCK_TYPE_SEQPACKET {
		network = "unixpacket"
	}
	path := fmt.Sprintf("%s_%d", d.cfg.Forward, c.key.host)
	u, err := net.DialUnix(network, nil, &net.UnixAddr{Net: network, Name: path})
	d.mu.Lock()
	ok := err == nil && c.state == forwarding
	if ok {
		c.state = established
		c.want(wantResponse)
	}
	d.mu.Unlock()
	if ok {
		d.rx.kick()
		bridge(c, u)
		return
	}
	if err == nil {
		_ = u.Close()
	}
	_ = c.Close()
}

// ServeMux serves a unix socket through which host programs reach the guest: a
// client sends "CONNECT <port>\n", gets "OK <our port>\n", and from then on
// is connected to that port of the guest's. A connection that fails is closed
// without an answer. Firecracker's hybrid vsock and systemd's ssh-proxy
// (vsock-mux/PATH) speak this. ServeMux returns when l is closed.
func (d *Device) ServeMux(l *net.UnixListener) error {
	slots := make(chan struct{}, maxHandshakes)
	for {
		u, err := l.AcceptUnix()
		if errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) {
			// Out of descriptors: the client waits, and so do we.
			time.Sleep(100 * time.Millisecond)
			continue
		}
		if err != nil {
			return err
		}
		slots <- struct{}{}
		d.mu.Lock()
		if d.closed {
			d.mu.Unlock()
			_ = u.Close()
			return errClosed
		}
		d.shaking[u] = struct{}{}
		d.bg.Go(func() { d.serveMux(u, slots) })
		d.mu.Unlock()
	}
}

func (d *Device) serveMux(u *net.UnixConn, slots <-chan struct{}) {
	c, err := d.handshake(u)
	d.mu.Lock()
	delete(d.shaking, u)
	d.mu.Unlock()
	<-slots
	if err != nil {
		_ = u.Close()
		return
	}
	bridge(c, u)
}

// handshake reads CONNECT, dials, and answers.
func (d *Device) handshake(u *net.UnixConn) (*Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), muxTimeout)
	defer cancel()
	_ = u.SetDeadline(time.Now().Add(muxTimeout))
	line, err := readLine(u)
	if err != nil {
		return nil, err
	}
	word, arg, _ := strings.Cut(line, " ")
	port, err := strconv.ParseUint(strings.TrimSpace(arg), 10, 32)
	if err != nil || !strings.EqualFold(word, "connect") {
		return nil, fmt.Errorf("vsock: %q is not CONNECT <port>", line)
	}
	c, err := d.Dial(ctx, uint32(port))
	if err != nil {
		return nil, err
	}
	if _, err := fmt.Fprintf(u, "OK %d\n", c.key.host); err != nil {
		_ = c.Close()
		return nil, err
	}
	return c, u.SetDeadline(time.Time{})
}

// readLine reads up to a newline and not a byte more.
func readLine(r io.Reader) (string, error) {
	var line [32]byte
	for i := range line {
		if _, err := io.ReadFull(r, line[i:i+1]); err != nil {
			return "", err
		}
		if line[i] == '\n' {
			return string(line[:i]), nil
		}
	}
	return "", errors.New("vsock: line too long")
}

// bridge joins a connection and a unix socket until both directions have
// ended, and closes both.
func bridge(c *Conn, u *net.UnixConn) {
	if c.typ == VIRTIO_VSOCK_TYPE_SEQPACKET {
		bridgePackets(c, u)
		return
	}
	if p, err := newPipe(u); err == nil {
		c.setPipe(p)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		_, err := c.WriteTo(u)
		c.guestEnded(u, err)
	})
	if _, err := c.ReadFrom(u); err != nil {
		_ = u.CloseRead()
	} else {
		_ = c.CloseWrite()
	}
	wg.Wait()
	_ = c.Close()
	_ = u.Close()
}

// bridgePackets is bridge for seqpacket.
func bridgePackets(c *Conn, u *net.UnixConn) {
	c.setPipe(&pipe{u: u})
	var wg sync.WaitGroup
	wg.Go(func() {
		buf := make([]byte, c.window)
		for {
			n, err := c.Read(buf)
			if err == nil {
				_, err = u.Write(buf[:n])
			}
			if err != nil {
				if err == io.EOF {
					err = nil
				}
				c.guestEnded(u, err)
				return
			}
		}
	})
	buf := make([]byte, maxPacket)
	for {
		n, _, flags, _, err := u.ReadMsgUnix(buf, nil)
		if err != nil || flags&unix.MSG_TRUNC != 0 {
			break
		}
		if _, err := c.Write(buf[:n]); err != nil {
			_ = u.CloseRead()
			break
		}
	}
	_ = c.CloseWrite()
	wg.Wait()
	_ = c.Close()
	_ = u.Close()
}

// guestEnded passes the end of the guest's bytes on to the unix socket. err is
// why copying ended, nil for the guest's own wish.
func (c *Conn) guestEnded(u *net.UnixConn, err error) {
	_ = u.CloseWrite()
	if err != nil {
		_ = c.CloseRead()
	}
	c.dev.mu.Lock()
	over := c.state == dead || c.peer&VIRTIO_VSOCK_SHUTDOWN_F_RECEIVE != 0
	c.dev.mu.Unlock()
	if over {
		// The guest takes no more either.
		_ = u.CloseRead()
	}
}

// pipe is the unix socket that a connection is bridged to.
type pipe struct {
	u   *net.UnixConn
	raw syscall.RawConn // nil for packets, which go the long way

	// For write, which only the transmitq's worker calls.
	iov  [64]unix.Iovec
	vec  []unix.Iovec
	n    int
	call func(fd uintptr) bool
}

func newPipe(u *net.UnixConn) (*pipe, error) {
	raw, err := u.SyscallConn()
	if err != nil {
		return nil, err
	}
	p := &pipe{u: u, raw: raw}
	p.call = func(fd uintptr) bool {
		p.n, _ = writev(int(fd), p.vec)
		return true
	}
	return p, nil
}

// abort ends both directions of the socket. Unlike Close it does not wait for
// those who use the socket, so it can be called with Device.mu held.
func (p *pipe) abort() {
	_ = p.u.CloseRead()
	_ = p.u.CloseWrite()
}

// write writes up to n payload bytes of the chain without waiting, and returns
// how many went. Errors show again when the rest is written.
func (p *pipe) write(chain *virtq.Chain, n int) int {
	if p.raw == nil {
		return 0
	}
	p.vec = p.iov[:0]
	skip := headerSize
	for _, b := range chain.Readable {
		k := min(skip, len(b.Bytes))
		skip -= k
		s := b.Bytes[k:]
		s = s[:min(len(s), n)]
		n -= len(s)
		if len(s) > 0 && len(p.vec) < cap(p.iov[:]) {
			p.vec = append(p.vec, iovec(s))
		} else if len(s) > 0 {
			break
		}
	}
	p.n = 0
	if err := p.raw.Write(p.call); err != nil {
		return 0
	}
	return p.n
}

func (c *Conn) setPipe(p *pipe) {
	c.dev.mu.Lock()
	c.pipe = p
	if c.state == dead && c.err != nil {
		p.abort()
	}
	c.dev.mu.Unlock()
}

// WriteTo copies what the guest sends to w until the guest ends it. Bytes
// count against the guest's credit until w has taken them.
func (c *Conn) WriteTo(w io.Writer) (int64, error) {
	if c.typ == VIRTIO_VSOCK_TYPE_SEQPACKET {
		return 0, c.opError("read", syscall.EPROTOTYPE)
	}
	d := c.dev
	total := int64(0)
	d.mu.Lock()
	for {
		_, err := c.waitReadable()
		if err != nil {
			d.mu.Unlock()
			if err == io.EOF {
				return total, nil
			}
			return total, c.opError("read", err)
		}
		p := c.in.Peek()
		d.mu.Unlock()
		n, err := w.Write(p)
		total += int64(n)
		d.mu.Lock()
		n = min(n, c.in.Len()) // CloseRead may have emptied it
		c.in.Drop(n)
		kick := c.taken(n)
		d.mu.Unlock()
		if kick {
			d.rx.kick()
		}
		if err != nil {
			return total, err
		}
		d.mu.Lock()
	}
}

// ReadFrom sends what r yields until its end. From a socket the bytes
// are read straight into the guest's memory.
func (c *Conn) ReadFrom(r io.Reader) (int64, error) {
	var raw syscall.RawConn
	var err error
	switch s := r.(type) { // those whose descriptors never block
	case *net.UnixConn:
		raw, err = s.SyscallConn()
	case *net.TCPConn:
		raw, err = s.SyscallConn()
	}
	if err != nil {
		return 0, err
	}
	if raw == nil || c.typ != VIRTIO_VSOCK_TYPE_STREAM {
		return io.Copy(struct{ io.Writer }{c}, r)
	}
	c.writeMu.Lock()
	defer c.writeMu.Unlock()
	total := int64(0)
	var n, result int
	var fillErr error
	call := func(fd uintptr) bool {
		n, result, fillErr = c.dev.rx.fill(c, int(fd))
		return result != fillAgain
	}
	for {
		if err := c.waitCredit(); err != nil {
			return total, c.opError("write", err)
		}
		if err := raw.Read(call); err != nil {
			return total, err
		}
		switch {
		case result == fillSpace:
			if err := c.dev.rx.waitSpace(c); err != nil {
				return total, c.opError("write", err)
			}
		case result == fillDone && (n == 0 || fillErr != nil):
			return total, fillErr
		}
		total += int64(n)
	}
}
