package usernet

import (
	"bytes"
	"context"
	"crypto/rand"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/arp"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"

	"github.com/gvmspawn/gvmspawn/virtio"
	vnet "github.com/gvmspawn/gvmspawn/virtio/net"
	"github.com/gvmspawn/gvmspawn/virtio/virtq"
)

const guestMAC = tcpip.LinkAddress("\x02\x00\x00\x00\x00\x01")

// guest is a second stack at the other end of the link.
type guest struct {
	net   *Network
	ep    *Endpoint
	stack *stack.Stack
}

func newGuest(t testing.TB, cfg Config) *guest {
	t.Helper()
	n, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	g := &guest{net: n, ep: newEndpoint(func([]byte) bool { return false })}
	g.ep.mac = guestMAC
	all := virtio.Bits(vnet.FCsum, vnet.FGuestCsum, vnet.FHostTSO4, vnet.FHostTSO6, vnet.FGuestTSO4, vnet.FGuestTSO6)
	for _, e := range []*Endpoint{n.Endpoint, g.ep} {
		if err := e.SetFeatures(all); err != nil {
			t.Fatal(err)
		}
	}
	g.stack = stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol, ipv6.NewProtocol, arp.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol, icmp.NewProtocol4, icmp.NewProtocol6},
	})
	if err := g.stack.CreateNIC(nicID, g.ep); err != nil {
		t.Fatal(err)
	}
	if err := g.stack.AddProtocolAddress(nicID, protocolAddress(netip.PrefixFrom(Guest4, 24)), stack.AddressProperties{}); err != nil {
		t.Fatal(err)
	}
	g.stack.SetRouteTable([]tcpip.Route{
		{Destination: protocolAddress(Prefix4).AddressWithPrefix.Subnet(), NIC: nicID},
		{Destination: header.IPv4EmptySubnet, Gateway: address(Gateway4), NIC: nicID},
	})
	for _, buf := range []tcpip.SettableTransportProtocolOption{
		&tcpip.TCPReceiveBufferSizeRangeOption{Min: 4096, Default: 1 << 20, Max: 8 << 20},
		&tcpip.TCPSendBufferSizeRangeOption{Min: 4096, Default: 1 << 20, Max: 8 << 20},
	} {
		g.stack.SetTransportProtocolOption(tcp.ProtocolNumber, buf)
	}
	go pump(n.Endpoint, g.ep)
	go pump(g.ep, n.Endpoint)
	t.Cleanup(func() {
		n.Interrupt()
		g.ep.Interrupt()
		if err := n.Close(); err != nil {
			t.Error(err)
		}
		g.stack.Destroy()
	})
	return g
}

// pump carries packets one way, as the virtio device does.
func pump(from, to *Endpoint) {
	b := make([]byte, vnet.MaxPacket)
	for {
		n, err := from.Receive([]virtq.Buffer{{Bytes: b[:100]}, {Bytes: b[100:]}}, len(b))
		if err != nil {
			return
		}
		_ = to.Transmit([]virtq.Buffer{{Bytes: b[:n]}}, n)
	}
}

func (g *guest) dial(t testing.TB, to netip.AddrPort) (net.Conn, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	return gonet.DialContextTCP(ctx, g.stack, tcpip.FullAddress{NIC: nicID, Addr: address(to.Addr()), Port: to.Port()}, ipv4.ProtocolNumber)
}

// echo serves TCP on the host's loopback until the test ends.
func echo(t testing.TB) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				_, _ = io.Copy(c, c)
				_ = c.(*net.TCPConn).CloseWrite()
				_ = c.Close()
			}()
		}
	}()
	return l.Addr().(*net.TCPAddr).AddrPort()
}

func TestTCPToTheHostWhenAllowed(t *testing.T) {
	srv := echo(t)
	g := newGuest(t, Config{HostLoopback: true})
	c, err := g.dial(t, netip.AddrPortFrom(Gateway4, srv.Port()))
	if err != nil {
		t.Fatal(err)
	}
	data := make([]byte, 4<<20)
	_, _ = rand.Read(data)
	go func() {
		_, _ = c.Write(data)
		_ = c.(*gonet.TCPConn).CloseWrite()
	}()
	got, err := io.ReadAll(c)
	if err != nil || !bytes.Equal(got, data) {
		t.Errorf("%d of %d bytes came back, %v", len(got), len(data), err)
	}
}

