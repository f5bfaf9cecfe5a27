package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// streamMiB is how much each direction carries.
const streamMiB = 64

// netCase is one TCP connection between the guest and this host through a user
// mode network stack.
var netCase = benchmark{
	name:  "net",
	about: "one TCP stream and round trips between guest and host: user mode network against QEMU's slirp, on a software CPU",
	prepare: func(e *environment) (*plan, error) {
		addr, err := hostAddress()
		if err != nil {
			return nil, err
		}
		l, err := net.Listen("tcp4", net.JoinHostPort(addr, "0"))
		if err != nil {
			return nil, err
		}
		context := e.ctx
		go func() { <-context.Done(); l.Close() }()
		go serveStreams(l)
		k := e.trixie()
		initrd, err := e.initrd("net", k, "virtio_net")
		if err != nil {
			return nil, err
		}
		line := fmt.Sprintf("bench.jobs=net bench.addr=10.0.2.15/24 bench.gw=10.0.2.2 bench.server=%v bench.mib=%d", l.Addr(), streamMiB)
		p := &plan{metrics: []metric{
			{"net-to-host", "MiB/s", true}, {"net-to-guest", "MiB/s", true}, {"net-rtt", "µs", false}, {"net-retransmitted", "segments", false}, {"CPU time", "s", false}}}
		m := machine{kernel: k.Path, initrd: initrd, ram: 512, net: true, append: line}
		e.software(p, m, deviceLimit, nil)
		return p, nil
	},
}

// hostAddress is an address of this host that is not its loopback.
func hostAddress() (string, error) {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return "", err
	}
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok && n.IP.To4() != nil && n.IP.IsGlobalUnicast() {
			return n.IP.String(), nil
		}
	}
	return "", errors.New("this host has no IPv4 address besides its loopback")
}

func serveStreams(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			_ = serveStream(c)
		}()
	}
}

// serveStream is the host's half of the guest program's stream protocol.
func serveStream(c net.Conn) error {
	var what [1]byte
	if _, err := io.ReadFull(c, what[:]); err != nil {
		return err
	}
	switch what[0] {
	case '<':
		return send(c, streamMiB)
	case '>':
		if _, err := io.Copy(io.Discard, c); err != nil {
			return err
		}
		_, err := c.Write(what[:])
		return err
	default:
		_, err := io.Copy(struct{ io.Writer }{c}, struct{ io.Reader }{c})
		return err
	}
}

func send(w io.Writer, mib int) error {
	buf := make([]byte, 256<<10)
	for left := mib << 20; left > 0; left -= len(buf) {
		if _, err := w.Write(buf); err != nil {
			return err
		}
	}
	return nil
}

// vsockCase is one vsock stream through gvmspawn's device and its mux socket.
var vsockCase = benchmark{
	name:  "vsock",
	about: "one vsock stream between guest and host, on a software CPU",
	prepare: func(e *environment) (*plan, error) {
		k := e.trixie()
		initrd, err := e.initrd("vsock", k, "vmw_vsock_virtio_transport")
		if err != nil {
			return nil, err
		}
		dir, err := os.MkdirTemp(e.dir, "run")
		if err != nil {
			return nil, err
		}
		p := &plan{metrics: []metric{{"vsock-to-host", "MiB/s", true}, {"vsock-to-guest", "MiB/s", true}, {"CPU time", "s", false}}}
		m := machine{kernel: k.Path, initrd: initrd, ram: 512, vsock: true, append: fmt.Sprintf("bench.jobs=vsock bench.mib=%d", streamMiB)}
		s := &guestSubject{limit: deviceLimit, env: []string{"RUNTIME_DIRECTORY=" + dir}, word: "VSOCK-LISTENS"}
		s.argv = func() ([]string, error) { return e.gvmspawnArgs(m, "no", "--machine=bench"), nil }
		s.beside = func(*process) error { return vsockStreams(filepath.Join(dir, "bench", "vsock")) }
		p.subjects = []subject{{"gvmspawn", s.run}}
		if _, err := os.Stat("/dev/vhost-vsock"); err != nil {
			p.skip("QEMU: there is no /dev/vhost-vsock on this host")
		}
		return p, nil
	},
}

// vsockStreams connects to the guest program twice, for a stream each way.
func vsockStreams(addr string) error {
	return errors.Join(vsockStream(addr, '<'), vsockStream(addr, '>'))
}

// dialVsock connects to the guest program through a mux socket, or, if the address
// is a number, to the guest with that context ID.
func dialVsock(addr string) (io.ReadWriteCloser, error) {
	if cid, err := strconv.ParseUint(addr, 10, 32); err == nil {
		fd, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return nil, err
		}
		if err := unix.Connect(fd, &unix.SockaddrVM{CID: uint32(cid), Port: vsockPort}); err != nil {
			_ = unix.Close(fd)
			return nil, fmt.Errorf("vsock connection: %w", err)
		}
		return os.NewFile(uintptr(fd), "vsock"), nil
	}
	c, err := net.DialTimeout("unix", addr, 10*time.Second)
	if err != nil {
		return nil, err
	}
	if _, err := fmt.Fprintf(c, "CONNECT %d\n", vsockPort); err != nil {
		return nil, err
	}
	// The answer comes alone: the guest program sends when it is asked to.
	line := make([]byte, 32)
	if n, err := c.Read(line); err != nil || !bytes.HasPrefix(line[:n], []byte("OK ")) {
		_ = c.Close()
		return nil, fmt.Errorf("vsock connection: %q, %w", line[:n], err)
	}
	return c, nil
}

// vsockPort is where the guest program listens.
const vsockPort = 5000

// vsockStream is one stream: '<' from the guest, '>' to it.
func vsockStream(addr string, what byte) error {
	c, err := dialVsock(addr)
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := c.Write([]byte{what}); err != nil {
		return err
	}
	buf := make([]byte, 256<<10)
	if what == '<' {
		for left := streamMiB << 20; left > 0; {
			n, err := c.Read(buf[:min(left, len(buf))])
			if err != nil {
				return err
			}
			left -= n
		}
		_, err := c.Write([]byte{what})
		return err
	}
	if err := send(c, streamMiB); err != nil {
		return err
	}
	_, err = c.Read(buf[:1])
	return err
}
