package usernet

import (
	"encoding/binary"
	"net"
	"net/netip"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// Ports of DHCP (RFC 2131 §4.1).
const (
	dhcpServer = 67
	dhcpClient = 68
)

// leaseTime of an address; it is the guest's for good.
const leaseTime = 24 * time.Hour

// intercept handles the frames that a gateway answers itself: DHCP, router
// solicitations, and echo requests to the world, which netstack would answer
// in the world's name. It returns false for all others.
func (n *Network) intercept(frame []byte) bool {
	eth := header.Ethernet(frame)
	body := frame[header.EthernetMinimumSize:]
	switch eth.Type() {
	case header.IPv4ProtocolNumber:
		ip := header.IPv4(body)
		if !ip.IsValid(len(body)) || ip.FragmentOffset() != 0 {
			return false
		}
		return n.intercept4(eth, ip, ip.Payload())
	case header.IPv6ProtocolNumber:
		ip := header.IPv6(body)
		if !ip.IsValid(len(body)) {
			return false
		}
		return n.intercept6(eth, ip, ip.Payload())
	}
	return false
}

func (n *Network) intercept4(eth header.Ethernet, ip header.IPv4, payload []byte) bool {
	switch ip.TransportProtocol() {
	case header.UDPProtocolNumber:
		if len(payload) >= header.UDPMinimumSize && header.UDP(payload).DestinationPort() == dhcpServer {
			n.answerDHCP(eth, payload[header.UDPMinimumSize:])
			return true
		}
	case header.ICMPv4ProtocolNumber:
		dst := hostAddr(ip.DestinationAddress())
		if len(payload) < header.ICMPv4MinimumSize || header.ICMPv4(payload).Type() != header.ICMPv4Echo || Prefix4.Contains(dst) {
			return false
		}
		if _, ok := n.target(dst); ok {
			n.pings.send(n, tcpip.LinkAddress(string(eth.SourceAddress())), hostAddr(ip.SourceAddress()), dst, payload)
		}
		return true
	}
	return false
}

func (n *Network) intercept6(eth header.Ethernet, ip header.IPv6, payload []byte) bool {
	if ip.NextHeader() == uint8(header.UDPProtocolNumber) && len(payload) >= header.UDPMinimumSize && header.UDP(payload).DestinationPort() == dhcpv6Server {
		if src := hostAddr(ip.SourceAddress()); src.IsLinkLocalUnicast() {
			n.answerDHCPv6(tcpip.LinkAddress(string(eth.SourceAddress())), src, payload[header.UDPMinimumSize:])
		}
		return true
	}
	if ip.NextHeader() != uint8(header.ICMPv6ProtocolNumber) || len(payload) < header.ICMPv6MinimumSize {
		return false
	}
	switch header.ICMPv6(payload).Type() {
	case header.ICMPv6RouterSolicit:
		n.advertise(tcpip.LinkAddress(string(eth.SourceAddress())))
		return true
	case header.ICMPv6EchoRequest:
		dst := hostAddr(ip.DestinationAddress())
		if Prefix6.Contains(dst) || dst.IsLinkLocalUnicast() || dst.IsMulticast() {
			return false
		}
		if _, ok := n.target(dst); ok {
			n.pings.send(n, tcpip.LinkAddress(string(eth.SourceAddress())), hostAddr(ip.SourceAddress()), dst, payload)
		}
		return true
	}
	return false
}

// answerDHCP is a DHCP server with one address (RFC 2131).
func (n *Network) answerDHCP(eth header.Ethernet, payload []byte) {
	req, err := dhcpv4.FromBytes(payload)
	if err != nil || req.OpCode != dhcpv4.OpcodeBootRequest {
		return
	}
	kind := dhcpv4.MessageTypeOffer
	switch req.MessageType() {
	case dhcpv4.MessageTypeDiscover:
	case dhcpv4.MessageTypeRequest:
		kind = dhcpv4.MessageTypeAck
		if want := req.RequestedIPAddress(); want != nil && !want.IsUnspecified() && !want.Equal(Guest4.AsSlice()) {
			kind = dhcpv4.MessageTypeNak
		}
	case dhcpv4.MessageTypeInform:
		kind = dhcpv4.MessageTypeAck
	default:
		return
	}
	mods := []dhcpv4.Modifier{
		dhcpv4.WithMessageType(kind),
		dhcpv4.WithServerIP(Gateway4.AsSlice()),
		dhcpv4.WithOption(dhcpv4.OptServerIdentifier(Gateway4.AsSlice())),
	}
	if kind != dhcpv4.MessageTypeNak {
		mods = append(mods,
			dhcpv4.WithRouter(Gateway4.AsSlice()),
			dhcpv4.WithNetmask(net.CIDRMask(Prefix4.Bits(), 32)),
			dhcpv4.WithDNS(DNS4.AsSlice()),
			dhcpv4.WithOption(dhcpv4.Option{Code: dhcpv4.OptionInterfaceMTU, Value: dhcpv4.Uint16(MTU)}))
		if req.MessageType() != dhcpv4.MessageTypeInform {
			mods = append(mods, dhcpv4.WithYourIP(Guest4.AsSlice()), dhcpv4.WithLeaseTime(uint32(leaseTime/time.Second)))
		}
		if n.cfg.Hostname != "" {
			mods = append(mods, dhcpv4.WithOption(dhcpv4.OptHostName(n.cfg.Hostname)))
		}
	}
	res, err := dhcpv4.NewReplyFromRequest(req, mods...)
	if err != nil {
		return
	}
	dst := netip.AddrFrom4([4]byte{255, 255, 255, 255})
	mac := header.EthernetBroadcastAddress
	if !req.IsBroadcast() && kind != dhcpv4.MessageTypeNak {
		dst, mac = Guest4, tcpip.LinkAddress(string(eth.SourceAddress()))
	}
	n.push(outgoing{frame: udpFrame(mac, dst, res.ToBytes())})
}

// udpFrame is a DHCP answer as an Ethernet frame.
func udpFrame(mac tcpip.LinkAddress, dst netip.Addr, data []byte) []byte {
	size := header.UDPMinimumSize + len(data)
	frame := make([]byte, header.EthernetMinimumSize+header.IPv4MinimumSize+size)
	udp := header.UDP(ipv4Frame(frame, mac, Gateway4, dst, header.UDPProtocolNumber, size))
	udp.Encode(&header.UDPFields{SrcPort: dhcpServer, DstPort: dhcpClient, Length: uint16(size)})
	copy(udp.Payload(), data)
	sum := header.PseudoHeaderChecksum(header.UDPProtocolNumber, address(Gateway4), address(dst), uint16(size))
	udp.SetChecksum(^udp.CalculateChecksum(checksum.Checksum(data, sum)))
	return frame
}

// ipv4Frame fills the Ethernet and IPv4 headers and returns the payload.
func ipv4Frame(frame []byte, mac tcpip.LinkAddress, src, dst netip.Addr, proto tcpip.TransportProtocolNumber, size int) []byte {
	header.Ethernet(frame).Encode(&header.EthernetFields{SrcAddr: gatewayMAC, DstAddr: mac, Type: header.IPv4ProtocolNumber})
	ip := header.IPv4(frame[header.EthernetMinimumSize:])
	ip.Encode(&header.IPv4Fields{
		TotalLength: uint16(header.IPv4MinimumSize + size), TTL: 64, Protocol: uint8(proto),
		SrcAddr: address(src), DstAddr: address(dst),
	})
	ip.SetChecksum(^ip.CalculateChecksum())
	return frame[header.EthernetMinimumSize+header.IPv4MinimumSize:]
}

// ipv6Frame fills the Ethernet and IPv6 headers and returns the payload.
func ipv6Frame(frame []byte, mac tcpip.LinkAddress, src, dst netip.Addr, proto tcpip.TransportProtocolNumber, hops uint8, size int) []byte {
	header.Ethernet(frame).Encode(&header.EthernetFields{SrcAddr: gatewayMAC, DstAddr: mac, Type: header.IPv6ProtocolNumber})
	ip := header.IPv6(frame[header.EthernetMinimumSize:])
	ip.Encode(&header.IPv6Fields{
		PayloadLength: uint16(size), TransportProtocol: proto, HopLimit: hops,
		SrcAddr: address(src), DstAddr: address(dst),
	})
	return frame[header.EthernetMinimumSize+header.IPv6MinimumSize:]
}

// Router advertisement options (RFC 4861 §4.6, RFC 8106 §5.1).
const (
	ndSourceLink = 1
	ndPrefix     = 3
	ndMTU        = 5
	ndRDNSS      = 25

	ndHopLimit      = 255
	ndPrefixOnLink  = 0x80
	ndPrefixAuto    = 0x40
	ndRouterSeconds = 9000
	ndOther         = 0x40 // ask by DHCPv6 for more than addresses
)

// advertise sends a router advertisement (RFC 4861 §4.2): the prefix for SLAAC,
// the MTU and the name server.
func (n *Network) advertise(mac tcpip.LinkAddress) {
	be := binary.BigEndian
	ra := []byte{134, 0, 0, 0, 64, ndOther}
	ra = be.AppendUint16(ra, ndRouterSeconds)
	ra = append(ra, make([]byte, 8)...) // reachable time, retransmission timer: unspecified
	ra = append(ra, ndSourceLink, 1)
	ra = append(ra, gatewayMAC...)
	ra = append(ra, ndMTU, 1, 0, 0)
	ra = be.AppendUint32(ra, MTU)
	ra = append(ra, ndPrefix, 4, byte(Prefix6.Bits()), ndPrefixOnLink|ndPrefixAuto)
	ra = be.AppendUint32(ra, uint32(leaseTime/time.Second))
	ra = be.AppendUint32(ra, uint32(leaseTime/time.Second))
	ra = append(ra, 0, 0, 0, 0)
	ra = append(ra, Prefix6.Addr().AsSlice()...)
	ra = append(ra, ndRDNSS, 3, 0, 0)
	ra = be.AppendUint32(ra, ndRouterSeconds)
	ra = append(ra, DNS6.AsSlice()...)
	n.sendICMPv6(mac, linkLocal6, netip.IPv6LinkLocalAllNodes(), ndHopLimit, ra)
}

// sendICMPv6 sends a message, computing its checksum.
func (n *Network) sendICMPv6(mac tcpip.LinkAddress, src, dst netip.Addr, hops uint8, msg []byte) {
	frame := make([]byte, header.EthernetMinimumSize+header.IPv6MinimumSize+len(msg))
	icmp := header.ICMPv6(ipv6Frame(frame, mac, src, dst, header.ICMPv6ProtocolNumber, hops, len(msg)))
	copy(icmp, msg)
	icmp.SetChecksum(0)
	icmp.SetChecksum(header.ICMPv6Checksum(header.ICMPv6ChecksumParams{Header: icmp, Src: address(src), Dst: address(dst)}))
	n.push(outgoing{frame: frame})
}

// sendICMPv4 sends a message, computing its checksum.
func (n *Network) sendICMPv4(mac tcpip.LinkAddress, src, dst netip.Addr, msg []byte) {
	frame := make([]byte, header.EthernetMinimumSize+header.IPv4MinimumSize+len(msg))
	icmp := header.ICMPv4(ipv4Frame(frame, mac, src, dst, header.ICMPv4ProtocolNumber, len(msg)))
	copy(icmp, msg)
	icmp.SetChecksum(0)
	icmp.SetChecksum(^checksum.Checksum(icmp, 0))
	n.push(outgoing{frame: frame})
}
