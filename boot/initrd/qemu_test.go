package initrd

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gvmspawn/gvmspawn/vmm/guesttest"
)

const guestScript = `
echo "args: $0 $*"
echo "env: $FOO"
echo "modules: $(busybox lsmod | busybox awk 'NR>1{print $1}' | busybox sort | busybox tr '\n' ' ')"
echo "dev: $(busybox grep -c ' /dev devtmpfs' /proc/mounts)"
echo "root: $(busybox grep ' / ' /proc/mounts | busybox tail -1)"
echo "left: $(busybox ls /init /m 2>&1 | busybox wc -l)"
busybox poweroff -f
`

// A stock modular kernel under QEMU mounts a directory by way of our initrd.
func TestBootDirectoryUnderQEMU(t *testing.T) {
	if testing.Short() {
		t.Skip("boots a machine")
	}
	const virtiofsd = "/usr/lib/qemu/virtiofsd"
	if _, err := os.Stat(virtiofsd); err != nil || os.Getuid() != 0 {
		t.Skip("needs root and " + virtiofsd)
	}
	kernel := guesttest.KernelAsset(t, "kernel-bookworm")
	tree := guesttest.BusyboxTree(t, guestScript)
	cmdline := "console=hvc0 panic=-1 reboot=t rw FOO=bar -- one two"
	root := Root{Source: "root", Types: []string{"virtiofs"}, Options: []string{"dax=always", ""}}
	start := time.Now()
	img, err := Build(Config{Release: kernel.Version, Kernel: kernel.Path, Places: NextTo(kernel.Path, kernel.Version),
		Modules: Wanted(root, "virtio_net"), CommandLine: cmdline, Root: root})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("initrd of %d KiB with %v built in %v", img.Size()>>10, img.Modules, time.Since(start))
	dir := t.TempDir()
	socket := filepath.Join(dir, "fs")
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	fs := exec.CommandContext(ctx, virtiofsd, "--socket-path="+socket, "-o", "source="+tree, "-o", "sandbox=chroot", "-o", "cache=always")
	if err := fs.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = fs.Process.Kill(); _ = fs.Wait() }()
	out := runMachine(ctx, t, kernel.Path, writeImage(t, dir, img), cmdline,
		"-chardev", "socket,id=fs,path="+waitFor(t, socket), "-device", "vhost-user-fs-pci,chardev=fs,tag=root")
	for _, want := range []string{"args: /sbin/init one two", "env: bar", "dev: 1", "root: root / virtiofs rw", "left: 2",
		" button ", " fuse ", " virtio_console ", " virtio_pci ", " virtio_rng ", " virtio_net ", " vmw_vsock_virtio_transport ", " virtiofs "} {
		if !strings.Contains(out, want) {
			t.Errorf("the guest did not say %q", want)
		}
	}
	if t.Failed() {
		t.Log(out)
	}
}

// The same with a file system on a disk, whose driver is a module.
func TestBootDiskUnderQEMU(t *testing.T) {
	if testing.Short() {
		t.Skip("boots a machine")
	}
	name := "kernel-bookworm"
	if k := os.Getenv("GVMSPAWN_TEST_KERNEL"); k != "" {
		name = k // another asset, such as kernel-trixie with its compressed modules
	}
	kernel := guesttest.KernelAsset(t, name)
	dir := t.TempDir()
	disk := filepath.Join(dir, "disk")
	if out, err := exec.Command("mke2fs", "-q", "-t", "ext4", "-d", guesttest.BusyboxTree(t, guestScript), disk, "64M").CombinedOutput(); err != nil {
		t.Skipf("mke2fs: %v: %s", err, out)
	}
	root := Root{Source: "/dev/vda", Types: []string{"ext4"}, Device: true, ReadOnly: true, Drivers: []Module{{Name: "virtio_blk"}}}
	cmdline := "console=hvc0 panic=-1 reboot=t ro FOO=bar -- one two"
	img, err := Build(Config{Release: kernel.Version, Kernel: kernel.Path, Places: NextTo(kernel.Path, kernel.Version),
		Modules: Wanted(root), CommandLine: cmdline, Root: root})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("modules %v", img.Modules)
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	out := runMachine(ctx, t, kernel.Path, writeImage(t, dir, img), cmdline,
		"-drive", "if=none,id=d,format=raw,file="+disk, "-device", "virtio-blk-pci,drive=d")
	for _, want := range []string{"args: /sbin/init one two", "env: bar", "dev: 1", "root: /dev/vda / ext4 ro", "left: 2", " virtio_blk "} {
		if !strings.Contains(out, want) {
			t.Errorf("the guest did not say %q", want)
		}
	}
	if t.Failed() {
		t.Log(out)
	}
}

// A root that cannot be mounted is said so on the console.
func TestBootWithoutRootUnderQEMU(t *testing.T) {
	if testing.Short() {
		t.Skip("boots a machine")
	}
	kernel := guesttest.KernelAsset(t, "kernel-bookworm")
	root := Root{Source: "nothing", Types: []string{"virtiofs"}}
	img, err := Build(Config{Release: kernel.Version, Places: NextTo(kernel.Path, kernel.Version), Modules: Wanted(root), Root: root})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	out := runMachine(ctx, t, kernel.Path, writeImage(t, t.TempDir(), img), "console=hvc0 quiet panic=-1 reboot=t")
	if want := "gvmspawn: cannot mount root nothing (virtiofs): errno 22"; !strings.Contains(out, want) {
		t.Errorf("the guest did not say %q:\n%s", want, out)
	}
}

func writeImage(t *testing.T, dir string, img *Image) string {
	b, err := io.ReadAll(img)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "initrd")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// waitFor waits until path exists and returns it.
func waitFor(t *testing.T, path string) string {
	for range 500 {
		if _, err := os.Stat(path); err == nil {
			return path
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("%s does not appear", path)
	return ""
}

// runMachine returns the console of a QEMU machine with a virtio console.
func runMachine(ctx context.Context, t *testing.T, kernel, initrd, cmdline string, args ...string) string {
	qemu, err := exec.LookPath("qemu-system-x86_64")
	if err != nil {
		t.Skip("no qemu-system-x86_64")
	}
	const ram = "256M"
	start := time.Now()
	out, err := exec.CommandContext(ctx, qemu, append([]string{"-accel", "tcg", "-m", ram,
		"-object", fmt.Sprintf("memory-backend-memfd,id=ram,size=%s,share=on", ram), "-machine", "q35,memory-backend=ram",
		"-nodefaults", "-no-reboot", "-nographic", "-device", "virtio-serial-pci", "-chardev", "stdio,id=c", "-device", "virtconsole,chardev=c",
		"-device", "virtio-rng-pci", "-kernel", kernel, "-initrd", initrd, "-append", cmdline}, args...)...).CombinedOutput()
	if err != nil {
		t.Errorf("qemu: %v", err)
	}
	t.Logf("machine ran %v", time.Since(start).Round(time.Millisecond))
	return string(out)
}
