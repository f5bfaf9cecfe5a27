package vsock

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"testing"
	"time"

	"github.com/gvmspawn/gvmspawn/virtio/virtq/virtqtest"
)

func listenUnix(t *testing.T, network, path string) *net.UnixListener {
	t.Helper()
	l, err := net.ListenUnix(network, &net.UnixAddr{Net: network, Name: path})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

// A connection to a port without a listener goes to the port's unix socket.
func TestForward(t *testing.T) {
	prefix := filepath.Join(t.TempDir(), "vsock")
	g := newGuest(t, newDevice(t, Config{Forward: prefix}), 64)
	l := listenUnix(t, "unix", prefix+"_52")
	s := g.connect(3000, 52)
	u, err := l.AcceptUnix()
	if err != nil {
		t.Fatal(err)
	}
	s.send(VIRTIO_VSOCK_OP_RW, 0, []byte("ping"))
	buf := make([]byte, 4)
	if _, err := io.ReadFull(u, buf); err != nil || string(buf) != "ping" {
		t.Errorf("%q, %v", buf, err)
	}
	data := bytes.Repeat([]byte("0123456789"), 6000)
	go func() {
		_, _ = u.Write(data)
		_ = u.CloseWrite()
	}()
	var got []byte
	for p := g.recv(); p.op != VIRTIO_VSOCK_OP_SHUTDOWN; p = g.recv() {
		got = append(got, p.data...)
	}
	if !bytes.Equal(got, data) {
		t.Errorf("got %d bytes", len(got))
	}
	// The other direction is still open, then ends.
	s.send(VIRTIO_VSOCK_OP_RW, 0, []byte("bye"))
	s.send(VIRTIO_VSOCK_OP_SHUTDOWN, shutdownBoth, nil)
	if b, err := io.ReadAll(u); string(b) != "bye" || err != nil {
		t.Errorf("%q, %v", b, err)
	}
	g.expect(VIRTIO_VSOCK_OP_RST)

	// A port without a socket is refused.
	(&sock{g: g, typ: 1, port: 3001, peer: 53}).send(VIRTIO_VSOCK_OP_REQUEST, 0, nil)
	g.expect(VIRTIO_VSOCK_OP_RST)
}

// A unix peer that does not read holds the guest back, and loses nothing.
func TestForwardSlowReader(t *testing.T) {
	prefix := filepath.Join(t.TempDir(), "vsock")
	g := newGuest(t, newDevice(t, Config{Forward: prefix}), 64)
	l := listenUnix(t, "unix", prefix+"_1")
	s := g.connect(3000, 1)
	u, _ := l.AcceptUnix()
	sent, fwd := 0, 0
	var want bytes.Buffer
	for sent-fwd < window {
		chunk := bytes.Repeat([]byte{byte(sent >> 12)}, 16<<10)
		want.Write(chunk)
		s.send(VIRTIO_VSOCK_OP_RW, 0, chunk)
		sent += len(chunk)
		if p, ok := g.poll(); ok && p.op == VIRTIO_VSOCK_OP_CREDIT_UPDATE {
			fwd = int(p.fwdCnt)
		}
	}
	if sent > 4<<20 {
		t.Fatalf("%d bytes taken without a reader", sent)
	}
	got := make([]byte, sent)
	if _, err := io.ReadFull(u, got); err != nil || !bytes.Equal(got, want.Bytes()) {
		t.Errorf("%v", err)
	}
	// The guest's RST ends the unix connection at once.
	s.send(VIRTIO_VSOCK_OP_RST, 0, nil)
	if n, err := u.Read(got); n != 0 || err == nil {
		t.Errorf("read %d, %v", n, err)
	}
}

func TestForwardSeqpacket(t *testing.T) {
	prefix := filepath.Join(t.TempDir(), "vsock")
	g := newGuest(t, newDevice(t, Config{Forward: prefix}), 16)
	l := listenUnix(t, "unixpacket", prefix+"_9")
	s := &sock{g: g, typ: VIRTIO_VSOCK_TYPE_SEQPACKET, port: 1, peer: 9, alloc: 64 << 10}
	s.send(VIRTIO_VSOCK_OP_REQUEST, 0, nil)
	g.expect(VIRTIO_VSOCK_OP_RESPONSE)
	u, _ := l.AcceptUnix()
	s.send(VIRTIO_VSOCK_OP_RW, 0, []byte("a "))
	s.send(VIRTIO_VSOCK_OP_RW, VIRTIO_VSOCK_SEQ_EOM, []byte("b"))
	s.send(VIRTIO_VSOCK_OP_RW, VIRTIO_VSOCK_SEQ_EOM, []byte("c"))
	buf := make([]byte, 100)
	for _, want := range []string{"a b", "c"} {
		if n, err := u.Read(buf); string(buf[:n]) != want || err != nil {
			t.Errorf("%q, %v", buf[:n], err)
		}
	}
	_, _ = u.Write([]byte("reply"))
	if p := g.expect(VIRTIO_VSOCK_OP_RW); string(p.data) != "reply" || p.flags != VIRTIO_VSOCK_SEQ_EOM {
		t.Errorf("%q, %+v", p.data, p.header)
	}
	_ = u.Close()
	g.expect(VIRTIO_VSOCK_OP_SHUTDOWN)
}

// CONNECT and OK, then bytes; anything else is closed without an answer.
func TestMux(t *testing.T) {
	path := filepath.Join(t.TempDir(), "mux")
	g := newGuest(t, newDevice(t, Config{}), 16)
	l := listenUnix(t, "unix", path)
	served := make(chan error, 1)
	go func() { served <- g.dev.ServeMux(l) }()
	client := func(line string) *net.UnixConn {
		u, err := net.DialUnix("unix", nil, &net.UnixAddr{Net: "unix", Name: path})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = u.Close() })
		_, _ = u.Write([]byte(line))
		return u
	}
	u := client("CONNECT 22\nSSH")
	s := g.accept(22)
	r := bufio.NewReader(u)
	if line, err := r.ReadString('\n'); line != fmt.Sprintf("OK %d\n", s.peer) || err != nil {
		t.Errorf("%q, %v", line, err)
	}
	if p := g.expect(VIRTIO_VSOCK_OP_RW); string(p.data) != "SSH" {
		t.Errorf("%q", p.data)
	}
	s.send(VIRTIO_VSOCK_OP_RW, 0, []byte("hello"))
	s.send(VIRTIO_VSOCK_OP_SHUTDOWN, shutdownBoth, nil)
	if b, _ := io.ReadAll(r); string(b) != "hello" {
		t.Errorf("%q", b)
	}
	for _, line := range []string{"GET / HTTP/1.0\n", "CONNECT x\n", "CONNECT 4294967296\n", "CONNECT\n", "CONNECT 1111111111111111111111111111111\n"} {
		if b, _ := io.ReadAll(client(line)); len(b) != 0 {
			t.Errorf("%q was answered %q", line, b)
		}
	}
	half := client("CONN") // a handshake that never ends does not hold up Close
	_ = half
	time.Sleep(5 * time.Millisecond)
	start := time.Now()
	g.m.Reset()
	_ = l.Close()
	_ = g.dev.Close()
	if d := time.Since(start); d > 2*time.Second {
		t.Errorf("close took %v", d)
	}
	if err := <-served; err == nil {
		t.Error("ServeMux returned nil")
	}
}

