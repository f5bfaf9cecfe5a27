package swtpm

import (
	"context"
	"encoding/binary"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestMain(m *testing.M) {
	if mode := os.Getenv("FAKE_SWTPM"); mode != "" {
		fake(mode)
		return
	}
	os.Exit(m.Run())
}

// fake is a swtpm that does not work: it plays its part up to some command.
func fake(mode string) {
	if mode == "refuses" {
		os.Stderr.WriteString("swtpm: Need read/write permissions on ./tpm2-00.permall.\n")
		os.Exit(1)
	}
	control := os.NewFile(3, "control")
	answers := map[command][]byte{
		cmdGetCapability: {0, 0, 0, 0, 0, 0, 0xff, 0xff}, cmdSetDataFD: make([]byte, 4), cmdStop: make([]byte, 4),
		cmdSetBufferSize: make([]byte, 16), cmdInit: make([]byte, 4), cmdShutdown: make([]byte, 4),
	}
	failed := []byte{0, 0, 0, 9}
	switch mode {
	case "old":
		answers[cmdGetCapability] = []byte{0, 0, 0, 0, 0, 0, 0, 0x0f}
	case "no data":
		answers[cmdSetDataFD] = failed
	case "no init":
		answers[cmdInit] = failed
	case "ends":
		delete(answers, cmdSetBufferSize)
	}
	for b := make([]byte, 4096); ; {
		n, err := control.Read(b)
		if err != nil || n < 4 {
			return
		}
		cmd := command(binary.BigEndian.Uint32(b))
		answer, ok := answers[cmd]
		if !ok {
			return
		}
		control.Write(answer) //nolint:errcheck // the test sees the end
		if cmd == cmdShutdown {
			return
		}
	}
}

// script writes a program.
func script(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+text+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestErrors: each step that fails gives one sentence that says which, and
// leaves no transient state behind.
func TestErrors(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ setup, mode, want string }{
		{"echo 'swtpm_setup: no keys today' >&2; exit 1", "works", "swtpm_setup cannot make a TPM in DIR: swtpm_setup: no keys today"},
		{"exit 3", "works", "swtpm_setup cannot make a TPM in DIR: exit status 3"},
		{"echo 'it is locked'; echo 'Ending vTPM manufacturing @ noon'; exit 1", "works", "cannot make a TPM in DIR: it is locked"},
		{"", "refuses", "cannot start swtpm on DIR: CMD_GET_CAPABILITY: swtpm has ended (swtpm: Need read/write permissions on ./tpm2-00.permall.)"},
		{"", "old", "cannot start swtpm on DIR: this swtpm is too old: it lacks the capabilities 0x3400"},
		{"", "no data", "cannot start swtpm on DIR: CMD_SET_DATAFD: swtpm answers with error 0x9"},
		{"", "no init", "cannot start swtpm on DIR: CMD_INIT: swtpm answers with error 0x9"},
		{"", "ends", "cannot start swtpm on DIR: CMD_SET_BUFFERSIZE: swtpm has ended"},
		{"", "works", ""},
	} {
		t.Run(c.mode+" "+c.setup, func(t *testing.T) {
			t.Setenv("FAKE_SWTPM", c.mode)
			dir := filepath.Join(t.TempDir(), "state")
			s, err := Start(context.Background(), Config{
				Programs: Programs{swtpm: self, setup: script(t, "swtpm_setup", c.setup), localca: "/bin/true"},
				State:    dir, Remove: true, Log: slog.New(slog.DiscardHandler),
			})
			got := ""
			if err != nil {
				got = strings.ReplaceAll(err.Error(), dir, "DIR")
			} else if err := s.Close(); err != nil {
				t.Error(err)
			}
			if !strings.Contains(got, c.want) || c.want == "" && got != "" || strings.Contains(got, "\n") {
				t.Errorf("%q, want %q", got, c.want)
			}
			if _, err := os.Stat(dir); !os.IsNotExist(err) {
				t.Errorf("the state is left: %v", err)
			}
		})
	}
}

func TestMissing(t *testing.T) {
	old := sbin
	defer func() { sbin = old }()
	sbin = nil
	t.Setenv("PATH", t.TempDir())
	if _, err := Find(); err == nil || !strings.Contains(err.Error(), "install swtpm and its tools, or use --tpm=no") {
		t.Error(err)
	}
	sbin = []string{t.TempDir()}
	for _, name := range []string{"swtpm", "swtpm_setup", "swtpm_localca"} {
		if err := os.WriteFile(filepath.Join(sbin[0], name), nil, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if p, err := Find(); err != nil || p.setup != filepath.Join(sbin[0], "swtpm_setup") {
		t.Error(p, err)
	}
}

// TestSetup: what swtpm_setup is asked for, that it is not asked twice, and
// which profile it gets.
func TestSetup(t *testing.T) {
	p := Programs{localca: "/opt/swtpm_localca", setup: script(t, "swtpm_setup", `
case "$*" in *--print-profiles*)
	echo '{"builtin":[{"Name":"default-v2"},{"Name":"null"},{"Name":"default-v10"},{"Name":"default-v9"}]}'; exit 1;;
esac
echo "$@" >>args`)}
	dir := filepath.Join(t.TempDir(), "new", "state")
	for range 2 {
		if err := p.manufacture(context.Background(), dir); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(filepath.Join(dir, "args"))
	want := "--tpm-state . --tpm2 --pcr-banks sha256 --ecc --createek --create-ek-cert --create-platform-cert --not-overwrite --config swtpm_setup.conf --profile-name=default-v10\n"
	if err != nil || string(got) != want {
		t.Errorf("%q, %v", got, err)
	}
	conf, err := os.ReadFile(filepath.Join(dir, "swtpm_setup.conf"))
	if err != nil || !strings.HasPrefix(string(conf), "create_certs_tool = /opt/swtpm_localca\n") {
		t.Errorf("%q, %v", conf, err)
	}
	if fi, err := os.Stat(dir); err != nil || fi.Mode().Perm() != 0o700 {
		t.Error(fi.Mode(), err)
	}
	if err := p.manufacture(context.Background(), t.TempDir()+"\n"); err == nil {
		t.Error("a path with a line break")
	}
}

// TestSilence: a swtpm that never answers is given up.
func TestSilence(t *testing.T) {
	if testing.Short() {
		t.Skip("waits for a time-out")
	}
	now := time.Now()
	_, err := Start(context.Background(), Config{
		Programs: Programs{swtpm: script(t, "swtpm", "exec sleep 1000"), setup: "/bin/true", localca: "/bin/true"},
		State:    t.TempDir(), Log: slog.New(slog.DiscardHandler),
	})
	if err == nil || !strings.Contains(err.Error(), "swtpm does not answer") || time.Since(now) > 2*answerTime {
		t.Errorf("%v after %v", err, time.Since(now))
	}
}

// TestTail: lines are kept whole or cut, and the last one is remembered.
func TestTail(t *testing.T) {
	w := &tail{log: slog.New(slog.DiscardHandler)}
	for _, s := range []string{"first\nsec", "ond", "\n\n.\n", strings.Repeat("x", 3*tailLine)} {
		io.WriteString(w, s) //nolint:errcheck // it cannot fail
	}
	if s, _ := w.last(); s != "second" {
		t.Errorf("%q", s)
	}
	io.WriteString(w, "\n") //nolint:errcheck // it cannot fail
	if s, _ := w.last(); len(s) != tailLine {
		t.Errorf("%d bytes", len(s))
	}
}