// A connection that rests for longer than its buffers are kept goes on, whichever side
// speaks next.
func TestTCPRests(t *testing.T) {
	srv := echo(t)
	g := newGuest(t, Config{HostLoopback: true})
	c, err := g.dial(t, netip.AddrPortFrom(Gateway4, srv.Port()))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(30 * time.Second))
	for i := range 3 {
		want := []byte{byte(i), 1, 2}
		if _, err := c.Write(want); err != nil {
			t.Fatalf("after %d rests: %v", i, err)
		}
		got := make([]byte, len(want))
		if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("after %d rests: %v, %v", i, got, err)
		}
		time.Sleep(4 * pause)
	}
}

func TestHostLoopbackIsNotReachable(t *testing.T) {
	srv := echo(t)
	g := newGuest(t, Config{})
	for _, a := range []string{"10.0.2.2", "127.0.0.1", "0.0.0.1", "169.254.169.254"} {
		c, err := g.dial(t, netip.AddrPortFrom(netip.MustParseAddr(a), srv.Port()))
		if err == nil {
			c.Close()
			t.Errorf("the guest reached the host's loopback as %s", a)
		}
	}
	for _, a := range []string{"10.0.2.77", "::1", "::ffff:127.0.0.1", "fe80::1", "ff02::1", "224.0.0.1", "255.255.255.255", "::"} {
		if to, ok := g.net.target(netip.MustParseAddr(a).Unmap()); ok {
			t.Errorf("%s is let through as %v", a, to)
		}
	}
}

func TestPublishedPorts(t *testing.T) {
	// Find free ports by opening and closing them.
	free := func(network string) uint16 {
		if network == "udp" {
			c, err := net.ListenPacket("udp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			return c.LocalAddr().(*net.UDPAddr).AddrPort().Port()
		}
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		return l.Addr().(*net.TCPAddr).AddrPort().Port()
	}
	pt, pu := free("tcp"), free("udp")
	g := newGuest(t, Config{Ports: []Port{{From: pt, Guest: 80}, {UDP: true, From: pu, Guest: 53}}})
	l, err := gonet.ListenTCP(g.stack, tcpip.FullAddress{NIC: nicID, Port: 80}, ipv4.ProtocolNumber)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		_, _ = io.Copy(c, c)
		_ = c.(*gonet.TCPConn).CloseWrite()
	}()
	c, err := net.Dial("tcp", netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), pt).String())
	if err != nil {
		t.Fatal(err)
	}
	_, _ = c.Write([]byte("hello"))
	_ = c.(*net.TCPConn).CloseWrite()
	if got, err := io.ReadAll(c); err != nil || string(got) != "hello" {
		t.Errorf("TCP: got %q, %v", got, err)
	}

	u, err := gonet.DialUDP(g.stack, &tcpip.FullAddress{NIC: nicID, Port: 53}, nil, ipv4.ProtocolNumber)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		b := make([]byte, 100)
		for {
			k, from, err := u.ReadFrom(b)
			if err != nil {
				return
			}
			_, _ = u.WriteTo(b[:k], from)
		}
	}()
	d, err := net.Dial("udp", netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), pu).String())
	if err != nil {
		t.Fatal(err)
	}
	_ = d.SetDeadline(time.Now().Add(10 * time.Second))
	_, _ = d.Write([]byte("ping"))
	b := make([]byte, 100)
	if k, err := d.Read(b); err != nil || string(b[:k]) != "ping" {
		t.Errorf("UDP: got %q, %v", b[:k], err)
	}

	if _, err := New(Config{Ports: []Port{{From: pt, Guest: 81}}}); err == nil {
		t.Error("a port in use is published twice")
	}
}

func TestDNSIsForwarded(t *testing.T) {
	srv, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer srv.Close()
	go func() {
		b := make([]byte, 512)
		for {
			k, from, err := srv.ReadFrom(b)
			if err != nil {
				return
			}
			_, _ = srv.WriteTo(append([]byte("answer to "), b[:k]...), from)
		}
	}()
	g := newGuest(t, Config{Resolvers: []netip.AddrPort{srv.LocalAddr().(*net.UDPAddr).AddrPort()}})
	c, err := gonet.DialUDP(g.stack, nil, &tcpip.FullAddress{NIC: nicID, Addr: address(DNS4), Port: 53}, ipv4.ProtocolNumber)
	if err != nil {
		t.Fatal(err)
	}
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	_, _ = c.Write([]byte("query"))
	b := make([]byte, 512)
	if k, err := c.Read(b); err != nil || string(b[:k]) != "answer to query" {
		t.Errorf("got %q, %v", b[:k], err)
	}
}

