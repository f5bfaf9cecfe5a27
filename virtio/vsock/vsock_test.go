package vsock

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gvmspawn/gvmspawn/virtio"
	"github.com/gvmspawn/gvmspawn/virtio/virtiotest"
)

var _ virtio.Device = (*Device)(nil)

// §5.10.4: guest_cid.
func TestConfig(t *testing.T) {
	m := virtiotest.New(t, newDevice(t, Config{}), virtiotest.Options{})
	if got := m.Config(0, 10); !bytes.Equal(got, []byte{testCID, 0, 0, 0, 0, 0, 0, 0, 0, 0}) {
		t.Errorf("config %x", got)
	}
	for _, cid := range []uint32{0, 1, 2, 1<<32 - 1} {
		if _, err := New(Config{CID: cid}); err == nil {
			t.Errorf("CID %d accepted", cid)
		}
	}
	if _, err := New(Config{CID: 3, Forward: strings.Repeat("x", 100)}); err == nil {
		t.Error("path prefix too long accepted")
	}
}

// §5.10.6: request, response, data both ways, addresses.
func TestGuestConnects(t *testing.T) {
	g := newGuest(t, newDevice(t, Config{}), 8)
	s, c := pair(t, g)
	if a := c.RemoteAddr(); a.String() != "42:1023" || a.Network() != "vsock" {
		t.Errorf("remote address %v", a)
	}
	s.send(VIRTIO_VSOCK_OP_RW, 0, []byte("READY=1\n"))
	buf := make([]byte, 100)
	if n, err := c.Read(buf); string(buf[:n]) != "READY=1\n" || err != nil {
		t.Errorf("read %q, %v", buf[:n], err)
	}
	if n, err := c.Write([]byte("hello")); n != 5 || err != nil {
		t.Errorf("wrote %d, %v", n, err)
	}
	if p := g.expect(VIRTIO_VSOCK_OP_RW); string(p.data) != "hello" || p.fwdCnt != 8 || p.bufAlloc != window {
		t.Errorf("got %q, %+v", p.data, p.header)
	}
	// §5.10.6.5: the guest closes: both flags, answered by RST.
	s.send(VIRTIO_VSOCK_OP_SHUTDOWN, shutdownBoth, nil)
	g.expect(VIRTIO_VSOCK_OP_RST)
	if _, err := c.Read(buf); err != io.EOF {
		t.Errorf("read after the guest's close: %v", err)
	}
	if _, err := c.Write(buf); !errors.Is(err, syscall.EPIPE) {
		t.Errorf("write after the guest's close: %v", err)
	}
	if err := c.Close(); err != nil || g.live() != 0 {
		t.Errorf("%v; %d live", err, g.live())
	}
}

// The host's connections: accepted, refused, given up.
func TestDial(t *testing.T) {
	g := newGuest(t, newDevice(t, Config{}), 8)
	ch := dial(g.dev, 22)
	s := g.accept(22)
	c := <-ch
	if c.error != nil {
		t.Fatal(c.error)
	}
	s.send(VIRTIO_VSOCK_OP_RW, 0, []byte("SSH-2.0"))
	buf := make([]byte, 7)
	if _, err := io.ReadFull(c, buf); err != nil || string(buf) != "SSH-2.0" {
		t.Errorf("%q, %v", buf, err)
	}
	// The host closes: SHUTDOWN, confirmed by the guest's RST.
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if p := g.expect(VIRTIO_VSOCK_OP_SHUTDOWN); p.flags != shutdownBoth {
		t.Errorf("shutdown flags %d", p.flags)
	}
	s.send(VIRTIO_VSOCK_OP_RST, 0, nil)
	if g.live() != 0 {
		t.Errorf("%d connections live", g.live())
	}

	ch = dial(g.dev, 23)
	p := g.expect(VIRTIO_VSOCK_OP_REQUEST)
	(&sock{g: g, typ: 1, port: 23, peer: p.srcPort}).send(VIRTIO_VSOCK_OP_RST, 0, nil)
	if c := <-ch; !errors.Is(c.error, syscall.ECONNREFUSED) {
		t.Errorf("refused: %v", c.error)
	}

	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
	defer cancel()
	if _, err := g.dev.Dial(ctx, 24); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("given up: %v", err)
	}
	g.expect(VIRTIO_VSOCK_OP_REQUEST)
	g.expect(VIRTIO_VSOCK_OP_RST)
	g.m.Reset()
	if _, err := g.dev.Dial(context.Background(), 22); !errors.Is(err, syscall.ENETDOWN) {
		t.Errorf("inactive: %v", err)
	}
}

