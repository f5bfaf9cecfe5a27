package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"
)

// process is a running subject whose output is watched.
type process struct {
	cmd     *exec.Cmd
	start   time.Time
	stop    context.CancelFunc
	done    chan struct{} // closed when the output has ended and the status is known
	end     time.Duration // from the start to the end
	waitErr error
	seen    watcher
}

// watcher keeps the output, the moments at which words appeared in it, and how
// much processor time the process had used by then at lines of the guest's.
type watcher struct {
	mu    sync.Mutex
	start time.Time
	out   []byte
	lines int // bytes of out whose lines have been looked at
	used  func() float64
	begun float64
	cpu   numbers // seconds from BEGIN NAME to RESULT NAME
	marks map[string]mark
}

type mark struct {
	at   time.Duration
	seen chan struct{}
}

// Write notes the words that this piece completes.
func (w *watcher) Write(p []byte) (int, error) {
	now := time.Since(w.start)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.out = append(w.out, p...)
	for {
		line, _, ok := bytes.Cut(w.out[w.lines:], []byte{'\n'})
		if !ok {
			break
		}
		w.lines += len(line) + 1
		if f := strings.Fields(string(line)); len(f) > 1 && f[0] == "BEGIN" {
			w.begun = w.used()
		} else if len(f) > 2 && f[0] == "RESULT" && w.begun != 0 {
			w.cpu[f[1]] = w.used() - w.begun
			w.begun = 0
		}
	}
	for word, m := range w.marks {
		if m.at == 0 && bytes.Contains(w.out, []byte(word)) {
			w.marks[word] = mark{now, m.seen}
			close(m.seen)
		}
	}
	return len(p), nil
}

// at is when a word appeared, 0 if it did not.
func (w *watcher) at(word string) time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.marks[word].at
}

func (w *watcher) text() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return string(w.out)
}

// launch starts a program and watches its output for words. The program is
// killed when the time is over.
func launch(ctx context.Context, limit time.Duration, argv, env []string, words ...string) (*process, error) {
	ctx, stop := context.WithTimeout(ctx, limit)
	p := &process{cmd: exec.CommandContext(ctx, argv[0], argv[1:]...), stop: stop, done: make(chan struct{})}
	p.seen.marks, p.seen.cpu = map[string]mark{}, numbers{}
	p.seen.used = p.used
	for _, w := range words {
		p.seen.marks[w] = mark{seen: make(chan struct{})}
	}
	p.cmd.Env = append(os.Environ(), env...)
	p.cmd.Stdout, p.cmd.Stderr = &p.seen, &p.seen
	p.cmd.WaitDelay = 2 * time.Second
	// With it the program dies when the benchmark does, even by SIGKILL.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	p.start = time.Now()
	p.seen.start = p.start
	if err := p.cmd.Start(); err != nil {
		stop()
		return nil, err
	}
	go func() {
		p.waitErr = p.cmd.Wait()
		p.end = time.Since(p.start)
		if ctx.Err() == context.DeadlineExceeded {
			p.waitErr = fmt.Errorf("no end within %v", limit)
		}
		stop()
		close(p.done)
	}()
	return p, nil
}

// await waits until a word was seen.
func (p *process) await(word string) error {
	select {
	case <-p.seen.marks[word].seen:
		return nil
	case <-p.done:
		if p.seen.at(word) != 0 {
			return nil
		}
		return p.failure(fmt.Errorf("ended before %q: %v", word, p.waitErr))
	}
}

// wait waits for the end.
func (p *process) wait() error {
	<-p.done
	return p.waitErr
}

// kill ends the process and waits.
func (p *process) kill() {
	p.stop()
	<-p.done
}

// cpu is the processor time used, in seconds. The process has ended.
func (p *process) cpu() float64 {
	s := p.cmd.ProcessState
	if s == nil {
		return 0
	}
	return (s.UserTime() + s.SystemTime()).Seconds()
}

// used is the processor time that the running process has used so far, in seconds,
// to a hundredth.
func (p *process) used() float64 {
	return float64(readTicks(fmt.Sprint("/proc/", p.cmd.Process.Pid))) / 100
}

// failure adds the last lines of the output to an error.
func (p *process) failure(err error) error {
	lines := strings.Split(strings.TrimSpace(p.seen.text()), "\n")
	if len(lines) > 8 {
		lines = lines[len(lines)-8:]
	}
	last := lines[len(lines)-1]
	return fmt.Errorf("%w; its last line: %s\n%s", err, strings.TrimSpace(last), strings.Join(lines, "\n"))
}

// results parses the guest program's lines. A result with a BEGIN has its processor
// time under its name and "CPU".
func (p *process) results() (numbers, error) {
	n := numbers{}
	var errs []error
	for line := range strings.Lines(p.seen.text()) {
		var name string
		var v float64
		line = strings.TrimSpace(line)
		if _, err := fmt.Sscanf(line, "RESULT %s %g", &name, &v); err == nil {
			n[name] = v
			if t := p.seen.cpu[name]; t > 0 {
				n[name+" CPU"] = t
			}
		}
		if what, ok := strings.CutPrefix(line, "BENCH-ERROR "); ok {
			errs = append(errs, errors.New("guest: "+what))
		}
	}
	return n, errors.Join(errs...)
}
