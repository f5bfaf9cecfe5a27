// Package notify speaks the sd_notify protocol (sd_notify(3)) in both
// directions: to the manager that started this program, and from the service
// manager in the guest, which sends the same fields over vsock
// (systemd.system-credentials(7), vmm.notify_socket).
package notify

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// MaxMessage is the longest message of a guest, in bytes (NOTIFY_BUFFER_MAX).
const MaxMessage = 4096

// ErrTooLong is a message longer than MaxMessage.
var ErrTooLong = errors.New("the guest's notification is longer than 4096 bytes")

// Message is what a guest reported, as far as we act on it.
type Message struct {
	Ready bool
	// Status is the guest's STATUS=, printable, "" if absent.
	Status string
	// ExitStatus is EXIT_STATUS=, 0 to 255, or -1 if absent.
	ExitStatus int
	// Shutdown is X_SYSTEMD_SHUTDOWN=: poweroff, reboot, halt, kexec or "".
	Shutdown string
	// Active are the units of X_SYSTEMD_UNIT_ACTIVE=, such as ssh-access.target.
	Active []string
	// Bad is a field that had to be ignored, for a warning, or "".
	Bad string
}

// Read reads one message until EOF.
func Read(r io.Reader) (Message, error) {
	b, err := io.ReadAll(io.LimitReader(r, MaxMessage+1))
	if err != nil {
		return Message{ExitStatus: -1}, err
	}
	if len(b) > MaxMessage {
		return Message{ExitStatus: -1}, ErrTooLong
	}
	return Parse(b), nil
}

// Parse takes the fields that we know out of a message. The last of each wins.
func Parse(b []byte) Message {
	m := Message{ExitStatus: -1}
	for line := range bytes.SplitSeq(b, []byte("\n")) {
		name, value, found := strings.Cut(string(line), "=")
		if !found {
			continue
		}
		switch name {
		case "READY":
			m.Ready = m.Ready || value == "1"
		case "STATUS":
			m.Status = printable(value)
		case "EXIT_STATUS":
			if n, err := strconv.ParseUint(value, 10, 8); err == nil {
				m.ExitStatus = int(n)
			} else {
				m.Bad = "EXIT_STATUS=" + printable(value)
			}
		case "X_SYSTEMD_SHUTDOWN":
			m.Shutdown = printable(value)
		case "X_SYSTEMD_UNIT_ACTIVE":
			m.Active = append(m.Active, printable(value))
		}
	}
	return m
}

// printable replaces control characters and bytes that are not UTF-8.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r == utf8.RuneError || r >= 0x80 && r < 0xa0 {
			return '?'
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
}

// Manager is the service manager that started us. The zero value is none, and
// sending to it does nothing.
type Manager struct {
	address  string
	watchdog time.Duration
}

// FromEnvironment takes $NOTIFY_SOCKET, $WATCHDOG_USEC and $WATCHDOG_PID out
// of the environment, so that nothing we start sends in our name.
func FromEnvironment() Manager {
	m := Manager{address: os.Getenv("NOTIFY_SOCKET")}
	pid := os.Getenv("WATCHDOG_PID")
	if us, err := strconv.ParseInt(os.Getenv("WATCHDOG_USEC"), 10, 64); err == nil && us > 0 && (pid == "" || pid == strconv.Itoa(os.Getpid())) {
		m.watchdog = time.Duration(us) * time.Microsecond
	}
	for _, name := range []string{"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"} {
		os.Unsetenv(name)
	}
	return m
}

// Present reports whether there is a manager.
func (m Manager) Present() bool { return m.address != "" }

// WatchdogInterval is how often WATCHDOG=1 has to be sent, 0 for never: half
// the manager's time-out (sd_watchdog_enabled(3)).
func (m Manager) WatchdogInterval() time.Duration {
	if !m.Present() {
		return 0
	}
	return m.watchdog / 2
}

// Send sends fields, "NAME=value" each. A newline in a value is replaced.
func (m Manager) Send(fields ...string) error {
	if !m.Present() {
		return nil
	}
	for i, f := range fields {
		fields[i] = strings.ReplaceAll(f, "\n", " ")
	}
	if err := send(m.address, []byte(strings.Join(fields, "\n"))); err != nil {
		return fmt.Errorf("failed to notify the service manager: %w", err)
	}
	return nil
}

func send(address string, msg []byte) error {
	switch {
	case strings.HasPrefix(address, "/"), strings.HasPrefix(address, "@"):
		// net turns a leading @ into the NUL of an abstract address.
		c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: address, Net: "unixgram"})
		if err != nil {
			return err
		}
		defer c.Close()
		if err := c.SetWriteDeadline(time.Now().Add(5 * time.Second)); err != nil {
			return err
		}
		_, err = c.Write(msg)
		return err
	case strings.HasPrefix(address, "vsock"):
		return sendVsock(address, msg)
	}
	return fmt.Errorf("unsupported address %q", address)
}

// sendVsock sends to "vsock:CID:PORT", with "-stream", "-dgram" or
// "-seqpacket" after the first word, as when we run in a guest ourselves.
func sendVsock(address string, msg []byte) error {
	kind, where, _ := strings.Cut(address, ":")
	types := map[string][]int{"vsock": {unix.SOCK_SEQPACKET, unix.SOCK_STREAM}, "vsock-stream": {unix.SOCK_STREAM}, "vsock-dgram": {unix.SOCK_DGRAM}, "vsock-seqpacket": {unix.SOCK_SEQPACKET}}[kind]
	cid, port, found := strings.Cut(where, ":")
	c, err1 := strconv.ParseUint(cid, 10, 32)
	p, err2 := strconv.ParseUint(port, 10, 32)
	if types == nil || !found || err1 != nil || err2 != nil {
		return fmt.Errorf("unsupported address %q", address)
	}
	var err error
	for _, t := range types {
		if err = sendVsockType(t, &unix.SockaddrVM{CID: uint32(c), Port: uint32(p)}, msg); err == nil {
			return nil
		}
	}
	return err
}

func sendVsockType(typ int, to *unix.SockaddrVM, msg []byte) error {
	fd, err := unix.Socket(unix.AF_VSOCK, typ|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.Connect(fd, to); err != nil {
		return err
	}
	_, err = unix.Write(fd, msg)
	return err
}
