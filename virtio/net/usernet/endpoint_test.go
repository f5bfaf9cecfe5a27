package usernet

import (
	"bytes"
	"io"
	"net/netip"
	"sync/atomic"
	"testing"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"github.com/gvmspawn/gvmspawn/virtio"
	vnet "github.com/gvmspawn/gvmspawn/virtio/net"
	"github.com/gvmspawn/gvmspawn/virtio/virtq"
)

// sink is a netstack that keeps the last packet.
type sink struct{ got []byte }

func (s *sink) DeliverNetworkPacket(_ tcpip.NetworkProtocolNumber, pkt *stack.PacketBuffer) {
	s.got = s.got[:0]
	for _, b := range pkt.AsSlices() {
		s.got = append(s.got, b...)
	}
}

func (s *sink) DeliverLinkPacket(tcpip.NetworkProtocolNumber, *stack.PacketBuffer) {}

// TestTransmitAnySize: frames up to the largest of segmentation offload arrive
// whole, however the driver cut them up (virtio 1.2 §2.7.4, §5.1.6.2).
func TestTransmitAnySize(t *testing.T) {
	var s sink
	e := newEndpoint(func([]byte) bool { return false })
	e.Attach(&s)
	for _, size := range []int{header.EthernetMinimumSize, 60, 1514, buffer.MaxChunkSize - 1, buffer.MaxChunkSize,
		buffer.MaxChunkSize + 1, vnet.MaxPacket - vnet.HeaderLen} {
		packet := make([]byte, vnet.HeaderLen+size)
		for i := range packet {
			packet[i] = byte(i * 7)
		}
		for _, cut := range []int{1, vnet.HeaderLen, vnet.HeaderLen + 5, len(packet) - 1} {
			pieces := []virtq.Buffer{{Bytes: packet[:cut]}, {}, {Bytes: packet[cut:]}}
			if err := e.Transmit(pieces, len(packet)); err != nil {
				t.Fatalf("%d bytes: %v", size, err)
			}
			if !bytes.Equal(s.got, packet[vnet.HeaderLen:]) {
				t.Errorf("%d bytes, cut at %d: %d bytes arrived, or other ones", size, cut, len(s.got))
			}
		}
		if err := e.Transmit([]virtq.Buffer{{Bytes: packet[:len(packet)-1]}}, len(packet)); err == nil {
			t.Errorf("%d bytes: a packet shorter than it says was taken", size)
		}
	}
}

// virtio 1.2 §5.1.6.4.1: without GUEST_CSUM the flags are zero, and gso_type is only
// what the driver negotiated: a packet that needs more is dropped.
func TestHeaderFollowsFeatures(t *testing.T) {
	csum, tso4, tso6 := virtio.Bits(vnet.FGuestCsum), virtio.Bits(vnet.FGuestTSO4), virtio.Bits(vnet.FGuestTSO6)
	for _, c := range []struct {
		name     string
		gso      stack.GSO
		size     int
		features virtio.Features
		flags    byte
		typ      byte
		dropped  bool
	}{
		{"no offload", stack.GSO{}, 100, csum | tso4, 0, vnet.GSONone, false},
		{"checksum", stack.GSO{Type: stack.GSOTCPv4, NeedsCsum: true, MSS: 1000}, 100, csum, vnet.HdrFNeedsCsum, vnet.GSONone, false},
		{"checksum, not negotiated", stack.GSO{Type: stack.GSOTCPv4, NeedsCsum: true, MSS: 1000}, 100, tso4, 0, 0, true},
		{"TCPv4", stack.GSO{Type: stack.GSOTCPv4, NeedsCsum: true, MSS: 1000}, 5000, csum | tso4, vnet.HdrFNeedsCsum, vnet.GSOTCPv4, false},
		{"TCPv4, not negotiated", stack.GSO{Type: stack.GSOTCPv4, NeedsCsum: true, MSS: 1000}, 5000, csum | tso6, 0, 0, true},
		{"TCPv6", stack.GSO{Type: stack.GSOTCPv6, NeedsCsum: true, MSS: 1000}, 5000, csum | tso6, vnet.HdrFNeedsCsum, vnet.GSOTCPv6, false},
		{"TCPv6, not negotiated", stack.GSO{Type: stack.GSOTCPv6, NeedsCsum: true, MSS: 1000}, 5000, csum | tso4, 0, 0, true},
	} {
		pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(make([]byte, c.size))})
		pkt.GSOOptions = c.gso
		b := make([]byte, vnet.MaxPacket)
		n := outgoing{pkt: pkt}.copyTo([]virtq.Buffer{{Bytes: b}}, len(b), c.features)
		pkt.DecRef()
		if (n == 0) != c.dropped || n > 0 && (b[0] != c.flags || b[1] != c.typ) {
			t.Errorf("%s: %d bytes, flags %d, type %d", c.name, n, b[0], b[1])
		}
	}
}

// A driver without offloads gets whole packets with their checksums.
func TestWithoutOffloads(t *testing.T) {
	g := newGuest(t, Config{HostLoopback: true})
	if err := g.net.SetFeatures(0); err != nil {
		t.Fatal(err)
	}
	var frames atomic.Int64
	g.ep.intercept = func(frame []byte) bool {
		if header.Ethernet(frame).Type() != header.IPv4ProtocolNumber {
			return false
		}
		ip := header.IPv4(frame[header.EthernetMinimumSize:])
		if ip.TransportProtocol() != header.TCPProtocolNumber {
			return false
		}
		tcp := header.TCP(ip.Payload())
		data := tcp.Payload()
		if !tcp.IsChecksumValid(ip.SourceAddress(), ip.DestinationAddress(), checksum.Checksum(data, 0), uint16(len(data))) || !ip.IsChecksumValid() {
			t.Errorf("a segment of %d bytes has a wrong checksum", len(data))
		}
		frames.Add(1)
		return false
	}
	c, err := g.dial(t, netip.AddrPortFrom(Gateway4, echo(t).Port()))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	data := bytes.Repeat([]byte("no offloads "), 20_000)
	go c.Write(data) //nolint:errcheck // seen below
	got := make([]byte, len(data))
	if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, data) || frames.Load() < 4 {
		t.Errorf("%v, %d segments", err, frames.Load())
	}
}
