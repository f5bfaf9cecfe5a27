package screen

import (
	"strings"
	"testing"
)

func TestScreen(t *testing.T) {
	for in, want := range map[string]string{
		"one\r\ntwo":                            "one|two||",
		"a\r\nb\r\nc\r\nd\r\ne":                 "b|c|d|e",
		"0123456789ab":                          "0123456789|ab||",
		"abc\b\bX\tY":                           "aXc     Y|||",
		"\x1b[31mred\x1b[0m\x1b]0;title\a!":     "red!|||",
		"abc\x1b[2;3Hx\x1b[1;1HA\x1b[K":         "A|  x||",
		"abc\r\ndef\x1b[2J\x1b[HZ":              "Z|||",
		"abcdef\x1b[3D\x1b[1Kx":                 "   xef|||",
		"a\x1b7\x1b[4;10Hz\x1b8b":               "ab|||         z",
		"\xe2\x82\xacuro \xff":                  "€uro \ufffd|||",
		"\x1b(Bok\x1b[99999999999999A\x1b[?25l": "ok|||",
	} {
		s := New(10, 4)
		for i := range len(in) { // byte by byte, as it may come
			s.Write([]byte{in[i]}) //nolint:errcheck // never fails
		}
		if got := strings.ReplaceAll(strings.TrimSuffix(s.String(), "\n"), "\n", "|"); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

// FuzzScreen: the output is the guest's.
func FuzzScreen(f *testing.F) {
	f.Add([]byte("\x1b[5;5H\x1b[J\x1bc\n\n\n\n\n\tx\x1b[1;2;3;4;5;6;7;8;9;1;2;3;4;5;6;7;8;9m"), 3, 2)
	f.Add([]byte("\x1b]0;x\x1b\\\x1b[0K\x1b[1J"), 0, -1)
	f.Fuzz(func(t *testing.T, b []byte, columns, rows int) {
		s := New(columns%40, rows%40)
		s.Write(b) //nolint:errcheck // never fails
		if n := strings.Count(s.String(), "\n"); n != len(s.cells) {
			t.Errorf("%d lines", n)
		}
	})
}