// §5.10.6.5: each direction ends on its own.
func TestHalfClose(t *testing.T) {
	g := newGuest(t, newDevice(t, Config{}), 8)
	s, c := pair(t, g)
	s.send(VIRTIO_VSOCK_OP_RW, 0, []byte("question"))
	s.send(VIRTIO_VSOCK_OP_SHUTDOWN, VIRTIO_VSOCK_SHUTDOWN_F_SEND, nil)
	if b, err := io.ReadAll(c); string(b) != "question" || err != nil {
		t.Errorf("read %q, %v", b, err)
	}
	if _, err := c.Write([]byte("answer")); err != nil {
		t.Error(err)
	}
	g.expect(VIRTIO_VSOCK_OP_RW)
	if err := c.CloseWrite(); err != nil {
		t.Error(err)
	}
	if p := g.expect(VIRTIO_VSOCK_OP_SHUTDOWN); p.flags != VIRTIO_VSOCK_SHUTDOWN_F_SEND {
		t.Errorf("flags %d", p.flags)
	}
	if _, err := c.Write([]byte("x")); !errors.Is(err, syscall.EPIPE) {
		t.Errorf("write after CloseWrite: %v", err)
	}
	s.send(VIRTIO_VSOCK_OP_SHUTDOWN, VIRTIO_VSOCK_SHUTDOWN_F_RECEIVE, nil)
	g.expect(VIRTIO_VSOCK_OP_RST)

	// Data is not lost when both flags come before it is read.
	s, c = pair(t, g)
	s.send(VIRTIO_VSOCK_OP_RW, 0, []byte("last words"))
	s.send(VIRTIO_VSOCK_OP_SHUTDOWN, shutdownBoth, nil)
	g.quiet()
	if b, err := io.ReadAll(c); string(b) != "last words" || err != nil {
		t.Errorf("read %q, %v", b, err)
	}
	g.expect(VIRTIO_VSOCK_OP_RST)

	// CloseRead: what still comes is dropped but credited.
	s, c = pair(t, g)
	if err := c.CloseRead(); err != nil {
		t.Error(err)
	}
	g.expect(VIRTIO_VSOCK_OP_SHUTDOWN)
	s.send(VIRTIO_VSOCK_OP_RW, 0, make([]byte, 1000))
	if p := g.expect(VIRTIO_VSOCK_OP_CREDIT_UPDATE); p.fwdCnt != 1000 {
		t.Errorf("credit %+v", p.header)
	}
}

// §5.10.6.3: we send no more than the guest has room for.
func TestCreditOut(t *testing.T) {
	g := newGuest(t, newDevice(t, Config{}), 64)
	s, c := pair(t, g)
	done := make(chan error, 1)
	data := bytes.Repeat([]byte("abcdefgh"), 32<<10) // 256 KiB against 64 KiB
	go func() {
		_, err := c.Write(data)
		done <- err
	}()
	var got []byte
	for len(got) < len(data) {
		p := g.recv()
		switch p.op {
		case VIRTIO_VSOCK_OP_RW:
			got = append(got, p.data...)
			if len(got) > int(s.fwd)+int(s.alloc) {
				t.Fatalf("%d bytes sent with %d forwarded", len(got), s.fwd)
			}
		case VIRTIO_VSOCK_OP_CREDIT_REQUEST:
			s.fwd = uint32(len(got))
			s.send(VIRTIO_VSOCK_OP_CREDIT_UPDATE, 0, nil)
		default:
			t.Fatalf("got %+v", p.header)
		}
	}
	if err := <-done; err != nil || !bytes.Equal(got, data) {
		t.Errorf("%v, equal: %v", err, bytes.Equal(got, data))
	}
}

