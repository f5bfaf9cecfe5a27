package main

import (
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/gvmspawn/gvmspawn/vmm/guesttest"
)

// reclaimScript fills memory and frees it. While the host reclaims it, the guest goes on
// writing memory and its page cache, and checks what it wrote.
const reclaimScript = `
for d in /sys/bus/virtio/devices/*; do [ "$(cat $d/device)" = 0x0005 ] && is features "$(cut -c 4-6 $d/features)" 100; done
mount -t tmpfs tmpfs /tmp
dd if=/dev/urandom of=/tmp/keep bs=1M count=8 2>/dev/null; sum=$(md5sum </tmp/keep); part=$(head -c 2097152 /tmp/keep | md5sum)
dd if=/dev/urandom of=/tmp/big bs=1M count=$(awk '/MemTotal/{print int($2/1024*2/5)}' /proc/meminfo) 2>/dev/null
echo RECLAIM full
rm /tmp/big; echo 3 >/proc/sys/vm/drop_caches; echo 1 >/proc/sys/vm/compact_memory; sleep 3
echo RECLAIM free
n=0; bad=0
while [ ! -e /done ]; do
	n=$((n+1)); copy=/tmp/copy.$((n%5))
	cp /tmp/keep $copy; [ "$(md5sum <$copy)" = "$sum" ] || bad=$((bad+1))
	[ -e /tmp/copy.$(((n+2)%5)) ] && { [ "$(md5sum </tmp/copy.$(((n+2)%5)))" = "$sum" ] || bad=$((bad+1)); rm /tmp/copy.$(((n+2)%5)); }
	head -c 2097152 /tmp/keep >/file; [ $((n%3)) = 0 ] && { sync; echo 3 >/proc/sys/vm/drop_caches; }
	[ "$(md5sum </file)" = "$part" ] || bad=$((bad+1))
	[ $n = 3 ] && echo RECLAIM busy
done
is content $bad 0
is kept "$(md5sum </tmp/keep)" "$sum"
poweroff -f`

// TestBootReclaim: a guest without free page reporting, as Linux is before 5.7, keeps what it
// has freed until "gvmspawn reclaim-memory"; nothing that it writes meanwhile is lost (virtio 1.2
// §5.5.6.5.2). With init_on_alloc=1 the guest itself writes zeros to all that it says to be free.
func TestBootReclaim(t *testing.T) {
	kernel := softBoot(t, "kernel-trixie")
	for _, arg := range []string{"init_on_alloc=0", "init_on_alloc=1"} {
		t.Run(arg, func(t *testing.T) { reclaimed(t, kernel, arg) })
	}
}

// reclaimed is TestBootReclaim for a kernel with an argument.
func reclaimed(t *testing.T, kernel guesttest.Kernel, arg string) {
	dir := t.TempDir()
	tree := guestTree(t, reclaimScript)
	m := newMachine(t, dir, kernel, "-D", tree, "--ram=384M", "--cpus=2", "-M", "reclaim", "--vsock=no", arg, "quiet")
	m.Env = append(m.Env, "GVMSPAWN_BALLOON=hinting")
	m.start()
	reclaim := func() int {
		t.Helper()
		r := execute(t, dir, "reclaim-memory", "reclaim")
		if strings.Contains(r.stderr, "cannot record writes") {
			t.Skip(r.stderr)
		}
		n, err := strconv.Atoi(strings.TrimSuffix(r.stdout, " MiB\n"))
		if err != nil || r.status != 0 {
			t.Errorf("status %d, output %q, %s", r.status, r.stdout, r.stderr)
		}
		return n
	}
	m.waitFor("RECLAIM full")
	full := resident(t, m)
	m.waitFor("RECLAIM free")
	before := resident(t, m)
	if before < full-30 {
		t.Errorf("%d MiB in memory with all in use, %d MiB with much free: the guest reports what it frees", full, before)
	}
	n := reclaim()
	after := resident(t, m)
	t.Logf("%d MiB in memory, %d reclaimed, %d left", before, n, after)
	if n < 100 || after > before-80 {
		t.Errorf("%d MiB were reclaimed, in memory are %d MiB after %d", n, after, before)
	}
	m.waitFor("RECLAIM busy")
	for range 8 {
		n += reclaim()
	}
	if r := execute(t, dir, "reclaim-memory", "reclaim", "1G"); r.status != 1 || !strings.Contains(r.stderr, "needs the name of a machine") {
		t.Errorf("too much: %d %s", r.status, r.stderr)
	}
	writeFile(t, filepath.Join(tree, "done"), nil, 0o644)
	if s := m.status(); s != 0 {
		t.Errorf("status %d", s)
	}
	m.check("features", "content", "kept")
	t.Logf("%d MiB reclaimed in all", n)
}
