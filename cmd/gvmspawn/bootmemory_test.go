package main

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestBootMemory boots a machine of 256 MiB that may have 640: the guest's
// memory grows and shrinks with what "gvmspawn memory" says, above its first size
// by the memory device, below it by the balloon, and the size outlives a reboot.
func TestBootMemory(t *testing.T) {
	kernel := softBoot(t, "kernel-trixie")
	dir := t.TempDir()
	tree := guestTree(t, `
total() { awk '/MemTotal/{print int($2/1024)}' /proc/meminfo; }
free() { awk '/MemFree/{print int($2/1024)}' /proc/meminfo; }
wait() { for i in $(seq 600); do eval "[ $1 ]" && return; sleep 0.1; done; echo "GAVE UP on $1: total $(total), free $(free)"; }
first=$(total)
if [ -e /again ]; then
	wait '$(total) -gt 400'; is reboot $(( $(total) > 400 )) 1
	poweroff -f
fi
echo MEMORY boot
wait '$(total) -ge $((first+380))'; is grown $(( $(total) - first )) 384
mount -t tmpfs tmpfs /tmp
dd if=/dev/urandom of=/tmp/x bs=1M count=300 2>/dev/null && cp /tmp/x /tmp/y 2>/dev/null
sum=$(md5sum </tmp/x); rm -f /tmp/y
is used "$sum" "$(md5sum </tmp/x)"
echo MEMORY used; sleep 2
echo 3 >/proc/sys/vm/drop_caches; rm /tmp/x
echo MEMORY grown
wait '$(total) -le $((first+128))'; is shrunk $(( $(total) - first )) 128
echo MEMORY shrunk
before=$(free)
wait '$(free) -lt $((before-150))'; is balloon $(( before - $(free) > 150 )) 1
echo MEMORY balloon
wait '$(free) -gt $((before-20))'; is deflated $(( before - $(free) < 20 )) 1
touch /again; sync
echo MEMORY again
wait '$(total) -ge $((first+250))'
reboot -f`)
	m := newMachine(t, dir, kernel, "-D", tree, "--ram=256M:640M:2", "-M", "memory", "--vsock=no", "quiet")
	m.start()
	verb := func(args ...string) string {
		t.Helper()
		r := execute(t, dir, append([]string{"memory", "memory"}, args...)...)
		if r.status != 0 {
			t.Errorf("memory %v: status %d, %s", args, r.status, r.stderr)
		}
		return r.stdout
	}
	m.waitFor("MEMORY boot")
	verb("640M")
	m.waitFor("MEMORY used")
	full := resident(t, m) // now, because the guest reports what it frees
	m.waitFor("MEMORY grown")
	if out := verb(); mib(t, out, "current") != 640 || mib(t, out, "guest free") < 256 || mib(t, out, "at boot") != 256 {
		t.Errorf("grown:\n%s", out)
	}
	verb("384M")
	m.waitFor("MEMORY shrunk")
	if out := verb(); mib(t, out, "current") != 384 || mib(t, out, "maximum") != 640 {
		t.Errorf("shrunk:\n%s", out)
	}
	if now := resident(t, m); now > full-100 {
		t.Errorf("the program has %d MiB in memory after the guest gave up 256 MiB, had %d", now, full)
	}
	verb("96M")
	m.waitFor("MEMORY balloon")
	verb("384M")
	m.waitFor("MEMORY again")
	verb("512M")
	if r := execute(t, dir, "memory", "memory", "641M"); r.status != 1 || !strings.Contains(r.stderr, "641 MiB are more than the 640 MiB that --ram= allows") {
		t.Errorf("too much: %d %s", r.status, r.stderr)
	}
	if s := m.status(); s != 0 {
		t.Errorf("status %d", s)
	}
	m.check("grown", "used", "shrunk", "balloon", "deflated", "reboot")
}

// mib is a row of "gvmspawn memory NAME".
func mib(t *testing.T, out, row string) int {
	t.Helper()
	match := regexp.MustCompile(regexp.QuoteMeta(row) + `: (\d+) MiB`).FindStringSubmatch(out)
	if match == nil {
		t.Errorf("no row %q in\n%s", row, out)
		return 0
	}
	n, _ := strconv.Atoi(match[1])
	return n
}

// resident is how much of the program is in memory, in MiB, without what it
// shares with others. It settles for a moment.
func resident(t *testing.T, m *booted) int {
	t.Helper()
	time.Sleep(200 * time.Millisecond)
	raw, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(m.Process.Pid), "statm"))
	var size, pages, shared int
	if err == nil {
		_, err = fmt.Sscan(string(raw), &size, &pages, &shared)
	}
	if err != nil {
		t.Fatal(err)
	}
	return (pages - shared) * os.Getpagesize() >> 20
}
