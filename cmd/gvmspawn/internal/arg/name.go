package arg

import (
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"
)

// maxHostName is the longest host name of Linux (HOST_NAME_MAX).
const maxHostName = 64

// MachineName checks that s is valid as a host name and so as a machine's name:
// labels of letters, digits and dashes, joined by single dots, ≤ 64 bytes.
func MachineName(s string) error {
	invalid := fmt.Errorf("invalid machine name: %s", Printable(s))
	if s == "" || len(s) > maxHostName {
		return invalid
	}
	for label := range strings.SplitSeq(s, ".") {
		if label == "" || label[0] == '-' || label[len(label)-1] == '-' {
			return invalid
		}
		for i := range len(label) {
			if !isHostNameChar(label[i]) {
				return invalid
			}
		}
	}
	return nil
}

func isHostNameChar(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-'
}

// CleanHostName makes a host name of any string: it drops characters other
// than letters, digits, dots and dashes, dots and dashes at the ends and
// repeated dots. The result may be empty.
func CleanHostName(s string) string {
	var b strings.Builder
	dot, hyphen := true, true // at the start neither may follow
	for i := 0; i < len(s) && b.Len() < maxHostName; i++ {
		switch c := s[i]; {
		case c == '.':
			if !dot && !hyphen {
				b.WriteByte(c)
				dot, hyphen = true, false
			}
		case c == '-':
			if !dot {
				b.WriteByte(c)
				hyphen = true
			}
		case isHostNameChar(c):
			b.WriteByte(c)
			dot, hyphen = false, false
		}
	}
	return strings.TrimRight(b.String(), ".-")
}

// CredentialName checks that s can name a credential: a valid file name and
// file descriptor name, 1 to 255 printable ASCII characters without / and colon.
func CredentialName(s string) error {
	if s == "" || len(s) > 255 || s == "." || s == ".." {
		return fmt.Errorf("invalid credential name: %s", Printable(s))
	}
	for i := range len(s) {
		if c := s[i]; c < ' ' || c >= 127 || c == '/' || c == ':' {
			return fmt.Errorf("invalid credential name: %s", Printable(s))
		}
	}
	return nil
}

// UserName checks s by the rule for user and group names that useradd and
// systemd agree on: letters, digits, _ and -, no digit or dash first, ≤ 31.
func UserName(s string) error {
	ok := s != "" && len(s) <= 31
	for i := range len(s) {
		c := s[i]
		letter := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c == '_'
		ok = ok && (letter || i > 0 && (c >= '0' && c <= '9' || c == '-'))
	}
	if !ok {
		return fmt.Errorf("invalid user or group name: %s", Printable(s))
	}
	return nil
}

// SliceName returns s as the name of a slice unit, with ".slice" added if missing.
func SliceName(s string) (string, error) {
	name := strings.TrimSuffix(s, ".slice")
	ok := name == "-" || name != "" && len(name) < 250 && name[0] != '-' && !strings.HasSuffix(name, "-") && !strings.Contains(name, "--")
	for i := range len(name) {
		c := name[i]
		ok = ok && (isHostNameChar(c) || strings.IndexByte(`:_.\`, c) >= 0)
	}
	if !ok {
		return "", fmt.Errorf("invalid slice name: %s", Printable(s))
	}
	return name + ".slice", nil
}

// Property checks a unit property assignment, NAME=VALUE.
func Property(s string) (string, error) {
	name, _, found := strings.Cut(s, "=")
	if !found || name == "" || strings.Trim(name, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789") != "" {
		return "", errors.New("expected a unit property, NAME=VALUE")
	}
	return s, nil
}

// UTF8 checks that s is valid UTF-8 without NUL.
func UTF8(s string) error {
	if !utf8.ValidString(s) || strings.IndexByte(s, 0) >= 0 {
		return errors.New("the string is not valid UTF-8")
	}
	return nil
}

// Background checks an SGR background colour such as 48;2;R;G;B: digits,
// semicolons and colons.
func Background(s string) error {
	if strings.Trim(s, "0123456789;:") != "" || len(s) > 64 {
		return errors.New("expected the parameters of an SGR background, such as 48;2;0;40;0")
	}
	return nil
}

// Printable returns s fit for an error message: control characters and bytes
// that are not UTF-8 escaped, long strings cut.
func Printable(s string) string {
	const most = 256
	cut := ""
	if len(s) > most {
		s, cut = s[:most], "…"
	}
	q := fmt.Sprintf("%q", s)
	if q == `"`+s+`"` {
		return s + cut
	}
	return q + cut
}
