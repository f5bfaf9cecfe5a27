// Package swtpm runs swtpm, the TPM 2.0 emulator, as the backend of a machine's
// TPM: a child process that is spoken to by its control channel
// (swtpm_ioctls(3)) and a socket for TPM commands, both without a name.
package swtpm

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Config is how a TPM is made.
type Config struct {
	// Programs are from Find.
	Programs Programs
	// State is the directory of the TPM's state, made if need be with mode 0700.
	State string
	// Remove removes it at the end.
	Remove bool
	// Log gets what swtpm says.
	Log *slog.Logger
}

// TPM is a running swtpm. It is a tpm.Backend. It survives the machine's
// reboots, and Init starts it again if it has died.
type TPM struct {
	cfg  Config
	turn chan struct{} // holds a value while no command is under way

	mu sync.Mutex // guards r
	r  *running
}

// running is one process.
type running struct {
	*process
	control  *control
	data     net.Conn
	said     *tail
	locality int
	broken   error // why no command can be given any more
}

// headerSize is the size of a TPM command's or response's header (TPM 2.0 Library,
// Part 1 "Command/Response Structure").
const headerSize = 10

// Start makes a TPM's state, unless it is there, and starts swtpm on it. Errors
// are sentences for the user.
func Start(ctx context.Context, cfg Config) (*TPM, error) {
	t := &TPM{cfg: cfg, turn: make(chan struct{}, 1)}
	t.turn <- struct{}{}
	if err := cfg.Programs.manufacture(ctx, cfg.State); err != nil {
		return nil, errors.Join(err, t.remove())
	}
	r, err := t.launch()
	if err == nil {
		// Its state is read only now.
		if err = r.control.init(0); err != nil {
			err = r.failed(err)
			r.end()
		}
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("cannot start swtpm on %s: %w", cfg.State, err), t.remove())
	}
	t.r = r
	return t, nil
}

// launch starts a process and hands it its channels.
func (t *TPM) launch() (*running, error) {
	control, theirs, err := socketPair("swtpm control")
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	data, dataTheirs, err := socketPair("swtpm data")
	if err != nil {
		control.Close()
		return nil, err
	}
	defer dataTheirs.Close()
	r := &running{control: newControl(control), data: data, said: &tail{log: t.cfg.Log}, locality: -1}
	c := exec.Command(t.cfg.Programs.swtpm, "socket", "--tpm2", "--tpmstate", "dir=.", "--ctrl", "type=unixio,clientfd=3", "--terminate")
	c.Dir, c.Stdout, c.Stderr, c.SysProcAttr = t.cfg.State, r.said, r.said, child()
	c.ExtraFiles = []*os.File{theirs}
	c.WaitDelay = time.Second
	if r.process, err = startChild(c); err != nil {
		control.Close()
		data.Close()
		return nil, err
	}
	theirs.Close() // so that the end of the process is the end of the channel
	if err := r.control.open(dataTheirs); err != nil {
		err = r.failed(err)
		r.end()
		return nil, err
	}
	return r, nil
}

// socketPair returns our end and the child's.
func socketPair(name string) (*net.UnixConn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), name), os.NewFile(uintptr(fds[1]), name)
	defer ours.Close()
	c, err := net.FileConn(ours)
	if err != nil {
		theirs.Close()
		return nil, nil, err
	}
	return c.(*net.UnixConn), theirs, nil
}

// failed adds to an error what swtpm said before it ended.
func (r *running) failed(err error) error {
	select {
	case <-r.done:
	case <-time.After(time.Second / 2):
	}
	switch last, locked := r.said.last(); {
	case locked:
		return errors.New("another swtpm has that state, is the machine running already?")
	case last != "":
		return fmt.Errorf("%w (%s)", err, last)
	}
	return err
}

