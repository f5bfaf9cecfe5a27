package main

import (
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/gvmspawn/gvmspawn/vmm/guesttest"
)

// nestedJob runs in a guest that is a systemd host.
const nestedJob = `#!/bin/bash
exec >/dev/console 2>&1
/n/busybox insmod /n/tun.ko
until [ -e /dev/net/tun ]; do sleep 1; done
useradd -m -u 4711 tester
cp -r /n/kernel /n/tree /n/gvmspawn /home/tester; chown -R tester /home/tester
systemctl start systemd-nsresourced.socket systemd-networkd
cd /home/tester
runuser -u tester -- ./gvmspawn -D tree --linux=kernel --initrd=kernel --ram=64M --console-transport=serial --console=read-only -n --kvm=no --register=no --tpm=no </dev/null >out 2>err &
echo STARTED
for _ in $(seq 100); do grep -q "tiny guest" out && break; sleep 2; done
cat out err
ip -brief link
ip -brief link | grep "^ns-.*UP" && echo INTERFACE THERE
pkill -KILL -x gvmspawn
for _ in $(seq 20); do ip -brief link | grep -q ^ns- || break; sleep 1; done
ip -brief link | grep -q ^ns- || echo INTERFACE GONE
systemctl poweroff
`

// TestLongUnprivilegedTAP: a user's machine gets its TAP device from
// systemd-nsresourced, which needs a kernel with BPF LSM: Debian's, in a guest
// that is the host.
func TestLongUnprivilegedTAP(t *testing.T) {
	onLongHost(t)
	host, kernel := guesttest.Asset(t, "host-vmspawn"), guesttest.KernelAsset(t, "kernel-trixie")
	dir := t.TempDir()
	n := filepath.Join(dir, "n")
	writeFile(t, filepath.Join(n, "job"), []byte(nestedJob), 0o755)
	tinyCommand(t, n)
	copyFile(t, guesttest.Binary(t), filepath.Join(n, "gvmspawn"))
	copyFile(t, guesttest.Busybox(t), filepath.Join(n, "busybox"))
	modules := filepath.Join(kernel.Dir, "usr/lib/modules")
	out, err := exec.Command("sh", "-c", `xz -dc "$1"/*/kernel/drivers/net/tun.ko.xz >"$2"`, "sh", modules, filepath.Join(n, "tun.ko")).CombinedOutput()
	if err != nil {
		t.Fatalf("%v %s", err, out)
	}
	m := newMachine(t, dir, kernel, "-D", host, "-x", "--ram=1G", "--cpus=2", "--console=read-only", "--tpm=no", "--bind="+n+":/n", "--bind-ro="+modules+":/usr/lib/modules",
		`--set-credential=systemd.extra-unit.job.service:[Unit]\nAfter=multi-user.target\n[Service]\nType=oneshot\nExecStart=/n/job\n`,
		`--set-credential=systemd.unit-dropin.multi-user.target:[Unit]\nWants=job.service\n`, "quiet", "lsm=landlock,lockdown,yama,integrity,apparmor,bpf")
	m.start()
	for _, text := range []string{"STARTED", "INTERFACE THERE", "INTERFACE GONE"} {
		m.waitFor(text)
	}
	if st := m.status(); st != 0 {
		t.Errorf("status %d", st)
	}
}
