// Package consolehub shares a machine's console: the terminal that the machine
// was started on sees it, and so does everyone who attaches by a socket later.
// Those who attach may type; one who reads slowly misses output but slows
// nobody down.
package consolehub

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// Bounds of the hub.
const (
	history      = 16 << 10 // bytes of past output that a newcomer gets
	backlog      = 64       // writes that wait for a client
	maxClients   = 16
	writeTimeout = 10 * time.Second
)

// Hub is a console with any number of users.
type Hub struct {
	main io.Writer // may block, as the guest's console may

	mu        sync.Mutex // guards what follows
	clients   map[chan []byte]bool
	past      []byte
	written   uint64 // bytes
	closed    bool
	listeners []net.Listener

	inR *io.PipeReader
	inW *io.PipeWriter
}

// New returns a hub whose first user writes to main and is read from input,
// which may be nil. The hub's own input ends with Close only.
func New(main io.Writer, input io.Reader) *Hub {
	h := &Hub{main: main, clients: map[chan []byte]bool{}}
	h.inR, h.inW = io.Pipe()
	if input != nil {
		go io.Copy(h.inW, input) //nolint:errcheck // its end is not the hub's
	}
	return h
}

// Read returns input for the guest.
func (h *Hub) Read(p []byte) (int, error) { return h.inR.Read(p) }

// Write shows output of the guest to all.
func (h *Hub) Write(p []byte) (int, error) {
	h.share(p)
	return h.main.Write(p)
}

// Written is how many bytes the guest has printed.
func (h *Hub) Written() uint64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.written
}

// Past is the last output, at most a few KiB.
func (h *Hub) Past() []byte {
	h.mu.Lock()
	defer h.mu.Unlock()
	return append([]byte(nil), h.past[max(len(h.past)-history, 0):]...)
}

func (h *Hub) share(p []byte) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.written += uint64(len(p))
	h.past = append(h.past, p...)
	if n := len(h.past) - history; n > history { // now and then, not always
		h.past = append(h.past[:0], h.past[n:]...)
	}
	if len(h.clients) == 0 {
		return
	}
	c := append([]byte(nil), p...)
	for client := range h.clients {
		select {
		case client <- c:
		default: // too slow
		}
	}
}

// join adds a client and returns its output, which begins with the past.
func (h *Hub) join() (chan []byte, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed || len(h.clients) >= maxClients {
		return nil, errors.New("the console has too many users")
	}
	c := make(chan []byte, backlog)
	if n := len(h.past); n > 0 {
		c <- append([]byte(nil), h.past[max(n-history, 0):]...)
	}
	h.clients[c] = true
	return c, nil
}

func (h *Hub) leave(c chan []byte) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.clients[c] {
		delete(h.clients, c)
		close(c)
	}
}

// Serve connects a client until it or the hub is done, and closes the connection.
func (h *Hub) Serve(conn net.Conn) {
	defer conn.Close()
	out, err := h.join()
	if err != nil {
		return
	}
	defer h.leave(out)
	go func() {
		defer h.leave(out)
		io.Copy(h.inW, conn) //nolint:errcheck // the client has gone
	}()
	for p := range out {
		conn.SetWriteDeadline(time.Now().Add(writeTimeout)) //nolint:errcheck // then Write tells
		if _, err := conn.Write(p); err != nil {
			return
		}
	}
}

// Listen serves clients at a socket for our user alone until the hub is
// closed, or stop is called.
func (h *Hub) Listen(path string) (stop func(), err error) {
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		l.Close()
		return nil, err
	}
	h.mu.Lock()
	h.listeners = append(h.listeners, l)
	h.mu.Unlock()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go h.Serve(c)
		}
	}()
	return func() { l.Close() }, nil
}

// Close ends the input and sends all clients away.
func (h *Hub) Close() {
	h.mu.Lock()
	h.closed = true
	for _, l := range h.listeners {
		l.Close()
	}
	for c := range h.clients {
		delete(h.clients, c)
		close(c)
	}
	h.mu.Unlock()
	h.inW.Close()
}

// Attach connects in and out with the console at a socket until its machine
// ends or ctx does.
func Attach(ctx context.Context, path string, in io.Reader, out io.Writer) error {
	c, err := (&net.Dialer{}).DialContext(ctx, "unix", path)
	if err != nil {
		return err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	if in != nil {
		go io.Copy(c, in) //nolint:errcheck // the end of input is not the end of output
	}
	_, err = io.Copy(out, c)
	if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}
