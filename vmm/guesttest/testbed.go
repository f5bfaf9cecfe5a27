package guesttest

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/therootcompany/xz"
	"github.com/u-root/u-root/pkg/cpio"
)

// Testbed is a machine with genuine KVM: a Debian kernel with kvm_amd, booted in
// QEMU's emulation of an AMD CPU with SVM and nested paging. What runs in it is
// a shell script (busybox); its root file system is in memory.
type Testbed struct {
	// Script runs as /job; its exit status is the result.
	Script string
	// Files are put into the file system: name there → name on this host.
	// A directory is copied with everything in it.
	Files map[string]string
	// Disks are raw images, /dev/vda and following. Writes are lost.
	Disks []string
	// Kernel is the asset that runs it, "kernel-bookworm" if "".
	Kernel string
	// Modules are loaded besides KVM's, with what they depend on.
	Modules []string
	// CPU is QEMU's model of the machine's CPU; if "", one with KVM.
	CPU string
	// SMP runs two CPUs in real time. Otherwise there is one and time is the
	// count of executed instructions, 2 ns each, the same in every run.
	SMP bool
	// Race makes RunTests build the tests with the race detector.
	Race bool
	// Memory is in MiB, 2048 if 0.
	Memory int
	// Timeout is real time, 5 minutes if 0.
	Timeout time.Duration
}

// Result is what a Testbed run left.
type Result struct {
	// Output is everything that the script printed.
	Output string
	// Status is its exit status.
	Status int
}

const (
	jobStart = "TESTBED-JOB-BEGINS"
	jobEnd   = "TESTBED-JOB-STATUS="
)

// Run boots the testbed and runs the script. It fails the test when the
// testbed itself fails, and skips it when QEMU or the assets are missing.
func (b Testbed) Run(t testing.TB) Result {
	t.Helper()
	qemu := nestedQEMU(t)
	kernel := KernelAsset(t, cmp.Or(b.Kernel, "kernel-bookworm"))
	initrd := filepath.Join(t.TempDir(), "testbed.cpio")
	if err := b.writeInitrd(initrd, kernel, Busybox(t)); err != nil {
		t.Fatal(err)
	}
	if b.Timeout == 0 {
		b.Timeout = 5 * time.Minute
	}
	var out []byte
	var err error
	for try := 1; ; try++ {
		var hung bool
		out, hung, err = qemu.runFor(b.Timeout, b.args(kernel.Path, initrd, qemu.mended))
		if !hung {
			break
		}
		if qemu.mended || try == testbedTries {
			t.Fatalf("testbed: no end after %v, %d times; its console:\n%s", b.Timeout, try, tail(out))
		}
		t.Logf("testbed: no end after %v, trying again", b.Timeout)
	}
	res, perr := parseResult(out)
	switch {
	case err != nil:
		t.Fatalf("testbed: %v; its console:\n%s", err, tail(out))
	case perr != nil:
		t.Fatalf("testbed: %v; its console:\n%s", perr, tail(out))
	}
	return res
}

// testbedTries is how often a run without an end is tried with a QEMU that could
// not be mended (see mendQEMU). A run that ends is never repeated, whatever its result.
const testbedTries = 3

// runFor runs QEMU for at most limit and returns what it printed. A copy goes to
// the file that GVMSPAWN_TESTBED_CONSOLE names, to watch a long run.
func (q *qemuProgram) runFor(limit time.Duration, args []string) (out []byte, hung bool, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, q.path, append(q.args[:len(q.args):len(q.args)], args...)...)
	cmd.Env = q.env
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} // with the test, however that ends
	var console bytes.Buffer
	cmd.Stdout = &console
	if name := os.Getenv("GVMSPAWN_TESTBED_CONSOLE"); name != "" {
		f, err := os.Create(name)
		if err != nil {
			return nil, false, err
		}
		defer f.Close()
		cmd.Stdout = io.MultiWriter(&console, f)
	}
	cmd.Stderr = cmd.Stdout
	err = cmd.Run()
	return console.Bytes(), ctx.Err() != nil, err
}