// §5.10.6.3: the guest learns of room as the reader makes it.
func TestCreditIn(t *testing.T) {
	g := newGuest(t, newDevice(t, Config{}), 8)
	s, c := pair(t, g)
	s.send(VIRTIO_VSOCK_OP_CREDIT_REQUEST, 0, nil)
	if p := g.expect(VIRTIO_VSOCK_OP_CREDIT_UPDATE); p.fwdCnt != 0 || p.bufAlloc != window {
		t.Errorf("credit %+v", p.header)
	}
	for range 4 {
		s.send(VIRTIO_VSOCK_OP_RW, 0, make([]byte, window/4))
	}
	if _, err := io.ReadFull(c, make([]byte, window)); err != nil {
		t.Error(err)
	}
	last := uint32(0)
	for last < window {
		last = g.expect(VIRTIO_VSOCK_OP_CREDIT_UPDATE).fwdCnt
	}
	// Row 22: a byte beyond the credit breaks the connection.
	for range 4 {
		s.send(VIRTIO_VSOCK_OP_RW, 0, make([]byte, window/4))
	}
	s.send(VIRTIO_VSOCK_OP_RW, 0, []byte{1})
	g.expect(VIRTIO_VSOCK_OP_RST)
}

// §5.10.6.2: "The tx virtqueue MUST be processed even when the rx virtqueue is full".
func TestTxWithoutRxBuffers(t *testing.T) {
	g := newGuest(t, newDevice(t, Config{}), 8)
	s, c := pair(t, g)
	for g.m.Queue[0].InFlight() > 0 { // take all receive buffers away
		if _, err := c.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		g.m.Queue[0].Wait()
	}
	go c.Write([]byte("waits for a buffer")) //nolint:errcheck // seen below
	for i := range 100 {
		s.send(VIRTIO_VSOCK_OP_RW, 0, []byte{byte(i)}) // returns when the device has taken it
	}
	got := make([]byte, 100)
	if _, err := io.ReadFull(c, got); err != nil || got[99] != 99 {
		t.Errorf("%v %v", got, err)
	}
	g.provide(8)
	if p := g.expect(VIRTIO_VSOCK_OP_RW); string(p.data) != "waits for a buffer" {
		t.Errorf("%q", p.data)
	}
}

// §5.10.3: without any feature the device acts as if F_STREAM was negotiated.
func TestNoFeatures(t *testing.T) {
	d := newDevice(t, Config{})
	g := &guest{t: t, dev: d}
	g.m = virtiotest.New(t, d, virtiotest.Options{Features: virtio.Bits(virtio.FVersion1)})
	g.provide(8)
	s, c := pair(t, g)
	s.send(VIRTIO_VSOCK_OP_RW, 0, []byte("stream"))
	if b := make([]byte, 6); must(io.ReadFull(c, b)) != 6 || string(b) != "stream" {
		t.Errorf("%q", b)
	}
	if _, err := d.Listen(9); err != nil {
		t.Fatal(err)
	}
	q := &sock{g: g, typ: VIRTIO_VSOCK_TYPE_SEQPACKET, port: 5001, peer: 9, alloc: 64 << 10}
	q.send(VIRTIO_VSOCK_OP_REQUEST, 0, nil)
	g.expect(VIRTIO_VSOCK_OP_RST)
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// Virtio 1.3 §5.10.6.4.1: message boundaries.
func TestSeqpacket(t *testing.T) {
	g := newGuest(t, newDevice(t, Config{}), 8)
	l, err := g.dev.ListenSeqpacket(7)
	if err != nil {
		t.Fatal(err)
	}
	s := &sock{g: g, typ: VIRTIO_VSOCK_TYPE_SEQPACKET, port: 5000, peer: 7, alloc: 64 << 10}
	s.send(VIRTIO_VSOCK_OP_REQUEST, 0, nil)
	g.expect(VIRTIO_VSOCK_OP_RESPONSE)
	c, _ := l.AcceptVsock()
	s.send(VIRTIO_VSOCK_OP_RW, 0, []byte("one "))
	s.send(VIRTIO_VSOCK_OP_RW, VIRTIO_VSOCK_SEQ_EOM, []byte("message"))
	s.send(VIRTIO_VSOCK_OP_RW, VIRTIO_VSOCK_SEQ_EOM, []byte("another"))
	s.send(VIRTIO_VSOCK_OP_RW, VIRTIO_VSOCK_SEQ_EOM, nil)
	s.send(VIRTIO_VSOCK_OP_RW, 0, []byte("never ends"))
	buf := make([]byte, 100)
	for _, want := range []string{"one message", "anot", ""} {
		n, err := c.Read(buf[:max(len(want), 1)])
		if string(buf[:n]) != want || err != nil {
			t.Errorf("message %q, %v, want %q", buf[:n], err, want)
		}
	}
	_ = c.SetReadDeadline(time.Now().Add(5 * time.Millisecond))
	if n, err := c.Read(buf); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("incomplete message read: %d, %v", n, err)
	}
	if n, err := c.Write(make([]byte, 5000)); n != 5000 || err != nil {
		t.Errorf("wrote %d, %v", n, err)
	}
	a, b := g.recv(), g.recv()
	if a.flags != 0 || b.flags != VIRTIO_VSOCK_SEQ_EOM || len(a.data)+len(b.data) != 5000 {
		t.Errorf("flags %d, %d; %d+%d bytes", a.flags, b.flags, len(a.data), len(b.data))
	}
	if _, err := c.Write(nil); err != nil {
		t.Error(err)
	}
	if p := g.recv(); p.flags != VIRTIO_VSOCK_SEQ_EOM || p.len != 0 {
		t.Errorf("empty message %+v", p.header)
	}
	if _, err := c.Write(make([]byte, 65<<10)); !errors.Is(err, syscall.EMSGSIZE) {
		t.Errorf("message larger than the guest's buffer: %v", err)
	}
}

