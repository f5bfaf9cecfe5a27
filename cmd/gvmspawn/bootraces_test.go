package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gvmspawn/gvmspawn/vmm/guesttest"
)

// TestBootRacesOnKVM boots machines with four CPUs on genuine KVM with two, in real time,
// where CPUs and devices truly run at once: the race detector finds nothing.
func TestBootRacesOnKVM(t *testing.T) {
	if os.Getenv("GVMSPAWN_LONG") == "" {
		t.Skip("boots machines in the testbed: set GVMSPAWN_LONG=1")
	}
	kernel := guesttest.KernelAsset(t, "kernel-bookworm")
	builtin := filepath.Join("lib/modules", kernel.Version, "modules.builtin")
	tree := guestTree(t, `
is cpus "$(nproc)" 4
for i in 1 2 3 4; do (dd if=/dev/urandom of=/tmp/$i bs=64k count=16; dd if=/tmp/$i of=/dev/vda bs=64k seek=$((16*i)) conv=fsync; dd if=/dev/hwrng of=/dev/null bs=64 count=4) 2>/dev/null & done
ip link set eth0 up; ip addr add 10.0.2.15/24 dev eth0; ping -c 2 -W 20 10.0.2.2 >/dev/null; is ping $? 0
wait
echo 3 >/proc/sys/vm/drop_caches
is disk "$(dd if=/dev/vda bs=1M skip=1 count=4 2>/dev/null | md5sum)" "$(cat /tmp/1 /tmp/2 /tmp/3 /tmp/4 | md5sum)"
if [ ! -e /rebooted ]; then touch /rebooted; sync; reboot -f; fi
rm /rebooted; guest notify EXIT_STATUS=42; poweroff -f`)
	res := guesttest.Testbed{
		SMP: true, Memory: 3072, Timeout: 20 * time.Minute,
		Files: map[string]string{
			"bin/gvmspawn": guesttest.RaceBinary(t), "vmlinuz": kernel.Path, "tree": tree, builtin: filepath.Join(kernel.Dir, builtin),
		},
		Modules: []string{"virtiofs", "virtio_pci", "virtio_console", "vmw_vsock_virtio_transport", "virtio_rng", "virtio_net", "virtio_blk"},
		Script: `
truncate -s 8M /disk
for i in 1 2 3; do
	timeout -s KILL 300 gvmspawn -q --kvm=yes -D /tree --linux=/vmlinuz --ram=256M --cpus=4 --network-user-mode --extra-drive=virtio-blk:/disk quiet >/tmp/out 2>&1 </dev/null
	echo "RUN $i STATUS $?"
	cat /tmp/out
done`,
	}.Run(t)
	if n := strings.Count(res.Output, "STATUS 42"); n != 3 || strings.Contains(res.Output, "DATA RACE") || strings.Contains(res.Output, " FAIL") {
		t.Errorf("%d of 3 runs ended well", n)
	}
	for _, check := range []string{"cpus", "ping", "disk"} {
		if n := strings.Count(res.Output, "CHECK "+check+" ok"); n != 6 {
			t.Errorf("%s: %d of 6", check, n)
		}
	}
	t.Log(res.Output)
}
