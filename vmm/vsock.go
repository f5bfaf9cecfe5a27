package vmm

import (
	"context"
	"fmt"
	"net"
	"os"

	"github.com/gvmspawn/gvmspawn/devices/pci"
	"github.com/gvmspawn/gvmspawn/virtio/vsock"
)

// addVsock adds the vsock device with its listeners and its mux socket.
func (m *Machine) addVsock(host *pci.Host) error {
	v := m.cfg.Vsock
	if v == nil {
		return nil
	}
	if v.VHost != nil && m.vm.Name() == "kvm" {
		return m.addVHostVsock(host)
	}
	cfg := vsock.Config{CID: v.CID}
	if len(v.Mux) <= vsock.MaxForward {
		cfg.Forward = v.Mux
	}
	dev, err := vsock.New(cfg)
	if err != nil {
		return err
	}
	m.vsock = dev
	m.dialVsock = func(ctx context.Context, port uint32) (net.Conn, error) { return dev.Dial(ctx, port) }
	m.onClose(dev.Close)
	for port, serve := range v.Accept {
		l, err := dev.Listen(port)
		if err != nil {
			return fmt.Errorf("vsock port %d: %w", port, err)
		}
		go accept(l, serve)
	}
	if v.Mux != "" {
		if err := m.addMux(dev, v.Mux); err != nil {
			return err
		}
	}
	return m.plug(host, "virtio-vsock", dev)
}

// accept serves each connection in a goroutine of its own until l is closed.
func accept(l net.Listener, serve func(net.Conn)) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go serve(c)
	}
}

// addMux serves the socket through which host programs reach the guest's ports.
func (m *Machine) addMux(dev *vsock.Device, path string) error {
	l, err := m.listenMux(path)
	if err != nil {
		return err
	}
	go func() { _ = dev.ServeMux(l) }()
	return nil
}

// listenMux makes that socket.
func (m *Machine) listenMux(path string) (*net.UnixListener, error) {
	// A socket that a killed process left behind is in the way; one that
	// answers is somebody's.
	if c, err := net.Dial("unix", path); err == nil {
		_ = c.Close()
		return nil, fmt.Errorf("the vsock socket %s is in use by another machine", path)
	}
	_ = os.Remove(path)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("cannot make the vsock socket: %w", err)
	}
	m.onClose(l.Close)
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, fmt.Errorf("cannot make the vsock socket: %w", err)
	}
	return l, nil
}

// DialVsock connects to a port of the guest.
func (m *Machine) DialVsock(ctx context.Context, port uint32) (net.Conn, error) {
	if m.dialVsock == nil || m.runner.over() {
		return nil, ErrNotRunning
	}
	return m.dialVsock(ctx, port)
}
