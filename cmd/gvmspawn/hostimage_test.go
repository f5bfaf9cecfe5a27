package main

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gvmspawn/gvmspawn/vmm/guesttest"
)

// imageJob runs in the guest.
const imageJob = `#!/bin/sh
exec >/dev/console 2>&1
echo "SYSTEMD $(systemctl --version | head -n 1)"
cd /run/credentials/@system
echo "SUM $(sha256sum big | cut -d ' ' -f 1)"
echo "MODE $(stat -c %a big) FRUIT $(cat fruit) ROOT $(findmnt -no FSTYPE /)"
`

// TestLongDebianImage boots a Debian image with nothing but -i: kernel and
// initrd are the distribution's own, found in the root partition, the console
// is the default one, whose driver that initrd lacks; and nearly 1 MiB of
// credentials reach systemd 252 through it.
func TestLongDebianImage(t *testing.T) {
	if os.Getenv("GVMSPAWN_LONG") == "" {
		t.Skip("boots a Debian image: set GVMSPAWN_LONG=1")
	}
	tree, mke2fs := guesttest.Asset(t, "tree-bookworm"), guesttest.Tool(t, "mke2fs")
	dir := t.TempDir()
	top := filepath.Join(dir, "top")
	writeFile(t, filepath.Join(top, "job"), []byte(imageJob), 0o755)
	volume := filepath.Join(dir, "volume")
	toolOutput(t, mke2fs, "-q", "-t", "ext4", "-d", tree, volume, "1200M")
	toolOutput(t, guesttest.Tool(t, "debugfs"), "-w", "-R", "write "+filepath.Join(top, "job")+" job", volume)
	toolOutput(t, guesttest.Tool(t, "debugfs"), "-w", "-R", "set_inode_field job mode 0100755", volume)
	partitioned(t, filepath.Join(dir, "disk.raw"), volume)
	big := make([]byte, 900<<10)
	rand.Read(big) //nolint:errcheck // never fails
	writeFile(t, filepath.Join(dir, "big"), big, 0o600)

	m := newMachine(t, dir, guesttest.Kernel{})
	m.Args = []string{m.Args[0], "-i", "disk.raw", "-x", "--kvm=no", "--cpus=2", "--ram=1G", "--register=no", "--tpm=no", "--load-credential=big:" + filepath.Join(dir, "big"),
		"--set-credential=fruit:apple", "quiet", "systemd.run=/job", "systemd.run_success_action=exit"}
	m.start()
	m.waitFor("MODE ")
	if st := m.status(); st != 0 {
		t.Errorf("status %d", st)
	}
	out := m.out.String()
	for _, want := range []string{"SYSTEMD systemd 252", fmt.Sprintf("SUM %x", sha256.Sum256(big)), "MODE 400 FRUIT apple ROOT ext4"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q", want)
		}
	}
	if bytes.Contains([]byte(m.errs.String()), []byte("panic")) {
		t.Error("the guest's kernel panicked")
	}
}

// partitioned makes a disk with a partition table that Linux takes, too, whose
// only partition is a root partition with the volume's content.
func partitioned(t *testing.T, disk, volume string) {
	t.Helper()
	guesttest.Tool(t, "sfdisk")
	out, err := exec.Command("sh", "-ec", `PATH=$PATH:/usr/sbin:/sbin
truncate -s $(($(stat -c %s "$2") + (2 << 20))) "$1"
echo "start=2048, size=$(($(stat -c %s "$2") / 512)), type=4f68bce3-e8cd-4db1-96e7-fbcaf984b709" | sfdisk -q --label gpt "$1"
dd if="$2" of="$1" bs=1M seek=1 conv=notrunc,sparse status=none`, "sh", disk, volume).CombinedOutput()
	if err != nil {
		t.Fatalf("%v %s", err, out)
	}
}