// Row 22: what must be refused, and what must not be answered at all.
func TestRefusals(t *testing.T) {
	g := newGuest(t, newDevice(t, Config{}), 8)
	l, _ := g.dev.Listen(1)
	defer l.Close()
	base := header{srcCID: testCID, dstCID: HostCID, srcPort: 9, dstPort: 2, typ: VIRTIO_VSOCK_TYPE_STREAM}
	for _, op := range []uint16{0, VIRTIO_VSOCK_OP_REQUEST, VIRTIO_VSOCK_OP_RESPONSE, VIRTIO_VSOCK_OP_SHUTDOWN, VIRTIO_VSOCK_OP_RW, 99} {
		h := base
		h.op = op
		g.raw(h, nil)
		if p := g.expect(VIRTIO_VSOCK_OP_RST); p.srcPort != 2 || p.dstPort != 9 {
			t.Errorf("operation %d: RST %+v", op, p.header)
		}
	}
	for _, typ := range []uint16{0, 3, VIRTIO_VSOCK_TYPE_SEQPACKET} {
		h := base
		h.op, h.typ, h.dstPort = VIRTIO_VSOCK_OP_REQUEST, typ, 1
		g.raw(h, nil)
		if p := g.expect(VIRTIO_VSOCK_OP_RST); p.typ != typ {
			t.Errorf("type %d: RST %+v", typ, p.header)
		}
	}
	silent := func(change func(*header)) {
		t.Helper()
		h := base
		h.op, h.dstPort = VIRTIO_VSOCK_OP_REQUEST, 1
		change(&h)
		g.raw(h, nil)
		g.quiet()
	}
	silent(func(h *header) { h.op = VIRTIO_VSOCK_OP_RST })
	silent(func(h *header) { h.srcCID = 43 })
	silent(func(h *header) { h.dstCID = 0 })
	silent(func(h *header) { h.dstCID = 1 })
	silent(func(h *header) { h.dstCID = testCID })
	silent(func(h *header) { h.srcCID |= 1 << 32 })
	g.m.Queue[1].Do([][]byte{make([]byte, headerSize-1)}, nil)
	g.m.Queue[1].Do(nil, []int{100})
	g.quiet()
}

