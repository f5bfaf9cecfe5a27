package usernet

import (
	"errors"
	"net"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/waiter"
)

// A flow without traffic holds no buffer: copying waits until there is something to
// read, and only then takes one. A guest may have thousands of flows.

// readable waits for something to read on c, an error or its end. It returns false for
// a connection that it cannot wait for: one that came through a published port, of
// which the host's side decides how many there are.
func readable(c any) (can bool, err error) {
	switch c := c.(type) {
	case interface{ waitReadable() error }:
		return true, c.waitReadable()
	case syscall.Conn:
		return true, waitSocket(c)
	}
	return false, nil
}

// waitSocket waits for a socket of the host, by looking without taking.
func waitSocket(c syscall.Conn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	return raw.Read(func(fd uintptr) bool {
		var b [1]byte
		_, _, err := unix.Recvfrom(int(fd), b[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
		return !errors.Is(err, unix.EAGAIN)
	})
}

// endpointWait waits for an endpoint of the guest's stack.
type endpointWait struct {
	ep       tcpip.Endpoint
	wq       *waiter.Queue
	deadline atomic.Int64 // Unix nanoseconds, 0 for none
}

const readableEvents = waiter.ReadableEvents | waiter.EventHUp | waiter.EventErr

func (e *endpointWait) waitReadable() error {
	if e.ep.Readiness(readableEvents) != 0 {
		return nil
	}
	entry, events := waiter.NewChannelEntry(readableEvents)
	e.wq.EventRegister(&entry)
	defer e.wq.EventUnregister(&entry)
	for e.ep.Readiness(readableEvents) == 0 {
		at := e.deadline.Load()
		if at == 0 {
			<-events
			return nil
		}
		left := time.Until(time.Unix(0, at))
		if left <= 0 {
			return os.ErrDeadlineExceeded
		}
		t := time.NewTimer(left)
		select {
		case <-events:
			t.Stop()
			return nil
		case <-t.C: // the deadline may be a later one by now
		}
	}
	return nil
}

// guestTCP is a TCP connection of the guest.
type guestTCP struct {
	*gonet.TCPConn
	endpointWait
}

func newGuestTCP(wq *waiter.Queue, ep tcpip.Endpoint) *guestTCP {
	return &guestTCP{TCPConn: gonet.NewTCPConn(wq, ep), endpointWait: endpointWait{ep: ep, wq: wq}}
}

// guestUDP is a UDP flow of the guest.
type guestUDP struct {
	*gonet.UDPConn
	endpointWait
}

func newGuestUDP(wq *waiter.Queue, ep tcpip.Endpoint) *guestUDP {
	return &guestUDP{UDPConn: gonet.NewUDPConn(wq, ep), endpointWait: endpointWait{ep: ep, wq: wq}}
}

// SetReadDeadline also ends waitReadable.
func (g *guestUDP) SetReadDeadline(t time.Time) error {
	g.deadline.Store(t.UnixNano())
	return g.UDPConn.SetReadDeadline(t)
}

var _ net.Conn = (*guestUDP)(nil)
