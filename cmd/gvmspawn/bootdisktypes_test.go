package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gvmspawn/gvmspawn/vmm/guesttest"
)

// diskTypesScript looks at a machine with a disk of each type besides its root.
// The long serial number is that of a file whose name does not fit.
const diskTypesScript = `
is root "$(awk '$2=="/"{print $3, substr($4, 1, 2)}' /proc/mounts | tail -n 1)" "$(cat /expect)"
serial() { tr -d ' \n' </sys/block/$1/serial 2>/dev/null || tr -d ' \n' </sys/block/$1/device/serial 2>/dev/null || tail -c +5 /sys/block/$1/device/vpd_pg80; }
i=0; while [ $(cat /sys/block/*/size 2>/dev/null | grep -c -x -e 65536 -e 4096) -lt $(cat /disks) ] && [ $i -lt 50 ]; do sleep 0.1; i=$((i+1)); done
for d in /sys/block/vd* /sys/block/sd* /sys/block/nvme* /sys/block/sr*; do
	[ -e $d/size ] || continue
	n=${d##*/}; s=$(serial $n)
	case $s in *.raw|*.qcow2) eval "${s%.*}=$n" ;; esac
	echo "DISK $n $s $(cat $d/size) $(cat $d/ro) $(cat $d/queue/rotational) $(cat $d/queue/discard_max_bytes)"
done
for d in $blk $scsi $nvme; do
	is size-$d "$(cat /sys/block/$d/size)" 65536
	case $d in vd*) ;; *) is solid-$d "$(cat /sys/block/$d/queue/rotational)" 0 ;; esac
	[ $(cat /sys/block/$d/queue/discard_max_bytes) -gt 0 ]; is discards-$d $? 0
	dd if=/dev/urandom of=/tmp/$d bs=1M count=4 2>/dev/null
	dd if=/tmp/$d of=/dev/$d bs=64k seek=16 conv=fsync 2>/dev/null
	echo 3 >/proc/sys/vm/drop_caches
	is data-$d "$(dd if=/dev/$d bs=64k skip=16 count=64 2>/dev/null | sha256sum)" "$(sha256sum </tmp/$d)"
	dd if=/tmp/$d of=/dev/$d bs=1M count=4 seek=20 conv=fsync 2>/dev/null
	blkdiscard -o 20971520 -l 4194304 /dev/$d; is discard-$d $? 0
	dd if=/dev/$d of=/dev/null bs=512 skip=65536 count=1 2>&1 | grep -q '^0+0'; is end-$d $? 0
done
is cd "$(head -c 5 /dev/$cd) $(cat /sys/block/$cd/size) $(cat /sys/block/$cd/queue/logical_block_size)" "a CD! 4096 2048"
(echo x >/dev/$cd) 2>/dev/null; is cd-write $? 1
echo "DONE $blk $scsi $nvme $cd"
sync; poweroff -f`

// TestBootDiskTypes boots ext4 images as an NVMe disk, a SCSI disk and a
// CD-ROM, each with extra drives of the other types. Of SCSI or NVMe disks
// there is one only: Linux looks for them in parallel, and which of two is
// called sda or nvme0n1 is decided by chance.
func TestBootDiskTypes(t *testing.T) {
	for _, c := range []struct{ typ, kernel, root, expect string }{
		{"nvme", "kernel-trixie", "/dev/nvme0n1", "ext4 rw"},
		{"virtio-scsi", "kernel-bookworm", "/dev/sda", "ext4 rw"},
		{"scsi-cd", "kernel-bookworm", "/dev/sr0", "ext4 ro"},
	} {
		t.Run(c.typ, func(t *testing.T) { bootDiskType(t, c.typ, c.kernel, c.root, c.expect) })
	}
	if os.Getenv("GVMSPAWN_LONG") != "" {
		t.Run("nvme module", func(t *testing.T) { bootDiskType(t, "nvme", "kernel-bookworm-generic", "/dev/nvme0n1", "ext4 rw") })
	}
}

