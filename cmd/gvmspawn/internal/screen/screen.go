// Package screen is what a terminal shows after some output: text on a grid,
// without colours. It understands the control sequences that move the cursor
// and erase (ECMA-48 §8.3) and skips all others.
package screen

import (
	"strings"
	"unicode/utf8"
)

// Bounds of a screen, in cells.
const (
	maxColumns = 1000
	maxRows    = 1000
)

// Screen is a grid of text. Any output may be written to it.
type Screen struct {
	cells     [][]rune
	x, y      int // the cursor; x may be one behind the last column
	savedX    int
	savedY    int
	rest      []byte // of a rune that is not complete
	state     state
	parameter []int
}

type state uint8

const (
	text    state = iota
	escape        // after ESC
	control       // after ESC [
	command       // a string, until BEL or ESC \
	skip          // one more byte belongs to the sequence
)

// New returns an empty screen.
func New(columns, rows int) *Screen {
	s := &Screen{cells: make([][]rune, min(max(rows, 1), maxRows))}
	for i := range s.cells {
		s.cells[i] = make([]rune, min(max(columns, 1), maxColumns))
	}
	return s
}

// Write shows output. It never fails.
func (s *Screen) Write(p []byte) (int, error) {
	b := append(s.rest, p...)
	for len(b) > 0 && utf8.FullRune(b) {
		r, n := utf8.DecodeRune(b)
		s.put(r)
		b = b[n:]
	}
	s.rest = append([]byte(nil), b...)
	return len(p), nil
}

// String is the screen's lines, without the blanks at their ends.
func (s *Screen) String() string {
	var b strings.Builder
	for _, row := range s.cells {
		line := strings.Map(func(r rune) rune {
			if r == 0 {
				return ' '
			}
			return r
		}, string(row))
		b.WriteString(strings.TrimRight(line, " "))
		b.WriteByte('\n')
	}
	return b.String()
}

func (s *Screen) put(r rune) {
	switch s.state {
	case text:
		s.print(r)
	case escape:
		s.escaped(r)
	case control:
		s.controlled(r)
	case command:
		if r == '\a' {
			s.state = text
		} else if r == 0x1b {
			s.state = skip
		}
	case skip:
		s.state = text
	}
}

func (s *Screen) print(r rune) {
	switch r {
	case 0x1b:
		s.state = escape
	case '\n':
		s.feed()
	case '\r':
		s.x = 0
	case '\b':
		s.x = max(s.x-1, 0)
	case '\t':
		s.x = min(s.x/8*8+8, len(s.cells[0])-1)
	default:
		if r < ' ' || r >= 0x7f && r < 0xa0 {
			return
		}
		if s.x == len(s.cells[0]) {
			s.x = 0
			s.feed()
		}
		s.cells[s.y][s.x] = r
		s.x++
	}
}

// feed goes to the next line, and scrolls at the last one.
func (s *Screen) feed() {
	if s.y < len(s.cells)-1 {
		s.y++
		return
	}
	top := s.cells[0]
	clear(top)
	copy(s.cells, s.cells[1:])
	s.cells[s.y] = top
}

func (s *Screen) escaped(r rune) {
	s.state = text
	switch r {
	case '[':
		s.state, s.parameter = control, s.parameter[:0]
	case ']', 'P', '^', '_', 'X':
		s.state = command
	case '(', ')', '*', '+', '#', '%', ' ':
		s.state = skip
	case '7':
		s.savedX, s.savedY = s.x, s.y
	case '8':
		s.x, s.y = s.savedX, s.savedY
	case 'c':
		s.erase(0, 0, len(s.cells)*len(s.cells[0]))
		s.x, s.y = 0, 0
	case 'M':
		s.y = max(s.y-1, 0)
	}
}

// maxParameters bounds a control sequence.
const maxParameters = 16

func (s *Screen) controlled(r rune) {
	switch {
	case r >= '0' && r <= '9':
		if len(s.parameter) == 0 {
			s.parameter = append(s.parameter, 0)
		}
		last := &s.parameter[len(s.parameter)-1]
		*last = min(*last*10+int(r-'0'), 1<<15)
	case r == ';' && len(s.parameter) < maxParameters:
		if len(s.parameter) == 0 {
			s.parameter = append(s.parameter, 0)
		}
		s.parameter = append(s.parameter, 0)
	case r >= 0x40 && r <= 0x7e:
		s.state = text
		s.function(r)
	}
}

// number is parameter i, or what it is by default.
func (s *Screen) number(i, otherwise int) int {
	if i < len(s.parameter) && s.parameter[i] > 0 {
		return s.parameter[i]
	}
	return otherwise
}

// function does what the control sequence with this final byte says.
func (s *Screen) function(final rune) {
	columns, rows := len(s.cells[0]), len(s.cells)
	n := s.number(0, 1)
	switch final {
	case 'A':
		s.y = max(s.y-n, 0)
	case 'B':
		s.y = min(s.y+n, rows-1)
	case 'C':
		s.x = min(s.x+n, columns-1)
	case 'D':
		s.x = max(s.x-n, 0)
	case 'G':
		s.x = min(n, columns) - 1
	case 'd':
		s.y = min(n, rows) - 1
	case 'H', 'f':
		s.y, s.x = min(n, rows)-1, min(s.number(1, 1), columns)-1
	case 'J':
		s.eraseBy(s.number(0, 0), 0, rows*columns)
	case 'K':
		s.eraseBy(s.number(0, 0), s.y*columns, (s.y+1)*columns)
	}
}

// eraseBy erases from the cursor to the end, from the start to it, or all.
func (s *Screen) eraseBy(how, start, end int) {
	columns := len(s.cells[0])
	at := s.y*columns + min(s.x, columns-1)
	switch how {
	case 0:
		start = at
	case 1:
		end = at + 1
	}
	s.erase(start/columns, start%columns, end-start)
}

// erase clears n cells from a place on.
func (s *Screen) erase(y, x, n int) {
	for ; n > 0 && y < len(s.cells); n-- {
		s.cells[y][x] = 0
		if x++; x == len(s.cells[y]) {
			x = 0
			y++
		}
	}
}
