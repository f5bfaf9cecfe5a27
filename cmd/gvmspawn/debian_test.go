package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/gvmspawn/gvmspawn/vmm/guesttest"
)

// debianTree copies a Debian tree and has it run script when it has started,
// with the console as its output. It powers off then.
func debianTree(t *testing.T, asset, script string) string {
	t.Helper()
	if os.Getenv("GVMSPAWN_LONG") == "" {
		t.Skip("boots Debian trees on the software CPU: set GVMSPAWN_LONG=1")
	}
	tree := filepath.Join(t.TempDir(), "tree")
	if err := guesttest.CopyTree(guesttest.Asset(t, asset), tree); err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(tree, "etc/report"), []byte("#!/bin/sh\nstate=$(systemctl is-system-running --wait)\necho STATE $state\n"+
		"[ $state = running ] || systemctl --failed --no-legend\n"+script+"\nsystemctl poweroff\n"), 0o755)
	writeFile(t, filepath.Join(tree, "etc/systemd/system/report.service"),
		[]byte("[Service]\nExecStart=/etc/report\nStandardOutput=tty\nStandardError=tty\nTTYPath=/dev/console\n"), 0o644)
	wants := filepath.Join(tree, "etc/systemd/system/multi-user.target.wants")
	if err := os.MkdirAll(wants, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("../report.service", filepath.Join(wants, "report.service")); err != nil {
		t.Fatal(err)
	}
	return tree
}

// TestLongBoots boots a Debian tree with every kernel of Debian, on one CPU and
// on four, again and again (GVMSPAWN_BOOTS times, 20 if it is not set): each
// time systemd says that everything is running, and the machine powers off.
func TestLongBoots(t *testing.T) {
	times, err := strconv.Atoi(os.Getenv("GVMSPAWN_BOOTS"))
	if err != nil {
		times = 20
	}
	tree := debianTree(t, "tree-trixie", "")
	for _, kernel := range []string{"kernel-bookworm", "kernel-trixie", "kernel-bookworm-generic", "kernel-trixie-generic", "kernel-sid"} {
		for _, cpus := range []int{1, 4} {
			t.Run(fmt.Sprintf("%s/%d", kernel, cpus), func(t *testing.T) {
				k := guesttest.KernelAsset(t, kernel)
				for i := range times {
					m := newMachine(t, t.TempDir(), k, "-x", "-D", tree, fmt.Sprintf("--cpus=%d", cpus), "-q")
					m.start()
					if s := m.status(); s != 0 || !strings.Contains(m.out.String(), "STATE running") {
						t.Fatalf("boot %d: status %d", i+1, s)
					}
				}
			})
		}
	}
}

// TestLongDebianDisks boots Debian with systemd from a partition with ext4, on a raw
// and a qcow2 image and as every type of disk; it writes, and file system and image
// are whole afterwards.
func TestLongDebianDisks(t *testing.T) {
	tree := debianTree(t, "tree-trixie", `echo "ROOT $(findmnt -no FSTYPE,OPTIONS / | cut -c 1-8)"
dd if=/dev/urandom of=/var/data bs=1M count=32 2>/dev/null; sha256sum </var/data >/var/sum; sync; echo 3 >/proc/sys/vm/drop_caches
[ "$(sha256sum </var/data)" = "$(cat /var/sum)" ] && echo DATA same`)
	kernel := guesttest.KernelAsset(t, "kernel-trixie")
	qemuImg, fsck := guesttest.Tool(t, "qemu-img"), guesttest.Tool(t, "e2fsck")
	dir := t.TempDir()
	volume, raw := filepath.Join(dir, "volume"), filepath.Join(dir, "disk.raw")
	toolOutput(t, guesttest.Tool(t, "mke2fs"), "-q", "-t", "ext4", "-d", tree, volume, "1G")
	partitioned(t, raw, volume)
	for _, c := range []struct{ typ, format string }{{"virtio-blk", "raw"}, {"virtio-blk", "qcow2"}, {"virtio-scsi", "qcow2"}, {"nvme", "raw"}} {
		t.Run(c.typ+" "+c.format, func(t *testing.T) {
			disk := filepath.Join(t.TempDir(), "disk."+c.format)
			toolOutput(t, qemuImg, "convert", "-f", "raw", "-O", c.format, raw, disk)
			m := newMachine(t, filepath.Dir(disk), kernel, "-i", disk, "--image-format="+c.format, "--image-disk-type="+c.typ, "--cpus=2", "--vsock=no", "quiet")
			m.start()
			if s := m.status(); s != 0 {
				t.Errorf("status %d", s)
			}
			for _, want := range []string{"STATE running", "ROOT ext4 rw", "DATA same"} {
				if !strings.Contains(m.out.String(), want) {
					t.Errorf("no %q in %s", want, tailOf(m.out.String()))
				}
			}
			flat := disk
			if c.format == "qcow2" {
				toolOutput(t, qemuImg, "check", "-f", "qcow2", disk)
				flat = disk + ".flat"
				toolOutput(t, qemuImg, "convert", "-f", "qcow2", "-O", "raw", disk, flat)
			}
			toolOutput(t, "dd", "if="+flat, "of="+flat+".fs", "bs=1M", "skip=1", "count=1024", "conv=sparse", "status=none")
			toolOutput(t, fsck, "-f", "-n", flat+".fs")
		})
	}
}
