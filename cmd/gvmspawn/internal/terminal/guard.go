package terminal

import (
	"encoding/binary"
	"io"
	"os"
	"os/exec"
	"os/signal"

	"golang.org/x/sys/unix"
)

// guardName is the name (argv[0]) under which this program is a guard.
const guardName = "gvmspawn-terminal-guard"

// The last byte that a guard reads says that it is not needed any more.
const guardDismissed = 1

// startGuard starts a process that puts the terminal back into its present
// mode, and prints atEnd, if we end without doing so, by SIGKILL or a crash. The function that is
// returned ends it.
func startGuard(tty *os.File, atEnd string) (stop func(), err error) {
	mode, err := unix.IoctlGetTermios(int(tty.Fd()), unix.TCGETS)
	if err != nil {
		return nil, err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	c := &exec.Cmd{Path: "/proc/self/exe", Args: []string{guardName, atEnd}, Stdin: r, Stdout: tty,
		Env: []string{"GOMAXPROCS=1"}, SysProcAttr: &unix.SysProcAttr{Setpgid: true}}
	if err := c.Start(); err != nil {
		w.Close()
		return nil, err
	}
	if err := binary.Write(w, binary.NativeEndian, mode); err != nil {
		w.Close()
		return nil, err
	}
	return func() {
		w.Write([]byte{guardDismissed}) //nolint:errcheck // then it restores once more
		w.Close()
		c.Wait() //nolint:errcheck // its status says nothing
	}, nil
}

// RunGuard is the guard's whole life if this process is one, and reports
// whether it was. The command calls it first thing.
func RunGuard() bool {
	if os.Args[0] != guardName {
		return false
	}
	signal.Ignore(unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT, unix.SIGTTOU, unix.SIGTSTP)
	var mode unix.Termios
	if err := binary.Read(os.Stdin, binary.NativeEndian, &mode); err != nil {
		return true
	}
	if rest, err := io.ReadAll(os.Stdin); err != nil || len(rest) > 0 {
		return true
	}
	unix.IoctlSetTermios(1, unix.TCSETSW, &mode) //nolint:errcheck // the terminal may be gone
	if len(os.Args) > 1 {
		io.WriteString(os.Stdout, os.Args[1]) //nolint:errcheck // the same
	}
	return true
}
