package usernet

import (
	"bytes"
	"encoding/binary"
	"io"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	vnet "github.com/gvmspawn/gvmspawn/virtio/net"
	"github.com/gvmspawn/gvmspawn/virtio/virtq"
)

// inject sends a frame as the guest would, with an empty virtio header before it.
func inject(t *testing.T, n *Network, frame []byte) {
	t.Helper()
	p := append(make([]byte, vnet.HeaderLen), frame...)
	_ = n.Transmit([]virtq.Buffer{{Bytes: p}}, len(p)) // nonsense is dropped
}

// from4 is an IPv4 frame of the guest.
func from4(src, dst netip.Addr, proto tcpip.TransportProtocolNumber, payload []byte) []byte {
	frame := make([]byte, header.EthernetMinimumSize+header.IPv4MinimumSize+len(payload))
	copy(ipv4Frame(frame, gatewayMAC, src, dst, proto, len(payload)), payload)
	copy(frame[6:12], guestMAC)
	return frame
}

// tcpSegment is a TCP header with flags and options, without a valid checksum: the
// guest says that the device computes it.
func tcpSegment(src, dst uint16, flags header.TCPFlags, options []byte) []byte {
	b := make([]byte, header.TCPMinimumSize+len(options))
	header.TCP(b).Encode(&header.TCPFields{SrcPort: src, DstPort: dst, SeqNum: uint32(src), DataOffset: uint8(len(b)), Flags: flags, WindowSize: 1000})
	copy(b[header.TCPMinimumSize:], options)
	return b
}

// Row 21: floods of every kind, against what only a stack behind the device sees.
// None makes the host hold more than a bounded amount, and afterwards the network
// works as before.
func TestHostileFloods(t *testing.T) {
	srv := echo(t)
	g := newGuest(t, Config{HostLoopback: true})
	world := netip.MustParseAddr("192.0.2.1")
	before := heap()
	loop := []byte{0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0xc0, 12, 0, 1, 0, 1} // a name that points to itself
	for i := range 4000 {
		port := uint16(i)
		spoofed := netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)})
		// SYNs from addresses that are not the guest's, to the world and the gateway's own ports
		inject(t, g.net, from4(spoofed, world, header.TCPProtocolNumber, tcpSegment(port, 80, header.TCPFlagSyn, nil)))
		inject(t, g.net, from4(Guest4, Gateway4, header.TCPProtocolNumber, tcpSegment(port, port, header.TCPFlagSyn, []byte{2, 0, 3, 255})))
		inject(t, g.net, from4(Guest4, world, header.TCPProtocolNumber, tcpSegment(port, 1, header.TCPFlagAck|header.TCPFlagRst|header.TCPFlagFin, []byte{1, 1, 99, 200})))
		// first fragments of packets whose rest never comes
		f := from4(Guest4, world, header.UDPProtocolNumber, make([]byte, 1400))
		ip := header.IPv4(f[header.EthernetMinimumSize:])
		binary.BigEndian.PutUint16(ip[4:], port)
		ip.SetFlagsFragmentOffset(header.IPv4FlagMoreFragments, uint16(8*(i%100)))
		ip.SetChecksum(0)
		ip.SetChecksum(^ip.CalculateChecksum())
		inject(t, g.net, f)
		// DHCP that is none, DNS loops, router solicitations, ARP for everyone
		inject(t, g.net, from4(netip.IPv4Unspecified(), netip.AddrFrom4([4]byte{255, 255, 255, 255}), header.UDPProtocolNumber, append([]byte{0, 68, 0, 67, 0, 0, 0, 0}, bytes.Repeat([]byte{1}, i%300)...)))
		inject(t, g.net, from4(Guest4, DNS4, header.UDPProtocolNumber, append([]byte{byte(i >> 8), byte(i), 0, 53, 0, byte(8 + len(loop)), 0, 0}, loop...)))
		inject(t, g.net, arpFrame(spoofed))
	}
	if grown := heap() - before; grown > 64<<20 {
		t.Errorf("the floods left %d MiB", grown>>20)
	}
	if n := runtime.NumGoroutine(); n > 2*maxTCP {
		t.Errorf("%d goroutines", n)
	}
	c, err := g.dial(t, netip.AddrPortFrom(Gateway4, srv.Port()))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(30 * time.Second))
	if _, err := c.Write([]byte("still there")); err != nil {
		t.Error(err)
	}
	got := make([]byte, 11)
	if _, err := io.ReadFull(c, got); err != nil || string(got) != "still there" {
		t.Errorf("%q, %v", got, err)
	}
}

