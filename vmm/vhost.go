package vmm

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/gvmspawn/gvmspawn/devices/pci"
	"github.com/gvmspawn/gvmspawn/virtio/vhost"
)

// ErrCIDInUse says that another machine of the host has a vsock context ID.
var ErrCIDInUse = vhost.ErrCIDInUse

// SetGuestCID gives the guest behind an open /dev/vhost-vsock its context ID.
func SetGuestCID(f *os.File, cid uint32) error { return vhost.SetGuestCID(f, cid) }

// VHostVsock lets the host's kernel serve the guest's vsock. The caller listens on
// the host's ports itself.
type VHostVsock struct {
	// File is /dev/vhost-vsock, to which SetGuestCID gave the guest's context ID.
	// It outlives the machine.
	File *os.File
	// Dial connects to a port of the guest.
	Dial func(ctx context.Context, port uint32) (net.Conn, error)
}

// addVHostVsock is addVsock where the host's kernel serves the queues.
func (m *Machine) addVHostVsock(host *pci.Host) error {
	v := m.cfg.Vsock
	dev, err := vhost.NewVsock(v.VHost.File, m.mem, v.CID)
	if err != nil {
		return err
	}
	m.dialVsock = v.VHost.Dial
	if v.Mux != "" {
		l, err := m.listenMux(v.Mux)
		if err != nil {
			return err
		}
		go serveMux(l, v.VHost.Dial)
	}
	return m.plug(host, "vhost-vsock", dev)
}

// Bounds of connections to the mux socket before they are the guest's.
const (
	muxTimeout = 10 * time.Second
	muxWaiting = 64
)

// serveMux is the vsock device's ServeMux by another way to the guest.
func serveMux(l *net.UnixListener, dial func(context.Context, uint32) (net.Conn, error)) {
	slots := make(chan struct{}, muxWaiting)
	for {
		u, err := l.AcceptUnix()
		if err != nil {
			return
		}
		slots <- struct{}{}
		go func() {
			guest, err := muxHandshake(u, dial)
			<-slots
			if err == nil {
				join(u, guest)
			}
			_ = u.Close()
		}()
	}
}

// muxHandshake reads "CONNECT port", connects and answers "OK".
func muxHandshake(u *net.UnixConn, dial func(context.Context, uint32) (net.Conn, error)) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), muxTimeout)
	defer cancel()
	if err := u.SetDeadline(time.Now().Add(muxTimeout)); err != nil {
		return nil, err
	}
	// One byte at a time: what follows the line is the guest's.
	line, err := bufio.NewReaderSize(io.LimitReader(oneByte{u}, 32), 32).ReadString('\n')
	if err != nil {
		return nil, err
	}
	var port uint32
	if _, err := fmt.Sscanf(strings.ToUpper(line), "CONNECT %d\n", &port); err != nil {
		return nil, err
	}
	guest, err := dial(ctx, port)
	if err != nil {
		return nil, err
	}
	if _, err = fmt.Fprintf(u, "OK %d\n", port); err == nil {
		err = u.SetDeadline(time.Time{})
	}
	if err != nil {
		_ = guest.Close()
	}
	return guest, err
}

// oneByte reads no more than a byte at once.
type oneByte struct{ r io.Reader }

func (o oneByte) Read(p []byte) (int, error) { return o.r.Read(p[:min(len(p), 1)]) }

// join copies both ways until both have ended, and closes both.
func join(u *net.UnixConn, guest net.Conn) {
	var wg sync.WaitGroup
	wg.Go(func() {
		_, _ = io.Copy(guest, u)
		if c, ok := guest.(interface{ CloseWrite() error }); ok {
			_ = c.CloseWrite()
		}
	})
	_, _ = io.Copy(u, guest)
	_ = u.CloseWrite()
	wg.Wait()
	_ = guest.Close()
	_ = u.Close()
}
