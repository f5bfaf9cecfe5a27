// Package journal receives a guest's journal, which systemd-journald in the
// guest sends in the Journal Export Format (systemd.io, "Journal Export
// Formats") to a socket named by a credential. systemd-journal-remote writes
// it as a journal; where that is missing, the stream itself is kept.
package journal

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gvmspawn/gvmspawn/cmd/gvmspawn/internal/logging"
)

// Limits are those of systemd-journal-remote, in bytes but for MaxFiles; 0 is
// its default.
type Limits struct{ MaxUse, KeepFree, MaxFileSize, MaxFiles uint64 }

// Programs are where systemd-journal-remote is looked for.
var Programs = []string{"/usr/lib/systemd/systemd-journal-remote", "/lib/systemd/systemd-journal-remote"}

// defaultMaxUse bounds what we keep ourselves, in bytes.
const defaultMaxUse = 1 << 30

// endTimeout is how long the program may take to write what it has got.
const endTimeout = 10 * time.Second

// Receiver writes the journal of one machine.
type Receiver struct {
	path    string // of a .journal file, or a directory
	machine string
	limits  Limits
	log     *slog.Logger
	program string // "" to keep the stream

	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
	turn   sync.Mutex // one stream at a time
	limit  *logging.Limit
}

// Open prepares a receiver. Path is a file that ends in ".journal", else a
// directory, which is made.
func Open(path, machine string, l Limits, log *slog.Logger) (*Receiver, error) {
	dir := path
	if isFile(path) {
		dir = filepath.Dir(path)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("cannot forward the journal: %w", err)
	}
	r := &Receiver{path: path, machine: machine, limits: l, log: log, limit: logging.GuestLimit()}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	for _, p := range Programs {
		if _, err := os.Stat(p); err == nil {
			r.program = p
			break
		}
	}
	if r.program == "" {
		log.Warn("systemd-journal-remote is not installed, keeping the journal in its export format", "file", r.exportPath())
	}
	return r, nil
}

func isFile(path string) bool { return strings.HasSuffix(path, ".journal") }

// exportPath is where the stream is kept.
func (r *Receiver) exportPath() string {
	if isFile(r.path) {
		return strings.TrimSuffix(r.path, ".journal") + ".export"
	}
	return filepath.Join(r.path, r.machine+".export")
}

// arguments are those of systemd-journal-remote, reading its standard input,
// for which it does not split by host itself.
func (r *Receiver) arguments() []string {
	out := r.path
	if !isFile(out) {
		out = filepath.Join(out, "remote-"+r.machine+".journal")
	}
	args := []string{"--output=" + out, "--split-mode=none"}
	for _, l := range []struct {
		name  string
		value uint64
	}{{"max-use", r.limits.MaxUse}, {"keep-free", r.limits.KeepFree}, {"max-file-size", r.limits.MaxFileSize}, {"max-files", r.limits.MaxFiles}} {
		if l.value > 0 {
			args = append(args, "--"+l.name+"="+strconv.FormatUint(l.value, 10))
		}
	}
	return append(args, "-")
}

// Serve receives one stream and closes the connection. The streams of a
// machine, one for each boot, are received one after the other.
func (r *Receiver) Serve(c net.Conn) {
	r.wg.Add(1)
	defer r.wg.Done()
	defer c.Close()
	defer context.AfterFunc(r.ctx, func() { c.Close() })()
	r.turn.Lock()
	defer r.turn.Unlock()
	if r.ctx.Err() != nil {
		return
	}
	receive := r.keep
	if r.program != "" {
		receive = r.convert
	}
	if err := receive(c); err != nil && r.ctx.Err() == nil && r.limit.Allow() {
		r.log.Warn("Receiving the guest's journal failed", "error", err)
	}
}

// convert has systemd-journal-remote write the stream. It gets the end of the
// stream, and time to write, even if we end first.
func (r *Receiver) convert(c net.Conn) error {
	cmd := exec.Command(r.program, r.arguments()...)
	cmd.Stdin = nil
	in, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	var errs tail
	cmd.Stderr = &errs
	if err := cmd.Start(); err != nil {
		return err
	}
	_, cerr := io.Copy(in, c)
	in.Close()
	timer := time.AfterFunc(endTimeout, func() { cmd.Process.Kill() })
	defer timer.Stop()
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("systemd-journal-remote: %w: %s", err, errs.String())
	}
	return unlessReset(cerr)
}

// tail keeps the end of what a program complains about.
type tail struct{ b []byte }

func (t *tail) Write(p []byte) (int, error) {
	const most = 512
	t.b = append(t.b, p...)
	if n := len(t.b) - most; n > 0 {
		t.b = append(t.b[:0], t.b[n:]...)
	}
	return len(p), nil
}

func (t *tail) String() string { return strings.TrimSpace(string(t.b)) }

// keep appends the stream to a file, up to the limit.
func (r *Receiver) keep(c net.Conn) error {
	f, err := os.OpenFile(r.exportPath(), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o640)
	if err != nil {
		return err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	limit := int64(defaultMaxUse)
	if r.limits.MaxUse > 0 {
		limit = int64(min(r.limits.MaxUse, 1<<62))
	}
	n, err := io.Copy(f, io.LimitReader(c, max(limit-fi.Size(), 0)))
	if err == nil && fi.Size()+n >= limit {
		err = fmt.Errorf("%s has reached %d bytes, the rest is dropped", f.Name(), limit)
	}
	return unlessReset(err)
}

// unlessReset drops the errors of a stream that ends with its machine.
func unlessReset(err error) error {
	if errors.Is(err, net.ErrClosed) || errors.Is(err, unix.ECONNRESET) {
		return nil
	}
	return err
}

// Close ends all streams and waits until what came is written.
func (r *Receiver) Close() {
	r.cancel()
	r.wg.Wait()
}
