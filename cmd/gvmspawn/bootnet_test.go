package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/sys/unix"
)

// manyConnections is how many connections the network must hold at once.
const manyConnections = 1000

// usernetMTU is what the guest's card is told (usernet.MTU).
const usernetMTU = 65520

// TestBootNetwork boots the trixie kernel with two CPUs and the user-mode
// network: DHCP, ping, DNS, 1,000 connections to a server on the host at once,
// UDP with segmentation offload, the host's loopback closed to the guest, a published port; and then the
// power button.
func TestBootNetwork(t *testing.T) {
	kernel := softBoot(t, "kernel-trixie")
	dir := t.TempDir()
	host := hostAddress(t)
	server := echoServer(t, net.JoinHostPort(host, "0"))
	loopback := echoServer(t, "127.0.0.1:0")
	tree := guestTree(t, fmt.Sprintf(`
is cpus "$(nproc)" 2
ip link set lo up; ip link set eth0 up
udhcpc -i eth0 -n -q -s /bin/dhcp >/dev/null 2>&1
is dhcp "$(ip -4 -o addr show eth0 | awk '{print $4}') $(ip route | awk '/default/{print $3}')" "10.0.2.15/24 10.0.2.2"
is card "$(cd /sys/class/net/eth0; cat mtu speed duplex carrier | tr '\n' ' ')" "%d 10000 full 1 "
ping -c 1 -W 5 10.0.2.2 >/dev/null; is ping $? 0
is dns "$(nslookup -type=a name.test | grep -c 192.0.2.77)" "%d"
guest connect %s %d
is uso "$(cut -c 57 /sys/class/net/eth0/device/features)" 1
guest datagrams %s 40
echo quit | nc -w 5 10.0.2.2 %s; is loopback $? 1
guest serve 8080
head -c 24 /dev/input/event0 | hexdump -v -e '1/1 "%%02x"' >/event &
sleep 1; echo BUTTON wait; wait
is button "$(cut -c 33-40 /event)" 01007400
is interrupt "$(awk '/ACPI:Ged/{print $2+$3}' /proc/interrupts)" 1
poweroff -f`, usernetMTU, resolverWorks(t, dir), server, manyConnections, echoDatagrams(t, net.JoinHostPort(host, "0")), portOf(loopback)))
	writeFile(t, filepath.Join(tree, "bin/dhcp"), []byte(`#!/bin/sh
[ "$1" = bound ] || exit 0
ip addr add $ip/$mask dev $interface
ip route add default via $router
echo nameserver $dns >/etc/resolv.conf
`), 0o755)
	port := freePort(t)
	m := newMachine(t, dir, kernel, "-D", tree, "--cpus=2", "--vsock=no", "--network-user-mode", "--port="+port+":8080", "quiet")
	if os.Geteuid() == 0 {
		own := "mount --bind " + filepath.Join(dir, "resolv.conf") + " /etc/resolv.conf; exec \"$@\""
		m.Args = append([]string{"unshare", "-m", "sh", "-c", own, "sh", m.Path}, m.Args[1:]...)
		m.Path, _ = exec.LookPath("unshare")
	}
	m.start()
	m.waitFor("SERVE ready")
	published(t, net.JoinHostPort("127.0.0.1", port))
	m.waitFor("BUTTON wait")
	if err := m.Process.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if s := m.status(); s != 0 {
		t.Errorf("status %d", s)
	}
	m.check("cpus", "dhcp", "card", "ping", "dns", "connect", "uso", "datagrams", "loopback", "serve", "button", "interrupt")
}

func portOf(addr string) string {
	_, port, _ := net.SplitHostPort(addr)
	return port
}

// hostAddress is an IPv4 address of this host that is not its loopback.
func hostAddress(t *testing.T) string {
	t.Helper()
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok && n.IP.To4() != nil && n.IP.IsGlobalUnicast() {
			return n.IP.String()
		}
	}
	t.Skip("this host has no address but its loopback")
	return ""
}

func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return portOf(l.Addr().String())
}

// echoServer echoes on a TCP port until the test ends, and returns its address.
func echoServer(t *testing.T, addr string) string {
	t.Helper()
	return echoOn(t, "tcp", addr)
}

// echoOn is echoServer for any network of streams.
func echoOn(t *testing.T, network, addr string) string {
	t.Helper()
	l, err := net.Listen(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				io.Copy(c, c) //nolint:errcheck // the other side sees it
			}()
		}
	}()
	return l.Addr().String()
}

// echoDatagrams is echoServer for UDP.
func echoDatagrams(t *testing.T, addr string) string {
	t.Helper()
	c, err := net.ListenPacket("udp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	go func() {
		b := make([]byte, 64<<10)
		for {
			n, from, err := c.ReadFrom(b)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil {
				c.WriteTo(b[:n], from) //nolint:errcheck // the guest asks again
			}
		}
	}()
	return c.LocalAddr().String()
}

// published sends data through a published port and back, and ends the guest's
// server.
func published(t *testing.T, addr string) {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Error(err)
		return
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(time.Minute)) //nolint:errcheck // then the test's own limit counts
	data := bytes.Repeat([]byte("port "), 200_000)
	go c.Write(data) //nolint:errcheck // seen below
	got := make([]byte, len(data))
	if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, data) {
		t.Errorf("echo through the published port: %v", err)
	}
	q, err := net.Dial("tcp", addr)
	if err != nil {
		t.Error(err)
		return
	}
	defer q.Close()
	if _, err := io.WriteString(q, "quit"); err != nil {
		t.Error(err)
	}
	q.SetDeadline(time.Now().Add(time.Minute)) //nolint:errcheck // as above
	io.Copy(io.Discard, q)                     //nolint:errcheck // waits for the guest
}

// resolverWorks serves DNS for the machine, whose /etc/resolv.conf will be
// dir/resolv.conf, and returns how often the answer must be seen: never
// without the right to use its port.
func resolverWorks(t *testing.T, dir string) int {
	t.Helper()
	writeFile(t, filepath.Join(dir, "resolv.conf"), []byte("nameserver 127.0.0.53\n"), 0o644)
	if os.Geteuid() != 0 {
		return 0
	}
	c, err := net.ListenPacket("udp", "127.0.0.53:53")
	if err != nil {
		t.Logf("no name server for the test: %v", err)
		return 0
	}
	t.Cleanup(func() { c.Close() })
	go func() {
		b := make([]byte, 1500)
		for {
			n, from, err := c.ReadFrom(b)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if reply, err := answer(b[:n]); err == nil {
				c.WriteTo(reply, from) //nolint:errcheck // then the guest asks again
			}
		}
	}()
	return 1
}

// answer is the reply to a query: 192.0.2.77, whatever the name.
func answer(query []byte) ([]byte, error) {
	var m dnsmessage.Message
	if err := m.Unpack(query); err != nil || len(m.Questions) == 0 {
		return nil, errors.New("not a query")
	}
	m.Response, m.RecursionAvailable, m.Additionals = true, true, nil
	if q := m.Questions[0]; q.Type == dnsmessage.TypeA && strings.HasPrefix(q.Name.String(), "name.test") {
		m.Answers = []dnsmessage.Resource{{
			Header: dnsmessage.ResourceHeader{Name: q.Name, Class: dnsmessage.ClassINET, TTL: 60},
			Body:   &dnsmessage.AResource{A: [4]byte{192, 0, 2, 77}},
		}}
	}
	return m.Pack()
}
