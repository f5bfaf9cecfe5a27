package suspend

import (
	"context"
	"io"
	"os"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"

	"github.com/gvmspawn/gvmspawn/cmd/gvmspawn/internal/bustest"
)

// login1 hands out inhibitors, the writing ends of pipes.
type login1 struct{ locks chan *os.File }

// Inhibit is org.freedesktop.login1.Manager's.
func (l *login1) Inhibit(what, _, _, mode string) (dbus.UnixFD, *dbus.Error) {
	r, w, err := os.Pipe()
	if err != nil || what != "sleep" || mode != "delay" {
		return 0, dbus.MakeFailedError(err)
	}
	l.locks <- r
	fd := dbus.UnixFD(w.Fd())
	go func() { time.Sleep(time.Second); w.Close() }() // the caller has its own by then
	return fd, nil
}

func TestWatch(t *testing.T) {
	address, b := bustest.Start(t)
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", address)
	ctx, cancel := context.WithCancel(t.Context())
	if err := Watch(ctx, "test", nil, nil); err == nil {
		t.Error("no error without logind")
	}
	l := &login1{make(chan *os.File, 4)}
	if err := b.Export(l, object, manager); err != nil {
		t.Fatal(err)
	}
	if _, err := b.RequestName(login, 0); err != nil {
		t.Fatal(err)
	}
	events := make(chan string, 4)
	done := make(chan error, 1)
	go func() {
		done <- Watch(ctx, "test", func() { events <- "sleep" }, func() { events <- "wake" })
	}()
	for range 2 {
		lock := <-l.locks
		b.Emit(object, manager+".PrepareForSleep", true)
		if e := <-events; e != "sleep" {
			t.Error(e)
		}
		if n, err := lock.Read(make([]byte, 1)); n != 0 || err != io.EOF { // given back
			t.Error(n, err)
		}
		b.Emit(object, manager+".PrepareForSleep", false)
		if e := <-events; e != "wake" {
			t.Error(e)
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestNoBus(t *testing.T) {
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/nonexistent")
	if err := Watch(t.Context(), "test", nil, nil); err == nil {
		t.Error("no error without a bus")
	}
}