// arpFrame claims that an address is the guest's.
func arpFrame(a netip.Addr) []byte {
	frame := make([]byte, header.EthernetMinimumSize+header.ARPSize)
	header.Ethernet(frame).Encode(&header.EthernetFields{SrcAddr: guestMAC, DstAddr: header.EthernetBroadcastAddress, Type: header.ARPProtocolNumber})
	arp := header.ARP(frame[header.EthernetMinimumSize:])
	arp.SetIPv4OverEthernet()
	arp.SetOp(header.ARPReply)
	copy(arp.HardwareAddressSender(), guestMAC)
	copy(arp.ProtocolAddressSender(), a.AsSlice())
	copy(arp.ProtocolAddressTarget(), Gateway4.AsSlice())
	return frame
}

func heap() int64 {
	runtime.GC()
	var s runtime.MemStats
	runtime.ReadMemStats(&s)
	return int64(s.HeapAlloc)
}

// receive takes one frame that the network sends.
func receive(t *testing.T, n *Network) []byte {
	t.Helper()
	b := make([]byte, vnet.MaxPacket)
	k, err := n.Receive([]virtq.Buffer{{Bytes: b}}, len(b))
	if err != nil {
		t.Fatal(err)
	}
	return b[vnet.HeaderLen:k]
}

// from6 is an IPv6 frame of the guest.
func from6(dst netip.Addr, proto tcpip.TransportProtocolNumber, payload []byte) []byte {
	frame := make([]byte, header.EthernetMinimumSize+header.IPv6MinimumSize+len(payload))
	copy(ipv6Frame(frame, gatewayMAC, netip.MustParseAddr("fe80::15"), dst, proto, 255, len(payload)), payload)
	copy(frame[6:12], guestMAC)
	return frame
}

// A router solicitation is answered with the prefix, the MTU and the name server (RFC
// 4861 §4.2, RFC 8106 §5.1), and a DHCPv6 information request with the latter (RFC
// 8415 §18.3.6).
func TestIPv6Configuration(t *testing.T) {
	n, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	inject(t, n, from6(netip.MustParseAddr("ff02::2"), header.ICMPv6ProtocolNumber, []byte{133, 0, 0, 0, 0, 0, 0, 0}))
	ip := header.IPv6(receive(t, n)[header.EthernetMinimumSize:])
	ra := ip.Payload()
	if hostAddr(ip.SourceAddress()) != linkLocal6 || ip.HopLimit() != 255 || ra[0] != 134 || ra[5]&0xc0 != ndOther {
		t.Errorf("advertisement %x", ra)
	}
	options := map[byte][]byte{}
	for o := ra[16:]; len(o) >= 8 && o[1] > 0; o = o[8*int(o[1]):] {
		options[o[0]] = o[2 : 8*int(o[1])]
	}
	if p := options[ndPrefix]; len(p) != 30 || p[0] != 64 || p[1] != ndPrefixOnLink|ndPrefixAuto || netip.AddrFrom16([16]byte(p[14:])) != Prefix6.Addr() {
		t.Errorf("prefix %x", p)
	}
	if d := options[ndRDNSS]; len(d) != 22 || netip.AddrFrom16([16]byte(d[6:])) != DNS6 {
		t.Errorf("name server %x", d)
	}
	if m := options[ndMTU]; len(m) != 6 || binary.BigEndian.Uint32(m[2:]) != MTU {
		t.Errorf("MTU %x", m)
	}

	request := []byte{dhcpv6InfoRequest, 1, 2, 3, 0, dhcpv6ClientID, 0, 4, 9, 8, 7, 6, 0, 6, 0, 2, 0, 23}
	udp := append([]byte{2, 34, 2, 35, 0, byte(8 + len(request)), 0, 0}, request...)
	inject(t, n, from6(netip.MustParseAddr("ff02::1:2"), header.UDPProtocolNumber, udp))
	ip = header.IPv6(receive(t, n)[header.EthernetMinimumSize:])
	reply := header.UDP(ip.Payload())
	want := append([]byte{dhcpv6Reply, 1, 2, 3, 0, 1, 0, 4, 9, 8, 7, 6, 0, 2, 0, 10, 0, 3, 0, 1}, gatewayMAC...)
	want = append(append(want, 0, 23, 0, 16), DNS6.AsSlice()...)
	if reply.DestinationPort() != dhcpv6Client || !bytes.Equal(reply.Payload(), want) || hostAddr(ip.DestinationAddress()) != netip.MustParseAddr("fe80::15") {
		t.Errorf("reply %x, want %x", reply.Payload(), want)
	}
	for _, bad := range [][]byte{nil, {dhcpv6InfoRequest}, {1, 1, 2, 3}, {dhcpv6InfoRequest, 1, 2, 3, 0, 1, 255, 255, 0}} {
		inject(t, n, from6(netip.MustParseAddr("ff02::1:2"), header.UDPProtocolNumber, append([]byte{2, 34, 2, 35, 0, byte(8 + len(bad)), 0, 0}, bad...)))
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.queued != 0 {
		t.Errorf("%d bytes of answers to nonsense", n.queued)
	}
}