// Row 22: violations break the one connection.
func TestViolations(t *testing.T) {
	for name, f := range map[string]func(*sock){
		"len beyond buffer": func(s *sock) {
			s.g.raw(header{srcCID: testCID, dstCID: HostCID, srcPort: s.port, dstPort: s.peer, typ: s.typ, op: VIRTIO_VSOCK_OP_RW, len: 1000}, []byte("short"))
		},
		"fwd_cnt ahead":     func(s *sock) { s.fwd = 1; s.send(VIRTIO_VSOCK_OP_CREDIT_UPDATE, 0, nil) },
		"second request":    func(s *sock) { s.send(VIRTIO_VSOCK_OP_REQUEST, 0, nil) },
		"second response":   func(s *sock) { s.send(VIRTIO_VSOCK_OP_RESPONSE, 0, nil) },
		"unknown operation": func(s *sock) { s.send(4711, 0, nil) },
		"data after shutdown": func(s *sock) {
			s.send(VIRTIO_VSOCK_OP_SHUTDOWN, VIRTIO_VSOCK_SHUTDOWN_F_SEND, nil)
			s.send(VIRTIO_VSOCK_OP_RW, 0, []byte("more"))
		},
	} {
		t.Run(name, func(t *testing.T) {
			g := newGuest(t, newDevice(t, Config{}), 8)
			s, c := pair(t, g)
			f(s)
			g.expect(VIRTIO_VSOCK_OP_RST)
			if _, err := c.Write([]byte("x")); !errors.Is(err, syscall.EPROTO) {
				t.Errorf("write: %v", err)
			}
			_ = c.Close()
			if g.live() != 0 {
				t.Errorf("%d live", g.live())
			}
			pair(t, g)
		})
	}
	// Extremes of buf_alloc are only credit.
	g := newGuest(t, newDevice(t, Config{}), 8)
	s, c := pair(t, g)
	s.alloc = 1<<32 - 1
	s.send(VIRTIO_VSOCK_OP_CREDIT_UPDATE, 0, nil)
	if _, err := c.Write([]byte("x")); err != nil {
		t.Error(err)
	}
	g.expect(VIRTIO_VSOCK_OP_RW)
	s.alloc = 0
	s.send(VIRTIO_VSOCK_OP_CREDIT_UPDATE, 0, nil)
	_ = c.SetWriteDeadline(time.Now().Add(5 * time.Millisecond))
	if _, err := c.Write([]byte("x")); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("write without credit: %v", err)
	}
}

// Row 22: a flood of connections, and of packets that need an RST while the
// guest provides no buffers, stays bounded.
func TestFlood(t *testing.T) {
	g := newGuest(t, newDevice(t, Config{}), 0)
	l, _ := g.dev.Listen(1)
	for port := range uint32(200) {
		g.raw(header{srcCID: testCID, dstCID: HostCID, srcPort: 1000 + port, dstPort: 1, typ: 1, op: VIRTIO_VSOCK_OP_REQUEST}, nil)
		if port == maxBacklog+maxOrphans-1 {
			break
		}
	}
	g.dev.mu.Lock()
	backlog, rsts := len(l.backlog), g.dev.orphans.n
	g.dev.mu.Unlock()
	if backlog != maxBacklog || rsts != maxOrphans {
		t.Errorf("%d in the backlog, %d RSTs", backlog, rsts)
	}
	// One more makes the transmitq wait for buffers, not the device grow.
	var b [headerSize]byte
	(&header{srcCID: testCID, dstCID: HostCID, srcPort: 1, dstPort: 3, typ: 1, op: VIRTIO_VSOCK_OP_RW}).put(&b)
	g.m.Queue[1].Add([][]byte{b[:]}, nil)
	g.m.Queue[1].Kick()
	time.Sleep(5 * time.Millisecond)
	if _, ok := g.m.Queue[1].Used(); ok {
		t.Error("the packet was taken")
	}
	g.provide(100)
	g.m.Queue[1].Wait()
	for range maxOrphans {
		g.expect(VIRTIO_VSOCK_OP_RST)
	}
	_ = l.Close()
}

// §5.10.6.7: a transport reset event ends all connections.
func TestTransportReset(t *testing.T) {
	g := newGuest(t, newDevice(t, Config{}), 8)
	_, c := pair(t, g)
	g.m.Queue[2].Add(nil, []int{4})
	g.m.Queue[2].Kick()
	g.dev.TransportReset()
	if u := g.m.Queue[2].Wait(); !bytes.Equal(u.Bytes(), []byte{0, 0, 0, 0}) {
		t.Errorf("event %x", u.Bytes())
	}
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("read: %v", err)
	}
}

// A reset breaks connections and waiting calls, and leaves listeners.
func TestReset(t *testing.T) { resets(t, 50) }

// Ten thousand resets under load, the long suite's.
func TestLongResets(t *testing.T) { virtiotest.LongResets(t, resets) }

