package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gvmspawn/gvmspawn/vmm/guesttest"
)

// proofUnit and proofScript are a service that waits until the tree has booted,
// says in what state it is, and ends the machine as its command line asks.
const (
	proofUnit = `[Unit]
Description=Tell the test how the boot went
[Service]
Type=exec
ExecStart=/bin/sh /proof
StandardOutput=tty
TTYPath=/dev/console
`
	proofScript = `
echo "PROOF state $(systemctl is-system-running --wait)"
echo "PROOF failed '$(systemctl --failed --no-legend --plain)'"
echo "PROOF cpus $(nproc)"
echo "PROOF $(systemd-analyze time | head -n 1)"
case "$(cat /proc/cmdline)" in *proof=exit*) systemctl exit 42 ;; *) systemctl poweroff ;; esac
`
)

// proofTree is the Debian tree with the service and the kernels' modules in it,
// as an ext4 image.
func proofTree(t *testing.T, kernels ...guesttest.Kernel) string {
	t.Helper()
	mke2fs, tree, image := guesttest.Tool(t, "mke2fs"), filepath.Join(t.TempDir(), "tree"), filepath.Join(t.TempDir(), "tree.img")
	if err := guesttest.CopyTree(guesttest.Asset(t, "tree-trixie"), tree); err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(tree, "proof"), []byte(proofScript), 0o755)
	writeFile(t, filepath.Join(tree, "etc/systemd/system/proof.service"), []byte(proofUnit), 0o644)
	if err := os.Symlink("../proof.service", filepath.Join(tree, "etc/systemd/system/multi-user.target.wants/proof.service")); err != nil {
		t.Fatal(err)
	}
	toolOutput(t, "mkdir", "-p", filepath.Join(tree, "usr/lib/modules"))
	for _, k := range kernels {
		toolOutput(t, "cp", "-a", filepath.Join(k.Dir, "lib/modules", k.Version), filepath.Join(tree, "usr/lib/modules"))
	}
	toolOutput(t, mke2fs, "-q", "-t", "ext4", "-d", tree, image, "1G")
	return image
}

// TestBootTreeOnKVM boots the Debian tree from a directory on genuine KVM: every
// unit runs, the service manager hears READY=1, and the guest's end is the
// program's status. Each takes two minutes of processor time.
func TestBootTreeOnKVM(t *testing.T) {
	if os.Getenv("GVMSPAWN_LONG") == "" {
		t.Skip("boots a Debian tree in the testbed, for a quarter of an hour: set GVMSPAWN_LONG=1")
	}
	image := proofTree(t, guesttest.KernelAsset(t, "kernel-bookworm"), guesttest.KernelAsset(t, "kernel-trixie"))
	for _, c := range []struct {
		kernel string
		cpus   int
		end    string
		status int
	}{
		{"kernel-bookworm", 1, "exit", 42},
		{"kernel-trixie", 1, "poweroff", 0},
		{"kernel-bookworm", 4, "poweroff", 0},
		{"kernel-trixie", 4, "exit", 42},
	} {
		t.Run(fmt.Sprintf("%s, %d CPUs, %s", c.kernel, c.cpus, c.end), func(t *testing.T) {
			kernel := guesttest.KernelAsset(t, c.kernel)
			res := guesttest.Testbed{
				Files:   map[string]string{"bin/gvmspawn": guesttest.Binary(t), "bin/guest": guesttest.GuestBinary(t), "vmlinuz": kernel.Path},
				Disks:   []string{image},
				Memory:  3072,
				Timeout: 20 * time.Minute,
				Script: fmt.Sprintf(`
mkdir /t && mount -t ext4 /dev/vda /t || exit 99
guest listen /run/notify &
while [ ! -S /run/notify ]; do sleep 0.1; done
{ NOTIFY_SOCKET=/run/notify timeout -s KILL 300 gvmspawn -q --kvm=yes -D /t --linux=/vmlinuz --ram=1G --cpus=%d --console=read-only proof=%s 2>&1; echo $? >/status; } | tee /tmp/out
status=$(cat /status)
left=$(find /run /tmp ! -type d | sort | tr '\n' ' ')
[ $status = %d ] && grep -q "PROOF state running" /tmp/out && grep -q "PROOF failed ''" /tmp/out && grep -q "PROOF cpus %d" /tmp/out && echo "VERDICT PASS, left $left" || echo "VERDICT FAIL, status $status"
`, c.cpus, c.end, c.status, c.cpus),
			}.Run(t)
			for _, want := range []string{"VERDICT PASS, left /run/notify /tmp/out", "NOTIFIED READY=1"} {
				if !strings.Contains(res.Output, want) {
					t.Errorf("no %q", want)
				}
			}
			t.Log(res.Output)
		})
	}
}

// TestBootDebianDisksOnKVM boots the tree from ext4 on a raw and on a qcow2 image on
// genuine KVM; the images are whole afterwards.
func TestBootDebianDisksOnKVM(t *testing.T) {
	if os.Getenv("GVMSPAWN_LONG") == "" {
		t.Skip("boots a Debian tree in the testbed, for a quarter of an hour: set GVMSPAWN_LONG=1")
	}
	kernel := guesttest.KernelAsset(t, "kernel-trixie")
	raw, dir, disk := proofTree(t, kernel), t.TempDir(), filepath.Join(t.TempDir(), "disk.img")
	qcow2 := filepath.Join(dir, "debian.qcow2")
	toolOutput(t, guesttest.Tool(t, "qemu-img"), "convert", "-f", "raw", "-O", "qcow2", raw, qcow2)
	toolOutput(t, guesttest.Tool(t, "mke2fs"), "-q", "-t", "ext4", "-d", dir, disk, "1G")
	bed := guesttest.Testbed{
		Files: map[string]string{
			"bin/gvmspawn": guesttest.Binary(t), "k/boot/" + filepath.Base(kernel.Path): kernel.Path,
			"k/lib/modules/" + kernel.Version: filepath.Join(kernel.Dir, "lib/modules", kernel.Version),
		},
		Disks:   []string{raw, disk},
		Memory:  3072,
		Timeout: 40 * time.Minute,
		Script:  "mkdir /d && mount -t ext4 /dev/vdb /d || exit 99\n",
	}
	guesttest.CarryProgram(t, bed.Files, "qemu-img")
	guesttest.CarryProgram(t, bed.Files, "e2fsck")
	for name, args := range map[string]string{"raw": "-i /dev/vda", "qcow2": "-i /d/debian.qcow2 --image-format=qcow2"} {
		bed.Script += fmt.Sprintf(`
timeout -s KILL 300 gvmspawn -q --kvm=yes --vsock=no --tpm=no --register=no %s --linux=/k/boot/%s --ram=1G --console=read-only root=/dev/vda rw proof=poweroff >/tmp/out 2>&1 </dev/null
status=$?
cat /tmp/out
[ $status = 0 ] && grep -q "PROOF state running" /tmp/out && grep -q "PROOF failed ''" /tmp/out && echo "VERDICT %s PASS" || echo "VERDICT %s FAIL, status $status"
`, args, filepath.Base(kernel.Path), name, name)
	}
	bed.Script += `
qemu-img check -f qcow2 /d/debian.qcow2 && echo "VERDICT check PASS"
e2fsck -f -n /dev/vda && echo "VERDICT fsck PASS"`
	res := bed.Run(t)
	for _, what := range []string{"raw", "qcow2", "check", "fsck"} {
		if !strings.Contains(res.Output, "VERDICT "+what+" PASS") {
			t.Errorf("%s failed", what)
		}
	}
	t.Log(res.Output)
}
