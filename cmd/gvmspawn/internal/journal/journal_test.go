package journal

import (
	"bytes"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

const entry = "__REALTIME_TIMESTAMP=1700000000000000\n_BOOT_ID=0123456789abcdef0123456789abcdef\n_HOSTNAME=guest\nMESSAGE=hello from the guest\nPRIORITY=6\n\n"

// send gives the receiver a stream.
func send(r *Receiver, data string) {
	a, b := net.Pipe()
	go func() { io.WriteString(a, data); a.Close() }()
	r.Serve(b)
}

func without(t *testing.T, programs []string) {
	t.Helper()
	old := Programs
	Programs = programs
	t.Cleanup(func() { Programs = old })
}

// TestKeep: without systemd-journal-remote the stream is kept, within bounds.
func TestKeep(t *testing.T) {
	without(t, nil)
	dir := t.TempDir()
	var log bytes.Buffer
	for path, want := range map[string]string{"x.journal": "x.export", "sub/dir": "sub/dir/m.export"} {
		r, err := Open(filepath.Join(dir, path), "m", Limits{}, slog.New(slog.NewTextHandler(&log, nil)))
		if err != nil {
			t.Fatal(err)
		}
		send(r, entry)
		send(r, entry)
		r.Close()
		if b, err := os.ReadFile(filepath.Join(dir, want)); err != nil || string(b) != entry+entry {
			t.Errorf("%s: %q %v", path, b, err)
		}
	}
	if !strings.Contains(log.String(), "not installed") {
		t.Error(log.String())
	}
	r, err := Open(filepath.Join(dir, "x.journal"), "m", Limits{MaxUse: 400}, slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		send(r, entry)
	}
	r.Close()
	if fi, err := os.Stat(filepath.Join(dir, "x.export")); err != nil || fi.Size() != 400 || !strings.Contains(log.String(), "the rest is dropped") {
		t.Errorf("%v %v %s", fi.Size(), err, log.String())
	}
	if _, err := Open(filepath.Join(dir, "x.export/y"), "m", Limits{}, slog.Default()); err == nil {
		t.Error("a directory below a file")
	}
}

func TestArguments(t *testing.T) {
	r := &Receiver{path: "/a.journal", limits: Limits{1, 2, 3, 4}}
	if got := strings.Join(r.arguments(), " "); got != "--output=/a.journal --split-mode=none --max-use=1 --keep-free=2 --max-file-size=3 --max-files=4 -" {
		t.Error(got)
	}
	r = &Receiver{path: "/a", machine: "m"}
	if got := strings.Join(r.arguments(), " "); got != "--output=/a/remote-m.journal --split-mode=none -" {
		t.Error(got)
	}
}

// TestProgram: the program gets the stream, and its failure is said.
func TestProgram(t *testing.T) {
	dir := t.TempDir()
	good, bad := filepath.Join(dir, "good"), filepath.Join(dir, "bad")
	for path, script := range map[string]string{good: "#!/bin/sh\ncat >" + dir + "/got\n", bad: "#!/bin/sh\necho no such thing >&2\nexit 3\n"} {
		if err := os.WriteFile(path, []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	without(t, []string{good})
	var log bytes.Buffer
	r, err := Open(filepath.Join(dir, "x.journal"), "m", Limits{}, slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	send(r, entry)
	if b, err := os.ReadFile(filepath.Join(dir, "got")); err != nil || string(b) != entry {
		t.Errorf("%q %v", b, err)
	}
	r.program = bad
	send(r, entry)
	if !strings.Contains(log.String(), "no such thing") {
		t.Error(log.String())
	}
	// Close ends a stream that does not end itself.
	r.program = good
	a, b := net.Pipe()
	defer a.Close()
	go r.Serve(b)
	if _, err := io.WriteString(a, entry); err != nil {
		t.Fatal(err)
	}
	r.Close()
}

// TestJournalRemote: journalctl reads what systemd-journal-remote wrote.
func TestJournalRemote(t *testing.T) {
	if _, err := os.Stat(Programs[0]); err != nil {
		t.Skip("needs systemd-journal-remote")
	}
	dir := t.TempDir()
	for path, read := range map[string]string{filepath.Join(dir, "guest.journal"): "--file=", filepath.Join(dir, "many"): "--directory="} {
		var log bytes.Buffer
		r, err := Open(path, "m", Limits{MaxUse: 64 << 20, MaxFiles: 2}, slog.New(slog.NewTextHandler(&log, nil)))
		if err != nil {
			t.Fatal(err)
		}
		send(r, entry)
		r.Close()
		out, err := exec.Command("journalctl", read+path, "-o", "cat").CombinedOutput()
		if err != nil || !strings.Contains(string(out), "hello from the guest") {
			t.Errorf("%s %v %s", out, err, log.String())
		}
	}
}
