package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestBootReboots boots the bookworm kernel four times in one process: a reboot
// leaves no descriptor, thread or memory behind. The last guest's panic is
// status 1 with the panic's own words, and no file stays.
func TestBootReboots(t *testing.T) {
	kernel := softBoot(t, "kernel-bookworm")
	dir := t.TempDir()
	tree := guestTree(t, `
n=$(cat /count 2>/dev/null || echo 0); n=$((n+1)); echo $n >/count; sync
echo "BOOT $n"; read go
[ $n -lt 4 ] && reboot -f
echo c >/proc/sysrq-trigger`)
	m := newMachine(t, dir, kernel, "-D", tree, "--ram=256M", "-q", "quiet")
	m.start()
	var first use
	for n := 1; n <= 4; n++ {
		m.waitFor(fmt.Sprintf("BOOT %d", n))
		time.Sleep(300 * time.Millisecond) // the guest becomes idle
		u := useOf(t, m.Process.Pid)
		t.Logf("boot %d: %+v", n, u)
		switch {
		case n == 2:
			first = u
		case n > 2 && (u.fds > first.fds || u.threads > first.threads+4 || u.rss > first.rss+32<<10):
			t.Errorf("boot %d uses %+v, boot 2 used %+v", n, u, first)
		}
		if _, err := fmt.Fprintln(m.stdin, "go"); err != nil {
			t.Fatal(err)
		}
	}
	if s := m.status(); s != 1 {
		t.Errorf("status %d after a panic", s)
	}
	if !strings.Contains(m.errs.String(), "panic") {
		t.Errorf("the message does not tell of the panic: %s", tailOf(m.errs.String()))
	}
	left, err := os.ReadDir(filepath.Join(dir, "run"))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// TestBootHostile treats the machine as badly as a guest can (rows 1 to 9, 11,
// 15 and 26 of the list of what a hostile guest may do): it must live on, and
// say little about it.
func TestBootHostile(t *testing.T) {
	kernel := softBoot(t, "kernel-bookworm")
	dir := t.TempDir()
	tree := guestTree(t, `
guest pci 0x1044 0x1045
guest ports
echo; is alive "$(cat /proc/1/comm)" init
ip link set lo up; ping -c 1 127.0.0.1 >/dev/null; is clock $? 0
poweroff -f`)
	m := newMachine(t, dir, kernel, "-D", tree, "--ram=256M", "-q", "quiet")
	m.start()
	if s := m.status(); s != 0 {
		t.Errorf("status %d", s)
	}
	m.check("ports", "pci", "alive", "clock")
	if n := len(m.errs.String()); n > 16<<10 {
		t.Errorf("the guest made us say %d bytes", n)
	}
}

// use is what a process uses; rss is in KiB.
type use struct{ fds, threads, rss int }

func useOf(t *testing.T, pid int) use {
	t.Helper()
	proc := fmt.Sprintf("/proc/%d", pid)
	fds, err := os.ReadDir(filepath.Join(proc, "fd"))
	if err != nil {
		t.Fatal(err)
	}
	status, err := os.ReadFile(filepath.Join(proc, "status"))
	if err != nil {
		t.Fatal(err)
	}
	u := use{fds: len(fds)}
	for line := range strings.Lines(string(status)) {
		fmt.Sscanf(line, "Threads: %d", &u.threads) //nolint:errcheck // other lines
		fmt.Sscanf(line, "VmRSS: %d", &u.rss)       //nolint:errcheck // other lines
	}
	return u
}

// TestBootStress has many writers at once in a directory, on two CPUs, through
// requests, and compares what guest and host see.
func TestBootStress(t *testing.T) {
	stressed(t, "0")
}

// TestBootStressDAX is the same through the DAX window.
func TestBootStressDAX(t *testing.T) {
	stressed(t, "1", "--dax=64M")
}

func stressed(t *testing.T, dax string, args ...string) {
	kernel := softBoot(t, "kernel-trixie")
	if os.Geteuid() != 0 {
		t.Skip("owners and devices need root")
	}
	dir := t.TempDir()
	tree := guestTree(t, `
is dax "$(grep -c 'virtiofs.*dax=always' /proc/mounts)" `+dax+`
mkdir /stress /files /plain
guest stress /stress; sync
mount -t virtiofs mnt0 /plain; guest stress /plain; sync
guest files /files; sync
poweroff -f`)
	if err := os.Mkdir(filepath.Join(dir, "plain"), 0o755); err != nil {
		t.Fatal(err)
	}
	args = append(args, "-D", tree, "--cpus=2", "--vsock=no", "--bind="+filepath.Join(dir, "plain"), "quiet")
	m := newMachine(t, dir, kernel, args...)
	m.start()
	if s := m.status(); s != 0 {
		t.Errorf("status %d", s)
	}
	m.check(append(fileChecks, "dax", "stress")...)
	sameTree(t, m, filepath.Join(tree, "stress"))
	hostSees(t, filepath.Join(tree, "files"))
}

// TestBootKilled kills the machine twenty times while it starts; the next run
// finds nothing in its way and leaves nothing behind.
func TestBootKilled(t *testing.T) {
	if testing.Short() {
		t.Skip("starts many machines")
	}
	dir := t.TempDir()
	for i := range 20 {
		l := tinyCommand(t, dir, "-q")
		l.start()
		time.Sleep(time.Duration(i*10) * time.Millisecond)
		l.Process.Kill() //nolint:errcheck // the next line waits for the end
		l.Wait()         //nolint:errcheck // killed
	}
	l := startTiny(t, dir, "-q")
	l.say("q")
	if s := l.status(); s != 0 {
		t.Errorf("status %d: %s", s, l.errs.String())
	}
	var left []string
	err := filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if name, _ := filepath.Rel(dir, path); !e.IsDir() && name != "kernel" {
			left = append(left, name)
		}
		return err
	})
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	if kids := children(t, os.Getpid()); len(kids) > 0 {
		t.Errorf("processes left behind: %v", kids)
	}
}

// children are the processes that a process started.
func children(t *testing.T, pid int) []string {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	var kids []string
	for _, f := range files {
		b, _ := os.ReadFile(f)
		_, after, _ := strings.Cut(string(b), ") ")
		if fields := strings.Fields(after); len(fields) > 1 && fields[1] == fmt.Sprint(pid) {
			kids = append(kids, string(b))
		}
	}
	return kids
}
