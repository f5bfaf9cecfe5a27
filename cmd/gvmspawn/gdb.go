package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/gvmspawn/gvmspawn/cmd/gvmspawn/internal/arg"
	"github.com/gvmspawn/gvmspawn/vmm"
)

// defaultGDBPort is where "--gdb" alone listens, and gdb's manual looks.
const defaultGDBPort = "1234"

// parseGDB reads PORT, a TCP port on the loopback interface, or unix:PATH.
func parseGDB(v string) (string, error) {
	if v == "" {
		v = defaultGDBPort
	}
	if path, ok := strings.CutPrefix(v, "unix:"); ok {
		p, err := arg.Path(path)
		return "unix:" + p, err
	}
	if n, err := strconv.ParseUint(v, 10, 16); err != nil || n == 0 {
		return "", errors.New("expected a port from 1 to 65535, or unix:PATH")
	}
	return v, nil
}

// openDebugger listens for a debugger, if there is to be one.
func (r *session) openDebugger() error {
	if r.s.gdb == "" {
		return nil
	}
	l, err := listenGDB(r.s.gdb)
	if err != nil {
		var errno unix.Errno
		if errors.As(err, &errno) {
			err = errno // without the address that we name ourselves
		}
		return fmt.Errorf("option --gdb=%s: cannot listen for a debugger: %w", r.s.gdb, err)
	}
	r.debugger = vmm.NewDebugger(l)
	r.cfg.Debugger = r.debugger
	return nil
}

// listenGDB listens at an address of parseGDB. Only its user can connect to a
// socket in the file system.
func listenGDB(addr string) (net.Listener, error) {
	path, ok := strings.CutPrefix(addr, "unix:")
	if !ok {
		return net.Listen("tcp", net.JoinHostPort("127.0.0.1", addr))
	}
	removeStale(path)
	old := unix.Umask(0o077)
	defer unix.Umask(old)
	return net.Listen("unix", path)
}

// removeStale removes a socket that nobody listens at any more.
func removeStale(path string) {
	if st, err := os.Lstat(path); err != nil || st.Mode().Type() != os.ModeSocket {
		return
	}
	c, err := net.Dial("unix", path)
	if err == nil {
		c.Close()
	} else if errors.Is(err, unix.ECONNREFUSED) {
		_ = os.Remove(path) // listening says what is wrong
	}
}

// closeDebugger tells a debugger how the machine ended.
func (r *session) closeDebugger(status int) {
	if r.debugger != nil {
		_ = r.debugger.Close(status) // a socket that somebody removed
		r.debugger = nil
	}
}

// gdbHint says how to connect.
func (r *session) gdbHint() string {
	if path, ok := strings.CutPrefix(r.s.gdb, "unix:"); ok {
		return "target remote " + path
	}
	return "target remote :" + r.s.gdb
}
