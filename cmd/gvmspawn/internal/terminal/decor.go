package terminal

import (
	"bytes"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// Decor is how the window shows that a machine is in it.
type Decor struct {
	// Title is the window's title, "" to leave it.
	Title string
	// Background is the background as SGR parameters, "" to leave it.
	Background string
	// Tint tints the background that the terminal has, if it tells.
	Tint bool
}

// Sequences of xterm ("XTerm Control Sequences", Operating System Commands and
// window manipulation). Setting the default background leaves the guest's own
// colours alone, and needs no look at what it prints.
const (
	queryBackground = "\x1b]11;?\x1b\\"
	resetBackground = "\x1b]111\x1b\\"
	saveTitle       = "\x1b[22;2t"
	restoreTitle    = "\x1b[23;2t"
	answerStart     = "\x1b]11;"
)

// answerTimeout is how long an answer of the terminal is looked for in the input.
const answerTimeout = time.Second

// maxAnswer bounds the answer, in bytes.
const maxAnswer = 64

// decorate returns what to print at the beginning and at the end.
func (d Decor) decorate() (begin, end string) {
	if d.Title != "" {
		begin += saveTitle + "\x1b]2;" + strings.Map(func(r rune) rune {
			if r < ' ' || r >= 0x7f && r < 0xa0 {
				return -1
			}
			return r
		}, d.Title) + "\x1b\\"
		end += restoreTitle
	}
	if c, ok := parseBackground(d.Background); ok {
		begin += c.set()
		end += resetBackground
	} else if d.Background == "" && d.Tint {
		begin += queryBackground
		end += resetBackground
	}
	return begin, end
}

// color is red, green and blue, 0 to 255.
type color struct{ r, g, b uint8 }

// set is the sequence that makes it the default background.
func (c color) set() string { return fmt.Sprintf("\x1b]11;#%02x%02x%02x\x1b\\", c.r, c.g, c.b) }

// parseBackground understands the SGR parameters of a background colour: 48;2;R;G;B,
// 48;5;N, 40 to 47 and 100 to 107.
func parseBackground(s string) (color, bool) {
	var n []int
	for f := range strings.FieldsFuncSeq(s, func(r rune) bool { return r == ';' || r == ':' }) {
		v, err := strconv.ParseUint(f, 10, 8)
		if err != nil {
			return color{}, false
		}
		n = append(n, int(v))
	}
	switch {
	case len(n) == 5 && n[0] == 48 && n[1] == 2:
		return color{uint8(n[2]), uint8(n[3]), uint8(n[4])}, true
	case len(n) == 3 && n[0] == 48 && n[1] == 5:
		return palette(n[2]), true
	case len(n) == 1 && n[0] >= 40 && n[0] <= 47:
		return palette(n[0] - 40), true
	case len(n) == 1 && n[0] >= 100 && n[0] <= 107:
		return palette(n[0] - 100 + 8), true
	}
	return color{}, false
}

// palette is xterm's colour n: 16 named ones, a cube of 6×6×6, 24 greys.
func palette(n int) color {
	switch {
	case n < 8:
		on := func(bit int) uint8 { return uint8(n >> bit & 1 * 205) }
		return color{on(0), on(1), on(2)}
	case n < 16:
		on := func(bit int) uint8 { return uint8(n>>bit&1*128 + 127) }
		return color{on(0), on(1), on(2)}
	case n < 232:
		level := func(v int) uint8 {
			if v == 0 {
				return 0
			}
			return uint8(55 + 40*v)
		}
		n -= 16
		return color{level(n / 36), level(n / 6 % 6), level(n % 6)}
	}
	g := uint8(8 + 10*(n-232))
	return color{g, g, g}
}

// tint makes a colour green, as systemd-vmspawn does: hue 130°, less saturated
// where it is bright, and never quite black.
func tint(c color) color {
	value := float64(max(c.r, c.g, c.b)) / 255 * 100
	saturation := 75.0
	if value > 50 {
		saturation = 25
	}
	return fromHSV(130, saturation/100, max(value, 20)/100)
}

func fromHSV(h, s, v float64) color {
	f := func(n float64) uint8 {
		k := math.Mod(n+h/60, 6)
		return uint8(math.Round(255 * (v - v*s*max(0, min(k, 4-k, 1)))))
	}
	return color{f(5), f(3), f(1)}
}

// answer takes the terminal's answer about its background out of the input.
type answer struct {
	until time.Time // no answer is expected after this
	held  []byte    // what may be the beginning of one
}

// feed returns what of p is not the answer, and the colour once it has come.
// An escape key alone is never held back.
func (a *answer) feed(p []byte, now time.Time) (rest []byte, c color, ok bool) {
	if a.until.IsZero() {
		return p, c, false
	}
	p = append(a.held, p...)
	a.held = nil
	if now.After(a.until) {
		a.until = time.Time{}
		return p, c, false
	}
	i := bytes.Index(p, []byte(answerStart))
	if i < 0 {
		if n := len(p); n >= 2 && n < len(answerStart) && strings.HasPrefix(answerStart, string(p)) {
			a.held = p
			return nil, c, false
		}
		return p, c, false
	}
	body := p[i+len(answerStart):]
	end, length := bytes.IndexByte(body, '\a'), 1
	if st := bytes.Index(body, []byte("\x1b\\")); end < 0 && st >= 0 {
		end, length = st, 2
	}
	if end < 0 {
		if len(body) < maxAnswer {
			a.held = bytes.Clone(p[i:])
			return p[:i], c, false
		}
		a.until = time.Time{}
		return p, c, false
	}
	a.until = time.Time{}
	c, ok = parseRGB(string(body[:end]))
	return append(bytes.Clone(p[:i]), body[end+length:]...), c, ok
}

// parseRGB parses rgb:R/G/B, with one to four hexadecimal digits each.
func parseRGB(s string) (color, bool) {
	s, ok := strings.CutPrefix(s, "rgb:")
	parts := strings.Split(s, "/")
	if !ok || len(parts) != 3 {
		return color{}, false
	}
	var v [3]uint8
	for i, p := range parts {
		n, err := strconv.ParseUint(p, 16, 16)
		if err != nil || len(p) == 0 || len(p) > 4 {
			return color{}, false
		}
		v[i] = uint8(n * 255 / (1<<(4*len(p)) - 1))
	}
	return color{v[0], v[1], v[2]}, true
}
