package main

import (
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/gvmspawn/gvmspawn/vmm/guesttest"
)

// TestBootPmem boots from an ext4 image as persistent memory with DAX, programs
// and all: what the guest flushed survives kill -9, and a guest whose image is
// ephemeral changes nothing.
func TestBootPmem(t *testing.T) {
	kernel := softBoot(t, "kernel-trixie")
	mke2fs, fsck, debugfs := guesttest.Tool(t, "mke2fs"), guesttest.Tool(t, "e2fsck"), guesttest.Tool(t, "debugfs")
	dir := t.TempDir()
	tree := guestTree(t, `
is root "$(awk '$2=="/"{print $1,$3}' /proc/mounts | tail -n 1)" "/dev/pmem0 ext4"
is dax "$(grep -c ' / ext4 .*dax' /proc/mounts)" 1
is queue "$(cat /sys/block/pmem0/queue/dax)" 1
is size "$(cat /sys/block/pmem0/size)" 98304
dd if=/dev/urandom of=/data bs=1M count=4 2>/dev/null
cp /data /copy; sync
is same "$(md5sum </copy)" "$(md5sum </data)"
is program "$(mkdir /new; cp /bin/busybox /new/busybox; /new/busybox sh -c "echo ran")" ran
sum=$(md5sum </data); echo "${sum%% *}" >/sum; sync
case "$(cat /proc/cmdline)" in *do=poweroff*) mount -o remount,ro /; poweroff -f ;; esac
echo FLUSHED; sleep 1000`)
	root := filepath.Join(dir, "root.img")
	toolOutput(t, mke2fs, "-q", "-t", "ext4", "-b", "4096", "-d", tree, root, "48M")
	checks := []string{"root", "dax", "queue", "size", "same", "program"}
	args := []string{"-i", root, "--image-disk-type=pmem", "--vsock=no", "quiet", "root=/dev/pmem0", "rootflags=dax", "rw"}

	before := hash(t, root)
	m := newMachine(t, dir, kernel, append([]string{"--ephemeral"}, append(args, "do=poweroff")...)...)
	m.start()
	if s := m.status(); s != 0 {
		t.Errorf("status %d", s)
	}
	m.check(checks...)
	if hash(t, root) != before {
		t.Error("--ephemeral changed the image")
	}

	m = newMachine(t, dir, kernel, args...)
	m.start()
	m.waitFor("FLUSHED")
	m.Process.Kill() //nolint:errcheck // the next line waits for the end
	<-m.ended
	m.check(checks...)
	if out, err := exec.Command(fsck, "-f", "-p", root).CombinedOutput(); err != nil && exitStatus(err) != 1 {
		t.Errorf("fsck: %v\n%s", err, out)
	}
	data, said := toolOutput(t, debugfs, "-R", "cat /data", root), toolOutput(t, debugfs, "-R", "cat /sum", root)
	if want := toolOutput(t, "sh", "-c", debugfs+" -R 'cat /data' "+root+" 2>/dev/null | md5sum | cut -d' ' -f1"); string(said) != string(want) || len(data) != 4<<20 {
		t.Errorf("%d bytes with sum %s, the guest flushed %s", len(data), want, said)
	}
}
