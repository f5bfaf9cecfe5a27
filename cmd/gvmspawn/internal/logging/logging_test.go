package logging

import (
	"bytes"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func environment(pairs ...string) func(string) string {
	return func(name string) string {
		for i := 0; i < len(pairs); i += 2 {
			if pairs[i] == name {
				return pairs[i+1]
			}
		}
		return ""
	}
}

func TestEnvironment(t *testing.T) {
	s, problems := FromEnvironment(environment("SYSTEMD_LOG_LEVEL", "debug", "SYSTEMD_LOG_TARGET", "console-prefixed", "SYSTEMD_LOG_TIME", "yes", "SYSTEMD_LOG_TID", "1",
		"SYSTEMD_LOG_LOCATION", "on", "SYSTEMD_LOG_COLOR", "no"), true)
	if want := (Settings{slog.LevelDebug, "console-prefixed", false, true, true, true}); s != want || problems != nil {
		t.Errorf("%+v %q", s, problems)
	}
	for v, want := range map[string]slog.Level{"": 0, "3": slog.LevelError, "warning": slog.LevelWarn, "console:debug": slog.LevelDebug, "info,console:notice": LevelNotice, "emerg": 20} {
		if s, p := FromEnvironment(environment("SYSTEMD_LOG_LEVEL", v), false); s.Level != want || p != nil {
			t.Errorf("level %q: %v %q", v, s.Level, p)
		}
	}
	if s, p := FromEnvironment(environment("SYSTEMD_LOG_LEVEL", "8", "SYSTEMD_LOG_TARGET", "x", "SYSTEMD_LOG_TIME", "maybe"), false); len(p) != 3 || s.Level != 0 || s.Target != "auto" {
		t.Errorf("%+v %q", s, p)
	}
	for _, c := range []struct {
		systemd, log, no string
		tty, want        bool
	}{{"", "", "", true, true}, {"", "", "", false, false}, {"0", "", "", true, false}, {"256", "", "", false, true}, {"0", "1", "", false, true}, {"", "", "1", true, false}, {"auto-16", "", "", true, true}} {
		if s, _ := FromEnvironment(environment("SYSTEMD_COLORS", c.systemd, "SYSTEMD_LOG_COLOR", c.log, "NO_COLOR", c.no), c.tty); s.Color != c.want {
			t.Errorf("%+v", c)
		}
	}
}

func TestConsole(t *testing.T) {
	var b bytes.Buffer
	l := New(Settings{Target: "console", Color: true}, &b)
	l.Debug("not shown")
	l.Info("hello", "a", 1, "b", "x y", slog.Group("g", "c", true))
	l.With("m", "n").WithGroup("q").Error("bad\x1b[31m", "z", 1)
	if got, want := b.String(), "hello (a=1 b=\"x y\" g.c=true)\n\x1b[0;1;31mbad?[31m (m=n q.z=1)\x1b[0m\n"; got != want {
		t.Errorf("%q", got)
	}
	b.Reset()
	New(Settings{Target: "console-prefixed", Location: true}, &b).Warn("w")
	if got := b.String(); !strings.HasPrefix(got, "<4>logging/logging_test.go:") || !strings.HasSuffix(got, ": w\n") {
		t.Errorf("%q", got)
	}
	b.Reset()
	New(Settings{Target: "null"}, &b).Error("w")
	if b.Len() != 0 {
		t.Error(b.String())
	}
}

func TestKmsgLimit(t *testing.T) {
	var b bytes.Buffer
	k := newKmsg(&b)
	for range 1000 {
		k.log(slog.Record{Level: slog.LevelInfo}, "x", "")
	}
	if n := strings.Count(b.String(), "\n"); n != kmsgBurst || !strings.HasPrefix(b.String(), "<30>gvmspawn[") {
		t.Errorf("%d lines, %.30q", n, b.String())
	}
	if !k.limit.allow(time.Now().Add(2 * kmsgInterval)) {
		t.Error("the limit does not end")
	}
}

func TestJournal(t *testing.T) {
	path := filepath.Join(t.TempDir(), "socket")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	h := &handler{sink: openJournalAt(path)}
	slog.New(h).Log(t.Context(), LevelNotice, "message\nPRIORITY=0")
	buf := make([]byte, 1000)
	n, err := l.Read(buf)
	if want := "MESSAGE=message?PRIORITY=0\nPRIORITY=5\nSYSLOG_FACILITY=3\nSYSLOG_IDENTIFIER=gvmspawn\n"; err != nil || string(buf[:n]) != want {
		t.Errorf("%q %v", buf[:n], err)
	}
	if openJournalAt(path+"x") != nil {
		t.Error("a journal that is not there")
	}
}
