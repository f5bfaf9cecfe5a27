package main

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gvmspawn/gvmspawn/vmm/guesttest"
)

// deviceBoot is a machine with devices in the testbed.
type deviceBoot struct {
	name string
	// root is the guest's root disk with this script as its init; without, the
	// script is in the directory that all share.
	root  bool
	qcow2 bool // the root disk's format
	guest string
	// host is what happens on the host; without it, the machine runs to its end
	// with args and must have the status. Its output is in $out then.
	host   string
	after  string
	args   string
	status int
	checks []string
}

// deviceBoots are what the same tests on the software CPU have, each smaller.
var deviceBoots = []deviceBoot{
	{
		name: "nvme", root: true, guest: "mount -t tmpfs tmp /tmp\n" + diskTypesScript,
		args:   "-i /d/nvme.img --image-disk-type=nvme --extra-drive=virtio-blk:/d/blk.raw --extra-drive=raw:virtio-scsi:/d/scsi.raw --extra-drive=scsi-cd:/d/cd.raw --cpus=2 root=/dev/nvme0n1 rw",
		checks: []string{"root", "cd", "cd-write", "size-vda", "data-vda", "discard-vda", "end-vda", "size-sda", "data-sda", "discard-sda", "end-sda"},
	},
	{
		name: "scsi", root: true, guest: "mount -t tmpfs tmp /tmp\n" + diskTypesScript,
		args:   "-i /d/scsi.img --image-disk-type=virtio-scsi --extra-drive=virtio-blk:/d/blk.raw --extra-drive=nvme:qcow2:/d/nvme.qcow2 --extra-drive=scsi-cd:/d/cd.raw root=/dev/sda rw",
		checks: []string{"root", "cd", "size-vda", "data-vda", "size-nvme0n1", "data-nvme0n1", "discard-nvme0n1", "end-nvme0n1"},
	},
	{
		name: "pmem", root: true, guest: `
is root "$(awk '$2=="/"{print $1,$3}' /proc/mounts | tail -n 1)" "/dev/pmem0 ext4"
is dax "$(grep -c ' / ext4 .*dax' /proc/mounts)" 1
dd if=/dev/urandom of=/data bs=1M count=4 2>/dev/null
cp /data /copy; sync
is same "$(md5sum </copy)" "$(md5sum </data)"
is program "$(mkdir /new; cp /bin/busybox /new/busybox; /new/busybox sh -c "echo ran")" ran
mount -o remount,ro /; poweroff -f`,
		args:   "-i /d/pmem.img --image-disk-type=pmem root=/dev/pmem0 rootflags=dax rw",
		checks: []string{"root", "dax", "same", "program"},
	},
	{
		name: "qcow2", root: true, qcow2: true, guest: `
is root "$(awk '$2=="/"{print $1,$3}' /proc/mounts | tail -n 1)" "/dev/vda ext4"
dd if=/dev/urandom of=/data bs=1M count=8 2>/dev/null; sum=$(md5sum </data)
cp /data /copy; rm /data; sync; fstrim / 2>/dev/null; echo 3 >/proc/sys/vm/drop_caches
is same "$(md5sum </copy)" "$sum"
mount -o remount,ro /; poweroff -f`,
		args:   "-i /d/qcow2.img --image-format=qcow2 --cpus=2 root=/dev/vda rw",
		checks: []string{"root", "same"},
	},
	{
		name: "packed", guest: `
is packed "$(cut -c 35 /sys/bus/virtio/devices/virtio0/features)" 1
dd if=/dev/urandom of=/packed bs=64k count=40 2>/dev/null; sync; echo 3 >/proc/sys/vm/drop_caches
dd if=/packed of=/dev/vda bs=64k conv=fsync 2>/dev/null
is data "$(dd if=/dev/vda bs=64k count=40 2>/dev/null | md5sum)" "$(md5sum </packed)"
poweroff -f`,
		args:   "-D /tree --virtio-ring=packed --extra-drive=virtio-blk:/d/blk.raw --cpus=2",
		checks: []string{"packed", "data"},
	},
	{
		name: "hotplug", guest: hotplugScript,
		host: `
start hotplug -M plug -D /tree --extra-drive=virtio-blk:/d/boot0.raw --extra-drive=virtio-scsi:/d/boot1.raw
until_ 2 "CAME boot"
n=0
for driver in virtio-blk nvme virtio-scsi; do
	n=$((n+1))
	gvmspawn attach-disk plug -i hot $driver:/d/hot.raw; is $driver-attach $? 0 >>$out
	until_ $n "CAME a hot disk, written"
	gvmspawn detach-disk plug hot; is $driver-detach $? 0 >>$out
	until_ $n "WENT a hot disk"
	is $driver "$(dd if=/d/hot.raw bs=512 skip=8 count=1 2>/dev/null | grep -c "guest wrote to")" 1 >>$out
done
gvmspawn stop --force plug; wait`,
		checks: []string{"virtio-blk-attach", "virtio-blk-detach", "virtio-blk", "nvme-attach", "nvme-detach", "nvme", "virtio-scsi-attach", "virtio-scsi-detach", "virtio-scsi"},
	},
	{
		name: "memory", guest: `
total() { awk '/MemTotal/{print int($2/1024)}' /proc/meminfo; }
free() { awk '/MemFree/{print int($2/1024)}' /proc/meminfo; }
wait() { for i in $(seq 300); do eval "[ $1 ]" && return; sleep 0.1; done; echo "GAVE UP on $1: total $(total), free $(free)"; }
first=$(total)
echo MEMORY boot
wait '$(total) -ge $((first+380))'; is grown $(( $(total) - first )) 384
mount -t tmpfs tmpfs /tmp
dd if=/dev/zero of=/tmp/x bs=1M count=200 2>/dev/null; is used $? 0
rm /tmp/x
echo MEMORY grown
wait '$(total) -le $((first+128))'; is shrunk $(( $(total) - first )) 128
before=$(free)
echo MEMORY shrunk
wait '$(free) -lt $((before-150))'; is balloon $(( before - $(free) > 150 )) 1
poweroff -f`,
		host: `
start memory -D /tree --ram=256M:640M:2 -M memory
until_ 1 "MEMORY boot"; gvmspawn memory memory 640M
until_ 1 "MEMORY grown"; gvmspawn memory memory 384M
until_ 1 "MEMORY shrunk"; gvmspawn memory memory 96M
wait`,
		checks: []string{"grown", "used", "shrunk", "balloon"},
	},
	{
		name: "health", status: 1, guest: `
if [ ! -e /expired ]; then
	is vmgenid "$(ls /sys/bus/acpi/drivers/vmgenid /sys/bus/platform/drivers/vmgenid 2>/dev/null | grep -c GVMS0001)" 1
	insmod /watchdog.ko && insmod /wdat_wdt.ko timeout=2
	is watchdog "$(cat /sys/class/watchdog/watchdog0/identity) $(cat /sys/class/watchdog/watchdog0/timeout)" "wdat_wdt 2"
	touch /expired; sync
	echo x >/dev/watchdog0; sleep 100
fi
is again 1 1
insmod /pvpanic.ko; insmod /pvpanic-mmio.ko
dmesg -n 1; echo 0 >/proc/sys/kernel/printk; echo c >/proc/sysrq-trigger; sleep 100`,
		args: "-D /tree panic=0",
		after: `is panicked $(grep -c "the guest's kernel panicked" $out) 1 >>$out
is expired $(grep -c "watchdog has expired" $out) 1 >>$out`,
		checks: []string{"vmgenid", "watchdog", "again", "panicked", "expired"},
	},
	{
		name: "tpm", guest: `
is version "$(cat /sys/class/tpm/tpm0/tpm_version_major)" 2
is reset "$(cat /sys/class/tpm/tpm0/pcr-sha256/16)" 0000000000000000000000000000000000000000000000000000000000000000
if [ ! -e /sealed.public ]; then guest tpm-seal /sealed; sync; reboot -f; fi
guest tpm-unseal /sealed
poweroff -f`,
		args:   "-D /tree --tpm=yes",
		checks: []string{"version", "reset", "tpm-seal", "tpm-unseal"},
	},
}

