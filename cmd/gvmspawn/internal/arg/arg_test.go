package arg

import (
	"fmt"
	"math"
	"strings"
	"testing"
)

// check compares fmt.Sprint of a result, or "error".
func check[T any](t *testing.T, what, in string, got T, err error, want string) {
	t.Helper()
	s := fmt.Sprint(got)
	if err != nil {
		s = "error"
	}
	if s != want {
		t.Errorf("%s %q = %s (%v), want %s", what, in, s, err, want)
	}
}

func TestBoolAndTristate(t *testing.T) {
	for in, want := range map[string]string{"1": "yes", "YES": "yes", "y": "yes", "True": "yes", "t": "yes", "on": "yes",
		"0": "no", "no": "no", "N": "no", "false": "no", "f": "no", "off": "no", "": "auto", "auto": "auto", "AUTO": "auto", "2": "error", "yess": "error"} {
		v, err := ParseTristate(in)
		check(t, "tristate", in, v, err, want)
		b, err := Bool(in)
		wantBool := map[string]string{"yes": "true", "no": "false", "auto": "error", "error": "error"}[want]
		check(t, "bool", in, b, err, wantBool)
	}
}

func TestSize(t *testing.T) {
	for in, want := range map[string]uint64{"0": 0, "1": 1, "5B": 5, "1K": 1024, "2G": 2 << 30, "1.5G": 3 << 29, "16E": 0, "15E": 15 << 60,
		"0.0000001E": 115292150460, " 2 M ": 2 << 20, "18446744073709551615": math.MaxUint64} {
		v, err := Size(in)
		w := fmt.Sprint(want)
		if in == "16E" {
			w = "error"
		}
		check(t, "size", in, v, err, w)
	}
	for _, in := range []string{"", "-1", "+1", "K", "1k", "1KB", "1KiB", "0x10", "1e3", "1/2", ".5", "5.", "1..2", "1 2", "18446744073709551616", strings.Repeat("9", 100)} {
		v, err := Size(in)
		check(t, "size", in, v, err, "error")
	}
}

func TestMemory(t *testing.T) {
	for in, want := range map[string]string{"2G": "{2147483648 0 0}", "1": "{1048576 0 0}", "1G:2G": "{1073741824 2147483648 1}",
		"1G:2G:4": "{1073741824 2147483648 4}", "0": "error", "2G:1G": "error", "1G::3": "error", "1G:2G:0": "error", "1G:2G:3:4": "error",
		"1G:2G:x": "error", "18446744073709551615": "error", "1G:": "error"} {
		v, err := ParseMemory(in)
		check(t, "memory", in, v, err, want)
	}
}

func TestCPUs(t *testing.T) {
	for in, want := range map[string]string{"1": "{1 0 0 0}", "64": "{64 0 0 0}", "4,sockets=2": "{4 2 2 1}", "4,threads=2": "{4 1 2 2}", "4,cores=2": "{4 2 2 1}", "4,sockets=1,cores=2": "{4 1 2 2}", "sockets=2,cores=2,threads=2": "{8 2 2 2}",
		"cpus=4,cores=2,threads=2": "{4 1 2 2}", "0": "error", "65": "error", "x": "error", "": "error", "-1": "error", "4,sockets": "error",
		"4,sockets=3": "error", "4,books=1": "error", "4,maxcpus=8": "error", "4,maxcpus=4,dies=1": "{4 0 0 0}", "sockets=64,cores=64": "error", "4,": "error"} {
		v, err := ParseCPUs(in)
		check(t, "cpus", in, v, err, want)
	}
}

func TestCID(t *testing.T) {
	for in, want := range map[string]string{"": "0", "3": "3", "4294967294": "4294967294", "0": "error", "1": "error", "2": "error", "4294967295": "error",
		"4294967296": "error", "host": "error", "hypervisor": "error", "local": "error", "-1": "error", "x": "error", "0x10": "16"} {
		v, err := CID(in)
		check(t, "CID", in, v, err, want)
	}
}

func TestUUID(t *testing.T) {
	for in, want := range map[string]string{
		"0123456789abcdef0123456789ABCDEF":     "01234567-89ab-cdef-0123-456789abcdef",
		"01234567-89ab-cdef-0123-456789abcdef": "01234567-89ab-cdef-0123-456789abcdef",
		"00000000-0000-0000-0000-000000000000": "error", "": "error", "0123": "error",
		"01234567-89ab-cdef-0123_456789abcdef": "error", "0123456789abcdef0123456789ABCDEG": "error",
	} {
		v, err := ParseUUID(in)
		check(t, "UUID", in, v, err, want)
	}
}

func TestUIDRange(t *testing.T) {
	for in, want := range map[string]string{"1000": "{1000 65536}", "0": "{0 65536}", "524288:65536": "{524288 65536}", "4294967294:1": "{4294967294 1}",
		"4294967295:1": "error", "4294967294:2": "error", "4294967294": "error", "1000:0": "error", "": "error", ":5": "error", "x": "error", "1:x": "error", "-1": "error", "1:2:3": "error"} {
		v, err := ParseUIDRange(in)
		check(t, "UID range", in, v, err, want)
	}
}

