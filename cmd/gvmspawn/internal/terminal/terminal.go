// Package terminal connects a machine's console with the terminal, pipe or
// file that this program was started with: raw mode that is always undone,
// escape keys, window size, and input and output that never stop the program
// from ending.
//
// End of input is not the end of the machine: after "echo poweroff | gvmspawn"
// the guest runs on. Output that nobody reads any more (a closed pipe, a
// terminal that hung up) is reported as Hangup and then discarded.
package terminal

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

// Event is something that the person at the terminal, or the terminal, did.
type Event uint8

const (
	// Kill: ^] three times within a second, or Ctrl-a x.
	Kill Event = iota
	// Hangup: nobody can read the output any more.
	Hangup
)

// Options say how to open a terminal.
type Options struct {
	// ReadOnly never reads the input and leaves the terminal's mode alone.
	ReadOnly bool
	// Monitor, if not nil, selects the keys of --console=native (Ctrl-a x
	// quits, Ctrl-a c switches to the monitor and back, Ctrl-a Ctrl-a is a
	// Ctrl-a) and is called with each line typed to the monitor.
	Monitor func(line string, w io.Writer)
	// Reset undoes what a guest may have done to the display when closing.
	Reset bool
	// Decor is shown if the output is a terminal.
	Decor Decor
	// Guard starts a process that restores the terminal if this one is killed.
	Guard bool
}

// maxInput is how much input waits for the guest, in bytes.
const maxInput = 64 << 10

// Terminal is the host side of a console. Read and Write are the guest's.
type Terminal struct {
	in        io.Reader // nil: none
	inFile    *os.File  // in, if it is a file
	out       io.Writer // nil: none
	outFile   *os.File  // out, if it is a file
	inTTY     bool
	ownIn     bool // in and out were opened by us
	ownOut    bool
	opts      Options
	events    chan Event
	done      chan struct{}
	closeOnce sync.Once
	hangup    sync.Once
	release   []func()
	atEnd     string // undoes what a guest or we did to the display

	mu     sync.Mutex // guards what follows
	filled *sync.Cond
	input  []byte // for the guest
	ended  bool   // no more input will come
	saved  *term.State
	raw    bool
	resize func(columns, rows uint16)
}

// Open takes input and output over until Close. Files are recognised; other
// readers and writers, as in tests, are used as they are.
func Open(in io.Reader, out io.Writer, o Options) (*Terminal, error) {
	t := &Terminal{opts: o, events: make(chan Event, 4), done: make(chan struct{})}
	t.filled = sync.NewCond(&t.mu)
	t.openOutput(out)
	begin := t.decorate()
	t.ended = true
	if !o.ReadOnly {
		if err := t.openInput(in); err != nil {
			t.Close()
			return nil, err
		}
	}
	if begin != "" {
		io.WriteString(t, begin) //nolint:errcheck // Write never fails
	}
	t.watchSignals()
	return t, nil
}

// decorate sets what is printed at the end, and returns what is at the beginning.
func (t *Terminal) decorate() (begin string) {
	if !t.IsTerminal() {
		return ""
	}
	if t.opts.ReadOnly {
		t.opts.Decor.Tint = false // the answer would not be read
	}
	begin, t.atEnd = t.opts.Decor.decorate()
	if t.opts.Reset {
		t.atEnd = resetDisplay + t.atEnd
	}
	return begin
}

func (t *Terminal) openOutput(out io.Writer) {
	t.out = out
	if f, ok := out.(*os.File); ok {
		t.outFile, t.ownOut = reopen(f, os.O_WRONLY)
		t.out = t.outFile
	}
}

func (t *Terminal) openInput(in io.Reader) error {
	f, ok := in.(*os.File)
	if !ok {
		if in != nil {
			t.in, t.ended = in, false
			go t.pump()
		}
		return nil
	}
	fd := int(f.Fd())
	t.inTTY = term.IsTerminal(fd)
	if t.inTTY && !foreground(fd) {
		return nil // a background job: reading would stop us
	}
	t.inFile, t.ownIn = reopen(f, os.O_RDONLY)
	t.in, t.ended = t.inFile, false
	if t.inTTY {
		if err := t.makeRaw(f); err != nil {
			return err
		}
	}
	go t.pump()
	return nil
}

