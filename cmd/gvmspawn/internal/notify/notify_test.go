package notify

import (
	"errors"
	"net"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

// TestParse: the fields of vmspawn.md §2.7.
func TestParse(t *testing.T) {
	none := Message{ExitStatus: -1}
	for in, want := range map[string]Message{
		"":                           none,
		"READY=1\n":                  {Ready: true, ExitStatus: -1},
		"READY=0":                    none,
		"STATUS=Startup\x1b[31m\xff": {Status: "Startup?[31m?", ExitStatus: -1},
		"EXIT_STATUS=42\nX_SYSTEMD_SHUTDOWN=poweroff": {ExitStatus: 42, Shutdown: "poweroff"},
		"EXIT_STATUS=1\nEXIT_STATUS=255":              {ExitStatus: 255},
		"EXIT_STATUS=256":                             {ExitStatus: -1, Bad: "EXIT_STATUS=256"},
		"EXIT_STATUS=-1":                              {ExitStatus: -1, Bad: "EXIT_STATUS=-1"},
		"EXIT_STATUS":                                 none,
		"X_SYSTEMD_UNIT_ACTIVE=ssh-access.target\nX_SYSTEMD_SIGNALS_LEVEL=2": {ExitStatus: -1, Active: []string{"ssh-access.target"}},
	} {
		if got := Parse([]byte(in)); !reflect.DeepEqual(got, want) {
			t.Errorf("%q: %+v, want %+v", in, got, want)
		}
	}
}

func TestReadBound(t *testing.T) {
	if _, err := Read(strings.NewReader(strings.Repeat("x", MaxMessage+1))); !errors.Is(err, ErrTooLong) {
		t.Errorf("%v", err)
	}
	if m, err := Read(strings.NewReader("READY=1" + strings.Repeat("\n", MaxMessage-7))); err != nil || !m.Ready {
		t.Errorf("%v %v", m, err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("READY=1\nEXIT_STATUS=3\nSTATUS=x"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if m := Parse(b); m.ExitStatus < -1 || m.ExitStatus > 255 {
			t.Errorf("%+v", m)
		}
	})
}

func TestManager(t *testing.T) {
	for _, name := range []string{filepath.Join(t.TempDir(), "s"), "@gvmspawn-notify-test"} {
		l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		t.Setenv("NOTIFY_SOCKET", name)
		t.Setenv("WATCHDOG_USEC", "3000000")
		t.Setenv("WATCHDOG_PID", "")
		m := FromEnvironment()
		if m.WatchdogInterval() != 1500*time.Millisecond {
			t.Errorf("%v", m.WatchdogInterval())
		}
		if err := m.Send("READY=1", "STATUS=a\nb"); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 100)
		n, err := l.Read(buf)
		if err != nil || string(buf[:n]) != "READY=1\nSTATUS=a b" {
			t.Errorf("%q %v", buf[:n], err)
		}
		if FromEnvironment().Present() {
			t.Error("the environment still names the manager")
		}
	}
	if err := (Manager{}).Send("READY=1"); err != nil {
		t.Error(err)
	}
	for _, bad := range []string{"relative", "vsock:x:y", "vsock-foo:1:2", "/nonexistent/socket"} {
		if err := (Manager{address: bad}).Send("READY=1"); err == nil {
			t.Errorf("%q accepted", bad)
		}
	}
}