// args is QEMU's command line.
func (b Testbed) args(kernel, initrd string, mended bool) []string {
	cpu := cmp.Or(b.CPU, "max,+svm,+npt")
	if mended {
		// A host that looks like any other: on one that says it is emulated, KVM engines
		// (vmm/kvm) give their guests no PV EOI, which costs an exit for each interrupt.
		cpu += ",tcg-cpuid=off"
	}
	memory := b.Memory
	if memory == 0 {
		memory = 2048
	}
	a := []string{"-M", "q35", "-cpu", cpu, "-m", strconv.Itoa(memory), "-nic", "none", "-nographic", "-no-reboot",
		"-kernel", kernel, "-initrd", initrd, "-append", "console=ttyS0 reboot=t panic=-1 quiet mitigations=off"}
	if b.SMP {
		a = append(a, "-accel", "tcg,thread=multi", "-smp", "2")
	} else {
		a = append(a, "-accel", "tcg", "-icount", "shift=1,sleep=off", "-smp", "1")
	}
	for _, d := range b.Disks {
		a = append(a, "-drive", "if=virtio,format=raw,snapshot=on,file="+d)
	}
	return a
}

// initScript is /init of the testbed.
const initScript = `#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /tmp /run /sbin /usr/bin /usr/sbin
/bin/busybox --install -s /bin
mount -t proc proc /proc; mount -t sysfs sysfs /sys; mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm; mount -t devpts devpts /dev/pts; mount -t tmpfs tmpfs /dev/shm
ip link set lo up 2>/dev/null
export PATH=/bin:/sbin HOME=/root
for m in $(cat /modules); do modprobe $m || echo "testbed: no module $m"; done
stty -onlcr 2>/dev/null
echo ` + jobStart + `
sh /job </dev/null 2>&1
status=$?
echo; echo ` + jobEnd + `$status
poweroff -f
`

func (b Testbed) writeInitrd(path string, kernel Kernel, busybox string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	buf := bufio.NewWriterSize(f, 1<<20)
	w := cpio.Newc.Writer(buf)
	modules := b.Modules
	if b.CPU == "" {
		modules = append([]string{"kvm_amd"}, modules...)
	}
	if len(b.Disks) > 0 {
		modules = append(modules, "virtio_pci", "virtio_blk", "ext4")
	}
	a := archive{w: w, seen: map[string]bool{}}
	a.dir("bin", "dev", "proc", "sys", "root", "tmp", "lib", "lib/modules")
	a.file("bin/busybox", busybox)
	a.link("bin/sh", "busybox")
	a.text("init", initScript, 0o755)
	a.text("job", b.Script, 0o644)
	a.text("modules", strings.Join(modules, "\n")+"\n", 0o644)
	a.modules(kernel, modules)
	for name, from := range b.Files {
		a.tree(strings.TrimPrefix(name, "/"), from)
	}
	if a.err == nil {
		a.err = cpio.WriteTrailer(w)
	}
	if a.err == nil {
		a.err = buf.Flush()
	}
	return a.err
}

// archive writes an initramfs; the first error sticks.
type archive struct {
	w    cpio.RecordWriter
	seen map[string]bool
	err  error
}

func (a *archive) add(r cpio.Record) {
	if a.seen[r.Name] || a.err != nil {
		return
	}
	a.seen[r.Name] = true
	if p := filepath.Dir(r.Name); p != "." {
		a.dir(p)
	}
	a.err = a.w.WriteRecord(r)
}

func (a *archive) dir(names ...string) {
	for _, n := range names {
		a.add(cpio.Directory(n, 0o755))
	}
}

func (a *archive) link(name, target string) { a.add(cpio.Symlink(name, target)) }

