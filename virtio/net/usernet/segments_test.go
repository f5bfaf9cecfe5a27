package usernet

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net/netip"
	"testing"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"

	vnet "github.com/gvmspawn/gvmspawn/virtio/net"
	"github.com/gvmspawn/gvmspawn/virtio/virtq"
)

// offload is a virtio header of a packet with segmentation offload.
func offload(gsoType byte, gsoSize uint16) []byte {
	h := make([]byte, vnet.HeaderLen)
	h[vnet.HdrGSOType] = gsoType
	binary.LittleEndian.PutUint16(h[vnet.HdrGSOSize:], gsoSize)
	return h
}

// uncutFrame is a frame as a driver makes it that leaves segmentation to the device.
func uncutFrame(from, to netip.Addr, fromPort, toPort uint16, data []byte) []byte {
	udp := make(header.UDP, header.UDPMinimumSize, header.UDPMinimumSize+len(data))
	udp.Encode(&header.UDPFields{SrcPort: fromPort, DstPort: toPort, Length: uint16(header.UDPMinimumSize + len(data))})
	udp = append(udp, data...)
	eth := make(header.Ethernet, header.EthernetMinimumSize)
	if from.Is4() {
		eth.Encode(&header.EthernetFields{SrcAddr: guestMAC, DstAddr: gatewayMAC, Type: header.IPv4ProtocolNumber})
		ip := make(header.IPv4, header.IPv4MinimumSize)
		ip.Encode(&header.IPv4Fields{TotalLength: uint16(len(ip) + len(udp)), TTL: 64, Protocol: uint8(header.UDPProtocolNumber),
			SrcAddr: address(from), DstAddr: address(to)})
		ip.SetChecksum(^ip.CalculateChecksum())
		return append(append(eth, ip...), udp...)
	}
	eth.Encode(&header.EthernetFields{SrcAddr: guestMAC, DstAddr: gatewayMAC, Type: header.IPv6ProtocolNumber})
	ip := make(header.IPv6, header.IPv6MinimumSize)
	ip.Encode(&header.IPv6Fields{PayloadLength: uint16(len(udp)), TransportProtocol: header.UDPProtocolNumber, HopLimit: 64,
		SrcAddr: address(from), DstAddr: address(to)})
	return append(append(eth, ip...), udp...)
}

// frames is a netstack that keeps all packets.
type frames struct{ got [][]byte }

func (f *frames) DeliverNetworkPacket(_ tcpip.NetworkProtocolNumber, pkt *stack.PacketBuffer) {
	f.got = append(f.got, bytes.Join(pkt.AsSlices(), nil))
}

func (f *frames) DeliverLinkPacket(tcpip.NetworkProtocolNumber, *stack.PacketBuffer) {}

