package usernet

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
	"gvisor.dev/gvisor/pkg/waiter"
)

const (
	dialTimeout = 30 * time.Second
	// udpIdle is how long a flow without packets lives (RFC 4787 §4.3: at
	// least two minutes); a DNS query's is short.
	udpIdle = 2 * time.Minute
	dnsIdle = 10 * time.Second
	dnsPort = 53
)

// copyBuffers holds the buffers of copyHalf.
var copyBuffers = sync.Pool{New: func() any { b := make([]byte, 256<<10); return &b }}

// half is a stream whose two directions close separately.
type half interface {
	io.ReadWriteCloser
	CloseWrite() error
	SetReadDeadline(time.Time) error
}

// forwardTCP serves a connection attempt of the guest. netstack has seen the
// SYN and answers it once we know that the destination does.
func (n *Network) forwardTCP(r *tcp.ForwarderRequest) {
	if n.tcpOpen.Add(1) > maxTCP || n.closed.Load() {
		n.tcpOpen.Add(-1)
		r.Complete(true)
		return
	}
	go func() {
		defer n.tcpOpen.Add(-1)
		id := r.ID()
		host, err := n.dial(hostAddr(id.LocalAddress), id.LocalPort)
		if err != nil {
			r.Complete(true)
			return
		}
		if !n.track(host) {
			r.Complete(true)
			return
		}
		defer n.untrack(host)
		var wq waiter.Queue
		ep, terr := r.CreateEndpoint(&wq)
		r.Complete(terr != nil)
		if terr != nil {
			return
		}
		n.splice(newGuestTCP(&wq, ep), host.(half))
	}()
}

// dial connects to where the guest wants to go.
func (n *Network) dial(dst netip.Addr, port uint16) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(n.ctx, dialTimeout)
	defer cancel()
	if (dst == DNS4 || dst == DNS6) && port == dnsPort {
		return n.dialResolver(ctx, "tcp")
	}
	to, ok := n.target(dst)
	if !ok {
		return nil, fmt.Errorf("%v is not reachable from the guest", dst)
	}
	var d net.Dialer
	return d.DialContext(ctx, "tcp", netip.AddrPortFrom(to, port).String())
}

// splice copies both ways until both are at their end.
func (n *Network) splice(guest, host half) {
	if !n.track(guest) {
		return
	}
	defer n.untrack(guest)
	done := make(chan struct{})
	go func() {
		copyHalf(host, guest)
		close(done)
	}()
	copyHalf(guest, host)
	<-done
}

// copyHalf copies until src ends and then closes that direction of dst. An
// error on either side ends both.
func copyHalf(dst, src half) {
	for {
		rerr := copySome(dst, src)
		if errors.Is(rerr, io.EOF) {
			_ = dst.CloseWrite()
			return
		}
		if rerr != nil {
			_ = src.Close()
			_ = dst.Close()
			return
		}
	}
}

// pause is how long a stream may rest before it gives its buffer back.
const pause = 50 * time.Millisecond