// TestNames: the rules of hostname_is_valid and hostname_cleanup, vmspawn §2.10.
func TestNames(t *testing.T) {
	for in, ok := range map[string]bool{"debian": true, "a": true, "a.b-c": true, "9": true, strings.Repeat("a", 64): true, strings.Repeat("a", 65): false,
		"": false, "a/b": false, ".a": false, "a.": false, "a..b": false, "-a": false, "a-": false, "a.-b": false, "a_b": false, "a b": false, "ä": false, "a\x00": false, "..": false} {
		if err := MachineName(in); (err == nil) != ok {
			t.Errorf("machine name %q: %v", in, err)
		}
	}
	for in, want := range map[string]string{"x86_64": "x8664", "image": "image", "..a..b..": "a.b", "-a-": "a", "a b": "ab", "___": "", "a.-b": "a.b"} {
		if got := CleanHostName(in); got != want {
			t.Errorf("cleaned %q = %q, want %q", in, got, want)
		}
	}
	for in, ok := range map[string]bool{"a.b": true, "a b": true, "": false, ".": false, "..": false, "a/b": false, "a:b": false, "a\n": false, "ä": false,
		strings.Repeat("x", 255): true, strings.Repeat("x", 256): false} {
		if err := CredentialName(in); (err == nil) != ok {
			t.Errorf("credential %q: %v", in, err)
		}
	}
	for in, want := range map[string]string{"machine": "machine.slice", "a-b.slice": "a-b.slice", "-": "-.slice", "a--b": "error", "-a": "error", "a/b": "error", "": "error"} {
		v, err := SliceName(in)
		check(t, "slice", in, v, err, want)
	}
	for in, ok := range map[string]bool{"lennart": true, "_x": true, "9a": false, "": false, "a/b": false, "a b": false} {
		if err := UserName(in); (err == nil) != ok {
			t.Errorf("user %q: %v", in, err)
		}
	}
}

// FuzzCleanHostName: what is left is empty or a valid name.
func FuzzCleanHostName(f *testing.F) {
	f.Add("a.-b..c-")
	f.Fuzz(func(t *testing.T, s string) {
		if c := CleanHostName(s); c != "" && MachineName(c) != nil {
			t.Errorf("%q from %q", c, s)
		}
	})
}

func TestUnescape(t *testing.T) {
	for in, want := range map[string]string{`a\x00b`: "a\x00b", `\n\t\s\\\"\'\a\b\f\r\v`: "\n\t \\\"'\a\b\f\r\v", `\101`: "A", `\u00e4`: "ä", `\U0001F7E2`: "🟢", "": "", "plain": "plain",
		`\`: "error", `\x0`: "error", `\xg0`: "error", `\400`: "error", `\18`: "error", `\q`: "error", `\ud800`: "error", `\x+1`: "error", `\u-001`: "error"} {
		v, err := Unescape(in)
		check(t, "unescape", in, string(v), err, want)
	}
}

func FuzzUnescape(f *testing.F) {
	f.Add(`\x00\u1234\101`)
	f.Fuzz(func(t *testing.T, s string) { Unescape(s) })
}

func TestBind(t *testing.T) {
	for in, want := range map[string]string{"/a": "{/a /a false}", "/a:/b": "{/a /b false}", `/a\:b:/c`: "{/a:b /c false}", `/a b:/c d`: "{/a b /c d false}",
		`/a:/b\:c`: "{/a /b:c false}", "/a:/b/../c": "{/a /c false}", "rel": "error", "/a:rel": "error", "": "error", ":/b": "error", "/a:": "error", "/a:/b:ro": "error", "/a:/\xff": "error"} {
		v, err := ParseBind(in, false)
		check(t, "bind", in, v, err, want)
	}
	if v, err := ParseBind("x:/y", true); err != nil || v.Source[0] != '/' || !v.ReadOnly {
		t.Errorf("%v %v", v, err)
	}
}

func TestDrive(t *testing.T) {
	for in, want := range map[string]string{"/a": "{  /a}", "raw:/a": "{raw  /a}", "nvme:qcow2:/a": "{qcow2 nvme /a}", "qcow2:scsi-cd:/a:b": "{qcow2 scsi-cd /a:b}",
		"": "error", "raw:": "error", "raw:nvme:": "error"} {
		v, err := ParseDrive(in)
		check(t, "drive", in, v, err, want)
	}
}

func TestForward(t *testing.T) {
	for in, want := range map[string]string{"8080:80": "{false invalid AddrPort 80}", "8080": "{false invalid AddrPort 8080}", "tcp:127.0.0.1:22:22": "{false 127.0.0.1:22 22}",
		"udp:[::1]:53:53": "{true [::1]:53 53}", "0:80": "error", "65536:80": "error", "x": "error", "1:2:3": "error", "[::1:5": "error", "1.2.3:5:6": "error", "": "error"} {
		v, err := ParseForward(in)
		check(t, "forward", in, v, err, want)
	}
}

func TestPaths(t *testing.T) {
	if p, err := Path(""); p != "" || err != nil {
		t.Errorf("%q %v", p, err)
	}
	for _, bad := range []string{"a\x00b", strings.Repeat("/x", 4096)} {
		if _, err := Path(bad); err == nil {
			t.Errorf("%.20q accepted", bad)
		}
	}
	for in, ok := range map[string]bool{"/a": true, "./a": true, "a": false, "": false, "../a": false} {
		if _, err := ExplicitPath(in); (err == nil) != ok {
			t.Errorf("%q: %v", in, err)
		}
	}
}
