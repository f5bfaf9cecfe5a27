package usernet

import (
	"encoding/binary"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip"
)

// Bounds of echo requests: how many identifiers the guest may use at once, and how
// long one is remembered after its last request.
const (
	maxPings = 64
	pingIdle = 30 * time.Second
)

// pinger sends the guest's echo requests to the world through unprivileged
// ICMP sockets (ping_group_range of icmp(7)). Where the host does not permit
// those the requests are lost, as in a network that filters them.
type pinger struct {
	mu     sync.Mutex // guards the fields below
	flows  map[pingKey]net.PacketConn
	closed bool
}

// pingKey is one running ping of the guest.
type pingKey struct {
	dst netip.Addr
	id  uint16
}

// send passes an echo request on; msg is the ICMP message.
func (p *pinger) send(n *Network, mac tcpip.LinkAddress, src, dst netip.Addr, msg []byte) {
	key := pingKey{dst, binary.BigEndian.Uint16(msg[4:])}
	p.mu.Lock()
	f := p.flows[key]
	if f == nil && len(p.flows) < maxPings && !p.closed {
		var err error
		if f, err = pingSocket(dst); err == nil {
			if p.flows == nil {
				p.flows = map[pingKey]net.PacketConn{}
			}
			p.flows[key] = f
			go p.receive(n, f, key, mac, src)
		}
	}
	p.mu.Unlock()
	if f == nil {
		return
	}
	_ = f.SetReadDeadline(time.Now().Add(pingIdle))
	_, _ = f.WriteTo(msg, net.UDPAddrFromAddrPort(netip.AddrPortFrom(dst, 0)))
}

// pingSocket opens an ICMP datagram socket for dst. It is not connected, so that each
// request finds its way anew: the host's addresses and routes change while a ping runs.
func pingSocket(dst netip.Addr) (net.PacketConn, error) {
	domain, proto := unix.AF_INET, unix.IPPROTO_ICMP
	if dst.Is6() {
		domain, proto = unix.AF_INET6, unix.IPPROTO_ICMPV6
	}
	fd, err := unix.Socket(domain, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, proto)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "icmp")
	defer f.Close()
	return net.FilePacketConn(f)
}

// receive passes the answers to the guest, with the identifier that the kernel
// replaced, until none come any more.
func (p *pinger) receive(n *Network, f net.PacketConn, key pingKey, mac tcpip.LinkAddress, guest netip.Addr) {
	b := make([]byte, 65536)
	for {
		k, from, err := f.ReadFrom(b)
		if err != nil && !isRefused(err) {
			break
		}
		if a, ok := from.(*net.UDPAddr); k < 8 || !ok || a.AddrPort().Addr().Unmap() != key.dst {
			continue
		}
		binary.BigEndian.PutUint16(b[4:], key.id)
		if key.dst.Is6() {
			n.sendICMPv6(mac, key.dst, guest, 64, b[:k])
		} else {
			n.sendICMPv4(mac, key.dst, guest, b[:k])
		}
	}
	p.mu.Lock()
	delete(p.flows, key)
	p.mu.Unlock()
	_ = f.Close()
}

func (p *pinger) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	for _, f := range p.flows {
		_ = f.Close()
	}
}