// TestBootDevicesOnKVM boots machines with what the other tests have on the
// software CPU on genuine KVM, one after the other in one testbed: disks of
// every type, persistent memory, disks and memory that come and go, packed
// rings, watchdog, pvpanic, generation identifier, TPM. GVMSPAWN_DEVICES is a
// pattern for some of them.
func TestBootDevicesOnKVM(t *testing.T) {
	if os.Getenv("GVMSPAWN_LONG") == "" {
		t.Skip("boots many machines in the testbed: set GVMSPAWN_LONG=1")
	}
	needSwtpm(t)
	kernel := guesttest.KernelAsset(t, "kernel-trixie")
	mke2fs, dir := guesttest.Tool(t, "mke2fs"), t.TempDir()
	disks := filepath.Join(dir, "disks")
	bed := guesttest.Testbed{
		Files: map[string]string{
			"bin/gvmspawn": guesttest.Binary(t), "k/boot/" + filepath.Base(kernel.Path): kernel.Path,
			"k/lib/modules/" + kernel.Version: filepath.Join(kernel.Dir, "lib/modules", kernel.Version),
		},
		Disks: []string{filepath.Join(dir, "d.img")}, Memory: 4096, Timeout: 40 * time.Minute,
		Script: fmt.Sprintf(`
mkdir -p /d && mount -t ext4 /dev/vda /d || exit 99
is() { if [ "$2" = "$3" ]; then echo "CHECK $1 ok"; else echo "CHECK $1 FAIL: got '$2', want '$3'"; fi; }
run() { name=$1; shift; timeout -s KILL 100 gvmspawn -q --kvm=yes --vsock=no --register=no --linux=/k/boot/%s "$@" do=$name quiet; }
start() { out=/tmp/$1; rm -f $out; run "$@" >>$out 2>&1 </dev/null & box=$!; }
until_() { while [ "$(grep -c "$2" $out 2>/dev/null || true)" -lt $1 ]; do kill -0 $box 2>/dev/null || { echo "no $2"; return; }; sleep 0.2; done; }
tell() { grep -h -E 'CHECK|GAVE UP' $out | sed "s/^.*CHECK/CHECK/; s/^/$1: /"; grep -q -E 'FAIL|GAVE UP' $out && sed 's/^/| /' $out; rm -f $out; }
`, filepath.Base(kernel.Path)),
	}
	carrySwtpm(t, bed.Files)
	tree := guestTree(t, `for d in $(cat /proc/cmdline); do case $d in do=*) . /${d#do=}.sh ;; esac; done`)
	copyModules(t, kernel, tree, "drivers/watchdog/watchdog", "drivers/watchdog/wdat_wdt", "drivers/misc/pvpanic/pvpanic", "drivers/misc/pvpanic/pvpanic-mmio")
	bed.Files["tree"] = tree
	for _, d := range []struct {
		name, begin string
		size        int64
	}{
		{"blk.raw", "", dataDisk}, {"scsi.raw", "", dataDisk}, {"cd.raw", "a CD! of 2 MiB", 2 << 20},
		{"hot.raw", "a hot disk\n", 16 << 20}, {"boot0.raw", "boot0\n", 1 << 20}, {"boot1.raw", "boot1\n", 1 << 20},
	} {
		writeFile(t, filepath.Join(disks, d.name), []byte(d.begin), 0o600)
		if err := os.Truncate(filepath.Join(disks, d.name), d.size); err != nil {
			t.Fatal(err)
		}
	}
	toolOutput(t, guesttest.Tool(t, "qemu-img"), "create", "-q", "-f", "qcow2", filepath.Join(disks, "nvme.qcow2"), fmt.Sprint(dataDisk))
	only := regexp.MustCompile(os.Getenv("GVMSPAWN_DEVICES"))
	boots := slices.DeleteFunc(slices.Clone(deviceBoots), func(b deviceBoot) bool { return !only.MatchString(b.name) })
	for _, b := range boots {
		if b.root {
			root := guestTree(t, b.guest)
			writeFile(t, filepath.Join(root, "expect"), []byte("ext4 rw\n"), 0o644)
			writeFile(t, filepath.Join(root, "disks"), []byte("3\n"), 0o644)
			toolOutput(t, mke2fs, "-q", "-t", "ext4", "-b", "4096", "-d", root, filepath.Join(disks, b.name+".img"), "48M")
			if b.qcow2 {
				image := filepath.Join(disks, b.name+".img")
				toolOutput(t, guesttest.Tool(t, "qemu-img"), "convert", "-c", "-f", "raw", "-O", "qcow2", image, image+".2")
				if err := os.Rename(image+".2", image); err != nil {
					t.Fatal(err)
				}
			}
		} else {
			writeFile(t, filepath.Join(tree, b.name+".sh"), []byte(b.guest), 0o644)
		}
		bed.Script += cmp.Or(b.host, fmt.Sprintf(`
start %[1]s --ram=256M %[2]s
wait $box; status=$?
is status $status %[3]d >>$out
%[4]s`,
			b.name, b.args, b.status, b.after)) + "\ntell " + b.name + "\n"
	}
	toolOutput(t, mke2fs, "-q", "-t", "ext4", "-d", disks, bed.Disks[0], "512M")
	res := bed.Run(t)
	for _, b := range boots {
		if b.host == "" {
			b.checks = append(slices.Clip(b.checks), "status")
		}
		for _, c := range b.checks {
			if !strings.Contains(res.Output, b.name+": CHECK "+c+" ok") {
				t.Errorf("%s: no check %s", b.name, c)
			}
		}
	}
	t.Log(res.Output)
}