// Data in either direction costs no allocation.
func TestAllocs(t *testing.T) {
	d := newDevice(t, Config{})
	g := newGuest(t, d, 2)
	s, c := pair(t, g)
	var b [headerSize]byte
	h := header{srcCID: testCID, dstCID: HostCID, srcPort: s.port, dstPort: s.peer, typ: 1, op: VIRTIO_VSOCK_OP_RW, len: 1024, bufAlloc: 1 << 30}
	h.put(&b)
	// Fresh rings, so that the test's driver allocates nothing either.
	gpa := g.m.Mem.Alloc(4096)
	copy(g.m.Mem.Bytes(gpa, headerSize), b[:])
	send := g.m.Queue[1].Again(virtqtest.Desc{Addr: gpa, Len: headerSize + 1024})
	rx := g.m.Queue[0].Split
	buf := make([]byte, 1024)
	read := func() {
		send()
		if n, err := c.Read(buf); n != 1024 || err != nil {
			t.Fatalf("read %d, %v", n, err)
		}
	}
	read() // the buffer is made
	idx := rx.Avail.LoadUint16(2)
	head := idx % rx.Size
	rgpa := g.m.Mem.Alloc(4096)
	rx.SetDesc(200, virtqtest.Desc{Addr: rgpa, Len: 4096, Flags: virtqtest.DescWrite})
	_ = head
	for rx.UsedIdx() != idx { // spend the buffers that are there
		if _, err := c.Write(buf); err != nil {
			t.Fatal(err)
		}
	}
	used := rx.UsedIdx()
	if n := testing.AllocsPerRun(200, func() {
		read()
		for rx.Avail.LoadUint16(2)-rx.UsedIdx() < 2 {
			rx.SetAvail(idx, 200)
			idx++
			rx.SetAvailIdx(idx)
		}
		g.m.Queue[0].Bell.Ring()
		if _, err := c.Write(buf); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations per packet each way", n)
	}
	if rx.UsedIdx()-used < 200 {
		t.Errorf("only %d packets arrived", rx.UsedIdx()-used)
	}
}

func FuzzPackets(f *testing.F) {
	var b [headerSize]byte
	(&header{srcCID: testCID, dstCID: HostCID, srcPort: 1, dstPort: 1, typ: 1, op: 1}).put(&b)
	f.Add(append([]byte{}, b[:]...))
	// Each 5 bytes are a packet: operation, type and ports, flags, lengths.
	f.Fuzz(func(t *testing.T, script []byte) {
		d := newDevice(t, Config{})
		g := newGuest(t, d, 200)
		l, _ := d.Listen(1)
		lp, _ := d.ListenSeqpacket(2)
		for _, l := range []*Listener{l, lp} {
			go func() {
				for {
					c, err := l.Accept()
					if err != nil {
						return
					}
					go func() {
						buf := make([]byte, 100)
						for n, err := c.Read(buf); err == nil; n, err = c.Read(buf) {
							_, _ = c.Write(buf[:n])
						}
						_ = c.Close()
					}()
				}
			}()
		}
		for n := 0; len(script) >= 5 && n < 100; n++ {
			p := script[:5]
			script = script[5:]
			h := header{
				srcCID: testCID, dstCID: HostCID, srcPort: uint32(p[1] & 3), dstPort: uint32(p[1] >> 2 & 3), typ: uint16(p[1] >> 4 & 3),
				op: uint16(p[0]), flags: uint32(p[2]), len: uint32(p[3]), bufAlloc: uint32(p[4]) << 8, fwdCnt: uint32(p[2] >> 4),
			}
			g.raw(h, make([]byte, int(p[4])))
			g.poll()
		}
		g.m.Reset()
	})
}

// BenchmarkGuestToHost and BenchmarkHostToGuest measure the device alone.
func BenchmarkGuestToHost(b *testing.B) {
	g := newGuest(b, newDevice(b, Config{}), 2)
	s, c := pair(b, g)
	var hdr [headerSize]byte
	const n = 32 << 10
	(&header{srcCID: testCID, dstCID: HostCID, srcPort: s.port, dstPort: s.peer, typ: 1, op: VIRTIO_VSOCK_OP_RW, len: n}).put(&hdr)
	gpa := g.m.Mem.Alloc(headerSize + n)
	copy(g.m.Mem.Bytes(gpa, headerSize), hdr[:])
	send := g.m.Queue[1].Again(virtqtest.Desc{Addr: gpa, Len: headerSize + n})
	buf := make([]byte, n)
	b.SetBytes(n)
	b.ReportAllocs()
	for b.Loop() {
		send()
		if _, err := io.ReadFull(c, buf); err != nil {
			b.Fatal(err)
		}
	}
}
