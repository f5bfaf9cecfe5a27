package credential

import (
	"bytes"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestSetArgument(t *testing.T) {
	var s Set
	if err := s.SetArgument(`a.b:x\x00y\n:z`); err != nil {
		t.Fatal(err)
	}
	if got := s.List()[0]; got.ID != "a.b" || string(got.Data) != "x\x00y\n:z" {
		t.Errorf("%q", got)
	}
	for in, want := range map[string]string{"a.b:2": "duplicate", "noColon": "ID:VALUE", ":x": "invalid credential name", "a/b:x": "invalid credential name", `c:\q`: "escape"} {
		if err := s.SetArgument(in); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", in, err, want)
		}
	}
}

func TestLoadArgument(t *testing.T) {
	dir := t.TempDir()
	path := func(n string) string { return filepath.Join(dir, n) }
	big := bytes.Repeat([]byte{0}, MaxSize)
	for n, data := range map[string][]byte{"file": []byte("data\x00"), "big": big, "tooBig": append(big, 0)} {
		if err := os.WriteFile(path(n), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mkfifo(path("fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", path("socket"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		c, err := l.Accept()
		if err == nil {
			c.Write([]byte("from socket"))
			c.Close()
		}
	}()

	var s Set
	for _, a := range []string{"one:" + path("file"), "two:file", "three:" + path("socket")} {
		if err := s.LoadArgument(a, dir); err != nil {
			t.Fatalf("%s: %v", a, err)
		}
	}
	for i, want := range []string{"data\x00", "data\x00", "from socket"} {
		if got := string(s.List()[i].Data); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	for in, want := range map[string]string{
		"one:" + path("file"): "duplicate", "x:" + path("missing"): "no such file", "x:" + dir: "neither a regular file",
		"x:" + path("fifo"): "neither a regular file", "x:../file": "neither an absolute path", "x": "ID:PATH", "x/:/file": "invalid credential name",
		"x:" + path("tooBig"): "larger than 1 MiB", "x:" + path("big"): "all credentials together",
	} {
		if err := s.LoadArgument(in, dir); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", in, err, want)
		}
	}
	t.Setenv("CREDENTIALS_DIRECTORY", "")
	if err := s.LoadArgument("x:file", ""); err == nil || !strings.Contains(err.Error(), "CREDENTIALS_DIRECTORY") {
		t.Errorf("%v", err)
	}
}

// TestMerge: the user's value wins, fstab.extra is merged after it (vmspawn §2.3).
func TestMerge(t *testing.T) {
	var s Set
	for _, err := range []error{s.Add("fstab.extra", []byte("mine")), s.AddDefault("fstab.extra", []byte("x")), s.Append("fstab.extra", []byte("ours\n")), s.Append("other", []byte("y"))} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if l := s.List(); len(l) != 2 || string(l[0].Data) != "mine\nours\n" || string(l[1].Data) != "y" {
		t.Errorf("%q", l)
	}
}
