package terminal

import (
	"io"
	"time"
)

// The keys that mean something to us.
const (
	ctrlA        = 0x01
	closeBracket = 0x1d // ^]
)

// escapeWindow is how fast ^] must be pressed three times.
const escapeWindow = time.Second

// keys watches input for the escape keys.
type keys struct {
	t      *Terminal
	answer answer

	// ^] ^] ^]
	presses int
	first   time.Time

	// --console=native
	prefix  bool // Ctrl-a was pressed
	monitor bool // input goes to the monitor
	line    []byte
	out     []byte
}

func newKeys(t *Terminal) *keys {
	k := &keys{t: t}
	if t.opts.Decor.Tint && t.opts.Decor.Background == "" && t.IsTerminal() {
		k.answer.until = time.Now().Add(answerTimeout)
	}
	return k
}

// feed returns what of p is for the guest. The slice is valid until the next call.
func (k *keys) feed(p []byte, now time.Time) []byte {
	p, background, ok := k.answer.feed(p, now)
	if ok {
		k.print(tint(background).set())
	}
	if k.t.opts.Monitor != nil {
		return k.native(p)
	}
	for _, c := range p {
		if k.escape(c, now) {
			k.t.send(Kill)
		}
	}
	return p
}

// escape counts ^] and reports the third within the window. Any other key
// starts over.
func (k *keys) escape(c byte, now time.Time) bool {
	if c != closeBracket {
		k.presses = 0
		return false
	}
	if k.presses == 0 || now.Sub(k.first) > escapeWindow {
		k.presses, k.first = 0, now
	}
	k.presses++
	if k.presses < 3 {
		return false
	}
	k.presses = 0
	return true
}

// native handles the keys of --console=native.
func (k *keys) native(p []byte) []byte {
	k.out = k.out[:0]
	for _, c := range p {
		switch {
		case k.prefix:
			k.prefix = false
			k.command(c)
		case c == ctrlA:
			k.prefix = true
		case k.monitor:
			k.edit(c)
		default:
			k.out = append(k.out, c)
		}
	}
	return k.out
}

// command handles the key after Ctrl-a.
func (k *keys) command(c byte) {
	switch c {
	case 'x':
		k.t.send(Kill)
	case 'c':
		k.monitor = !k.monitor
		k.line = k.line[:0]
		if k.monitor {
			k.print("\r\n(gvmspawn) ")
		} else {
			k.print("\r\n")
		}
	case 'h', '?':
		k.print("\r\nCtrl-a x  quit\r\nCtrl-a c  switch between console and monitor\r\nCtrl-a Ctrl-a  send Ctrl-a\r\n")
	case ctrlA, 'a':
		if !k.monitor {
			k.out = append(k.out, ctrlA)
		}
	}
}

// maxLine is the longest line of the monitor.
const maxLine = 1024

// edit is the monitor's line editor: backspace, ^U and Enter.
func (k *keys) edit(c byte) {
	switch {
	case c == '\r' || c == '\n':
		k.print("\r\n")
		if line := string(k.line); line != "" {
			k.t.opts.Monitor(line, k.t.rawWriter())
		}
		k.line = k.line[:0]
		k.print("(gvmspawn) ")
	case c == 0x7f || c == '\b':
		if len(k.line) > 0 {
			k.line = k.line[:len(k.line)-1]
			k.print("\b \b")
		}
	case c == 'U'-'@':
		for range k.line {
			k.print("\b \b")
		}
		k.line = k.line[:0]
	case c >= ' ' && c < 0x7f && len(k.line) < maxLine:
		k.line = append(k.line, c)
		k.print(string(rune(c)))
	}
}

func (k *keys) print(s string) { io.WriteString(k.t, s) } //nolint:errcheck // Write never fails

// rawWriter shows lines of ours where the guest's output goes.
func (t *Terminal) rawWriter() io.Writer { return t.Lines(t) }
