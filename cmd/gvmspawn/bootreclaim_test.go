package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

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
is packets "$(awk '/^Icmp: [0-9]/{print $3, $4}' /proc/net/snmp)" "0 0" # InErrors, InCsumErrors
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
	m.check("features", "packets", "content", "kept")
	t.Logf("%d MiB reclaimed in all", n)
}

// TestBootReclaimOnKVM is TestBootReclaim on genuine KVM, while the host's kernel serves the guest's
// network (vhost). A host with Linux 6.1 refuses in one sentence.
func TestBootReclaimOnKVM(t *testing.T) {
	if os.Getenv("GVMSPAWN_LONG") == "" {
		t.Skip("boots machines in the testbed: set GVMSPAWN_LONG=1")
	}
	kernel := guesttest.KernelAsset(t, "kernel-trixie")
	tree := guestTree(t, `ip link set eth0 up; ip addr add 10.9.0.2/24 dev eth0
`+reclaimScript)
	for _, bed := range []string{"kernel-trixie", "kernel-bookworm"} {
		t.Run(bed, func(t *testing.T) {
			script := fmt.Sprintf(reclaimOnKVM, filepath.Base(kernel.Path))
			checks := []string{"refused"}
			if bed == "kernel-trixie" {
				script += "boot init_on_alloc=0\nboot init_on_alloc=1\n"
				checks = []string{"init_on_alloc=0: reclaimed", "init_on_alloc=0: again", "init_on_alloc=0: pings", "init_on_alloc=0: end", "init_on_alloc=1: reclaimed", "init_on_alloc=1: again", "init_on_alloc=1: pings", "init_on_alloc=1: end"}
			} else {
				script += "refuse\n"
			}
			res := guesttest.Testbed{
				Files: map[string]string{
					"bin/gvmspawn": guesttest.Binary(t), "tree": tree, "k/boot/" + filepath.Base(kernel.Path): kernel.Path,
					"k/lib/modules/" + kernel.Version: filepath.Join(kernel.Dir, "lib/modules", kernel.Version),
				},
				// The host's modules are the guest's where the kernel is the same.
				Modules: []string{"virtiofs", "virtio_pci", "virtio_console", "vmw_vsock_virtio_transport", "virtio_rng", "virtio_net", "virtio_balloon", "vhost_vsock", "vhost_net", "tun"},
				Kernel:  bed, Memory: 3072, Timeout: 15 * time.Minute, Script: script,
			}.Run(t)
			for _, c := range checks {
				if !strings.Contains(res.Output, "CHECK "+c+" ok") {
					t.Errorf("no check %s", c)
				}
			}
			if strings.Contains(res.Output, " FAIL") {
				t.Error("a check failed")
			}
			t.Log(res.Output)
		})
	}
}

// reclaimOnKVM is what happens in the testbed.
const reclaimOnKVM = `
is() { if [ "$2" = "$3" ]; then echo "CHECK $1 ok"; else echo "CHECK $1 FAIL: got '$2', want '$3'"; fi; }
until_() { until grep -q "$1" $out; do kill -0 $box 2>/dev/null || { echo "no $1"; cat $out; exit 1; }; sleep 0.2; done; }
rss() { awk '/RssAnon/{n=int($2/1024)} END{print n}' /proc/$vmm/status; }
start() {
	out=/tmp/$1; rm -f /tree/done
	GVMSPAWN_BALLOON=hinting gvmspawn -q --kvm=yes -D /tree --linux=/k/boot/%s --ram=256M --cpus=2 --tpm=no --register=no --network-tap -M box quiet $1 >$out 2>&1 </dev/null &
	box=$!
	until ip link set vt-box up 2>/dev/null; do kill -0 $box || { cat $out; exit 1; }; sleep 0.1; done
	ip addr add 10.9.0.1/24 dev vt-box
	until_ "RECLAIM free"
	vmm=$(gvmspawn list | awk '$1=="box"{print $3}')
}
refuse() {
	start refuse
	gvmspawn reclaim-memory box 2>/tmp/err; is refused "$? $(grep -c 'cannot record writes.*Linux 6.7' /tmp/err)" "1 1"
	gvmspawn stop -f box; wait
}
boot() {
	start $1
	ping -i 0.05 -s 1400 10.9.0.2 >/tmp/pings & ping=$!
	before=$(rss); n=$(gvmspawn reclaim-memory box); n=${n%%%% MiB}; after=$(rss)
	echo "$1: $before MiB in memory, ${n:=0} went, $after left"
	is "$1: reclaimed" $(( n > 60 && after < before - 50 )) 1
	until_ "RECLAIM busy"
	bad=0; for i in 1 2 3 4 5 6; do gvmspawn reclaim-memory box >/dev/null || bad=1; done
	is "$1: again" $bad 0
	kill -INT $ping; sleep 1; tail -n 2 /tmp/pings
	is "$1: pings" $(( $(grep -c 'bytes from' /tmp/pings) > 20 )) 1
	touch /tree/done; wait $box; is "$1: end" "$? $(grep -c 'CHECK.* ok' $out) $(grep -c FAIL $out)" "0 4 0"
	grep CHECK $out
}
`
