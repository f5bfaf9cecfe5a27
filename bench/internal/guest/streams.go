package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// The stream protocol: whoever connects sends one byte, and then after
//
//	<  the other side sends and closes
//	>  it goes on sending, closes its half, and gets one byte when everything
//	   was read
//	e  each byte comes back
//
// Over vsock, where a half-closed connection is no matter of course, both
// sides know how much is sent, and who read it answers one byte.

// network configures the network card.
func network(a arguments) error {
	for _, argv := range [][]string{
		{"ip", "link", "set", "eth0", "up"},
		{"ip", "addr", "add", a.text("addr"), "dev", "eth0"},
		{"ip", "route", "add", "default", "via", a.text("gw")},
	} {
		if out, err := exec.Command("/bin/busybox", argv...).CombinedOutput(); err != nil {
			return fmt.Errorf("%v: %w: %s", argv, err, out)
		}
	}
	return nil
}

// netJobs stream through the network card to and from a server on the host.
func netJobs(a arguments) error {
	if err := network(a); err != nil {
		return err
	}
	mib := a.number("mib", 64)
	// The second stream each way counts: the first one warms the code up.
	for _, up := range []bool{true, false, true, false} {
		c, err := net.DialTimeout("tcp", a.text("server"), 20*time.Second)
		if err != nil {
			return err
		}
		err = stream(c, "net", up, mib)
		c.Close()
		if err != nil {
			return err
		}
	}
	retransmitted, err := retransmissions()
	if err != nil {
		return err
	}
	result("net-retransmitted", retransmitted)
	return roundTrips(a)
}

// retransmissions is how many TCP segments the guest sent again.
func retransmissions() (float64, error) {
	data, err := os.ReadFile("/proc/net/snmp")
	if err != nil {
		return 0, err
	}
	var names []string
	for line := range strings.Lines(string(data)) {
		f := strings.Fields(line)
		if len(f) == 0 || f[0] != "Tcp:" {
			continue
		}
		if names == nil {
			names = f
			continue
		}
		if i := slices.Index(names, "RetransSegs"); i > 0 && i < len(f) {
			return strconv.ParseFloat(f[i], 64)
		}
	}
	return 0, errors.New("/proc/net/snmp does not count TCP's retransmissions")
}

// roundTrips measures the latency of one byte to the host and back, in µs.
func roundTrips(a arguments) error {
	c, err := net.DialTimeout("tcp", a.text("server"), 20*time.Second)
	if err != nil {
		return err
	}
	defer c.Close()
	const times = 200
	buf := []byte{'e'}
	if _, err := c.Write(buf); err != nil {
		return err
	}
	start := time.Now()
	for range times {
		if _, err := c.Write(buf); err != nil {
			return err
		}
		if _, err := io.ReadFull(c, buf); err != nil {
			return err
		}
	}
	result("net-rtt", float64(time.Since(start).Microseconds())/times)
	return nil
}

type halfCloser interface {
	io.ReadWriter
	CloseWrite() error
}

// stream sends or receives mib MiB as the side that connected.
func stream(c io.ReadWriter, name string, up bool, mib int) error {
	start, buf := time.Now(), make([]byte, 256<<10)
	if !up {
		if _, err := c.Write([]byte{'<'}); err != nil {
			return err
		}
		n, err := drain(c, buf)
		if err != nil {
			return err
		}
		rate(name+"-to-guest", float64(n)/(1<<20), start)
		return nil
	}
	if _, err := c.Write([]byte{'>'}); err != nil {
		return err
	}
	if err := fill(c, buf, mib); err != nil {
		return err
	}
	if err := c.(halfCloser).CloseWrite(); err != nil {
		return err
	}
	if _, err := io.ReadFull(c, buf[:1]); err != nil {
		return err
	}
	rate(name+"-to-host", float64(mib), start)
	return nil
}

func drain(r io.Reader, buf []byte) (int, error) {
	total := 0
	for {
		n, err := r.Read(buf)
		total += n
		if err == io.EOF {
			return total, nil
		}
		if err != nil {
			return total, err
		}
	}
}

func fill(w io.Writer, buf []byte, mib int) error {
	for left := mib << 20; left > 0; left -= len(buf) {
		if _, err := w.Write(buf); err != nil {
			return err
		}
	}
	return nil
}

// vsockPort is where the guest listens.
const vsockPort = 5000

// vsockJobs serve pairs of connections of the host, one in each direction, and time
// what they carry.
func vsockJobs(a arguments) error {
	fd, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, &unix.SockaddrVM{CID: unix.VMADDR_CID_ANY, Port: vsockPort}); err != nil {
		return err
	}
	if err := unix.Listen(fd, 4); err != nil {
		return err
	}
	fmt.Println("VSOCK-LISTENS")
	for range 2 * a.number("times", 1) {
		nfd, _, err := unix.Accept(fd)
		if err != nil {
			return err
		}
		if err := serveVsock(os.NewFile(uintptr(nfd), "vsock"), a.number("mib", 64)); err != nil {
			return err
		}
	}
	return nil
}

func serveVsock(c *os.File, mib int) error {
	defer c.Close()
	buf := make([]byte, 64<<10)
	if _, err := io.ReadFull(c, buf[:1]); err != nil {
		return err
	}
	start := time.Now()
	if buf[0] == '<' {
		if err := fill(c, buf, mib); err != nil {
			return err
		}
		// The peer answers when it has everything.
		if _, err := io.ReadFull(c, buf[:1]); err != nil {
			return err
		}
		rate("vsock-to-host", float64(mib), start)
		return nil
	}
	for left := mib << 20; left > 0; {
		n, err := c.Read(buf[:min(len(buf), left)])
		if err != nil {
			return err
		}
		left -= n
	}
	rate("vsock-to-guest", float64(mib), start)
	_, err := c.Write(buf[:1])
	return err
}
