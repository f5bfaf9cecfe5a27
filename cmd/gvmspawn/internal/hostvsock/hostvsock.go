// Package hostvsock is the host's end of vsock connections through its own kernel
// (AF_VSOCK), for a guest behind /dev/vhost-vsock.
package hostvsock

import (
	"context"
	"errors"
	"fmt"
	"net"

	"github.com/mdlayher/vsock"
)

// AnyPort lets the kernel choose a port.
const AnyPort = 0

// anyCID is VMADDR_CID_ANY: whatever the host's context ID is.
const anyCID = 1<<32 - 1

// Listener takes connections of one guest; all others' are closed.
type Listener struct {
	l   *vsock.Listener
	cid uint32
}

// Listen listens on a port of the host for the guest with a context ID.
func Listen(port, cid uint32) (*Listener, error) {
	l, err := vsock.ListenContextID(anyCID, port, nil)
	if err != nil {
		return nil, fmt.Errorf("cannot listen on vsock port %d: %w", port, err)
	}
	return &Listener{l, cid}, nil
}

// Port is the port listened on.
func (l *Listener) Port() uint32 { return l.l.Addr().(*vsock.Addr).Port }

// Close ends Serve.
func (l *Listener) Close() error { return l.l.Close() }

// Serve hands each of the guest's connections to a goroutine, until Close.
func (l *Listener) Serve(handle func(net.Conn)) {
	for {
		c, err := l.l.Accept()
		if err != nil {
			return
		}
		if a, ok := c.RemoteAddr().(*vsock.Addr); !ok || a.ContextID != l.cid {
			_ = c.Close()
			continue
		}
		go handle(c)
	}
}

// Dial connects to a port of a guest. It cannot be interrupted, but the kernel gives up
// after two seconds.
func Dial(ctx context.Context, cid, port uint32) (net.Conn, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	c, err := vsock.Dial(cid, port, nil)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("cannot connect to vsock port %d of the guest", port), err)
	}
	return c, nil
}
