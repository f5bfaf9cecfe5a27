package usernet

import (
	"encoding/binary"
	"net/netip"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// Stateless DHCPv6 (RFC 8415): addresses come by SLAAC, and a client that does not
// take the name server from the router's advertisement asks for it.
const (
	dhcpv6Client = 546
	dhcpv6Server = 547

	dhcpv6InfoRequest = 11 // §7.3
	dhcpv6Reply       = 7

	dhcpv6ClientID = 1  // §21.2
	dhcpv6ServerID = 2  // §21.3
	dhcpv6DNS      = 23 // RFC 3646 §3
	duidLL         = 3  // §11.4

	maxDUID = 130 // §11.1
)

// answerDHCPv6 answers an information request; msg is type, transaction ID, options.
func (n *Network) answerDHCPv6(mac tcpip.LinkAddress, to netip.Addr, msg []byte) {
	if len(msg) < 4 || msg[0] != dhcpv6InfoRequest {
		return
	}
	be := binary.BigEndian
	reply := []byte{dhcpv6Reply, msg[1], msg[2], msg[3]}
	for o := msg[4:]; len(o) >= 4; {
		size := int(be.Uint16(o[2:]))
		if size > len(o)-4 {
			return
		}
		if be.Uint16(o) == dhcpv6ClientID && size <= maxDUID {
			reply = append(reply, o[:4+size]...)
		}
		if o = o[4+size:]; len(reply) > 2*maxDUID {
			return
		}
	}
	reply = be.AppendUint16(reply, dhcpv6ServerID)
	reply = append(reply, 0, byte(4+len(gatewayMAC)), 0, duidLL, 0, 1)
	reply = append(reply, gatewayMAC...)
	reply = be.AppendUint16(reply, dhcpv6DNS)
	reply = append(reply, 0, 16)
	reply = append(reply, DNS6.AsSlice()...)
	n.sendUDPv6(mac, linkLocal6, to, dhcpv6Server, dhcpv6Client, reply)
}

// sendUDPv6 sends a datagram, computing its checksum.
func (n *Network) sendUDPv6(mac tcpip.LinkAddress, src, dst netip.Addr, from, to uint16, data []byte) {
	size := header.UDPMinimumSize + len(data)
	frame := make([]byte, header.EthernetMinimumSize+header.IPv6MinimumSize+size)
	udp := header.UDP(ipv6Frame(frame, mac, src, dst, header.UDPProtocolNumber, 64, size))
	udp.Encode(&header.UDPFields{SrcPort: from, DstPort: to, Length: uint16(size)})
	copy(udp.Payload(), data)
	sum := header.PseudoHeaderChecksum(header.UDPProtocolNumber, address(src), address(dst), uint16(size))
	udp.SetChecksum(^udp.CalculateChecksum(checksum.Checksum(data, sum)))
	n.push(outgoing{frame: frame})
}
