package vmm

import (
	"context"
	"errors"
	"io"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestServeMux: the mux socket of a vsock that the host's kernel serves speaks the
// protocol of our own device: "CONNECT port", "OK …", then the guest.
func TestServeMux(t *testing.T) {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(t.TempDir(), "mux"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go serveMux(l, func(_ context.Context, port uint32) (net.Conn, error) {
		if port != 22 {
			return nil, errors.New("nobody listens")
		}
		host, guest := net.Pipe()
		go func() { // the guest says its port, and then echoes
			_, _ = io.WriteString(guest, "port 22\n")
			_, _ = io.Copy(guest, guest)
			_ = guest.Close()
		}()
		return host, nil
	})
	dial := func() net.Conn {
		c, err := net.Dial("unix", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
		return c
	}
	c := dial()
	if _, err := io.WriteString(c, "CONNECT 22\nhello"); err != nil {
		t.Fatal(err)
	}
	const want = "OK 22\nport 22\nhello"
	got := make([]byte, len(want))
	if _, err := io.ReadFull(c, got); err != nil || string(got) != want {
		t.Errorf("%q, %v", got, err)
	}
	for _, bad := range []string{"CONNECT 23\n", "CONNECT x\n", "GET / HTTP/1.1\n", strings.Repeat("x", 100), "CONNECT 99999999999\n"} {
		c := dial()
		_, _ = io.WriteString(c, bad)
		if b, err := io.ReadAll(c); len(b) > 0 || err != nil && !strings.Contains(err.Error(), "reset") {
			t.Errorf("%q: answer %q, %v", bad, b, err)
		}
	}
}
