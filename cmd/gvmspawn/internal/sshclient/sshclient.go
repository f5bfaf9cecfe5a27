// Package sshclient logs in to a machine by SSH over its vsock, without ssh,
// systemd-ssh-proxy or vsock on the host.
package sshclient

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/gvmspawn/gvmspawn/cmd/gvmspawn/internal/terminal"
)

// Port is where sshd listens in the guest (systemd-ssh-generator(8)).
const Port = 22

// DialMux connects to a port of the guest through the machine's vsock socket:
// "CONNECT PORT", answered by "OK PORT".
func DialMux(ctx context.Context, socket string, port uint32) (net.Conn, error) {
	c, err := (&net.Dialer{}).DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) }) //nolint:errcheck // a closed connection fails anyway
	defer stop()
	if _, err = fmt.Fprintf(c, "CONNECT %d\n", port); err == nil {
		var line string
		line, err = readLine(c)
		if err == nil && !strings.HasPrefix(line, "OK ") {
			err = fmt.Errorf("unexpected answer %q", line)
		}
	}
	if err != nil {
		c.Close()
		if errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) {
			err = errors.New("the guest refuses the connection")
		}
		return nil, err
	}
	return c, nil
}

// readLine reads a line and not a byte more.
func readLine(r io.Reader) (string, error) {
	var line []byte
	for b := make([]byte, 1); len(line) < 64; {
		if _, err := io.ReadFull(r, b); err != nil {
			return "", err
		}
		if b[0] == '\n' {
			return string(line), nil
		}
		line = append(line, b[0])
	}
	return "", errors.New("the answer is too long")
}

// Login opens an SSH session as user over c. The host key is not checked: the
// connection cannot lead anywhere else.
func Login(ctx context.Context, c net.Conn, user string, key ssh.Signer) (*ssh.Client, error) {
	stop := context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) }) //nolint:errcheck // a closed connection fails anyway
	defer stop()
	conn, channels, requests, err := ssh.NewClientConn(c, "machine", &ssh.ClientConfig{User: user, Auth: []ssh.AuthMethod{ssh.PublicKeys(key)}, HostKeyCallback: ssh.InsecureIgnoreHostKey()}) //nolint:gosec // see above
	if err != nil {
		c.Close()
		return nil, fmt.Errorf("cannot log in: %w", err)
	}
	return ssh.NewClient(conn, channels, requests), nil
}

// Streams are what a command is connected with.
type Streams struct {
	In       io.Reader
	Out, Err io.Writer
}

// Run runs a command, or a shell if it is empty, and returns its exit status.
// A shell, or any command if tty is set, gets a terminal if the input is one.
func Run(client *ssh.Client, command string, tty bool, s Streams) (int, error) {
	session, err := client.NewSession()
	if err != nil {
		return 0, fmt.Errorf("cannot open a session: %w", err)
	}
	defer session.Close()
	session.Stdin, session.Stdout, session.Stderr = s.In, s.Out, s.Err
	if command == "" || tty {
		t, err := attach(session, s)
		if err != nil {
			return 0, err
		}
		if t != nil {
			defer t.Close()
		}
	}
	if command == "" {
		if err := session.Shell(); err != nil {
			return 0, fmt.Errorf("cannot start a shell: %w", err)
		}
		return exitStatus(session.Wait())
	}
	return exitStatus(session.Run(command))
}

// attach gives the session a terminal like ours, if ours is one.
func attach(session *ssh.Session, s Streams) (*terminal.Terminal, error) {
	t, err := terminal.Open(s.In, s.Out, terminal.Options{Guard: true})
	if err != nil {
		return nil, err
	}
	if !t.IsTerminal() {
		t.Close()
		return nil, nil
	}
	columns, rows := t.Size()
	name := os.Getenv("TERM")
	if name == "" {
		name = "vt220"
	}
	if err := session.RequestPty(name, int(rows), int(columns), ssh.TerminalModes{}); err != nil {
		t.Close()
		return nil, fmt.Errorf("cannot get a terminal: %w", err)
	}
	session.Stdin, session.Stdout, session.Stderr = t, t, t
	t.OnResize(func(columns, rows uint16) { session.WindowChange(int(rows), int(columns)) }) //nolint:errcheck // the session may have ended
	go func() {
		for range t.Events() { // ^] three times, or a lost terminal
			session.Close()
		}
	}()
	return t, nil
}

// exitStatus is a command's exit status, 128 and the signal if one killed it.
func exitStatus(err error) (int, error) {
	var exit *ssh.ExitError
	var missing *ssh.ExitMissingError
	switch {
	case err == nil:
		return 0, nil
	case errors.As(err, &exit):
		return exit.ExitStatus(), nil
	case errors.As(err, &missing):
		return 255, nil
	}
	return 0, err
}
