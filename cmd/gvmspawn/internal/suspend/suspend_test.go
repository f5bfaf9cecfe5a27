package suspend

import (
	"bufio"
	"context"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"
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
	daemon, err := exec.LookPath("dbus-daemon")
	if err != nil {
		t.Skip("needs dbus-daemon")
	}
	c := exec.Command(daemon, "--session", "--nofork", "--print-address")
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	defer c.Wait()
	defer c.Process.Kill()
	address, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Skipf("dbus-daemon does not work here: %v", err)
	}
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", strings.TrimSpace(address))
	b, err := dbus.ConnectSystemBus()
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
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
