package vsock

import (
	"context"
	"testing"
	"time"

	"github.com/gvmspawn/gvmspawn/virtio/virtiotest"
)

const testCID = 42

// packedRings has newGuest make packed rings (§2.8).
var packedRings bool

// guest is the driver's side of a device, one packet at a time.
type guest struct {
	t   testing.TB
	m   *virtiotest.Machine
	dev *Device
}

func newDevice(t testing.TB, cfg Config) *Device {
	t.Helper()
	cfg.CID = testCID
	d, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	return d
}

// newGuest activates a device and gives it buffers receive buffers of 4 KiB.
func newGuest(t testing.TB, d *Device, buffers int) *guest {
	t.Helper()
	g := &guest{t: t, dev: d}
	g.m = virtiotest.New(t, d, virtiotest.Options{EventIdx: true, Packed: packedRings})
	g.provide(buffers)
	return g
}

func (g *guest) provide(n int) {
	for range n {
		g.m.Queue[0].Add(nil, []int{4096})
	}
	g.m.Queue[0].Kick()
}

// packet is a header with its payload.
type packet struct {
	header
	data []byte
}

// recv takes the next packet from the device and provides a new buffer.
func (g *guest) recv() packet {
	g.t.Helper()
	u := g.m.Queue[0].Wait()
	p := g.decode(u.Bytes())
	g.provide(1)
	return p
}

// poll is recv if there is a packet.
func (g *guest) poll() (packet, bool) {
	u, ok := g.m.Queue[0].Used()
	if !ok {
		return packet{}, false
	}
	p := g.decode(u.Bytes())
	g.provide(1)
	return p, true
}

func (g *guest) decode(b []byte) packet {
	g.t.Helper()
	var p packet
	if len(b) < headerSize {
		g.t.Fatalf("packet of %d bytes", len(b))
	}
	p.parse((*[headerSize]byte)(b))
	p.data = b[headerSize:]
	if int(p.len) != len(p.data) || p.srcCID != HostCID || p.dstCID != testCID {
		g.t.Fatalf("bad packet %+v", p)
	}
	return p
}

// expect receives a packet of the operation.
func (g *guest) expect(op uint16) packet {
	g.t.Helper()
	p := g.recv()
	if p.op != op {
		g.t.Fatalf("got %+v, want operation %d", p.header, op)
	}
	return p
}

// quiet checks that the device sends nothing more.
func (g *guest) quiet() {
	g.t.Helper()
	time.Sleep(5 * time.Millisecond)
	if p, ok := g.poll(); ok {
		g.t.Errorf("unexpected packet %+v", p.header)
	}
}

// raw sends the packet as it is.
func (g *guest) raw(h header, data []byte) {
	g.t.Helper()
	var b [headerSize]byte
	h.put(&b)
	out := [][]byte{b[:]}
	if len(data) > 0 {
		out = append(out, data)
	}
	g.m.Queue[1].Do(out, nil)
}

// sock is the guest's end of a connection.
type sock struct {
	g          *guest
	typ        uint16
	port, peer uint32
	alloc, fwd uint32
}

func (s *sock) send(op uint16, flags uint32, data []byte) {
	s.g.t.Helper()
	s.g.raw(header{
		srcCID: testCID, dstCID: HostCID, srcPort: s.port, dstPort: s.peer, len: uint32(len(data)),
		typ: s.typ, op: op, flags: flags, bufAlloc: s.alloc, fwdCnt: s.fwd,
	}, data)
}

// connect opens a stream to a listener of the host's.
func (g *guest) connect(port, peer uint32) *sock {
	g.t.Helper()
	s := &sock{g: g, typ: VIRTIO_VSOCK_TYPE_STREAM, port: port, peer: peer, alloc: 64 << 10}
	s.send(VIRTIO_VSOCK_OP_REQUEST, 0, nil)
	p := g.expect(VIRTIO_VSOCK_OP_RESPONSE)
	if p.srcPort != peer || p.dstPort != port || p.bufAlloc == 0 {
		g.t.Fatalf("response %+v", p.header)
	}
	return s
}

// accept waits for the host's connection and accepts it.
func (g *guest) accept(port uint32) *sock {
	g.t.Helper()
	p := g.expect(VIRTIO_VSOCK_OP_REQUEST)
	if p.dstPort != port {
		g.t.Fatalf("request %+v", p.header)
	}
	s := &sock{g: g, typ: p.typ, port: port, peer: p.srcPort, alloc: 64 << 10}
	s.send(VIRTIO_VSOCK_OP_RESPONSE, 0, nil)
	return s
}

// pair returns both ends of a stream.
func pair(t testing.TB, g *guest) (*sock, *Conn) {
	t.Helper()
	l, err := g.dev.Listen(0)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	s := g.connect(1023, l.key.port)
	c, err := l.AcceptVsock()
	if err != nil {
		t.Fatal(err)
	}
	return s, c
}

// dialed is what Dial returned.
type dialed struct {
	*Conn
	error
}

func dial(d *Device, port uint32) <-chan dialed {
	ch := make(chan dialed, 1)
	go func() {
		c, err := d.Dial(context.Background(), port)
		ch <- dialed{c, err}
	}()
	return ch
}

// live is how many connections the device counts, once it is sure that what
// was promised to them is counted too.
func (g *guest) live() int {
	g.t.Helper()
	g.dev.mu.Lock()
	defer g.dev.mu.Unlock()
	if g.dev.live == 0 && (g.dev.promised != 0 || len(g.dev.conns) != 0) {
		g.t.Errorf("no connection, but %d bytes promised and %d in the table", g.dev.promised, len(g.dev.conns))
	}
	return g.dev.live
}
