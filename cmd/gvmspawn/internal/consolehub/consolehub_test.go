package consolehub

import (
	"bytes"
	"context"
	"io"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// buffer is a bytes.Buffer for several goroutines.
type buffer struct {
	mu sync.Mutex // guards b
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func (b *buffer) waitFor(t *testing.T, text string) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !strings.Contains(b.String(), text); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("no %q in %q", text, b.String())
		}
	}
}

func TestShare(t *testing.T) {
	var main, one buffer
	h := New(&main, strings.NewReader("from main"))
	path := filepath.Join(t.TempDir(), "console")
	stop, err := h.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	io.WriteString(h, "before ")
	r, w := io.Pipe()
	ended := make(chan error, 1)
	go func() { ended <- Attach(context.Background(), path, r, &one) }()
	one.waitFor(t, "before ")
	io.WriteString(h, "after")
	one.waitFor(t, "before after")
	got := make([]byte, 9)
	if _, err := io.ReadFull(h, got); err != nil || string(got) != "from main" {
		t.Errorf("%q %v", got, err)
	}
	go io.WriteString(w, "typed")
	if _, err := io.ReadFull(h, got[:5]); err != nil || string(got[:5]) != "typed" {
		t.Errorf("%q %v", got, err)
	}
	if main.String() != "before after" {
		t.Errorf("%q", main.String())
	}
	h.Close()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if _, err := h.Read(got); err != io.EOF {
		t.Error(err)
	}
}

// TestSlowClient: nobody waits for a client that does not read.
func TestSlowClient(t *testing.T) {
	h := New(io.Discard, nil)
	defer h.Close()
	a, b := net.Pipe()
	defer a.Close()
	go h.Serve(b)
	for joined := false; !joined; time.Sleep(time.Millisecond) {
		h.mu.Lock()
		joined = len(h.clients) > 0
		h.mu.Unlock()
	}
	for range 1000 {
		h.Write(make([]byte, 4096))
	}
	if len(h.past) > 3*history {
		t.Errorf("%d bytes of history", len(h.past))
	}
}

func TestManyClients(t *testing.T) {
	h := New(io.Discard, nil)
	defer h.Close()
	for range maxClients {
		if _, err := h.join(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := h.join(); err == nil {
		t.Error("no limit")
	}
}