// Init is _TPM_Init: power-on or reset. A swtpm that has died, or that does not
// get a command done, is replaced by another on the same state. No command or response is longer than
// bufferSize bytes afterwards.
func (t *TPM) Init(bufferSize int) error {
	if err := take(t.turn); err != nil {
		t.now().cmd.Process.Kill() //nolint:errcheck // it may have ended: then its command fails, too
		if err := take(t.turn); err != nil {
			return fmt.Errorf("cannot reset the TPM: %w", err)
		}
	}
	defer func() { t.turn <- struct{}{} }()
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.r.broken != nil || t.r.over() {
		t.r.end()
		r, err := t.launch()
		if err != nil {
			return fmt.Errorf("cannot start swtpm again: %w", err)
		}
		t.r = r
	}
	if err := t.r.control.init(bufferSize); err != nil {
		return fmt.Errorf("cannot reset the TPM: %w", t.r.failed(err))
	}
	t.r.locality = -1
	return nil
}

// Execute runs one command, of at least a header's size, and returns the size
// of its response. After the first error all that follow fail at once.
func (t *TPM) Execute(locality int, command, response []byte) (int, error) {
	if err := take(t.turn); err != nil {
		return 0, err
	}
	defer func() { t.turn <- struct{}{} }()
	r := t.now()
	if r.broken != nil {
		return 0, r.broken
	}
	n, err := r.execute(locality, command, response)
	if err != nil {
		r.broken = ended(err)
		t.cfg.Log.Warn("The TPM has failed, the guest's commands to it fail from now on", "error", r.failed(r.broken))
	}
	return n, err
}

// now is the process that runs now.
func (t *TPM) now() *running {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.r
}

func (r *running) execute(locality int, command, response []byte) (int, error) {
	if locality != r.locality {
		if _, err := r.control.call(cmdSetLocality, []byte{byte(locality)}, 0); err != nil {
			return 0, err
		}
		r.locality = locality
	}
	if _, err := r.data.Write(command); err != nil {
		return 0, err
	}
	if _, err := io.ReadFull(r.data, response[:headerSize]); err != nil {
		return 0, err
	}
	n := binary.BigEndian.Uint32(response[2:])
	if n < headerSize || n > uint32(len(response)) {
		return 0, fmt.Errorf("swtpm sends a response of %d bytes", n)
	}
	_, err := io.ReadFull(r.data, response[headerSize:n])
	return int(n), err
}

// Cancel asks for an early end of a running command. It does not block.
func (t *TPM) Cancel() { t.now().control.cancel() }

// Close saves the TPM's state and ends swtpm.
func (t *TPM) Close() error {
	t.now().end()
	return t.remove()
}

func (t *TPM) remove() error {
	if !t.cfg.Remove {
		return nil
	}
	return os.RemoveAll(t.cfg.State)
}

// endTime is how long a process may take for each way to end it, in growing rudeness.
const endTime = 5 * time.Second

// end asks swtpm to save its state and end, and sees to it that it does.
func (r *running) end() {
	if !r.over() {
		go r.control.call(cmdShutdown, nil, 0) //nolint:errcheck // the process's end is the answer
	}
	for _, rude := range []func(){nil, func() { r.cmd.Process.Signal(unix.SIGTERM) }, func() { r.cmd.Process.Kill() }} { //nolint:errcheck // it may have ended
		if rude != nil {
			rude()
		}
		select {
		case <-r.done:
		case <-time.After(endTime):
			continue
		}
		break
	}
	r.control.conn.Close()
	r.data.Close()
}

// tail passes lines on to the log and keeps the last one.
type tail struct {
	log *slog.Logger

	mu   sync.Mutex // guards the fields below
	line []byte     // unfinished, at most tailLine bytes
	end  string
	lock bool // it could not lock its state
}

// tailLine bounds what is kept of a line, in bytes.
const tailLine = 1024

// Write implements io.Writer.
func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := len(p)
	for {
		line, rest, more := bytes.Cut(p, []byte{'\n'})
		t.line = append(t.line, line[:min(len(line), tailLine-len(t.line))]...)
		if !more {
			return n, nil
		}
		if s := strings.TrimSpace(string(t.line)); strings.Trim(s, ".") != "" { // swtpm_setup's sign of progress is a dot
			t.end, t.lock = s, t.lock || strings.Contains(s, "NVRAM_Lock")
			t.log.Debug("swtpm: " + s)
		}
		t.line, p = t.line[:0], rest
	}
}

// last is the last line that said something, and whether any was about the lock
// of the state.
func (t *tail) last() (line string, locked bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.end, t.lock
}