func bootDiskType(t *testing.T, typ, kernelName, root, expect string) {
	kernel := softBoot(t, kernelName)
	mke2fs, qemuImg := guesttest.Tool(t, "mke2fs"), guesttest.Tool(t, "qemu-img")
	dir := t.TempDir()
	tree := guestTree(t, "mount -t tmpfs tmp /tmp\n"+diskTypesScript)
	writeFile(t, filepath.Join(tree, "expect"), []byte(expect+"\n"), 0o644)
	drives := []struct{ typ, prefix, name string }{
		{"virtio-blk", "virtio-blk:", "blk.raw"}, {"virtio-scsi", "raw:virtio-scsi:", "scsi.raw"},
		{"nvme", "nvme:qcow2:", "nvme.qcow2"}, {"scsi-cd", "scsi-cd:", "cd.raw"},
	}
	count := len(drives)
	if typ != "scsi-cd" {
		count--
	}
	writeFile(t, filepath.Join(tree, "disks"), []byte(fmt.Sprintln(count)), 0o644)
	image := filepath.Join(dir, "the root image of this machine.img")
	toolOutput(t, mke2fs, "-q", "-t", "ext4", "-b", "4096", "-d", tree, image, "64M")
	before := hash(t, image)
	var args []string
	for _, d := range drives {
		if d.typ == typ && typ != "scsi-cd" {
			continue
		}
		path, size := filepath.Join(dir, d.name), int64(dataDisk)
		switch d.name {
		case "nvme.qcow2":
			toolOutput(t, qemuImg, "create", "-q", "-f", "qcow2", path, fmt.Sprint(dataDisk))
		case "cd.raw":
			writeFile(t, path, []byte("a CD! of 2 MiB"), 0o444)
			size = 2 << 20
			fallthrough
		default:
			if d.name != "cd.raw" {
				writeFile(t, path, nil, 0o600)
			}
			if err := os.Truncate(path, size); err != nil {
				t.Fatal(err)
			}
		}
		args = append(args, "--extra-drive="+d.prefix+path)
	}
	args = append(args, "-i", image, "--image-disk-type="+typ, "--vsock=no", "--cpus=2", "quiet", "root="+root, "rw")
	m := newMachine(t, dir, kernel, args...)
	m.start()
	if s := m.status(); s != 0 {
		t.Errorf("status %d", s)
	}
	m.check("root", "cd", "cd-write")
	for _, d := range []string{"vda", map[string]string{"nvme": "sda", "virtio-scsi": "nvme0n1", "scsi-cd": "sda"}[typ]} {
		m.check("size-"+d, "discards-"+d, "data-"+d, "discard-"+d, "end-"+d)
	}
	hole(t, filepath.Join(dir, "blk.raw"), 20<<20, 4<<20)
	if typ != "virtio-scsi" {
		hole(t, filepath.Join(dir, "scsi.raw"), 20<<20, 4<<20)
	}
	if typ != "nvme" {
		toolOutput(t, qemuImg, "check", "-f", "qcow2", filepath.Join(dir, "nvme.qcow2"))
	}
	if typ == "scsi-cd" && hash(t, image) != before {
		t.Error("the CD-ROM's image has changed")
	}
	if typ != "scsi-cd" {
		toolOutput(t, guesttest.Tool(t, "e2fsck"), "-f", "-n", image)
	}
}

