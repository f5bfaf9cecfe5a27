package vmm

import (
	"bytes"
	"context"
	"io"
	"slices"
	"sync"
)

// Input is a console's input. It belongs to the caller and outlives a machine,
// so that a reboot loses none of it: one goroutine reads, whichever machine
// runs gets what was read.
type Input struct {
	r     io.Reader
	start sync.Once
	ch    chan []byte
}

// NewInput returns the input that is read from r until EOF or an error.
func NewInput(r io.Reader) *Input { return &Input{r: r, ch: make(chan []byte)} }

func (in *Input) read() {
	defer close(in.ch)
	for {
		b := make([]byte, 4096)
		n, err := in.r.Read(b)
		if n > 0 {
			in.ch <- b[:n]
		}
		if err != nil {
			return
		}
	}
}

// feed gives the input to the sink until ctx is done or the input has ended.
func (in *Input) feed(ctx context.Context, sink func(context.Context, []byte) error) {
	in.start.Do(func() { go in.read() })
	for {
		select {
		case b, ok := <-in.ch:
			if !ok || sink(ctx, b) != nil {
				return
			}
		case <-ctx.Done():
			return
		}
	}
}

// consoleTap passes the guest's console on and remembers what a message about
// a crash needs: the last line, and whether the kernel announced its panic.
type consoleTap struct {
	out   io.Writer
	onISA func() // told once that a program wants a newer CPU; or nil

	mu    sync.Mutex // guards the fields below
	line  []byte     // the unfinished line, at most tapLine bytes
	last  string     // the last complete line with something in it
	panik string     // the line that announced a kernel panic
	isa   string     // the line in which a program asked for a newer CPU
}

// tapLine bounds what is kept of one line, in bytes.
const tapLine = 256

// panicMark is how Linux announces a panic (kernel/panic.c), restartMark how it
// announces an orderly restart (kernel/reboot.c): then an earlier panic was only
// talked about on the console.
var (
	panicMark   = []byte("Kernel panic - not syncing")
	restartMark = []byte("reboot: Restarting system")
)

// isaMarks are how programs say that they need a newer level of the x86-64
// instruction set: glibc (sysdeps/x86/cpu-features.c and isa-level.c), and Go's runtime.
var isaMarks = [][]byte{
	[]byte("CPU ISA level is lower than required"),
	[]byte("Fatal glibc error: CPU does not support x86-64-v"),
	[]byte("This program can only be run on AMD64 processors with v"),
}

// Write notes p and writes it to the console. Without an output it succeeds.
func (c *consoleTap) Write(p []byte) (int, error) {
	c.note(p)
	if c.out == nil {
		return len(p), nil
	}
	return c.out.Write(p)
}

func (c *consoleTap) note(p []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(p) > 0 {
		i := bytes.IndexAny(p, "\r\n")
		part := p
		if i >= 0 {
			part = p[:i]
		}
		c.line = append(c.line, part[:min(len(part), tapLine-len(c.line))]...)
		if i < 0 {
			return
		}
		c.endLine()
		p = p[i+1:]
	}
}

func (c *consoleTap) endLine() {
	if len(bytes.TrimSpace(c.line)) > 0 {
		c.last = string(c.line)
		switch {
		case bytes.Contains(c.line, restartMark):
			c.panik = ""
		case c.panik == "" && bytes.Contains(c.line, panicMark):
			c.panik = c.last
		case c.isa == "" && slices.ContainsFunc(isaMarks, func(m []byte) bool { return bytes.Contains(c.line, m) }):
			c.isa = c.last
			if c.onISA != nil {
				c.onISA()
			}
		}
	}
	c.line = c.line[:0]
}

// lastLine returns the last line with something in it, finished or not.
func (c *consoleTap) lastLine() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s := bytes.TrimSpace(c.line); len(s) > 0 {
		return string(s)
	}
	return c.last
}

// newerCPU returns the line in which a program asked for a newer CPU, or "".
func (c *consoleTap) newerCPU() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.isa
}

// panicked returns the line of the kernel's panic, or "".
func (c *consoleTap) panicked() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.panik
}
