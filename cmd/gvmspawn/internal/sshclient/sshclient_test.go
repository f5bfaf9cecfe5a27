package sshclient

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/gvmspawn/gvmspawn/cmd/gvmspawn/internal/sshkey"
)

// serveMux is a machine's vsock socket with an sshd on port 22 that runs the
// commands "cat", "exit N" and "signal".
func serveMux(t *testing.T, authorized ssh.PublicKey) string {
	t.Helper()
	host, err := sshkey.Generate("ed25519", "host")
	if err != nil {
		t.Fatal(err)
	}
	config := &ssh.ServerConfig{PublicKeyCallback: func(_ ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
		if !bytes.Equal(key.Marshal(), authorized.Marshal()) {
			return nil, errors.New("not authorized")
		}
		return nil, nil
	}}
	config.AddHostKey(host.Signer)
	path := filepath.Join(t.TempDir(), "vsock")
	l, err := net.Listen("unix", path)
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
			go serveConnection(c, config)
		}
	}()
	return path
}

func serveConnection(c net.Conn, config *ssh.ServerConfig) {
	defer c.Close()
	switch line, err := readLine(c); {
	case err != nil || line == "CONNECT 23":
		return // refused
	case line == "CONNECT 24":
		io.WriteString(c, strings.Repeat("x", 100))
		return
	case line == "CONNECT 25":
		time.Sleep(time.Hour)
	}
	io.WriteString(c, "OK 1024\n")
	_, channels, requests, err := ssh.NewServerConn(c, config)
	if err != nil {
		return
	}
	go ssh.DiscardRequests(requests)
	for n := range channels {
		ch, reqs, err := n.Accept()
		if err != nil {
			return
		}
		go serveSession(ch, reqs)
	}
}

func serveSession(ch ssh.Channel, reqs <-chan *ssh.Request) {
	defer ch.Close()
	for r := range reqs {
		command := ""
		if r.Type == "exec" {
			command = string(r.Payload[4:])
		}
		r.Reply(true, nil) //nolint:errcheck // a test
		if r.Type != "exec" && r.Type != "shell" {
			continue
		}
		status := uint32(0)
		switch {
		case command == "signal":
			return
		case strings.HasPrefix(command, "exit "):
			fmt.Sscanf(command, "exit %d", &status)
			io.WriteString(ch.Stderr(), "bye")
		default:
			io.Copy(ch, ch)
		}
		ch.SendRequest("exit-status", false, ssh.Marshal(struct{ S uint32 }{status})) //nolint:errcheck // a test
		return
	}
}

func TestRun(t *testing.T) {
	pair, err := sshkey.Generate("ed25519", "test")
	if err != nil {
		t.Fatal(err)
	}
	path := serveMux(t, pair.Signer.PublicKey())
	conn, err := DialMux(t.Context(), path, Port)
	if err != nil {
		t.Fatal(err)
	}
	client, err := Login(t.Context(), conn, "root", pair.Signer)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	for command, want := range map[string]int{"exit 42": 42, "cat": 0, "": 0, "signal": 255} {
		var out, errs bytes.Buffer
		status, err := Run(client, command, false, Streams{strings.NewReader("input"), &out, &errs})
		if status != want || err != nil {
			t.Errorf("%q: %d %v", command, status, err)
		}
		if command == "cat" && out.String() != "input" || want == 42 && errs.String() != "bye" {
			t.Errorf("%q: %q %q", command, out.String(), errs.String())
		}
	}
	other, err := sshkey.Generate("ed25519", "other")
	if err != nil {
		t.Fatal(err)
	}
	if conn, err = DialMux(t.Context(), path, Port); err != nil {
		t.Fatal(err)
	}
	if _, err := Login(t.Context(), conn, "root", other.Signer); err == nil {
		t.Error("a foreign key was accepted")
	}
}

func TestDialMux(t *testing.T) {
	pair, err := sshkey.Generate("ed25519", "test")
	if err != nil {
		t.Fatal(err)
	}
	path := serveMux(t, pair.Signer.PublicKey())
	for port, want := range map[uint32]string{23: "refuses", 24: "too long"} {
		if _, err := DialMux(t.Context(), path, port); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%d: %v", port, err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := DialMux(ctx, path, 25); err == nil {
		t.Error("a guest that does not answer")
	}
	if _, err := DialMux(t.Context(), path+"x", 22); err == nil {
		t.Error("a socket that is not there")
	}
}
