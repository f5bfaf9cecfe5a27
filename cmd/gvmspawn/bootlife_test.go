package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gvmspawn/gvmspawn/vmm/guesttest"
)

// lifeScript is the guest of TestBootLife; the kernel's command line says for
// which part.
const lifeScript = `
size() { for i in $(seq 100); do size=$(stty size 2>/dev/null); [ "$size" = "$2" ] && break; sleep 0.1; done; is $1 "$size" "$2"; }
case "$(cat /proc/cmdline)" in
*do=terminal*)
	size size "33 111"; size resize "40 120"
	stty -isig -icrnl -icanon min 3; echo KEYS wait; is keys "$(head -c 3 | hexdump -v -e '1/1 "%02x"')" 03780d
	echo BUTTON wait; is button "$(head -c 24 /dev/input/event0 | hexdump -v -e '1/1 "%02x"' | cut -c 33-40)" 01007400
	guest notify EXIT_STATUS=42 ;;
*do=escape*)
	if [ ! -e /rebooted ]; then touch /rebooted; sync; guest notify EXIT_STATUS=5; reboot -f; fi
	rm /rebooted; echo SECOND boot; sleep 1000 ;;
*do=attach*)
	echo LINE wait; read -r line; echo "GOT $line"
	echo LINE wait; read -r line; echo "GOT $(echo "$line" | tr -d '\035')"
	echo c >/proc/sysrq-trigger ;;
*do=headless*)
	grep -c -E 'hvc|ttyS' /proc/consoles >/consoles
	guest notify EXIT_STATUS=7 ;;
esac
poweroff -f`

// TestBootLife is the command's life with a stock kernel: its terminal, signals,
// keys, reboots, exit status, attached consoles, and its words about a panic.
func TestBootLife(t *testing.T) {
	kernel := softBoot(t, "kernel-bookworm")
	tree := guestTree(t, lifeScript)
	machine := func(t *testing.T, args ...string) *booted {
		return newMachine(t, t.TempDir(), kernel, append([]string{"-D", tree, "--ram=256M"}, args...)...)
	}
	t.Run("terminal", func(t *testing.T) {
		m := machine(t, "quiet", "do=terminal")
		tty := m.startShell(111, 33)
		m.waitFor("CHECK size")
		tty.isRaw()
		m.resize(120, 40)
		m.waitFor("KEYS wait")
		m.say("\x03x\r") // none of them means anything to our terminal
		m.waitFor("BUTTON wait")
		time.Sleep(100 * time.Millisecond) // the guest opens the button
		tty.signal(unix.SIGTERM)
		tty.hasEnded(42)
		m.check("size", "resize", "keys", "button")
	})
	t.Run("escape", func(t *testing.T) {
		m := machine(t, "quiet", "do=escape")
		tty := m.startShell(80, 24)
		m.waitFor("SECOND boot")
		m.say("\x1d\x1d")
		time.Sleep(1200 * time.Millisecond)
		m.say("\x1d")
		time.Sleep(100 * time.Millisecond)
		tty.isRaw()
		m.say("\x1d\x1d")
		tty.hasEnded(0) // and not what the first boot's guest reported
	})
	t.Run("signals", func(t *testing.T) {
		m := machine(t, "quiet", "do=escape")
		tty := m.startShell(80, 24)
		m.waitFor("SECOND boot")
		tty.signal(unix.SIGINT)
		m.waitFor("Received interrupt, powering the machine off; once more kills it.")
		tty.signal(unix.SIGINT)
		m.waitFor("Received interrupt again, killing the machine.")
		tty.hasEnded(0)
	})
	t.Run("attach", func(t *testing.T) {
		m := machine(t, "-q", "-M", "life", "--console=read-only", "quiet", "do=attach")
		m.start()
		m.waitFor("LINE wait")
		m.say("not for the guest\r")
		a := m.console("life")
		tty := a.startShell(80, 24)
		a.waitFor("LINE wait") // which came before
		tty.isRaw()
		a.say("a line\r")
		a.waitFor("GOT a line")
		a.say("\x1d\x1d\x1d")
		tty.hasEnded(0)
		a = m.console("life")
		a.start()
		a.waitFor("GOT a line")
		a.say("another\r")
		a.waitFor("GOT another")
		if s := a.status(); s != 0 {
			t.Errorf("status %d of the attached console", s)
		}
		want := regexp.MustCompile(`^gvmspawn: the guest's kernel panicked: .*Kernel panic - not syncing: sysrq triggered crash\n$`)
		if s := m.status(); s != 1 || !want.MatchString(m.errs.String()) || !strings.Contains(m.out.String(), "GOT another") {
			t.Errorf("status %d, %q", s, m.errs.String())
		}
	})
	t.Run("headless", func(t *testing.T) {
		m := machine(t, "-q", "--console=headless", "quiet", "do=headless")
		m.start()
		if s := m.status(); s != 7 || m.out.String() != "" || m.errs.String() != "Non-zero exit code received: 7\n" {
			t.Errorf("status %d, %q, %q", s, m.out.String(), m.errs.String())
		}
		if b, err := os.ReadFile(filepath.Join(tree, "consoles")); string(b) != "0\n" {
			t.Errorf("consoles: %q, %v", b, err)
		}
	})
}