// TestBootRootAmongDisks: with several disks of its kind, all with a root
// partition of the same layout, the image is what the guest has as its root,
// whatever Linux calls it.
func TestBootRootAmongDisks(t *testing.T) {
	tree := guestTree(t, `
is marker "$(cat /marker) $(awk '$2=="/"{print substr($4, 1, 2)}' /proc/mounts | tail -n 1)" "$(cat /expect)"
is disks "$(cat /proc/partitions | awk '$3==32768' | wc -l)" 4
echo "ROOT $(awk '$2=="/"{print $1}' /proc/mounts | tail -n 1)"
poweroff -f`)
	for _, c := range []struct {
		typ, kernel, expect string
		long                bool
		args                []string
	}{
		{"virtio-blk", "kernel-trixie", "root rw", true, nil},
		{"virtio-blk", "kernel-trixie", "root rw", true, []string{"--virtio-transport=mmio"}},
		{"virtio-scsi", "kernel-trixie", "root rw", true, nil},
		{"virtio-scsi", "kernel-bookworm", "root rw", false, []string{"root=/dev/sda2", "rw"}},
		{"nvme", "kernel-trixie", "root ro", false, []string{"ro"}},
		{"scsi-cd", "kernel-bookworm", "root ro", false, nil},
		{"pmem", "kernel-trixie", "root rw", true, nil},
	} {
		if c.long && os.Getenv("GVMSPAWN_LONG") == "" {
			continue
		}
		t.Run(strings.Join(append([]string{c.typ, c.kernel}, c.args...), " "), func(t *testing.T) {
			kernel := softBoot(t, c.kernel)
			dir := t.TempDir()
			args := []string{"--vsock=no", "--cpus=2", "--image-disk-type=" + c.typ}
			for _, name := range []string{"root", "other"} {
				writeFile(t, filepath.Join(tree, "marker"), []byte(name+"\n"), 0o644)
				writeFile(t, filepath.Join(tree, "expect"), []byte(c.expect+"\n"), 0o644)
				rootPartition(t, tree, filepath.Join(dir, name))
			}
			for i := range 3 {
				path := filepath.Join(dir, fmt.Sprintf("other%d", i))
				toolOutput(t, "cp", "--sparse=always", filepath.Join(dir, "other"), path)
				args = append(args, "--extra-drive="+path)
			}
			m := newMachine(t, dir, kernel, append(append(append(args, "-i", filepath.Join(dir, "root")), c.args...), "quiet")...)
			m.start()
			if s := m.status(); s != 0 {
				t.Errorf("status %d", s)
			}
			m.check("marker", "disks")
			t.Log(m.after("ROOT "))
		})
	}
}

// TestBootRootUnknown: what the initrd cannot find is said before the guest starts.
func TestBootRootUnknown(t *testing.T) {
	kernel := softBoot(t, "kernel-trixie")
	dir := t.TempDir()
	image := filepath.Join(dir, "image")
	writeFile(t, image, make([]byte, 1<<20), 0o600)
	m := newMachine(t, dir, kernel, "-i", image, "--vsock=no", "root=UUID=0a7b03b7-a0ac-4a0c-b8c6-90a9c22b9b0e")
	m.start()
	if s := m.status(); s != 1 || !strings.Contains(m.errs.String(), "finds no root=UUID=0a7b03b7-a0ac-4a0c-b8c6-90a9c22b9b0e: name a partition of the image by its PARTUUID") {
		t.Errorf("%d, %s", s, m.errs.String())
	}
}

// rootPartition makes a disk of 32 MiB with two partitions, the second of
// which is a root partition with tree as its file system.
func rootPartition(t *testing.T, tree, disk string) {
	t.Helper()
	guesttest.Tool(t, "mke2fs")
	guesttest.Tool(t, "sfdisk")
	out, err := exec.Command("sh", "-ec", `PATH=$PATH:/usr/sbin:/sbin
truncate -s 32M "$2"
printf 'start=2048, size=2048\nstart=4096, size=57344, type=4f68bce3-e8cd-4db1-96e7-fbcaf984b709, uuid=0a7b03b7-a0ac-4a0c-b8c6-90a9c22b9b0e\n' | sfdisk -q --label gpt "$2"
mke2fs -q -F -t ext4 -b 4096 -d "$1" -E offset=2097152 "$2" 28M`, "sh", tree, disk).CombinedOutput()
	if err != nil {
		t.Fatalf("%v %s", err, out)
	}
}
