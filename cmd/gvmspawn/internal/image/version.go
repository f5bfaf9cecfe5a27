package image

import "strings"

// CompareVersions orders versions by the UAPI Group's Version Format
// Specification: negative if a is older than b, positive if newer.
func CompareVersions(a, b string) int {
	for {
		a, b = skipOther(a), skipOther(b)
		for _, c := range []byte{'~', '-', '^', '.'} {
			x, y := a != "" && a[0] == c, b != "" && b[0] == c
			if x && y {
				a, b = a[1:], b[1:]
				return CompareVersions(a, b)
			}
			// "~" is older than the end of the string; "-" and "^" end a part,
			// so that the string which goes on in the same part is newer.
			if x || y {
				return separator(c, x, a, b)
			}
		}
		if a == "" || b == "" {
			return len(a) - len(b)
		}
		if digit(a[0]) || digit(b[0]) {
			var x, y string
			x, a = take(a, digit)
			y, b = take(b, digit)
			x, y = strings.TrimLeft(x, "0"), strings.TrimLeft(y, "0")
			if len(x) != len(y) {
				return len(x) - len(y)
			}
			if c := strings.Compare(x, y); c != 0 {
				return c
			}
			continue
		}
		var x, y string
		x, a = take(a, letter)
		y, b = take(b, letter)
		if c := strings.Compare(x, y); c != 0 {
			return c
		}
	}
}

// separator decides where exactly one of a and b goes on with separator c: a if x.
func separator(c byte, x bool, a, b string) int {
	older := -1
	if !x {
		older = 1
	}
	if c == '~' {
		return older
	}
	// One string has ended its part here. If the other ends altogether, it is older.
	if x && b == "" || !x && a == "" {
		return -older
	}
	return older
}

// skipOther drops leading characters that do not count.
func skipOther(s string) string {
	for s != "" && !digit(s[0]) && !letter(s[0]) && strings.IndexByte("~-^.", s[0]) < 0 {
		s = s[1:]
	}
	return s
}

func digit(c byte) bool  { return c >= '0' && c <= '9' }
func letter(c byte) bool { return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' }

// take splits off the beginning of s whose characters are in the class.
func take(s string, class func(byte) bool) (head, tail string) {
	i := 0
	for i < len(s) && class(s[i]) {
		i++
	}
	return s[:i], s[i:]
}
