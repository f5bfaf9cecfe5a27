package main

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"

	"github.com/gvmspawn/gvmspawn/cmd/gvmspawn/internal/bustest"
)

// logind is a systemd-logind that hands out inhibitors, pipes' ends.
type logind struct{ locks chan *os.File }

// Inhibit is org.freedesktop.login1.Manager's.
func (l *logind) Inhibit(_, _, _, _ string) (dbus.UnixFD, *dbus.Error) {
	r, w, err := os.Pipe()
	if err != nil {
		return 0, dbus.MakeFailedError(err)
	}
	l.locks <- r
	fd := dbus.UnixFD(w.Fd())
	time.AfterFunc(time.Second, func() { w.Close() }) // the caller has its own by then
	return fd, nil
}

// TestHostSleep: the machine is paused before the host sleeps, which is told
// to logind by giving the inhibitor back, and goes on afterwards.
func TestHostSleep(t *testing.T) {
	address, b := bustest.Start(t)
	const path = "/org/freedesktop/login1"
	d := &logind{make(chan *os.File, 4)}
	if err := b.Export(d, path, "org.freedesktop.login1.Manager"); err != nil {
		t.Fatal(err)
	}
	if _, err := b.RequestName("org.freedesktop.login1", 0); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	l := tinyCommand(t, dir, "-q", "-M", "tiny")
	l.Env = append(l.Env, "DBUS_SYSTEM_BUS_ADDRESS="+address)
	var err error
	if l.stdin, err = l.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	l.start()
	l.out.waitFor(t, "tiny guest")
	lock := <-d.locks
	for _, step := range []struct {
		sleeps bool
		state  string
	}{{true, "paused"}, {false, "running"}} {
		if err := b.Emit(path, "org.freedesktop.login1.Manager.PrepareForSleep", step.sleeps); err != nil {
			t.Fatal(err)
		}
		if step.sleeps { // until the inhibitor is given back
			lock.SetReadDeadline(time.Now().Add(20 * time.Second)) //nolint:errcheck // a pipe has deadlines
			if _, err := lock.Read(make([]byte, 1)); err == nil || os.IsTimeout(err) {
				t.Errorf("the inhibitor is kept: %v", err)
			}
		} else {
			lock = <-d.locks
		}
		if r := execute(t, dir, "status", "tiny"); !strings.Contains(r.stdout, "state: "+step.state) {
			t.Errorf("want %s: %+v", step.state, r)
		}
	}
	l.say("q")
	if st := l.status(); st != 0 {
		t.Errorf("%d %q", st, l.errs.String())
	}
}
