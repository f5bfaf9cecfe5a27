package main

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/gvmspawn/gvmspawn/vmm/guesttest"
)

const (
	dataDisk = 32 << 20 // size of the second and third disk
	dataSize = 4 << 20  // of what the guest writes there
)

// TestBootDisks boots from an ext4 image with a raw and a qcow2 disk besides,
// twice: with --ephemeral, after which no image has changed by a bit, and for
// good, ended by kill -9 while the guest writes. Then no flushed data is
// missing, what the guest discarded is a hole, and fsck and qemu-img find
// nothing to complain about.
func TestBootDisks(t *testing.T) {
	kernel := softBoot(t, "kernel-trixie")
	mke2fs, fsck, qemuImg := guesttest.Tool(t, "mke2fs"), guesttest.Tool(t, "e2fsck"), guesttest.Tool(t, "qemu-img")
	dir := t.TempDir()
	tree := guestTree(t, `
is root "$(awk '$2=="/"{print $3}' /proc/mounts | tail -n 1)" ext4
is serials "$(for d in vda vdb vdc; do echo -n "$(cat /sys/block/$d/serial) "; done)" "root.img raw.img data.qcow2 "
is size "$(cat /sys/block/vdb/size /sys/block/vdc/size | tr '\n' ' ')" "65536 65536 "
dd if=/dev/urandom of=/data bs=1M count=4 2>/dev/null
for d in vdb vdc; do dd if=/data of=/dev/$d bs=64k seek=16 conv=fsync 2>/dev/null; done
sync; echo 3 >/proc/sys/vm/drop_caches
want=$(sha256sum </data)
for d in vdb vdc; do is $d "$(dd if=/dev/$d bs=64k skip=16 count=64 2>/dev/null | sha256sum)" "$want"; done
echo "DATA $want"
dd if=/data of=/dev/vdb bs=1M count=4 seek=20 conv=fsync 2>/dev/null
blkdiscard -o 20971520 -l 4194304 /dev/vdb; is discard $? 0
sync
case "$(cat /proc/cmdline)" in *do=poweroff*) mount -o remount,ro /; poweroff -f ;; esac
i=0; while :; do
	i=$((i+1)); head -c 100000 /data >/round-$i; sha256sum </round-$i >/sum-$i; sync; echo "ROUND $i"
	dd if=/data of=/dev/vdc bs=64k seek=$((i*64+128)) count=64 2>/dev/null
done`)
	root, raw, qcow2 := filepath.Join(dir, "root.img"), filepath.Join(dir, "raw.img"), filepath.Join(dir, "data.qcow2")
	toolOutput(t, mke2fs, "-q", "-t", "ext4", "-d", tree, root, "64M")
	toolOutput(t, qemuImg, "create", "-q", "-f", "qcow2", qcow2, fmt.Sprint(dataDisk))
	writeFile(t, raw, nil, 0o600)
	if err := os.Truncate(raw, dataDisk); err != nil {
		t.Fatal(err)
	}
	checks := []string{"root", "serials", "size", "vdb", "vdc", "discard"}
	args := []string{"-i", root, "--extra-drive=" + raw, "--extra-drive=qcow2:" + qcow2, "--vsock=no", "quiet", "root=/dev/vda", "rw"}

	before := []string{hash(t, root), hash(t, raw), hash(t, qcow2)}
	m := newMachine(t, dir, kernel, append([]string{"--ephemeral"}, append(args, "do=poweroff")...)...)
	m.start()
	if s := m.status(); s != 0 {
		t.Errorf("status %d", s)
	}
	m.check(checks...)
	for i, name := range []string{root, raw, qcow2} {
		if hash(t, name) != before[i] {
			t.Errorf("--ephemeral changed %s", filepath.Base(name))
		}
	}

	m = newMachine(t, dir, kernel, args...)
	m.start()
	m.waitFor("ROUND 4")
	m.Process.Kill() //nolint:errcheck // the next line waits for the end
	<-m.ended
	m.check(checks...)
	if out, err := exec.Command(fsck, "-f", "-p", root).CombinedOutput(); err != nil && exitStatus(err) != 1 {
		t.Errorf("fsck: %v\n%s", err, out)
	}
	if out, err := exec.Command(qemuImg, "check", "-f", "qcow2", qcow2).CombinedOutput(); err != nil && exitStatus(err) != 3 { // 3: leaked clusters
		t.Errorf("qemu-img check: %v\n%s", err, out)
	}
	flat := filepath.Join(dir, "flat.img")
	toolOutput(t, qemuImg, "convert", "-f", "qcow2", "-O", "raw", qcow2, flat)
	want, _, _ := strings.Cut(m.after("DATA "), " ")
	for _, name := range []string{raw, flat} {
		if got := sum(t, name, 1<<20, dataSize); got != want {
			t.Errorf("%s has not what the guest wrote and flushed", filepath.Base(name))
		}
	}
	rounds(t, root)
	hole(t, raw, 20<<20, 4<<20)
}

// rounds looks at the files of the rounds that the guest had reported flushed.
func rounds(t *testing.T, root string) {
	t.Helper()
	debugfs := guesttest.Tool(t, "debugfs")
	for i := 1; i <= 4; i++ {
		data := toolOutput(t, debugfs, "-R", fmt.Sprintf("cat /round-%d", i), root)
		said := toolOutput(t, debugfs, "-R", fmt.Sprintf("cat /sum-%d", i), root)
		if want := fmt.Sprintf("%x", sha256.Sum256(data)); len(data) != 100000 || !bytes.HasPrefix(said, []byte(want)) {
			t.Errorf("round %d: %d bytes, which the guest had flushed, differ", i, len(data))
		}
	}
}

// hole checks that a range of a file reads as zeroes and takes no space.
func hole(t *testing.T, name string, at, size int64) {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if off, err := unix.Seek(int(f.Fd()), at, unix.SEEK_DATA); err != unix.ENXIO && off < at+size {
		t.Errorf("%s has data at %d, in what was discarded, %v", name, off, err)
	}
}

// toolOutput runs a program that must succeed and returns its output.
func toolOutput(t *testing.T, name string, args ...string) []byte {
	t.Helper()
	var errs bytes.Buffer
	c := exec.Command(name, args...)
	c.Stderr = &errs
	out, err := c.Output()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, errs.String())
	}
	return out
}

func exitStatus(err error) int {
	if e, ok := err.(*exec.ExitError); ok {
		return e.ExitCode()
	}
	return -1
}

func hash(t *testing.T, name string) string {
	t.Helper()
	return sum(t, name, 0, 1<<40)
}

// sum is the SHA-256 of a part of a file.
func sum(t *testing.T, name string, at, size int64) string {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, io.NewSectionReader(f, at, size)); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%x", h.Sum(nil))
}