func (a *archive) text(name, content string, perm uint64) {
	a.add(cpio.StaticFile(name, content, perm))
}

func (a *archive) file(name, from string) {
	data, err := os.ReadFile(from)
	info, serr := os.Stat(from)
	if err != nil || serr != nil {
		a.err = fmt.Errorf("testbed: read %s: %w", from, err)
		return
	}
	a.add(cpio.StaticRecord(data, cpio.Info{Name: name, Mode: cpio.S_IFREG | uint64(info.Mode().Perm()), NLink: 1, FileSize: uint64(len(data))}))
}

// tree adds a file, or a directory with everything in it.
func (a *archive) tree(name, from string) {
	err := filepath.Walk(from, func(p string, info os.FileInfo, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(from, p)
		n := filepath.Join(name, rel)
		switch {
		case info.IsDir():
			a.dir(n)
		case info.Mode()&os.ModeSymlink != 0:
			target, err := os.Readlink(p)
			if err != nil {
				return err
			}
			a.link(n, target)
		case info.Mode().IsRegular():
			a.file(n, p)
		}
		return a.err
	})
	if a.err == nil {
		a.err = err
	}
}

// module adds a module that may be compressed.
func (a *archive) module(name, from string) {
	if !strings.HasSuffix(from, ".xz") {
		a.file(name, from)
		return
	}
	f, err := os.Open(from)
	if err != nil {
		a.err = err
		return
	}
	defer f.Close()
	r, err := xz.NewReader(f, 0)
	if err != nil {
		a.err = fmt.Errorf("testbed: %s: %w", from, err)
		return
	}
	data, err := io.ReadAll(r)
	if err != nil {
		a.err = fmt.Errorf("testbed: %s: %w", from, err)
		return
	}
	a.text(name, string(data), 0o644)
}

// modules adds modules with their dependencies, uncompressed, and the lists that
// modprobe reads.
func (a *archive) modules(k Kernel, names []string) {
	base := "lib/modules/" + k.Version
	deps, err := os.ReadFile(filepath.Join(k.Dir, base, "modules.dep"))
	if err != nil {
		a.err = err
		return
	}
	a.text(base+"/modules.dep", strings.ReplaceAll(string(deps), ".ko.xz", ".ko"), 0o644)
	for _, list := range []string{"modules.alias", "modules.builtin"} {
		a.file(base+"/"+list, filepath.Join(k.Dir, base, list))
	}
	for line := range strings.Lines(string(deps)) {
		path, needs, _ := strings.Cut(strings.TrimSpace(line), ":")
		name, _, _ := strings.Cut(filepath.Base(path), ".")
		name = strings.ReplaceAll(name, "-", "_")
		for _, want := range names {
			if name != want {
				continue
			}
			for _, f := range append(strings.Fields(needs), path) {
				a.module(base+"/"+strings.TrimSuffix(f, ".xz"), filepath.Join(k.Dir, base, f))
			}
		}
	}
}

// parseResult finds the job's output and status on the console.
func parseResult(console []byte) (Result, error) {
	_, out, ok := bytes.Cut(console, []byte(jobStart+"\n"))
	if !ok {
		_, out, ok = bytes.Cut(console, []byte(jobStart+"\r\n"))
	}
	if !ok {
		return Result{}, fmt.Errorf("the job did not begin")
	}
	i := bytes.LastIndex(out, []byte(jobEnd))
	if i < 0 {
		return Result{}, fmt.Errorf("the job did not end")
	}
	line, _, _ := strings.Cut(string(out[i+len(jobEnd):]), "\n")
	status, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil {
		return Result{}, fmt.Errorf("bad status line %q", line)
	}
	return Result{Output: strings.TrimSuffix(string(out[:i]), "\n"), Status: status}, nil
}

// tail returns the end of a long output.
func tail(b []byte) []byte {
	const most = 6000
	if len(b) > most {
		return b[len(b)-most:]
	}
	return b
}