// foreground reports whether we may read from the terminal fd: it is not our
// controlling terminal, or we are its foreground process group.
func foreground(fd int) bool {
	pgrp, err := unix.IoctlGetInt(fd, unix.TIOCGPGRP)
	return err != nil || pgrp == unix.Getpgrp()
}

// reopen opens a terminal or pipe once more, so that it can be non-blocking
// (and so closed while in use) without that showing to the others who have it
// open. Everything else is used as it is.
func reopen(f *os.File, mode int) (_ *os.File, own bool) {
	fd := int(f.Fd())
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return f, false
	}
	kind := st.Mode & unix.S_IFMT
	if kind != unix.S_IFIFO && !(kind == unix.S_IFCHR && term.IsTerminal(fd)) {
		return f, false
	}
	g, err := os.OpenFile("/proc/self/fd/"+strconv.Itoa(fd), mode|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return f, false
	}
	return g, true
}

// makeRaw puts the terminal tty into raw mode.
func (t *Terminal) makeRaw(tty *os.File) error {
	fd := int(tty.Fd())
	state, err := term.GetState(fd)
	if err != nil {
		return fmt.Errorf("cannot read the terminal's mode: %w", err)
	}
	if t.opts.Guard {
		if stop, err := startGuard(tty, t.atEnd); err == nil {
			t.release = append(t.release, stop)
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, err := term.MakeRaw(fd); err != nil {
		return fmt.Errorf("cannot put the terminal into raw mode: %w", err)
	}
	t.saved, t.raw = state, true
	return nil
}

// Events are what happened at the terminal. The channel is never closed.
func (t *Terminal) Events() <-chan Event { return t.events }

func (t *Terminal) send(e Event) {
	select {
	case t.events <- e:
	default: // the same has been said before
	}
}

// pump moves input to where Read finds it, and watches for the escape keys.
func (t *Terminal) pump() {
	keys := newKeys(t)
	buf := make([]byte, 4096)
	for {
		n, err := t.in.Read(buf)
		t.queue(keys.feed(buf[:n], time.Now()))
		if err != nil {
			t.endInput()
			if t.inTTY && !errors.Is(err, os.ErrClosed) { // in raw mode even EOF is a hangup
				t.lost()
			}
			return
		}
	}
}

// queue adds input for the guest. What a person types and no guest reads is
// dropped, so that the escape keys work; a pipe waits.
func (t *Terminal) queue(p []byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for len(p) > 0 && !t.ended {
		n := min(len(p), maxInput-len(t.input))
		t.input = append(t.input, p[:n]...)
		p = p[n:]
		t.filled.Broadcast()
		if len(p) > 0 && t.inTTY {
			return
		}
		if len(p) > 0 {
			t.filled.Wait()
		}
	}
}

func (t *Terminal) endInput() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.ended = true
	t.filled.Broadcast()
}

// Read returns input for the guest. It blocks until there is some, and
// returns io.EOF when no more will come.
func (t *Terminal) Read(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for len(t.input) == 0 {
		if t.ended {
			return 0, io.EOF
		}
		t.filled.Wait()
	}
	n := copy(p, t.input)
	t.input = t.input[:copy(t.input, t.input[n:])]
	t.filled.Broadcast()
	return n, nil
}

// Write shows the guest's output. It blocks while the reader of a pipe does
// not read. An output that fails is given up: Write discards from then on.
func (t *Terminal) Write(p []byte) (int, error) {
	if t.out == nil {
		return len(p), nil
	}
	if _, err := t.out.Write(p); err != nil {
		t.lost()
	}
	return len(p), nil
}

// lost reports, once, that the output is gone.
func (t *Terminal) lost() {
	select {
	case <-t.done:
	default:
		t.hangup.Do(func() { t.send(Hangup) })
	}
}

// IsTerminal reports whether the output is a terminal.
func (t *Terminal) IsTerminal() bool { return t.outFile != nil && isTerminal(t.outFile) }

// isTerminal is term.IsTerminal without making the file blocking.
func isTerminal(f *os.File) (is bool) {
	control(f, func(fd int) { is = term.IsTerminal(fd) })
	return is
}

// control calls fn with the file's descriptor.
func control(f *os.File, fn func(fd int)) {
	if c, err := f.SyscallConn(); err == nil {
		c.Control(func(fd uintptr) { fn(int(fd)) }) //nolint:errcheck // a closed file has no descriptor
	}
}

// Size returns the window's size in characters: the output's, else the
// input's, else $COLUMNS and $LINES, else 80 by 24.
func (t *Terminal) Size() (columns, rows uint16) {
	for _, f := range []*os.File{t.outFile, t.inFile} {
		if f == nil {
			continue
		}
		control(f, func(fd int) {
			if ws, err := unix.IoctlGetWinsize(fd, unix.TIOCGWINSZ); err == nil {
				columns, rows = ws.Col, ws.Row
			}
		})
		if columns > 0 && rows > 0 {
			return columns, rows
		}
	}
	return fromEnvironment("COLUMNS", 80), fromEnvironment("LINES", 24)
}

func fromEnvironment(name string, otherwise uint16) uint16 {
	if v, err := strconv.ParseUint(os.Getenv(name), 10, 16); err == nil && v > 0 {
		return uint16(v)
	}
	return otherwise
}

// OnResize sets what is called with the window's size now and on each change.
func (t *Terminal) OnResize(f func(columns, rows uint16)) {
	t.mu.Lock()
	t.resize = f
	t.mu.Unlock()
	f(t.Size())
}

// watchSignals handles SIGWINCH, and SIGCONT after somebody stopped us and a
// shell took the terminal in between.
func (t *Terminal) watchSignals() {
	c := make(chan os.Signal, 2)
	signal.Notify(c, unix.SIGWINCH, unix.SIGCONT)
	go func() {
		defer signal.Stop(c)
		for {
			select {
			case <-t.done:
				return
			case s := <-c:
				t.handleSignal(s)
			}
		}
	}()
}

func (t *Terminal) handleSignal(s os.Signal) {
	t.mu.Lock()
	if s == unix.SIGCONT && t.raw {
		control(t.inFile, func(fd int) { term.MakeRaw(fd) }) //nolint:errcheck // a terminal that went away
	}
	f := t.resize
	t.mu.Unlock()
	if f != nil {
		f(t.Size())
	}
}

// resetDisplay undoes what a guest may have left behind: colours, a hidden
// cursor, a scrolling region, bracketed paste, mouse reports, application
// keys, and what stands below the cursor.
const resetDisplay = "\x1b[0m\x1b7\x1b[r\x1b8\x1b[?25h\x1b[?7h\x1b[?2004l\x1b[?1000l\x1b[?1002l\x1b[?1003l\x1b[?1006l\x1b[?1l\x1b>\x1b[J"

// Close gives the terminal back as it was. It may be called several times and
// from any goroutine; Read and Write return.
func (t *Terminal) Close() error {
	var err error
	t.closeOnce.Do(func() {
		close(t.done)
		t.endInput()
		if t.atEnd != "" {
			t.outFile.SetWriteDeadline(time.Now().Add(time.Second)) //nolint:errcheck // not every file has deadlines
			io.WriteString(t.outFile, t.atEnd)                      //nolint:errcheck // nothing left to do about it
		}
		err = t.restore()
		for _, f := range t.release {
			f()
		}
		if t.ownIn {
			t.inFile.Close()
		}
		if t.ownOut {
			t.outFile.Close()
		}
	})
	return err
}

func (t *Terminal) restore() (err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.raw {
		return nil
	}
	t.raw = false
	control(t.inFile, func(fd int) { err = term.Restore(fd, t.saved) })
	return err
}

// Lines returns a writer for messages of ours on w, the standard error: while
// the terminal is in raw mode each line also returns to the first column.
func (t *Terminal) Lines(w io.Writer) io.Writer { return &lines{t, w} }

type lines struct {
	t *Terminal
	w io.Writer
}

func (l *lines) Write(p []byte) (int, error) {
	l.t.mu.Lock()
	raw := l.t.raw
	l.t.mu.Unlock()
	if !raw {
		return l.w.Write(p)
	}
	var b []byte
	for _, c := range p {
		if c == '\n' {
			b = append(b, '\r')
		}
		b = append(b, c)
	}
	_, err := l.w.Write(b)
	return len(p), err
}
