package main

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gvmspawn/gvmspawn/vmm/guesttest"
)

// TestBootDirectoryOnKVM boots stock Debian kernels from a directory on
// genuine kvm_amd. One testbed serves all cases: each case is a line of the
// script that prints its name and verdict.
func TestBootDirectoryOnKVM(t *testing.T) {
	if testing.Short() {
		t.Skip("boots machines in the testbed")
	}
	bookworm := guesttest.KernelAsset(t, "kernel-bookworm")
	trixie := guesttest.KernelAsset(t, "kernel-trixie")
	tree := guesttest.BusyboxTree(t, `
echo "HELLO from $(uname -r) with $(nproc) CPU"
echo "guest wrote this" > /written
chown 7:8 /written
sync
case "$(cat /proc/cmdline)" in
*do=poweroff*) poweroff -f ;;
*do=crash*) echo c > /proc/sysrq-trigger ;;
*do=reboot*) if [ -e /rebooted ]; then rm /rebooted; poweroff -f; fi; touch /rebooted; reboot -f ;;
esac
sleep 1000`)
	res := guesttest.Testbed{
		Files: map[string]string{
			"bin/gvmspawn": guesttest.Binary(t),
			"bookworm":     bookworm.Path,
			"trixie":       trixie.Path,
			"lib/modules/" + trixie.Version + "/modules.builtin": filepath.Join(trixie.Dir, "lib/modules", trixie.Version, "modules.builtin"),
			"tree": tree,
		},
		Modules: []string{"virtiofs", "virtio_pci", "virtio_console", "vmw_vsock_virtio_transport", "virtio_rng"},
		Timeout: 10 * time.Minute,
		Script: `
run() { # NAME WANTED-STATUS WANTED-OUTPUT ARGS...
	name=$1 want=$2 text=$3; shift 3
	timeout 120 gvmspawn -q --kvm=yes --vsock=no -D /tree "$@" >/tmp/out 2>&1 </dev/null
	got=$?
	if [ $got = $want ] && grep -q "$text" /tmp/out; then echo "PASS $name"
	else echo "FAIL $name: status $got, want $want and '$text'"; cat /tmp/out; fi
}
run bookworm 0 "HELLO from 6.1.* with 1 CPU" --linux=/bookworm --ram=256M do=poweroff
run trixie 0 "HELLO from 6.12.* with 1 CPU" --linux=/trixie --ram=256M do=poweroff
run smp 0 "with 4 CPU" --linux=/bookworm --ram=256M --cpus=4 do=poweroff
run reboot 0 "HELLO" --linux=/bookworm --ram=256M do=reboot
run panic 1 "Kernel panic" --linux=/bookworm --ram=256M do=crash
[ "$(cat /tree/written)" = "guest wrote this" ] && [ "$(stat -c %u:%g /tree/written)" = 7:8 ] && echo "PASS file" || echo "FAIL file: $(ls -ln /tree)"
[ -z "$(ls -A /tmp | grep -v ^out$)" ] && echo "PASS clean" || echo "FAIL clean: $(ls -A /tmp)"
`,
	}.Run(t)
	for _, name := range []string{"bookworm", "trixie", "smp", "reboot", "panic", "file", "clean"} {
		if !strings.Contains(res.Output, "PASS "+name) {
			t.Errorf("%s did not pass", name)
		}
	}
	if t.Failed() {
		t.Logf("output:\n%s", res.Output)
	}
}
