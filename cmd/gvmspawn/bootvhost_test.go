package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gvmspawn/gvmspawn/vmm/guesttest"
)

// TestBootVHost boots a machine on genuine KVM on a host with vhost-vsock and vhost-net:
// programs of the host reach the guest by AF_VSOCK and the guest them, a context ID
// that is taken is an error, packets of a TAP device do not pass through the program, and
// the guest knows the MTU that the host gave the device after its start.
func TestBootVHost(t *testing.T) {
	if testing.Short() {
		t.Skip("boots machines in the testbed")
	}
	kernel := guesttest.KernelAsset(t, "kernel-bookworm")
	builtin := filepath.Join("lib/modules", kernel.Version, "modules.builtin")
	tree := guesttest.BusyboxTree(t, `
guest notify READY=1 STATUS=hello
ip link set eth0 up; ip addr add 10.9.0.2/24 dev eth0
mtu=$(cat /sys/class/net/eth0/mtu); [ $mtu = 4000 ] && echo "CHECK mtu ok" || echo "CHECK mtu FAIL: $mtu"
echo "QUEUES $(ls -d /sys/class/net/eth0/queues/rx-* | wc -l)"
guest echo 1234
guest echo 1234
poweroff -f`)
	data, err := os.ReadFile(guesttest.GuestBinary(t))
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(tree, "bin/guest"), data, 0o755)
	res := guesttest.Testbed{
		Files: map[string]string{
			"bin/gvmspawn": guesttest.Binary(t), "bin/guest": guesttest.GuestBinary(t), "vmlinuz": kernel.Path, "tree": tree,
			builtin: filepath.Join(kernel.Dir, builtin),
		},
		Modules: []string{"virtiofs", "virtio_pci", "virtio_console", "vmw_vsock_virtio_transport", "virtio_rng", "virtio_net", "vhost_vsock", "vhost_net", "tun"},
		Timeout: 5 * time.Minute,
		Script: `
is() { if [ "$2" = "$3" ]; then echo "CHECK $1 ok"; else echo "CHECK $1 FAIL: got '$2', want '$3'"; fi; }
until_() { while ! grep -q "$1" /tmp/out; do kill -0 $box 2>/dev/null || { echo "no $1"; cat /tmp/out; exit 1; }; sleep 0.2; done; }
machine="timeout -s KILL 280 gvmspawn -q --kvm=yes -D /tree --linux=/vmlinuz --ram=256M --network-tap"
$machine --cpus=2 -M box quiet >/tmp/out 2>&1 </dev/null &
box=$!
until ip link set vt-box mtu 4000 2>/dev/null; do kill -0 $box || exit 1; sleep 0.05; done
until_ QUEUES
ip link set vt-box up; ip addr add 10.9.0.1/24 dev vt-box
until_ "ECHO ready"
cid=$(gvmspawn list | awk '$1=="box"{print $4}')
is status "$(gvmspawn status box | awk '$1=="guest:"{print $2}')" hello
is threads "$(( $(ps | grep -c '[[]vhost-') >= 3 ))" 1
ping -c 3 -i 0.2 -W 5 10.9.0.2 >/dev/null; is ping $? 0
ping -c 1 -W 5 -s 3900 10.9.0.2 >/dev/null; is frames $? 0
guest dial $cid 1234 20
while [ "$(grep -c 'ECHO ready' /tmp/out)" != 2 ]; do kill -0 $box || exit 1; sleep 0.2; done
is mux "$(echo through the mux socket | timeout 10 gvmspawn connect box 1234)" "through the mux socket"
$machine --vsock-cid=$cid -M other quiet >/tmp/taken 2>&1 </dev/null; is taken "$? $(grep -c "the context ID $cid is in use" /tmp/taken)" "1 1"
printf quit | timeout 10 gvmspawn connect box 1234
wait
grep -h -E 'QUEUES|CHECK|rror' /tmp/out
is queues "$(grep -c 'QUEUES 2' /tmp/out)" 1
is left "$(ls -A /run/systemd/vmspawn 2>/dev/null | wc -l)" 0
cat /tmp/out /tmp/taken | tail -n 20
`,
	}.Run(t)
	for _, name := range []string{"status", "threads", "ping", "mtu", "frames", "dial", "mux", "taken", "queues", "notify", "echo", "left"} {
		if !strings.Contains(res.Output, "CHECK "+name+" ok") {
			t.Errorf("%s failed", name)
		}
	}
	if t.Failed() {
		t.Logf("output:\n%s", res.Output)
	}
}
