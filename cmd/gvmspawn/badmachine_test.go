package main

import (
	"encoding/binary"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/gvmspawn/gvmspawn/vmm"
	"github.com/gvmspawn/gvmspawn/vmm/disk/qcow2"
	"github.com/gvmspawn/gvmspawn/vmm/guesttest"
)

// TestBadMachines: what is wrong with a stock kernel, an initrd, a tree or this
// host is one sentence, and status 1.
func TestBadMachines(t *testing.T) {
	if testing.Short() {
		t.Skip("needs a stock kernel")
	}
	dir := t.TempDir()
	kernel, err := os.ReadFile(guesttest.KernelAsset(t, "kernel-bookworm").Path)
	if err != nil {
		t.Fatal(err)
	}
	unknown := append([]byte(nil), kernel...)
	payload := (int(kernel[setupSectsAt])+1)*512 + int(binary.LittleEndian.Uint32(kernel[payloadOffsetAt:]))
	copy(unknown[payload:], "what")
	damaged := append([]byte(nil), kernel...)
	clear(damaged[payload+1<<20 : payload+2<<20])
	for name, data := range map[string][]byte{"kernel": kernel, "cut": kernel[:200000], "short": kernel[:600], "unknown": unknown, "damaged": damaged, "initrd": nil, "small": nil} {
		writeFile(t, filepath.Join(dir, name), data, 0o644)
	}
	for _, err := range []error{os.Truncate(filepath.Join(dir, "initrd"), 600<<20), os.Truncate(filepath.Join(dir, "small"), 512), os.Mkdir(filepath.Join(dir, "empty"), 0o755)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct{ args, want string }{
		{"--linux=cut", "it is cut off"},
		{"--linux=short", "it is cut off"},
		{"--linux=small", "small"},
		{"--linux=unknown --initrd=small", "has a payload of unknown compression"},
		{"--linux=damaged --initrd=small", "is damaged: unpacking its lz4 payload fails"},
		{"--linux=kernel --initrd=small --ram=32M", "does not fit into the machine's RAM: it needs at least"},
		{"--linux=kernel --initrd=initrd --ram=256M", "initrd (600 MiB) does not fit into the machine's 256 MiB of RAM"},
		{"--linux=kernel --initrd=small --ram=1M", "1024 KiB of RAM are too little: a guest needs at least"},
		{"--linux=kernel --initrd=small --ram=900G", "are more than this host's memory and swap"},
		{"--linux=kernel --initrd=small --ram=1P", "are too much: at most"},
		{"--linux=kernel", "empty has no init program (/sbin/init, /etc/init, /bin/init, /bin/sh)"},
		{"--linux=kernel init=/nothing", "empty has no init program (/nothing)"},
	} {
		r := execute(t, dir, append([]string{"-q", "-D", "empty", "--kvm=no", "--register=no", "--tpm=no", "--vsock=no"}, strings.Fields(c.args)...)...)
		oneSentence(t, c.args, r, c.want)
	}
}

// oneSentence checks that a run was refused with a sentence.
func oneSentence(t *testing.T, what string, r result, want string) {
	t.Helper()
	if r.status != 1 || !strings.HasPrefix(r.stderr, "gvmspawn: ") || !strings.Contains(r.stderr, want) || strings.Count(r.stderr, "\n") != 1 || r.stdout != "" {
		t.Errorf("%s: status %d, stdout %q, stderr %q, want %q", what, r.status, r.stdout, r.stderr, want)
	}
}

// TestBadKVM: a host without /dev/kvm, one that forbids it, one whose device is
// something else, and a directory that may not be read (hostile-guest.md row 28).
// A busy /dev/kvm, which another hypervisor causes, is TestUnusable of vmm/kvm.
func TestBadKVM(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("changes /dev in a mount namespace of its own, and its user, as root")
	}
	dir := t.TempDir()
	if err := os.Chmod(filepath.Dir(dir), 0o755); err != nil {
		t.Fatal(err)
	}
	for d, mode := range map[string]os.FileMode{"empty": 0o755, "closed": 0o700, "run": 0o777} {
		if err := errors.Join(os.Mkdir(filepath.Join(dir, d), mode), os.Chmod(filepath.Join(dir, d), mode)); err != nil {
			t.Fatal(err)
		}
	}
	tinyKernel(t, dir)
	binary := guesttest.Binary(t)
	if err := os.Chmod(filepath.Dir(binary), 0o755); err != nil {
		t.Fatal(err)
	}
	const nobody = "setpriv --reuid=65534 --regid=65534 --clear-groups "
	for _, c := range []struct{ name, prepare, as, args, want string }{
		{"missing", "mount -t tmpfs none /dev", "", "--kvm=yes -D empty", "this host has no usable /dev/kvm: load the kernel module"},
		{"not permitted", "mount -t tmpfs none /dev && mknod -m 600 /dev/kvm c 10 232", nobody, "--kvm=yes -D empty", "/dev/kvm may not be opened by this user: become a member of its group"},
		{"not KVM", "mount -t tmpfs none /dev && mknod -m 666 /dev/kvm c 1 3", "", "--kvm=yes -D empty", "/dev/kvm"},
		{"read-only image", "truncate -s 1M image && chmod 444 image", nobody, "--kvm=no -i image root=/dev/vda", "image cannot be opened for writing: make it writable or use it read-only"},
		{"TAP without privileges", "true", nobody, "--kvm=no -D empty --network-tap", "making a TAP device needs root privileges"},
		{"unreadable directory", "true", nobody, "--kvm=no -D closed", "closed cannot be read: permission denied"},
	} {
		line := c.prepare + " && exec " + c.as + binary + " -q --register=no --vsock=no --linux=kernel " + c.args
		sh := exec.Command("sh", "-c", line)
		sh.Dir, sh.Env = dir, spawnCommand(dir).Env
		sh.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
		var out, errs strings.Builder
		sh.Stdout, sh.Stderr = &out, &errs
		_ = sh.Run() // the status tells
		oneSentence(t, c.name, result{out.String(), errs.String(), sh.ProcessState.ExitCode()}, c.want)
	}
}

