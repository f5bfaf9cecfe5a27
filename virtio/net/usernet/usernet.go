// Package usernet is user-mode networking: a network of one guest behind a
// gateway that lives in this process. It needs no privilege and no helper.
// Connections of the guest end in a TCP/IP stack (gVisor's netstack) and go on
// as sockets of this process; published ports go the other way.
//
// The network, as users of other machine monitors know it:
//
//	10.0.2.0/24     the guest is 10.0.2.15 (DHCP), the gateway 10.0.2.2, DNS 10.0.2.3
//	fd67:766d::/64  the guest takes an address (SLAAC), the gateway is ::2, DNS ::3
package usernet

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/arp"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
)

// Addresses of the network.
var (
	Guest4   = netip.MustParseAddr("10.0.2.15")
	Gateway4 = netip.MustParseAddr("10.0.2.2")
	DNS4     = netip.MustParseAddr("10.0.2.3")
	Prefix4  = netip.MustParsePrefix("10.0.2.0/24")
	Gateway6 = netip.MustParseAddr("fd67:766d::2")
	DNS6     = netip.MustParseAddr("fd67:766d::3")
	Prefix6  = netip.MustParsePrefix("fd67:766d::/64")

	linkLocal6 = netip.MustParseAddr("fe80::2")
)

// MTU of the network in bytes: as much as an IP packet can be, because every
// packet is a copy in memory, and fewer are cheaper.
const MTU = 65520

// Limits of what one guest may hold open.
const (
	maxTCP = 4096
	maxUDP = 1024
)

const nicID tcpip.NICID = 1

// gatewayMAC is the address of the gateway, the name server and the router.
var gatewayMAC = tcpip.LinkAddress("\x52\x55\x0a\x00\x02\x02")

// Port publishes a port of the guest on the host.
type Port struct {
	UDP   bool
	Host  netip.Addr // invalid for 127.0.0.1
	From  uint16     // port on the host
	Guest uint16     // port of the guest
}

// String returns the port as the --port option takes it.
func (p Port) String() string {
	s := fmt.Sprintf("%s:%d:%d", p.Host, p.From, p.Guest)
	if p.UDP {
		s += "/udp"
	}
	return s
}

// Config describes the network.
type Config struct {
	// Ports are published on the host.
	Ports []Port
	// HostLoopback lets the guest reach the host's loopback as Gateway4 and Gateway6.
	HostLoopback bool
	// Resolvers are asked for the guest's DNS queries; nil for the host's own.
	Resolvers []netip.AddrPort
	// Hostname is given to the guest by DHCP, if set.
	Hostname string
	// Log gets what the host side has to say; nil discards it.
	Log *slog.Logger
}

// Network is the network of one guest. Its Endpoint is the virtio device's Link.
type Network struct {
	*Endpoint

	cfg       Config
	stack     *stack.Stack
	log       *slog.Logger
	listeners []io.Closer
	closed    atomic.Bool
	ctx       context.Context // ends with Close
	cancel    context.CancelFunc

	mu    sync.Mutex // guards conns
	conns map[io.Closer]struct{}

	tcpOpen, udpOpen atomic.Int32
	pings            pinger
}

// New makes the network and opens the published ports. The error names the
// port that cannot be had.
func New(cfg Config) (*Network, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	n := &Network{cfg: cfg, log: cfg.Log, conns: map[io.Closer]struct{}{}}
	n.ctx, n.cancel = context.WithCancel(context.Background())
	n.Endpoint = newEndpoint(n.intercept)
	n.stack = stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol, ipv6.NewProtocol, arp.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol, icmp.NewProtocol4, icmp.NewProtocol6},
	})
	if err := n.setUp(); err != nil {
		return nil, errors.Join(err, n.Close())
	}
	for _, p := range cfg.Ports {
		if err := n.publish(p); err != nil {
			return nil, errors.Join(err, n.Close())
		}
	}
	return n, nil
}