// say types.
func (m *booted) say(text string) {
	m.t.Helper()
	if _, err := m.stdin.Write([]byte(text)); err != nil {
		m.t.Error(err)
	}
}

// console prepares a "gvmspawn console" of the machine.
func (m *booted) console(name string) *booted {
	a := &booted{t: m.t, ended: make(chan struct{})}
	a.Cmd = exec.Command(m.Path, "console", name)
	a.Dir, a.Env = m.Dir, m.Env
	a.Stdout, a.Stderr = &a.out, &a.errs
	return a
}

// shellTTY is a terminal whose shell runs the program as a command.
type shellTTY struct{ m *booted }

// startShell runs the program as the command of a shell, which owns the terminal and
// says how the command leaves it.
func (m *booted) startShell(columns, rows uint16) shellTTY {
	m.t.Helper()
	m.Args = append([]string{"sh", "-c", `echo "BEFORE $(stty -g)"; "$0" "$@"; echo "STATUS $?"; echo "AFTER $(stty -g)"`, m.Path}, m.Args[1:]...)
	m.Path = guesttest.Tool(m.t, "sh")
	m.startPTY(columns, rows)
	return shellTTY{m}
}

// isRaw checks that the terminal passes every key on.
func (s shellTTY) isRaw() {
	s.m.t.Helper()
	term, err := unix.IoctlGetTermios(int(s.m.stdin.(*os.File).Fd()), unix.TCGETS) // the slave's, by its master
	if err != nil || term.Lflag&(unix.ICANON|unix.ECHO|unix.ISIG) != 0 {
		s.m.t.Errorf("the terminal is not raw: %+v, %v", term, err)
	}
}

// signal sends the program, the shell's only child, a signal.
func (s shellTTY) signal(sig unix.Signal) {
	s.m.t.Helper()
	kids := children(s.m.t, s.m.Process.Pid)
	if len(kids) != 1 {
		s.m.t.Fatalf("the shell's children: %q", kids)
	}
	pid, _, _ := strings.Cut(kids[0], " ")
	n, err := strconv.Atoi(pid)
	if err == nil {
		err = unix.Kill(n, sig)
	}
	if err != nil {
		s.m.t.Fatal(err)
	}
}

// hasEnded waits for the end, and checks the status and that the terminal is as
// before.
func (s shellTTY) hasEnded(status int) {
	s.m.t.Helper()
	s.m.status()
	if got := s.m.after("STATUS "); got != strconv.Itoa(status) {
		s.m.t.Errorf("status %s, want %d", got, status)
	}
	if before, after := s.m.after("BEFORE "), s.m.after("AFTER "); before != after || before == "" {
		s.m.t.Errorf("the terminal was %s and is %s", before, after)
	}
}

// lifeTests are the tests of the command's life, with a guest of some instructions
// and with a stock kernel.
const lifeTests = "^(TestPipes|TestEndOfInput|TestSignals|TestCrash|TestReboot|TestTerminal|TestClosedOutput|TestVerbs|TestSecondOfAName|" +
	"TestServiceManager|TestListenFDs|TestMonitor|TestAttach|TestSilentResets|TestBootLife)$"

// TestBootLifeOnKVM: the same on genuine KVM.
func TestBootLifeOnKVM(t *testing.T) {
	if os.Getenv("GVMSPAWN_LONG") == "" {
		t.Skip("boots machines in the testbed: set GVMSPAWN_LONG=1")
	}
	bed := guesttest.Testbed{
		Files:   map[string]string{"bin/gvmspawn": guesttest.Binary(t), "bin/guest": guesttest.GuestBinary(t)},
		Timeout: 15 * time.Minute,
	}
	guesttest.CarryKernel(t, bed.Files, "kernel-bookworm")
	guesttest.CarryAsset(t, bed.Files, "busybox", "bin/busybox")
	bed.RunTests(t, lifeTests)
}