// copySome waits for something to read and copies what comes without a pause.
func copySome(dst, src half) error {
	rests, err := readable(src)
	if err != nil {
		return err
	}
	b := copyBuffers.Get().(*[]byte)
	defer copyBuffers.Put(b)
	var limit time.Time
	defer func() { _ = src.SetReadDeadline(time.Time{}) }()
	for {
		if now := time.Now(); rests && limit.Sub(now) < pause {
			limit = now.Add(2 * pause)
			_ = src.SetReadDeadline(limit)
		}
		k, err := src.Read(*b)
		if k > 0 {
			if _, werr := dst.Write((*b)[:k]); werr != nil {
				return errWrite
			}
		}
		if isTimeout(err) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// isTimeout reports the end of a deadline, which netstack's connections do not call
// os.ErrDeadlineExceeded.
func isTimeout(err error) bool {
	var e net.Error
	return errors.As(err, &e) && e.Timeout()
}

// errWrite is a side of a connection that takes no more.
var errWrite = errors.New("the other side is gone")

// forwardUDP serves the first packet of a flow of the guest.
func (n *Network) forwardUDP(r *udp.ForwarderRequest) bool {
	id := r.ID()
	dst := hostAddr(id.LocalAddress)
	isDNS := (dst == DNS4 || dst == DNS6) && id.LocalPort == dnsPort
	to, ok := n.target(dst)
	if !isDNS && !ok {
		return false
	}
	if n.udpOpen.Add(1) > maxUDP || n.closed.Load() {
		n.udpOpen.Add(-1)
		return true
	}
	var wq waiter.Queue
	ep, terr := r.CreateEndpoint(&wq)
	if terr != nil {
		n.udpOpen.Add(-1)
		return true
	}
	go func() {
		defer n.udpOpen.Add(-1)
		guest := newGuestUDP(&wq, ep)
		if !n.track(guest) {
			return
		}
		defer n.untrack(guest)
		var host net.Conn
		var err error
		idle := udpIdle
		if isDNS {
			idle = dnsIdle
			host, err = n.dialResolver(context.Background(), "udp")
		} else {
			host, err = net.Dial("udp", netip.AddrPortFrom(to, id.LocalPort).String())
		}
		if err != nil || !n.track(host) {
			return
		}
		defer n.untrack(host)
		relay(guest, host, idle)
	}()
	return true
}

// relay copies datagrams both ways until neither side has sent one for idle.
func relay(a, b net.Conn, idle time.Duration) {
	done := make(chan struct{})
	go func() {
		copyDatagrams(a, b, idle)
		close(done)
	}()
	copyDatagrams(b, a, idle)
	<-done
}

// copyDatagrams copies from src to dst. Each datagram renews both deadlines.
func copyDatagrams(dst, src net.Conn, idle time.Duration) {
	defer func() {
		_ = dst.Close()
		_ = src.Close()
	}()
	_ = src.SetReadDeadline(time.Now().Add(idle))
	for copyDatagram(dst, src, idle) {
	}
}

// copyDatagram waits for a datagram and copies it. It returns false at the end.
func copyDatagram(dst, src net.Conn, idle time.Duration) bool {
	if _, err := readable(src); isTimeout(err) || errors.Is(err, net.ErrClosed) {
		return false
	}
	b := copyBuffers.Get().(*[]byte)
	defer copyBuffers.Put(b)
	k, err := src.Read((*b)[:65536])
	if isTimeout(err) || errors.Is(err, net.ErrClosed) {
		return false
	}
	deadline := time.Now().Add(idle)
	_ = src.SetReadDeadline(deadline)
	_ = dst.SetReadDeadline(deadline)
	if err != nil {
		// ECONNREFUSED: nobody listens now; the guest may try again.
		return k != 0 || isRefused(err)
	}
	_, err = dst.Write((*b)[:k])
	return err == nil || isRefused(err)
}

// publish listens on the host for a port of the guest.
func (n *Network) publish(p Port) error {
	if !p.Host.IsValid() {
		p.Host = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	at := netip.AddrPortFrom(p.Host, p.From).String()
	if p.UDP {
		return n.publishUDP(p, at)
	}
	l, err := net.Listen("tcp", at)
	if err != nil {
		return fmt.Errorf("publish port %v: %w", p, err)
	}
	n.listeners = append(n.listeners, l)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go n.connectGuest(c, p.Guest)
		}
	}()
	return nil
}

// connectGuest joins an accepted connection with the guest's port.
func (n *Network) connectGuest(c net.Conn, port uint16) {
	if !n.track(c) {
		return
	}
	defer n.untrack(c)
	ctx, cancel := context.WithTimeout(context.Background(), dialTimeout)
	defer cancel()
	guest, err := gonet.DialTCPWithBind(ctx, n.stack,
		tcpip.FullAddress{NIC: nicID, Addr: address(Gateway4)},
		tcpip.FullAddress{NIC: nicID, Addr: address(Guest4), Port: port}, ipv4.ProtocolNumber)
	if err != nil {
		n.log.Debug("published port: the guest does not answer", "port", port, "error", err)
		return
	}
	n.splice(guest, c.(half))
}

// publishUDP gives every sender on the host a flow of its own to the guest.
func (n *Network) publishUDP(p Port, at string) error {
	pc, err := net.ListenPacket("udp", at)
	if err != nil {
		return fmt.Errorf("publish port %v: %w", p, err)
	}
	n.listeners = append(n.listeners, pc)
	go n.serveUDP(pc, p.Guest)
	return nil
}

func (n *Network) serveUDP(pc net.PacketConn, port uint16) {
	var mu sync.Mutex
	flows := map[string]net.Conn{}
	b := make([]byte, 65536)
	for {
		k, from, err := pc.ReadFrom(b)
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			continue
		}
		key := from.String()
		mu.Lock()
		flow := flows[key]
		mu.Unlock()
		if flow == nil {
			if n.udpOpen.Add(1) > maxUDP {
				n.udpOpen.Add(-1)
				continue
			}
			flow, err = gonet.DialUDP(n.stack, &tcpip.FullAddress{NIC: nicID, Addr: address(Gateway4)},
				&tcpip.FullAddress{NIC: nicID, Addr: address(Guest4), Port: port}, ipv4.ProtocolNumber)
			if err != nil || !n.track(flow) {
				n.udpOpen.Add(-1)
				continue
			}
			mu.Lock()
			flows[key] = flow
			mu.Unlock()
			go func() {
				answerUDP(pc, from, flow)
				mu.Lock()
				delete(flows, key)
				mu.Unlock()
				n.untrack(flow)
				n.udpOpen.Add(-1)
			}()
		}
		_ = flow.SetReadDeadline(time.Now().Add(udpIdle))
		_, _ = flow.Write(b[:k])
	}
}

// answerUDP sends the guest's answers back until the flow is idle.
func answerUDP(pc net.PacketConn, to net.Addr, flow net.Conn) {
	b := make([]byte, 65536)
	for {
		k, err := flow.Read(b)
		if err != nil {
			return
		}
		if _, err := pc.WriteTo(b[:k], to); errors.Is(err, net.ErrClosed) {
			return
		}
	}
}