func (n *Network) setUp() error {
	s := n.stack
	if err := s.CreateNIC(nicID, n.Endpoint); err != nil {
		return stackError("create interface", err)
	}
	for _, a := range []netip.Prefix{
		netip.PrefixFrom(Gateway4, 24), netip.PrefixFrom(DNS4, 24),
		netip.PrefixFrom(Gateway6, 64), netip.PrefixFrom(DNS6, 64), netip.PrefixFrom(linkLocal6, 64),
	} {
		if err := s.AddProtocolAddress(nicID, protocolAddress(a), stack.AddressProperties{}); err != nil {
			return stackError("add address", err)
		}
	}
	// Every destination is ours (promiscuous), and we answer as it (spoofing).
	if err := s.SetPromiscuousMode(nicID, true); err != nil {
		return stackError("promiscuous mode", err)
	}
	if err := s.SetSpoofing(nicID, true); err != nil {
		return stackError("spoofing", err)
	}
	s.SetRouteTable([]tcpip.Route{
		{Destination: header.IPv4EmptySubnet, NIC: nicID},
		{Destination: header.IPv6EmptySubnet, NIC: nicID},
	})
	sack := tcpip.TCPSACKEnabled(true)
	s.SetTransportProtocolOption(tcp.ProtocolNumber, &sack)
	moderate := tcpip.TCPModerateReceiveBufferOption(true)
	s.SetTransportProtocolOption(tcp.ProtocolNumber, &moderate)
	rcv := tcpip.TCPReceiveBufferSizeRangeOption{Min: 4096, Default: 1 << 20, Max: 8 << 20}
	s.SetTransportProtocolOption(tcp.ProtocolNumber, &rcv)
	snd := tcpip.TCPSendBufferSizeRangeOption{Min: 4096, Default: 1 << 20, Max: 8 << 20}
	s.SetTransportProtocolOption(tcp.ProtocolNumber, &snd)

	s.SetTransportProtocolHandler(tcp.ProtocolNumber, tcp.NewForwarder(s, 0, 2*maxTCP, n.forwardTCP).HandlePacket)
	s.SetTransportProtocolHandler(udp.ProtocolNumber, udp.NewForwarder(s, n.forwardUDP).HandlePacket)
	return nil
}

func stackError(what string, err tcpip.Error) error {
	return fmt.Errorf("user-mode network: %s: %s", what, err)
}

func protocolAddress(p netip.Prefix) tcpip.ProtocolAddress {
	proto := ipv4.ProtocolNumber
	if p.Addr().Is6() {
		proto = ipv6.ProtocolNumber
	}
	return tcpip.ProtocolAddress{
		Protocol:          proto,
		AddressWithPrefix: tcpip.AddressWithPrefix{Address: address(p.Addr()), PrefixLen: p.Bits()},
	}
}

// address converts to netstack's type.
func address(a netip.Addr) tcpip.Address { return tcpip.AddrFromSlice(a.AsSlice()) }

// hostAddr converts from netstack's type.
func hostAddr(a tcpip.Address) netip.Addr {
	ip, _ := netip.AddrFromSlice(a.AsSlice())
	return ip.Unmap()
}

// target says where on the host a destination of the guest is. It refuses what
// only this host should reach.
func (n *Network) target(a netip.Addr) (netip.Addr, bool) {
	switch a {
	case Gateway4:
		return netip.AddrFrom4([4]byte{127, 0, 0, 1}), n.cfg.HostLoopback
	case Gateway6:
		return netip.IPv6Loopback(), n.cfg.HostLoopback
	}
	refused := !a.IsValid() || a.IsLoopback() || a.IsUnspecified() || a.IsMulticast() || a.IsLinkLocalUnicast() ||
		Prefix4.Contains(a) || Prefix6.Contains(a) || a.Is4() && (a.As4()[0] == 0 || a.As4()[0] >= 224)
	return a, !refused
}

// track remembers a host socket until untrack, so that Close closes it. It
// returns false when the network is closed already.
func (n *Network) track(c io.Closer) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed.Load() {
		_ = c.Close()
		return false
	}
	n.conns[c] = struct{}{}
	return true
}

func (n *Network) untrack(c io.Closer) {
	n.mu.Lock()
	delete(n.conns, c)
	n.mu.Unlock()
	_ = c.Close()
}

// Close ends all connections and gives the published ports back.
func (n *Network) Close() error {
	n.mu.Lock()
	if n.closed.Swap(true) {
		n.mu.Unlock()
		return nil
	}
	n.cancel()
	for c := range n.conns {
		_ = c.Close()
	}
	n.mu.Unlock()
	var errs []error
	for _, l := range n.listeners {
		if err := l.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
	}
	n.pings.close()
	n.stack.Destroy()
	return errors.Join(errs...)
}
