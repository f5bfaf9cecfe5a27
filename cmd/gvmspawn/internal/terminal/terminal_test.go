package terminal

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) {
	if RunGuard() {
		os.Exit(0)
	}
	if os.Getenv("TERMINAL_TEST_CHILD") != "" {
		child()
		return
	}
	os.Exit(m.Run())
}

// child opens the terminal on its standard files and waits to be killed.
func child() {
	t, err := Open(os.Stdin, os.Stdout, Options{Guard: true, Reset: true})
	if err != nil {
		os.Stdout.WriteString(err.Error())
		os.Exit(1)
	}
	io.WriteString(t, "open\r\n")
	if os.Getenv("TERMINAL_TEST_CHILD") == "panic" {
		go func() { panic("as intended") }()
	}
	select {}
}

// openPTY returns both ends of a new terminal.
func openPTY(t *testing.T) (master, tty *os.File) {
	t.Helper()
	master, tty, err := pty.Open()
	if err != nil {
		t.Skipf("no pseudo terminals here: %v", err)
	}
	t.Cleanup(func() { master.Close(); tty.Close() })
	return master, tty
}

func mode(t *testing.T, tty *os.File) unix.Termios {
	t.Helper()
	m, err := unix.IoctlGetTermios(int(tty.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	return *m
}

func within(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !f(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s did not happen", what)
		}
	}
}

func TestRawAndRestore(t *testing.T) {
	master, tty := openPTY(t)
	before := mode(t, tty)
	x, err := Open(tty, tty, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if m := mode(t, tty); m.Lflag&(unix.ICANON|unix.ECHO|unix.ISIG) != 0 || m.Oflag&unix.OPOST != 0 {
		t.Errorf("not raw: %+v", m)
	}
	if _, err := master.WriteString("\x03ab"); err != nil { // ^C goes to the guest
		t.Fatal(err)
	}
	buf := make([]byte, 3)
	if _, err := io.ReadFull(x, buf); err != nil || string(buf) != "\x03ab" {
		t.Errorf("%q %v", buf, err)
	}
	io.WriteString(x, "hello")
	if _, err := io.ReadFull(master, buf); err != nil || string(buf) != "hel" {
		t.Errorf("%q %v", buf, err)
	}
	var b bytes.Buffer
	io.WriteString(x.Lines(&b), "a\nb\n")
	x.Close()
	io.WriteString(x.Lines(&b), "c\n")
	if b.String() != "a\r\nb\r\nc\n" {
		t.Errorf("%q", b.String())
	}
	if err := x.Close(); err != nil { // twice
		t.Error(err)
	}
	if mode(t, tty) != before {
		t.Error("the terminal's mode was not restored")
	}
	if n, err := x.Read(buf); n != 0 || err != io.EOF {
		t.Errorf("read after close: %d %v", n, err)
	}
}

// TestReadOnly: input is never read and the mode is left alone (vmspawn §2.12).
func TestReadOnly(t *testing.T) {
	_, tty := openPTY(t)
	before := mode(t, tty)
	x, err := Open(tty, tty, Options{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	defer x.Close()
	if mode(t, tty) != before {
		t.Error("the mode changed")
	}
	if _, err := x.Read(make([]byte, 1)); err != io.EOF {
		t.Error(err)
	}
}

// TestEscape: ^] three times within a second, any other key starts over.
func TestEscape(t *testing.T) {
	for in, want := range map[string]bool{"\x1d\x1d\x1d": true, "a\x1d\x1d\x1db": true, "\x1d\x1da\x1d": false, "\x1d\x1d": false, "\x1da\x1d\x1d\x1d": true} {
		k := newKeys(&Terminal{events: make(chan Event, 1)})
		now := time.Now()
		if got := k.feed([]byte(in), now); string(got) != in {
			t.Errorf("%q: the guest gets %q", in, got)
		}
		if (len(k.t.events) == 1) != want {
			t.Errorf("%q: kill %v", in, !want)
		}
	}
	k := newKeys(&Terminal{events: make(chan Event, 1)})
	now := time.Now()
	for _, d := range []time.Duration{0, 600 * time.Millisecond, 1200 * time.Millisecond} {
		k.feed([]byte{closeBracket}, now.Add(d))
	}
	if len(k.t.events) != 0 {
		t.Error("too slow, and yet a kill")
	}
}

func TestNativeKeys(t *testing.T) {
	var out bytes.Buffer
	var lines []string
	x := &Terminal{out: &out, events: make(chan Event, 1), done: make(chan struct{})}
	x.opts.Monitor = func(line string, w io.Writer) {
		lines = append(lines, line)
		io.WriteString(w, "answer\n")
	}
	k := newKeys(x)
	guest := string(k.feed([]byte("a\x01\x01b\x01cinfx\x7fo\r\x01cc\x1d\x1d\x1d"), time.Now()))
	if guest != "a\x01bc\x1d\x1d\x1d" || strings.Join(lines, ",") != "info" || len(x.events) != 0 {
		t.Errorf("guest %q, lines %q", guest, lines)
	}
	if !strings.Contains(out.String(), "(gvmspawn) infx\b \bo\r\nanswer\n") {
		t.Errorf("%q", out.String())
	}
	k.feed([]byte("\x01x"), time.Now())
	if len(x.events) != 1 {
		t.Error("Ctrl-a x does not kill")
	}
}

// TestPipe: the end of piped input is not an event, and all of it arrives.
func TestPipe(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	x, err := Open(r, io.Discard, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer x.Close()
	const size = 3*maxInput + 1
	go func() {
		w.Write(bytes.Repeat([]byte{'x'}, size))
		w.Close()
	}()
	n, err := io.Copy(io.Discard, x)
	if n != size || err != nil || len(x.Events()) != 0 {
		t.Errorf("%d bytes, %v, %d events", n, err, len(x.Events()))
	}
}

// TestSlowOutput: a reader that does not read does not keep us from closing.
func TestSlowOutput(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	x, err := Open(nil, w, Options{})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		x.Write(make([]byte, 1<<20))
	}()
	select {
	case <-done:
		t.Fatal("a full pipe took it all")
	case <-time.After(50 * time.Millisecond):
	}
	x.Close()
	<-done
	if flags, err := unix.FcntlInt(w.Fd(), unix.F_GETFL, 0); err != nil || flags&unix.O_NONBLOCK != 0 {
		t.Errorf("the pipe's own flags changed: %#x %v", flags, err)
	}
}

// TestClosedOutput: a closed pipe is a Hangup, once, and then nothing blocks.
func TestClosedOutput(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	x, err := Open(nil, w, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer x.Close()
	r.Close()
	for range 3 {
		if n, err := x.Write([]byte("abc")); n != 3 || err != nil {
			t.Errorf("%d %v", n, err)
		}
	}
	if len(x.Events()) != 1 || <-x.Events() != Hangup {
		t.Error("not one Hangup")
	}
}

func TestHangup(t *testing.T) {
	master, tty := openPTY(t)
	x, err := Open(tty, tty, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer x.Close()
	master.Close()
	select {
	case e := <-x.Events():
		if e != Hangup {
			t.Error(e)
		}
	case <-time.After(10 * time.Second):
		t.Error("no event")
	}
}

func TestRegularFile(t *testing.T) {
	f, err := os.CreateTemp(t.TempDir(), "out")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	f.WriteString("before,")
	x, err := Open(nil, f, Options{})
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(x, "after")
	x.Close()
	if b, err := os.ReadFile(f.Name()); err != nil || string(b) != "before,after" {
		t.Errorf("%q %v", b, err)
	}
}

func TestResize(t *testing.T) {
	_, tty := openPTY(t)
	x, err := Open(tty, tty, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer x.Close()
	sizes := make(chan [2]uint16, 10)
	set := func(columns, rows uint16) {
		if err := pty.Setsize(tty, &pty.Winsize{Cols: columns, Rows: rows}); err != nil {
			t.Fatal(err)
		}
	}
	set(100, 30)
	x.OnResize(func(c, r uint16) { sizes <- [2]uint16{c, r} })
	if s := <-sizes; s != [2]uint16{100, 30} {
		t.Error(s)
	}
	set(90, 20)
	unix.Kill(os.Getpid(), unix.SIGWINCH) // the pty is not our controlling terminal
	if s := <-sizes; s != [2]uint16{90, 20} {
		t.Error(s)
	}
	t.Setenv("COLUMNS", "70")
	t.Setenv("LINES", "x")
	if c, r := (&Terminal{}).Size(); c != 70 || r != 24 {
		t.Error(c, r)
	}
}

// TestGuard: SIGKILL and a panic in any goroutine leave the terminal as it was.
func TestGuard(t *testing.T) {
	for _, how := range []string{"kill", "panic"} {
		master, tty := openPTY(t)
		before := mode(t, tty)
		c := exec.Command(os.Args[0])
		c.Env = append(os.Environ(), "TERMINAL_TEST_CHILD="+how)
		c.Stdin, c.Stdout = tty, tty
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		if line, err := bufio.NewReader(master).ReadString('\n'); err != nil || line != "open\r\n" {
			t.Fatalf("%q %v", line, err)
		}
		if how == "kill" {
			if mode(t, tty) == before {
				t.Error("not raw")
			}
			c.Process.Kill()
		}
		c.Wait()
		within(t, "restoring the terminal after "+how, func() bool { return mode(t, tty) == before })
	}
}

// TestDecor: the title and a tint of the terminal's own background come and go.
func TestDecor(t *testing.T) {
	master, tty := openPTY(t)
	x, err := Open(tty, tty, Options{Decor: Decor{Title: "VM\x1b x", Tint: true}, Reset: true})
	if err != nil {
		t.Fatal(err)
	}
	read := func(want string) {
		t.Helper()
		b := make([]byte, len(want))
		if _, err := io.ReadFull(master, b); err != nil || string(b) != want {
			t.Errorf("%q %v, want %q", b, err, want)
		}
	}
	read(saveTitle + "\x1b]2;VM x\x1b\\" + queryBackground)
	io.WriteString(master, "a\x1b]11;rgb:0000/")
	time.Sleep(20 * time.Millisecond)
	io.WriteString(master, "0000/0000\x1b\\b")
	got := make([]byte, 2)
	if _, err := io.ReadFull(x, got); err != nil || string(got) != "ab" {
		t.Errorf("%q %v", got, err)
	}
	read(color{13, 51, 19}.set())
	x.Close()
	read(resetDisplay + restoreTitle + resetBackground)
}

func TestAnswer(t *testing.T) {
	now := time.Now()
	for _, c := range []struct{ in, rest, color string }{
		{"abc", "abc", ""}, {"\x1b", "\x1b", ""}, {"\x1b]11;rgb:ff/80/0\a", "", "{255 128 0}"}, {"x\x1b]11;nonsense\ay", "xy", ""}, {"\x1b[A", "\x1b[A", ""},
		{"\x1b]11;" + strings.Repeat("x", 100), "\x1b]11;" + strings.Repeat("x", 100), ""},
	} {
		a := answer{until: now.Add(time.Second)}
		rest, col, ok := a.feed([]byte(c.in), now)
		s := ""
		if ok {
			s = fmt.Sprint(col)
		}
		if string(rest) != c.rest || s != c.color {
			t.Errorf("%q: %q %s", c.in, rest, s)
		}
	}
	a := answer{until: now.Add(time.Second)}
	if rest, _, _ := a.feed([]byte("\x1b]11;rgb:"), now); len(rest) != 0 {
		t.Errorf("%q", rest)
	}
	if rest, _, _ := a.feed([]byte("x"), now.Add(2*time.Second)); string(rest) != "\x1b]11;rgb:x" {
		t.Errorf("%q", rest)
	}
}

func TestBackground(t *testing.T) {
	for in, want := range map[string]string{"48;2;1;2;3": "{1 2 3}", "48:2:1:2:3": "{1 2 3}", "44": "{0 0 205}", "101": "{255 127 127}", "48;5;16": "{0 0 0}", "48;5;231": "{255 255 255}", "48;5;232": "{8 8 8}",
		"": "no", "31": "no", "48;2;300;0;0": "no", "x": "no"} {
		c, ok := parseBackground(in)
		got := fmt.Sprint(c)
		if !ok {
			got = "no"
		}
		if got != want {
			t.Errorf("%q: %s, want %s", in, got, want)
		}
	}
	for in, want := range map[color]color{{0, 0, 0}: {13, 51, 19}, {255, 255, 255}: {191, 255, 202}} {
		if got := tint(in); got != want {
			t.Errorf("%v: %v, want %v", in, got, want)
		}
	}
}

func FuzzAnswer(f *testing.F) {
	f.Add([]byte("\x1b]11;rgb:1/2"), []byte("/3\x1b\\x"))
	f.Fuzz(func(t *testing.T, p, q []byte) {
		a := answer{until: time.Now().Add(time.Hour)}
		a.feed(p, time.Now())
		a.feed(q, time.Now())
		if len(a.held) > maxAnswer+len(answerStart)+len(p)+len(q) {
			t.Error("too much is held")
		}
	})
}