func resets(t *testing.T, n int) {
	t.Helper()
	g := newGuest(t, newDevice(t, Config{}), 8)
	l, _ := g.dev.Listen(5)
	for range n {
		s := g.connect(77, 5)
		c, _ := l.AcceptVsock()
		errs := make(chan error, 2)
		go func() {
			_, err := c.Write(make([]byte, 1<<20)) // waits for credit or buffers
			errs <- err
		}()
		go func() {
			_, err := io.Copy(io.Discard, c)
			errs <- err
		}()
		s.send(VIRTIO_VSOCK_OP_RW, 0, []byte("x"))
		g.m.Reset()
		for range 2 {
			if err := <-errs; !errors.Is(err, syscall.ECONNRESET) {
				t.Fatalf("after reset: %v", err)
			}
		}
		_ = c.Close()
		if err := g.m.Activate(); err != nil {
			t.Fatal(err)
		}
		g.provide(8)
	}
	if g.live() != 0 {
		t.Errorf("%d live", g.live())
	}
}

// Connections from both sides, one after the other: ports and memory come back.
func TestManyConnections(t *testing.T) { connections(t, 500) }

// A hundred thousand, the long suite's.
func TestLongConnections(t *testing.T) {
	if os.Getenv("GVMSPAWN_LONG") == "" {
		t.Skip("set GVMSPAWN_LONG=1 for the long tests")
	}
	connections(t, 100_000)
}

func connections(t *testing.T, n int) {
	t.Helper()
	g := newGuest(t, newDevice(t, Config{}), 32)
	l, err := g.dev.Listen(9)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.Copy(c, c)
			_ = c.Close()
		}
	}()
	for i := range n {
		s := g.connect(1024+uint32(i)%1000, 9)
		s.send(VIRTIO_VSOCK_OP_RW, 0, []byte("echo"))
		if p := g.expect(VIRTIO_VSOCK_OP_RW); string(p.data) != "echo" {
			t.Fatalf("got %q", p.data)
		}
		s.send(VIRTIO_VSOCK_OP_SHUTDOWN, shutdownBoth, nil)
		for g.recv().op != VIRTIO_VSOCK_OP_RST {
		}
		ch := dial(g.dev, 22)
		s = g.accept(22)
		c := <-ch
		if c.error != nil {
			t.Fatal(c.error)
		}
		_ = c.Close()
		g.expect(VIRTIO_VSOCK_OP_SHUTDOWN)
		s.send(VIRTIO_VSOCK_OP_RST, 0, nil)
	}
	_ = l.Close()
	for deadline := time.Now().Add(5 * time.Second); g.live() != 0 && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond)
	}
	if n := g.live(); n != 0 {
		t.Errorf("%d connections left", n)
	}
}

// The same over packed rings.
func TestPackedRings(t *testing.T) {
	packedRings = true
	defer func() { packedRings = false }()
	for name, f := range map[string]func(*testing.T){
		"guest connects": TestGuestConnects, "dial": TestDial, "half close": TestHalfClose, "credit": TestCreditOut,
		"seqpacket": TestSeqpacket, "reset": TestReset, "forward": TestForward,
	} {
		t.Run(name, f)
	}
}

// Row 22: connections and what they may make the host hold are bounded.
func TestConnectionLimit(t *testing.T) {
	g := newGuest(t, newDevice(t, Config{}), 32)
	l, _ := g.dev.Listen(1)
	go func() {
		for {
			if _, err := l.Accept(); err != nil { // and never close
				return
			}
		}
	}()
	accepted, refused := 0, 0
	for port := range uint32(maxConns + 50) {
		s := &sock{g: g, typ: VIRTIO_VSOCK_TYPE_STREAM, port: port, peer: 1, alloc: 1 << 16}
		s.send(VIRTIO_VSOCK_OP_REQUEST, 0, nil)
		switch p := g.recv(); p.op {
		case VIRTIO_VSOCK_OP_RESPONSE:
			accepted++
		case VIRTIO_VSOCK_OP_RST:
			refused++
		}
		for accepted%100 == 99 && backlog(l) > 0 {
			time.Sleep(time.Millisecond)
		}
	}
	g.dev.mu.Lock()
	promised := g.dev.promised
	g.dev.mu.Unlock()
	if accepted != maxConns || refused != 50 || promised > windowBudget+maxConns*smallWindow {
		t.Errorf("%d accepted, %d refused, %d bytes promised", accepted, refused, promised)
	}
	if _, err := g.dev.Dial(context.Background(), 22); !errors.Is(err, syscall.ENOBUFS) {
		t.Errorf("dial: %v", err)
	}
}

func backlog(l *Listener) int {
	l.dev.mu.Lock()
	defer l.dev.mu.Unlock()
	return len(l.backlog)
}
