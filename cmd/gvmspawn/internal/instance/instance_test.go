package instance

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestLife(t *testing.T) {
	base := filepath.Join(t.TempDir(), "deep/er")
	if l, err := List(base); l != nil || err != nil {
		t.Error(l, err)
	}
	i, err := Claim(base, "one")
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := Open(base, "one"); err == nil {
		t.Error("open before it is published")
	}
	want := State{Name: "one", PID: 7, Image: "/x", CID: 3, Started: time.Unix(1000, 0).UTC()}
	if err := i.Publish(want); err != nil {
		t.Fatal(err)
	}
	if got, dir, err := Open(base, "one"); err != nil || got != want || dir != i.Dir {
		t.Errorf("%+v %s %v", got, dir, err)
	}
	if _, err := Claim(base, "one"); !errors.Is(err, ErrRunning) {
		t.Error(err)
	}
	if l, err := List(base); err != nil || len(l) != 1 || l[0] != want {
		t.Error(l, err)
	}
	if err := i.Close(); err != nil {
		t.Fatal(err)
	}
	if _, _, err := Open(base, "one"); err == nil || err.Error() != "no machine 'one' is running" {
		t.Error(err)
	}
	if e, _ := os.ReadDir(base); len(e) != 0 {
		t.Error(e)
	}
}

// TestLeftovers: what a killed process leaves is cleaned up by the next start
// of that name, or by a listing.
func TestLeftovers(t *testing.T) {
	base := t.TempDir()
	leave := func(name string) {
		dir := filepath.Join(base, name)
		if err := os.MkdirAll(filepath.Join(dir, "sub"), 0o700); err != nil {
			t.Fatal(err)
		}
		for _, f := range []string{lockFile, stateFile, "key"} {
			if err := os.WriteFile(filepath.Join(dir, f), []byte(`{"name":"`+name+`"}`), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	leave("old")
	i, err := Claim(base, "old")
	if err != nil {
		t.Fatal(err)
	}
	defer i.Close()
	if e, _ := os.ReadDir(i.Dir); len(e) != 1 {
		t.Error(e)
	}
	leave("older")
	if err := os.Mkdir(filepath.Join(base, "foreign"), 0o700); err != nil {
		t.Fatal(err)
	}
	if l, err := List(base); len(l) != 0 || err != nil {
		t.Error(l, err)
	}
	if _, err := os.Stat(filepath.Join(base, "older")); !os.IsNotExist(err) {
		t.Error("the dead machine's directory is still there")
	}
	if err := os.WriteFile(filepath.Join(base, "foreign/data"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Claim(base, "foreign"); err == nil || !strings.Contains(err.Error(), "is not a machine's runtime directory") {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(base, "foreign/data")); err != nil {
		t.Error("a directory that is not ours was removed")
	}
}

func TestRefusals(t *testing.T) {
	base := t.TempDir()
	for _, name := range []string{"", "..", "a/b", strings.Repeat("x", 65)} {
		if _, err := Claim(base, name); err == nil {
			t.Errorf("%q accepted", name)
		}
		if _, _, err := Open(base, name); err == nil {
			t.Errorf("%q opened", name)
		}
	}
	if err := os.WriteFile(filepath.Join(base, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Claim(filepath.Join(base, "file"), "x"); err == nil {
		t.Error("a file as the base")
	}
}

func TestBase(t *testing.T) {
	t.Setenv("RUNTIME_DIRECTORY", "/run/x/../y")
	if b, err := Base(); b != "/run/y" || err != nil {
		t.Error(b, err)
	}
	t.Setenv("RUNTIME_DIRECTORY", "relative")
	t.Setenv("XDG_RUNTIME_DIR", "/xdg")
	want := "/xdg/systemd/vmspawn"
	if os.Geteuid() == 0 {
		want = "/run/systemd/vmspawn"
	}
	if b, err := Base(); b != want || err != nil {
		t.Error(b, err)
	}
}