// virtio 1.2 §5.1.6.2: with VIRTIO_NET_F_HOST_USO a packet with gso_type UDP_L4 is
// the datagrams of gso_size bytes behind its headers, of which the last may be
// shorter; with HOST_UFO one with gso_type UDP is one datagram.
func TestUDPOffloads(t *testing.T) {
	data := make([]byte, 60000)
	for i := range data {
		data[i] = byte(i * 3)
	}
	for _, c := range []struct {
		name     string
		from, to netip.Addr
		size     int
		gsoType  byte
		gso      uint16
		want     int // datagrams
	}{
		{"two and a rest", Guest4, DNS4, 2500, vnet.GSOUDPL4, 1000, 3},
		{"whole ones", Guest4, DNS4, 3000, vnet.GSOUDPL4, 1000, 3},
		{"no more than one", Guest4, DNS4, 700, vnet.GSOUDPL4, 1000, 1},
		{"longer than what is looked at", Guest4, DNS4, 60000, vnet.GSOUDPL4, 1472, 41},
		{"IPv6", Gateway6, DNS6, 2500, vnet.GSOUDPL4, 1000, 3},
		{"bytes", Guest4, DNS4, maxSegments, vnet.GSOUDPL4, 1, maxSegments},
		{"UFO", Guest4, DNS4, 60000, vnet.GSOUDP, 1472, 1},
		{"UFO, IPv6", Gateway6, DNS6, 60000, vnet.GSOUDP, 1448, 1},
	} {
		var f frames
		e := newEndpoint(func([]byte) bool { return false })
		e.Attach(&f)
		packet := append(offload(c.gsoType, c.gso), uncutFrame(c.from, c.to, 1, 2, data[:c.size])...)
		for _, cut := range []int{vnet.HeaderLen, vnet.HeaderLen + 20, vnet.HeaderLen + 100} {
			f.got = nil
			if err := e.Transmit([]virtq.Buffer{{Bytes: packet[:cut]}, {Bytes: packet[cut:]}}, len(packet)); err != nil {
				t.Fatalf("%s: %v", c.name, err)
			}
			var all []byte
			for i, frame := range f.got {
				var udp header.UDP
				if body := frame[header.EthernetMinimumSize:]; c.from.Is4() {
					ip := header.IPv4(body)
					if !ip.IsValid(len(body)) || !ip.IsChecksumValid() || int(ip.TotalLength()) != len(body) {
						t.Errorf("%s: datagram %d has a wrong IP header: % x", c.name, i, ip[:20])
					}
					udp = header.UDP(ip.Payload())
				} else {
					ip := header.IPv6(body)
					if !ip.IsValid(len(body)) || int(ip.PayloadLength()) != len(ip.Payload()) {
						t.Errorf("%s: datagram %d has a wrong IP header: % x", c.name, i, ip[:40])
					}
					udp = header.UDP(ip.Payload())
				}
				if int(udp.Length()) != len(udp) || udp.SourcePort() != 1 || udp.DestinationPort() != 2 {
					t.Errorf("%s: datagram %d has a wrong UDP header: % x", c.name, i, udp[:8])
				}
				if c.gsoType == vnet.GSOUDPL4 && i < c.want-1 && len(udp.Payload()) != int(c.gso) {
					t.Errorf("%s: datagram %d of %d bytes", c.name, i, len(udp.Payload()))
				}
				all = append(all, udp.Payload()...)
			}
			if len(f.got) != c.want || !bytes.Equal(all, data[:c.size]) {
				t.Errorf("%s, cut at %d: %d datagrams of %d bytes in all, or other ones", c.name, cut, len(f.got), len(all))
			}
		}
	}
}

// §5.1.3.1: each offload needs that of checksums, which is there.
func TestFeatures(t *testing.T) {
	f := newEndpoint(nil).Features()
	for _, feature := range []uint{vnet.FCsum, vnet.FHostTSO4, vnet.FHostTSO6, vnet.FHostUFO, vnet.FHostUSO, vnet.FGuestCsum, vnet.FGuestTSO4, vnet.FGuestTSO6} {
		if !f.Has(feature) {
			t.Errorf("feature %d is not offered", feature)
		}
	}
	for _, feature := range []uint{vnet.FGuestUFO, vnet.FGuestUSO4, vnet.FGuestUSO6, vnet.FHostECN, vnet.FGuestECN} {
		if f.Has(feature) {
			t.Errorf("feature %d is offered, but there are no such packets", feature)
		}
	}
}

// Row 21: what cannot be cut into datagrams is dropped.
func TestHostileSegments(t *testing.T) {
	good := uncutFrame(Guest4, DNS4, 1, 2, make([]byte, 3000))
	change := func(at int, b byte) []byte {
		f := bytes.Clone(good)
		f[at] = b
		return f
	}
	for _, c := range []struct {
		name  string
		gso   uint16
		frame []byte
	}{
		{"segments of nothing", 0, good},
		{"too many segments", 1, good},
		{"no data", 100, good[:header.EthernetMinimumSize+header.IPv4MinimumSize+header.UDPMinimumSize]},
		{"no UDP header", 100, good[:header.EthernetMinimumSize+header.IPv4MinimumSize]},
		{"no IP header", 100, good[:header.EthernetMinimumSize]},
		{"TCP", 100, change(23, 6)},
		{"IP version", 100, change(14, 0x65)},
		{"short IP header", 100, change(14, 0x44)},
		{"ARP", 100, change(13, 6)},
		{"half an IPv6 header", 100, append([]byte("\xff\xff\xff\xff\xff\xff\x02\x00\x00\x00\x00\x01\x86\xdd\x60\x00"), make([]byte, 30)...)},
		{"longer than a datagram", 65535, uncutFrame(Guest4, DNS4, 1, 2, make([]byte, 65530))},
	} {
		var f frames
		e := newEndpoint(func([]byte) bool { return false })
		e.Attach(&f)
		packet := append(offload(vnet.GSOUDPL4, c.gso), c.frame...)
		if err := e.Transmit([]virtq.Buffer{{Bytes: packet}}, len(packet)); !errors.Is(err, errFrame) || len(f.got) != 0 {
			t.Errorf("%s: %v, %d datagrams", c.name, err, len(f.got))
		}
	}
}
