package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/gvmspawn/gvmspawn/vmm/guesttest"
)

// fioScript verifies each disk with fio, and then writes numbers to all of them
// beside fio for ever: each number is told when its flush has been answered.
const fioScript = `#!/bin/busybox sh
/bin/busybox mkdir -p /run/b && /bin/busybox --install -s /run/b && export PATH=/run/b:/usr/bin:/bin
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev 2>/dev/null
mount -t tmpfs tmp /tmp
i=0; while [ $(cat /sys/block/*/size | grep -c -x 65536) -lt 4 ] && [ $i -lt 100 ]; do sleep 0.1; i=$((i+1)); done
disks=$(for d in /sys/block/*; do [ "$(cat $d/size)" = 65536 ] && echo ${d##*/}; done)
for d in $disks; do
	for job in "randwrite 1 4k" "randwrite 32 4k" "randrw 32 16k" "write 4 1m"; do
		set -- $job
		fio --name=v --filename=/dev/$d --rw=$1 --iodepth=$2 --bs=$3 --size=8m --offset=1m --ioengine=libaio --direct=1 \
			--verify=crc32c --verify_fatal=1 --do_verify=1 >/tmp/fio 2>&1
		s=$?; echo "FIO $d $1 $2 $3 status $s"; [ $s = 0 ] || tail -n 20 /tmp/fio
	done
done
echo "VERIFIED $(echo $disks)"
case "$(cat /proc/cmdline)" in *do=poweroff*) poweroff -f ;; esac
for d in $disks; do
	fio --name=w --filename=/dev/$d --rw=randwrite --iodepth=16 --bs=4k --size=8m --offset=16m --ioengine=libaio --direct=1 --time_based --runtime=1000 >/dev/null 2>&1 &
done
n=0
while :; do
	n=$((n+1))
	for d in $disks; do
		printf '%08d' $n | dd of=/dev/$d bs=4096 seek=$((3072+n%64)) conv=sync,fsync 2>/dev/null && echo "FLUSHED $d $n"
	done
done
`

// TestLongFio proves disks: fio --verify=crc32c over all types of
// disks and both engines, and kill -9 of gvmspawn during writes, after which
// qemu-img finds no error and no flush that was answered is lost.
func TestLongFio(t *testing.T) {
	if os.Getenv("GVMSPAWN_LONG") == "" {
		t.Skip("runs fio in machines: set GVMSPAWN_LONG=1")
	}
	for _, cache := range []string{"writeback", "none"} {
		t.Run(cache, func(t *testing.T) { fioRun(t, cache) })
	}
}

func fioRun(t *testing.T, cache string) {
	kernel := guesttest.KernelAsset(t, "kernel-trixie")
	qemuImg := guesttest.Tool(t, "qemu-img")
	dir := t.TempDir()
	tree := filepath.Join(dir, "tree")
	if err := guesttest.CopyTree(guesttest.Asset(t, "fio"), tree); err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(tree, "init-fio"), []byte(fioScript), 0o755)
	image := map[string]string{} // by the guest's name
	args := []string{"-D", tree, "--vsock=no", "--cpus=2", "--disk-cache=" + cache, "quiet", "init=/init-fio"}
	for _, d := range []struct{ dev, prefix, name string }{
		{"vda", "virtio-blk:", "blk.raw"}, {"vdb", "qcow2:virtio-blk:", "blk.qcow2"}, {"sda", "virtio-scsi:", "scsi.raw"}, {"nvme0n1", "nvme:", "nvme.raw"},
	} {
		path := filepath.Join(dir, d.name)
		format := strings.TrimPrefix(filepath.Ext(d.name), ".")
		toolOutput(t, qemuImg, "create", "-q", "-f", format, path, fmt.Sprint(dataDisk))
		image[d.dev] = path
		args = append([]string{"--extra-drive=" + d.prefix + path}, args...)
	}
	// The arguments were put in front one by one.
	for i, j := 0, len(image)-1; i < j; i, j = i+1, j-1 {
		args[i], args[j] = args[j], args[i]
	}
	m := newMachine(t, dir, kernel, args...)
	m.start()
	m.waitFor("VERIFIED")
	if n := strings.Count(m.out.String(), " status 0"); n != 4*len(image) {
		t.Errorf("%d of %d runs of fio were good", n, 4*len(image))
	}
	m.waitFor("FLUSHED nvme0n1 100")
	m.Process.Kill() //nolint:errcheck // the next line waits for the end
	<-m.ended
	for dev, path := range image {
		if filepath.Ext(path) == ".qcow2" {
			if out, err := exec.Command(qemuImg, "check", "-f", "qcow2", path).CombinedOutput(); err != nil && exitStatus(err) != 3 { // 3: leaked clusters
				t.Errorf("qemu-img check: %v\n%s", err, out)
			}
			flat := path + ".flat"
			toolOutput(t, qemuImg, "convert", "-f", "qcow2", "-O", "raw", path, flat)
			path = flat
		}
		m.flushed(dev, path)
	}
}

// flushed checks that a disk has every number whose flush was answered, or a
// later one in its place.
func (m *booted) flushed(dev, path string) {
	m.t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		m.t.Fatal(err)
	}
	told := 0
	for line := range strings.Lines(m.out.String()) {
		rest, ok := strings.CutPrefix(strings.TrimSpace(line), "FLUSHED "+dev+" ")
		if n, err := strconv.Atoi(rest); ok && err == nil && strings.HasSuffix(line, "\n") {
			told = n
		}
	}
	for n := max(1, told-63); n <= told; n++ {
		at := (3072 + n%64) * 4096
		got, err := strconv.Atoi(string(data[at : at+8]))
		if err != nil || got < n {
			m.t.Errorf("%s: number %d was flushed, but there is %q", dev, n, data[at:at+8])
		}
	}
	if told < 90 {
		m.t.Errorf("%s: only %d numbers", dev, told)
	}
}
