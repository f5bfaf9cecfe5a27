package main

import (
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"

	"github.com/gvmspawn/gvmspawn/vmm/guesttest"
)

// bootTime is how long a whole machine may take on the software CPU, on a slow
// or busy host.
const bootTime = 3 * time.Minute

// booted is the shipped program running a stock kernel on the software CPU, or
// inside a testbed on genuine KVM.
type booted struct {
	*exec.Cmd
	t     *testing.T
	stdin io.WriteCloser
	out   output
	errs  output
	ended chan struct{} // closed when the program has ended
}

// guestTree makes a busybox tree with the tests' guest program in it, whose
// init runs script, with a function for checks: "is NAME GOT WANT".
func guestTree(t *testing.T, script string) string {
	t.Helper()
	tree := guesttest.BusyboxTree(t, `
echo 1 >/proc/sys/kernel/sysrq
is() { if [ "$2" = "$3" ]; then echo "CHECK $1 ok"; else echo "CHECK $1 FAIL: got '$2', want '$3'"; fi; }
`+script)
	data, err := os.ReadFile(guesttest.GuestBinary(t))
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(tree, "bin/guest"), data, 0o755)
	return tree
}

func writeFile(t *testing.T, path string, data []byte, mode os.FileMode) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, data, mode); err != nil {
		t.Fatal(err)
	}
}

// newMachine prepares a run. The runtime directory is dir/run.
func newMachine(t *testing.T, dir string, kernel guesttest.Kernel, args ...string) *booted {
	t.Helper()
	m := &booted{t: t, ended: make(chan struct{})}
	kvm := "--kvm=no"
	if guesttest.InTestbed() {
		kvm = "--kvm=yes"
	}
	m.Cmd = exec.Command(guesttest.Binary(t), append([]string{kvm, "--ram=512M", "--register=no", "--tpm=no", "--linux=" + kernel.Path}, args...)...)
	m.Dir = dir
	m.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir, "TERM=vt220", "RUNTIME_DIRECTORY=" + filepath.Join(dir, "run")}
	m.Stdout, m.Stderr = &m.out, &m.errs
	return m
}

// start starts the program with pipes.
func (m *booted) start() {
	m.t.Helper()
	var err error
	if m.stdin, err = m.StdinPipe(); err != nil {
		m.t.Fatal(err)
	}
	if err := m.Start(); err != nil {
		m.t.Fatal(err)
	}
	m.watch()
}

// startPTY starts the program on a terminal of this size.
func (m *booted) startPTY(columns, rows uint16) {
	m.t.Helper()
	m.Stdout, m.Stderr = nil, nil
	tty, err := pty.StartWithSize(m.Cmd, &pty.Winsize{Cols: columns, Rows: rows})
	if err != nil {
		m.t.Skipf("no pseudo terminals here: %v", err)
	}
	m.stdin = tty
	go io.Copy(&m.out, tty) //nolint:errcheck // ends with EIO
	m.t.Cleanup(func() { tty.Close() })
	m.watch()
}

// resize changes the size of the terminal.
func (m *booted) resize(columns, rows uint16) {
	m.t.Helper()
	if err := pty.Setsize(m.stdin.(*os.File), &pty.Winsize{Cols: columns, Rows: rows}); err != nil {
		m.t.Error(err)
	}
}

func (m *booted) watch() {
	go func() {
		m.Wait() //nolint:errcheck // seen in ProcessState
		close(m.ended)
	}()
	m.t.Cleanup(func() {
		m.Process.Kill() //nolint:errcheck // it may have ended
		<-m.ended
		if m.t.Failed() {
			m.t.Logf("%s\noutput:\n%s\nmessages:\n%s", strings.Join(m.Args[1:], " "), tailOf(m.out.String()), tailOf(m.errs.String()))
		}
	})
}

// dump ends a machine that hangs, after the guest's kernel has listed its
// blocked tasks (SysRq w), and logs where all goroutines were.
func (m *booted) dump() {
	io.WriteString(m.stdin, "\x0f9\x0fw") //nolint:errcheck // it may have ended
	time.Sleep(3 * time.Second)
	before := len(m.errs.String())
	m.Process.Signal(unix.SIGQUIT) //nolint:errcheck // it may have ended
	select {
	case <-m.ended:
	case <-time.After(5 * time.Second):
	}
	m.t.Logf("it hung here:\n%s", m.errs.String()[before:])
}

func tailOf(s string) string {
	const most = 8000
	if len(s) > most {
		return "…" + s[len(s)-most:]
	}
	return s
}

// waitFor waits until the console shows text.
func (m *booted) waitFor(text string) {
	m.t.Helper()
	m.waitCount(text, 1)
}

// waitCount waits until the console has shown text n times.
func (m *booted) waitCount(text string, n int) {
	m.t.Helper()
	for end := time.Now().Add(bootTime); strings.Count(m.out.String(), text) < n; time.Sleep(20 * time.Millisecond) {
		select {
		case <-m.ended:
			time.Sleep(100 * time.Millisecond)
			if strings.Count(m.out.String(), text) < n {
				m.t.Fatalf("the machine ended without %q", text)
			}
		default:
		}
		if time.Now().After(end) {
			m.dump()
			m.t.Fatalf("no %q", text)
		}
	}
}

// status waits for the end and returns the exit status.
func (m *booted) status() int {
	m.t.Helper()
	return m.statusWithin(bootTime)
}

func (m *booted) statusWithin(limit time.Duration) int {
	m.t.Helper()
	select {
	case <-m.ended:
	case <-time.After(limit):
		m.dump()
		m.t.Fatal("the machine does not end")
	}
	time.Sleep(50 * time.Millisecond) // the terminal's last output
	return m.ProcessState.ExitCode()
}

// check fails the test for every check that failed or did not happen.
func (m *booted) check(names ...string) {
	m.t.Helper()
	out := m.out.String()
	for line := range strings.Lines(out) {
		if strings.Contains(line, "CHECK ") && strings.Contains(line, " FAIL") {
			m.t.Error(strings.TrimSpace(line))
		}
	}
	for _, n := range names {
		if !strings.Contains(out, "CHECK "+n+" ok") && !strings.Contains(out, "CHECK "+n+" FAIL") {
			m.t.Errorf("%s was not checked", n)
		}
	}
}

// after returns the rest of the line that begins with prefix.
func (m *booted) after(prefix string) string {
	m.t.Helper()
	for line := range strings.Lines(m.out.String()) {
		if _, rest, ok := strings.Cut(line, prefix); ok {
			return strings.TrimSpace(rest)
		}
	}
	m.t.Errorf("no line %q", prefix)
	return ""
}

// softBoot skips a test that boots machines in short runs, and returns the kernel.
func softBoot(t *testing.T, kernel string) guesttest.Kernel {
	t.Helper()
	if testing.Short() {
		t.Skip("boots whole machines")
	}
	return guesttest.KernelAsset(t, kernel)
}
