package main

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestLateOptions: an option behind the first kernel argument is one of those,
// and that is said.
func TestLateOptions(t *testing.T) {
	for _, c := range []struct {
		args string
		want int
	}{
		{"quiet --console=headless -x --help-me -b", 2}, {"-- quiet --console=headless", 0}, {"--kaslr=no quiet systemd.unit=x -Q", 0},
	} {
		l := tinyCommand(t, t.TempDir(), strings.Fields(c.args)...)
		l.Stdin = strings.NewReader("q")
		if err := l.Run(); err != nil {
			t.Errorf("%q: %v %s", c.args, err, l.errs.String())
		}
		if n := strings.Count(l.errs.String(), "comes after the first kernel argument"); n != c.want {
			t.Errorf("%q: %d warnings: %s", c.args, n, l.errs.String())
		}
	}
}

// TestHostileCredentials: files that are no credentials, or hang.
func TestHostileCredentials(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	if err := unix.Mkfifo(at("fifo"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("loop", at("loop")); err != nil {
		t.Fatal(err)
	}
	many := make([]string, 0, 40)
	for i := range 5 {
		writeFile(t, at(fmt.Sprint("part", i)), make([]byte, 300<<10), 0o600)
		many = append(many, fmt.Sprintf("--load-credential=c%d:%s", i, at(fmt.Sprint("part", i))))
	}
	// A socket that sends without an end.
	s, err := net.Listen("unix", at("socket"))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	go func() {
		for {
			c, err := s.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				for b := make([]byte, 1<<16); ; {
					if _, err := c.Write(b); err != nil {
						return
					}
				}
			}()
		}
	}()
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"--load-credential=a:" + at("fifo")}, "neither a regular file nor a socket"},
		{[]string{"--load-credential=a:" + at("loop")}, "too many levels of symbolic links"},
		{[]string{"--load-credential=a:" + dir}, "neither a regular file nor a socket"},
		{[]string{"--load-credential=a:/proc/self/mem"}, "failed to read credential 'a'"},
		{[]string{"--load-credential=a:" + at("socket")}, "larger than 1 MiB"},
		{[]string{"--load-credential=a:../escape"}, "neither an absolute path nor the name of a credential"},
		{[]string{"--load-credential=" + strings.Repeat("x", 256) + ":/etc/hostname"}, "invalid credential name"},
		{[]string{"--set-credential=" + string([]byte{0xff}) + ":x"}, "invalid credential name"},
		{many, "together are larger than 1 MiB"},
	} {
		r := execute(t, dir, c.args...)
		if r.status != 1 || !strings.Contains(r.stderr, c.want) || strings.Count(r.stderr, "\n") != 1 {
			t.Errorf("%.80q: %d %q, want %q", c.args, r.status, r.stderr, c.want)
		}
	}
}

// TestHangingBus: a bus and a machined that take connections and say nothing
// cost a bounded time with --register=yes, and none with auto.
func TestHangingBus(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "bus")
	s, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	go func() {
		for {
			if _, err := s.Accept(); err != nil {
				return
			}
		}
	}()
	socket := filepath.Join(dir, "systemd/machine/io.systemd.Machine") // of the user's machined
	if err := os.MkdirAll(filepath.Dir(socket), 0o755); err != nil {
		t.Fatal(err)
	}
	m, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	for _, c := range []struct {
		args   string
		status int
		want   string
		most   time.Duration
	}{
		{"--register=auto", 0, "", 8 * time.Second},
		{"--register=yes", 1, "systemd-machined does not answer", 20 * time.Second},
		{"--register=auto --slice=x", 1, "cannot reach the service manager", 20 * time.Second},
	} {
		t.Run(c.args, func(t *testing.T) {
			t.Parallel() // they wait
			l := tinyCommand(t, t.TempDir(), append([]string{"-q", "--user"}, strings.Fields(c.args)...)...)
			l.Env = append(l.Env, "XDG_RUNTIME_DIR="+dir, "DBUS_SYSTEM_BUS_ADDRESS=unix:path="+path, "DBUS_SESSION_BUS_ADDRESS=unix:path="+path)
			l.Stdin = strings.NewReader("q")
			start := time.Now()
			l.start()
			if st := l.status(); st != c.status || !strings.Contains(l.errs.String(), c.want) || time.Since(start) > c.most {
				t.Errorf("%s: %d %q after %v", c.args, st, l.errs.String(), time.Since(start))
			}
		})
	}
}

// TestFullRuntimeDirectory: without room for its files a machine still runs,
// and says what it lacks.
func TestFullRuntimeDirectory(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to mount a file system without room")
	}
	dir := t.TempDir()
	run := filepath.Join(dir, "run")
	if err := os.Mkdir(run, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("full", run, "tmpfs", 0, "size=4k,nr_inodes=6"); err != nil {
		t.Skipf("cannot mount a file system: %v", err)
	}
	defer unix.Unmount(run, unix.MNT_DETACH)                                   //nolint:errcheck // the test's own
	_ = os.WriteFile(filepath.Join(run, "filler"), make([]byte, 1<<16), 0o600) // ends with ENOSPC
	l := tinyCommand(t, dir)
	l.Stdin = strings.NewReader("q")
	l.start()
	if st := l.status(); st != 0 || !strings.Contains(l.errs.String(), "no space left on device") {
		t.Errorf("%d %q", st, l.errs.String())
	}
	if left, _ := os.ReadDir(run); len(left) != 1 {
		t.Errorf("left: %v", left)
	}
}
