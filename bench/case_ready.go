package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/gvmspawn/gvmspawn/vmm/guesttest"
)

// hostRoot is where the testbed has the tree with systemd-vmspawn. Both programs
// run with it as their root directory.
const hostRoot = "/host"

// readySocket is the service manager's socket below hostRoot.
const readySocket = "/run/manager"

// kvmReadyCase is the readiness of a small tree on genuine KVM, against
// systemd-vmspawn itself with QEMU, virtiofsd and vhost-vsock: with the same
// options, where it starts the kernel through OVMF, and without firmware.
var kvmReadyCase = benchmark{
	name:  "kvm-ready",
	about: "start of the program to READY=1 of a small tree on virtio-fs, on the testbed's KVM (time counts instructions)",
	prepare: func(e *environment) (*plan, error) {
		if os.Geteuid() != 0 {
			return nil, errors.New("needs root, for the tree with systemd-vmspawn")
		}
		k := e.trixie()
		disk, err := e.readyDisk(k)
		if err != nil {
			return nil, err
		}
		t, err := e.newInside(machine{kernel: k.Path, initrd: os.DevNull})
		if err != nil {
			return nil, err
		}
		t.bed.Disks, t.bed.Timeout, t.bed.Memory = []string{disk}, 50*time.Minute, 3072
		t.bed.Modules = []string{"vhost_vsock", "fuse"}
		// The disk works in real time, in which the count of instructions goes
		// astray: all files are in the page cache before the clock runs.
		//
		// systemd-vmspawn wants a bus and a unit of its own even with --register=no
		// and --keep-unit.
		t.bed.Script = fmt.Sprintf(`mkdir -p %[1]s && mount -t ext4 -o noinit_itable /dev/vda %[1]s
find %[1]s -type f -exec cat {} + >/dev/null
mount -t cgroup2 cgroup /sys/fs/cgroup; mkdir -p /sys/fs/cgroup/system.slice/job.service; echo 0 >/sys/fs/cgroup/system.slice/job.service/cgroup.procs
for d in dev proc sys; do mount -o rbind /$d %[1]s/$d; done
mount -t tmpfs tmpfs %[1]s/run; mount -t tmpfs tmpfs %[1]s/tmp
mkdir -p %[1]s/run/dbus; chroot %[1]s dbus-daemon --system --fork
%[2]s`, hostRoot, t.bed.Script)
		options := []string{"-D", "/guest", "--linux=/guest-kernel", "--kvm=yes", "--vsock=yes", "--ram=256M", "--register=no", "--keep-unit", "--tpm=no",
			"--pass-ssh-key=no", "--console=headless", "quiet"}
		for _, j := range []insideJob{
			{Name: "gvmspawn", Argv: []string{"/bin/gvmspawn"}},
			{Name: "systemd-vmspawn", Argv: []string{"/usr/bin/systemd-vmspawn"}},
			{Name: "systemd-vmspawn --firmware=none", Argv: []string{"/usr/bin/systemd-vmspawn", "--firmware=none"}},
		} {
			j.Kind, j.Limit = insideReady, fsLimit
			j.Argv = append(append([]string{"/bin/busybox", "chroot", hostRoot}, j.Argv...), options...)
			t.jobs = append(t.jobs, j)
		}
		out, err := t.run("ready")
		if err != nil {
			return nil, err
		}
		p := &plan{metrics: []metric{{"ready", "ms", false}, {"to end", "ms", false}}, runs: 1}
		return p, insideSubjects(p, out, false)
	},
}

// readyDisk is a file system with systemd-vmspawn, firmware, gvmspawn, a kernel and a small
// tree, which loads the modules of vsock, reports READY=1 and powers off.
func (e *environment) readyDisk(k guesttest.Kernel) (string, error) {
	host := filepath.Join(e.dir, "ready-host")
	if err := guesttest.CopyTree(guesttest.Asset(e.host, "host-vmspawn"), host); err != nil {
		return "", err
	}
	defer os.RemoveAll(host)
	firmware := filepath.Join(guesttest.Asset(e.host, "ovmf-trixie"), "usr/share")
	for _, dir := range []string{"OVMF", "qemu/firmware"} {
		if err := os.CopyFS(filepath.Join(host, "usr/share", dir), os.DirFS(filepath.Join(firmware, dir))); err != nil {
			return "", err
		}
	}
	guest := filepath.Join(host, "guest")
	if err := os.MkdirAll(filepath.Join(guest, "modules"), 0o755); err != nil {
		return "", err
	}
	guesttest.WriteBusyboxTree(e.host, guest, "for m in /modules/*; do insmod $m; done; guest notify READY=1; poweroff -f")
	modules, err := moduleFiles(k, []string{"dmi_sysfs", "vmw_vsock_virtio_transport"})
	if err != nil {
		return "", err
	}
	for i, m := range modules {
		data, err := readModule(m)
		if err != nil {
			return "", err
		}
		if err := os.WriteFile(filepath.Join(guest, "modules", fmt.Sprintf("%02d.ko", i)), data, 0o644); err != nil {
			return "", err
		}
	}
	for to, from := range map[string]string{"guest/bin/guest": guesttest.GuestBinary(e.host), "bin/gvmspawn": e.gvmspawn, "guest-kernel": k.Path} {
		data, err := os.ReadFile(from)
		if err == nil {
			err = os.WriteFile(filepath.Join(host, to), data, 0o755)
		}
		if err != nil {
			return "", err
		}
	}
	disk := filepath.Join(e.dir, "ready.img")
	if out, err := exec.Command("mke2fs", "-q", "-F", "-t", "ext4", "-d", host, disk, "1G").CombinedOutput(); err != nil {
		return "", fmt.Errorf("mke2fs: %w: %s", err, out)
	}
	return disk, nil
}

// runReady is the time until the program tells its service manager READY=1.
func (j *insideJob) runReady(ctx context.Context, limit time.Duration) (numbers, error) {
	socket := filepath.Join(hostRoot, readySocket)
	_ = os.Remove(socket)
	manager, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		return nil, err
	}
	defer manager.Close()
	p, err := launch(ctx, limit, j.Argv, []string{"NOTIFY_SOCKET=" + readySocket})
	if err != nil {
		return nil, err
	}
	defer p.kill()
	ready := make(chan time.Duration, 1)
	go func() {
		defer close(ready)
		b := make([]byte, 4096)
		for {
			n, err := manager.Read(b)
			if err != nil {
				return
			}
			if strings.Contains("\n"+string(b[:n])+"\n", "\nREADY=1\n") {
				ready <- time.Since(p.start)
				return
			}
		}
	}()
	if err := p.wait(); err != nil {
		return nil, p.failure(err)
	}
	manager.Close()
	at, ok := <-ready
	if !ok {
		return nil, p.failure(errors.New("no READY=1"))
	}
	return numbers{"ready": ms(at), "to end": ms(p.end)}, nil
}