func TestDHCP(t *testing.T) {
	n, err := New(Config{Hostname: "box"})
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	ask := func(req *dhcpv4.DHCPv4) *dhcpv4.DHCPv4 {
		t.Helper()
		data := req.ToBytes()
		size := header.UDPMinimumSize + len(data)
		frame := make([]byte, vnet.HeaderLen+header.EthernetMinimumSize+header.IPv4MinimumSize+size)
		u := header.UDP(ipv4Frame(frame[vnet.HeaderLen:], header.EthernetBroadcastAddress, netip.IPv4Unspecified(),
			netip.AddrFrom4([4]byte{255, 255, 255, 255}), header.UDPProtocolNumber, size))
		u.Encode(&header.UDPFields{SrcPort: 68, DstPort: 67, Length: uint16(size)})
		copy(u.Payload(), data)
		if err := n.Transmit([]virtq.Buffer{{Bytes: frame}}, len(frame)); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, vnet.MaxPacket)
		k, err := n.Receive([]virtq.Buffer{{Bytes: b}}, len(b))
		if err != nil {
			t.Fatal(err)
		}
		res, err := dhcpv4.FromBytes(b[vnet.HeaderLen+header.EthernetMinimumSize+header.IPv4MinimumSize+header.UDPMinimumSize : k])
		if err != nil {
			t.Fatal(err)
		}
		return res
	}
	disc, err := dhcpv4.NewDiscovery(net.HardwareAddr(guestMAC))
	if err != nil {
		t.Fatal(err)
	}
	offer := ask(disc)
	if offer.MessageType() != dhcpv4.MessageTypeOffer || !offer.YourIPAddr.Equal(Guest4.AsSlice()) || offer.HostName() != "box" {
		t.Errorf("offer: %v", offer.Summary())
	}
	req, err := dhcpv4.NewRequestFromOffer(offer)
	if err != nil {
		t.Fatal(err)
	}
	if ack := ask(req); ack.MessageType() != dhcpv4.MessageTypeAck || !ack.DNS()[0].Equal(DNS4.AsSlice()) || !ack.Router()[0].Equal(Gateway4.AsSlice()) {
		t.Errorf("ack: %v", ack.Summary())
	}
	req.UpdateOption(dhcpv4.OptRequestedIPAddress(net.IPv4(1, 2, 3, 4)))
	if nak := ask(req); nak.MessageType() != dhcpv4.MessageTypeNak {
		t.Errorf("nak: %v", nak.Summary())
	}
}

func FuzzTransmit(f *testing.F) {
	f.Add(byte(0), uint16(0), []byte("\xff\xff\xff\xff\xff\xff\x02\x00\x00\x00\x00\x01\x08\x00\x45\x00\x00\x1c"))
	f.Add(byte(0), uint16(0), []byte("\xff\xff\xff\xff\xff\xff\x02\x00\x00\x00\x00\x01\x86\xdd\x60\x00\x00\x00\x00\x08\x3a\xff"))
	f.Add(byte(vnet.GSOUDPL4), uint16(3), uncutFrame(netip.MustParseAddr("10.0.2.15"), DNS4, 5000, 53, []byte("seven b")))
	f.Add(byte(vnet.GSOUDPL4), uint16(100), uncutFrame(Gateway6, DNS6, 5000, 53, make([]byte, 1000)))
	n, err := New(Config{Resolvers: []netip.AddrPort{}})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, gsoType byte, gsoSize uint16, frame []byte) {
		p := append(offload(gsoType, gsoSize), frame...)
		_ = n.Transmit([]virtq.Buffer{{Bytes: p}}, len(p))
		n.mu.Lock()
		defer n.mu.Unlock()
		if n.queued > maxQueuedBytes {
			t.Fatal("the queue grows without bound")
		}
	})
}

func benchmarkTCP(b *testing.B, toHost bool) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	g := newGuest(b, Config{HostLoopback: true})
	accepted := make(chan net.Conn, 1)
	go func() {
		c, err := l.Accept()
		if err == nil {
			accepted <- c
		}
	}()
	c, err := g.dial(b, netip.AddrPortFrom(Gateway4, l.Addr().(*net.TCPAddr).AddrPort().Port()))
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	src, dst := c, <-accepted
	if !toHost {
		src, dst = dst, src
	}
	buf := make([]byte, 256<<10)
	b.SetBytes(int64(len(buf)))
	go func() {
		for {
			if _, err := src.Write(buf); err != nil {
				return
			}
		}
	}()
	in := make([]byte, 256<<10)
	for b.Loop() {
		if _, err := io.ReadFull(dst, in); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkTCPToHost(b *testing.B)  { benchmarkTCP(b, true) }
func BenchmarkTCPToGuest(b *testing.B) { benchmarkTCP(b, false) }
