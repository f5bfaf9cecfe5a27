package varlink

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// serve starts a test service and returns the path of its socket.
func serve(t *testing.T, s *Server) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { s.Serve(ctx, l); close(done) }()
	t.Cleanup(func() { l.Close(); cancel(); <-done })
	return path
}

func dial(t *testing.T, path string) *Client {
	t.Helper()
	c, err := Dial(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func testServer() *Server {
	return &Server{Product: "test", Interfaces: map[string]string{"x.y": "interface x.y"}, Methods: map[string]Handler{
		"x.y.Echo": func(_ context.Context, c *Call) (any, error) {
			var in struct{ A string }
			if err := c.Parameters(&in); err != nil {
				return nil, err
			}
			return map[string]string{"a": in.A}, nil
		},
		"x.y.Fail": func(context.Context, *Call) (any, error) {
			return nil, &Error{"x.y.Bad", map[string]any{"why": "so"}}
		},
		"x.y.Count": func(_ context.Context, c *Call) (any, error) {
			for i := range 3 {
				if err := c.Continue(map[string]int{"n": i}); err != nil {
					return nil, err
				}
			}
			return map[string]int{"n": 3}, nil
		},
		"x.y.Hang": func(ctx context.Context, _ *Call) (any, error) { <-ctx.Done(); return nil, ctx.Err() },
	}}
}

func TestCalls(t *testing.T) {
	c := dial(t, serve(t, testServer()))
	var out struct{ A string }
	if err := c.Call(t.Context(), "x.y.Echo", map[string]string{"a": "ä\x00"}, &out); err != nil || out.A != "ä\x00" {
		t.Errorf("%q %v", out.A, err)
	}
	for method, want := range map[string]string{
		"x.y.Fail": `x.y.Bad {"why":"so"}`, "x.y.Nope": ErrMethodNotFound + ` {"method":"x.y.Nope"}`, "z.Nope": ErrInterfaceNotFound + ` {"interface":"z"}`, "z": ErrInterfaceNotFound + ` {"interface":""}`,
	} {
		var e *Error
		if err := c.Call(t.Context(), method, nil, nil); !errors.As(err, &e) || e.Error() != want {
			t.Errorf("%s: %v, want %s", method, err, want)
		}
	}
	if err := c.Call(t.Context(), "x.y.Echo", map[string]string{"b": "x"}, nil); err == nil || err.Error() != ErrInvalidParameter+` {"parameter":"b"}` {
		t.Error(err)
	}
	sum := 0
	err := c.CallMore(t.Context(), "x.y.Count", nil, func(raw json.RawMessage) error {
		var r struct{ N int }
		sum = sum*10 + 1
		return json.Unmarshal(raw, &r)
	})
	if err != nil || sum != 1111 {
		t.Errorf("%v %d", err, sum)
	}
	var info struct{ Interfaces []string }
	if err := c.Call(t.Context(), "org.varlink.service.GetInfo", nil, &info); err != nil || strings.Join(info.Interfaces, " ") != "org.varlink.service x.y" {
		t.Errorf("%v %v", info, err)
	}
	var d struct{ Description string }
	if err := c.Call(t.Context(), "org.varlink.service.GetInterfaceDescription", map[string]string{"interface": "x.y"}, &d); err != nil || d.Description != "interface x.y" {
		t.Errorf("%v %v", d, err)
	}
}

// TestHang: a service that does not answer costs no more than the time allowed,
// and a client that goes away ends its call.
func TestHang(t *testing.T) {
	c := dial(t, serve(t, testServer()))
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := c.Call(ctx, "x.y.Hang", nil, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	c.Close() // the cleanup of serve waits for the handler
}

func TestNotAllowed(t *testing.T) {
	s := testServer()
	s.Allow = func(net.Conn) bool { return false }
	if err := dial(t, serve(t, s)).Call(t.Context(), "x.y.Echo", nil, nil); err == nil || err.Error() != ErrPermissionDenied {
		t.Error(err)
	}
}

// TestHostileClients: garbage and endless messages end a connection, not more.
func TestHostileClients(t *testing.T) {
	path := serve(t, testServer())
	for _, msg := range []string{"garbage\x00", "[]\x00", "\x00", `{"method":5}` + "\x00", strings.Repeat("x", 2*maxMessage)} {
		c, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		go io.WriteString(c, msg)
		c.SetReadDeadline(time.Now().Add(10 * time.Second))
		if n, err := c.Read(make([]byte, 1)); n != 0 || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%.20q: %d %v", msg, n, err)
		}
		c.Close()
	}
	var many []net.Conn
	for range 2 * maxConnections {
		c, err := net.Dial("unix", path)
		if err != nil {
			break
		}
		many = append(many, c)
	}
	for _, c := range many {
		c.Close()
	}
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		c := dial(t, path)
		if err := c.Call(t.Context(), "x.y.Echo", nil, nil); err == nil {
			break
		}
		if time.Now().After(end) {
			t.Fatal("the service did not recover")
		}
	}
}

func FuzzReadMessage(f *testing.F) {
	f.Add("a\x00b\x00")
	f.Fuzz(func(t *testing.T, s string) {
		r := bufio.NewReaderSize(strings.NewReader(s), 16)
		for {
			if _, err := readMessage(r); err != nil {
				return
			}
		}
	})
}