// TestBadDevices: what is wrong with a disk image, a published port or the right
// to a TAP device is one sentence.
func TestBadDevices(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	tinyKernel(t, dir)
	huge := binary.BigEndian.AppendUint32([]byte("QFI\xfb"), 3)
	huge = append(huge, make([]byte, 4096)...)
	huge[23] = 16                                                   // cluster_bits
	binary.BigEndian.PutUint64(huge[24:], 1<<20)                    // size
	binary.BigEndian.PutUint32(huge[36:], 0x7fff_ffff)              // l1_size
	binary.BigEndian.PutUint32(huge[100:], 104)                     // header_length
	binary.BigEndian.PutUint32(huge[96:], 4)                        // refcount_order
	backed := append([]byte(nil), huge...)                          // with a backing file
	binary.BigEndian.PutUint64(backed[8:], 1024)                    // backing_file_offset
	binary.BigEndian.PutUint32(backed[16:], uint32(len("json:{}"))) // backing_file_size
	copy(backed[1024:], "json:{}")
	for name, data := range map[string][]byte{"raw": make([]byte, 1<<20), "used": make([]byte, 1<<20), "odd": make([]byte, 1000), "empty-file": nil, "huge": huge, "backed": backed} {
		writeFile(t, at(name), data, 0o644)
	}
	if err := os.Mkdir(at("tree"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(at("fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, backing := range map[string]string{"escapes": "../../etc/passwd", "absolute": "/proc/version", "loop": "loop2", "loop2": "loop", "plain": "raw"} {
		format := "raw"
		if strings.HasPrefix(name, "loop") {
			format = "qcow2"
		}
		if err := qcow2.Create(at(name), qcow2.CreateOptions{Size: 1 << 20, Backing: backing, BackingFormat: format}); err != nil {
			t.Fatal(err)
		}
	}
	unreferenced, err := os.ReadFile(at("plain"))
	if err != nil {
		t.Fatal(err)
	}
	binary.BigEndian.PutUint32(unreferenced[56:], 0) // refcount_table_clusters
	writeFile(t, at("unreferenced"), unreferenced, 0o644)
	used, err := vmm.OpenDisk(vmm.Disk{Path: at("used")})
	if err != nil {
		t.Fatal(err)
	}
	defer used.Close()
	port, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer port.Close()
	taken := portOf(port.Addr().String())
	for _, c := range []struct{ args, want string }{
		{"--extra-drive=qcow2:raw", "raw: not a qcow2 image"},
		{"--extra-drive=qcow2:huge", "huge: L1 table of 2147483647 entries is too large"},
		{"--extra-drive=qcow2:backed", "backed: "},
		{"--extra-drive=qcow2:escapes", "escapes: backing file ../../etc/passwd is outside the image's directory"},
		{"--extra-drive=qcow2:absolute", "absolute: backing file /proc/version is outside the image's directory"},
		{"--extra-drive=qcow2:absolute --disk-backing=anywhere", "absolute: size of disk image /proc/version: "},
		{"--extra-drive=qcow2:escapes --disk-backing=above", "expected one of beside, anywhere"},
		{"--extra-drive=qcow2:loop", "loop leads back to itself"},
		{"--extra-drive=qcow2:unreferenced", "unreferenced: refcount table of 0"},
		{"--extra-drive=odd", "odd has 1000 bytes, but a raw disk is a positive multiple of 512"},
		{"--extra-drive=empty-file", "empty-file has 0 bytes"},
		{"--extra-drive=nvme:odd", "odd has 1000 bytes"},
		{"--extra-drive=scsi-cd:empty-file", "empty-file has 0 bytes"},
		{"--extra-drive=fifo", "fifo is neither a directory nor a disk image nor a block device"},
		{"--extra-drive=tree", "tree is a directory"},
		{"--extra-drive=used", "used is in use"},
		{"--extra-drive=raw --extra-drive=raw", "raw is in use"},
		{"--network-user-mode --port=" + taken + ":80", ":" + taken + ": bind: address already in use"},
		{"--network-user-mode --port=192.0.2.1:8080:80", "cannot assign requested address"},
		{"--network-user-mode --port=1:2:3:4", "option --port: expected"},
		{"--network-user-mode --port=80/sctp", "option --port: expected"},
		{"--network-user-mode --port=-1", "option --port: expected"},
	} {
		oneSentence(t, c.args, execute(t, dir, append([]string{"-q", "-D", "tree", "--linux=kernel", "--kvm=no", "--register=no", "--tpm=no", "--vsock=no"}, strings.Fields(c.args)...)...), c.want)
	}
}
