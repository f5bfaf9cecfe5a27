package arg

import (
	"errors"
	"strconv"
	"strings"
	"unicode/utf8"
)

var errEscape = errors.New("invalid escape sequence")

// simpleEscapes are the one-letter C escapes, with systemd's \s for a space.
var simpleEscapes = map[byte]byte{
	'a': '\a', 'b': '\b', 'f': '\f', 'n': '\n', 'r': '\r', 't': '\t', 'v': '\v',
	'\\': '\\', '"': '"', '\'': '\'', 's': ' ',
}

// Unescape undoes C escapes: \a \b \f \n \r \t \v \\ \" \' \s, \xHH, \OOO,
// \uXXXX and \UXXXXXXXX. Every byte value may result, NUL included.
func Unescape(s string) ([]byte, error) {
	out := make([]byte, 0, len(s))
	for {
		i := strings.IndexByte(s, '\\')
		if i < 0 {
			return append(out, s...), nil
		}
		out = append(out, s[:i]...)
		var err error
		if out, s, err = unescapeOne(out, s[i+1:]); err != nil {
			return nil, err
		}
	}
}

// unescapeOne appends the character whose escape, without the backslash,
// begins s, and returns what is left of s.
func unescapeOne(out []byte, s string) ([]byte, string, error) {
	if s == "" {
		return nil, "", errEscape
	}
	if c, ok := simpleEscapes[s[0]]; ok {
		return append(out, c), s[1:], nil
	}
	digits := func(from, n, base int) (rune, error) {
		if len(s) < from+n || s[from] == '+' || s[from] == '-' {
			return 0, errEscape
		}
		v, err := strconv.ParseUint(s[from:from+n], base, 32)
		if err != nil {
			return 0, errEscape
		}
		return rune(v), nil
	}
	switch s[0] {
	case 'x':
		v, err := digits(1, 2, 16)
		if err != nil {
			return nil, "", err
		}
		return append(out, byte(v)), s[3:], nil
	case 'u', 'U':
		n := 4
		if s[0] == 'U' {
			n = 8
		}
		v, err := digits(1, n, 16)
		if err != nil || !utf8.ValidRune(v) {
			return nil, "", errEscape
		}
		return utf8.AppendRune(out, v), s[1+n:], nil
	case '0', '1', '2', '3', '4', '5', '6', '7':
		v, err := digits(0, 3, 8)
		if err != nil || v > 255 {
			return nil, "", errEscape
		}
		return append(out, byte(v)), s[3:], nil
	}
	return nil, "", errEscape
}
