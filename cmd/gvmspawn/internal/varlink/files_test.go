package varlink

import (
	"context"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// openFiles is how many descriptors this process has.
func openFiles(t *testing.T) int {
	t.Helper()
	d, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(d)
}

// TestFiles: a file comes with the call that it was sent with, once, and those
// that nobody takes are closed, however many there are.
func TestFiles(t *testing.T) {
	s := testServer()
	s.Methods["x.y.Read"] = func(_ context.Context, c *Call) (any, error) {
		f := c.TakeFile(0)
		if f == nil || c.TakeFile(0) != nil || c.TakeFile(1) != nil || c.TakeFile(-1) != nil {
			return nil, &Error{"x.y.Bad", nil}
		}
		defer f.Close()
		b, err := io.ReadAll(f)
		return map[string]string{"a": string(b)}, err
	}
	path := serve(t, s)
	name := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(name, []byte("hello"), 0o600); err != nil {
		t.Fatal(err)
	}
	c := dial(t, path)
	for range 3 {
		f, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		var out struct{ A string }
		if err := c.CallWithFile(t.Context(), "x.y.Read", f, nil, &out); err != nil || out.A != "hello" {
			t.Errorf("%q %v", out.A, err)
		}
		if err := c.Call(t.Context(), "x.y.Read", nil, nil); err == nil {
			t.Error("a file for a call without one")
		}
		if err := c.CallWithFile(t.Context(), "x.y.Echo", f, map[string]string{"a": "b"}, nil); err != nil {
			t.Error(err)
		}
		f.Close()
	}
	before := openFiles(t)
	flood(t, path)
	for end := time.Now().Add(10 * time.Second); openFiles(t) > before; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d files are open, %d before", openFiles(t), before)
		}
	}
}

// flood sends files without end and without a message.
func flood(t *testing.T, path string) {
	t.Helper()
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	rights := unix.UnixRights(0, 0, 0, 0)
	for range 100 {
		if _, _, err := conn.(*net.UnixConn).WriteMsgUnix([]byte{'{'}, rights, nil); err != nil {
			return // the server has had enough
		}
	}
}
