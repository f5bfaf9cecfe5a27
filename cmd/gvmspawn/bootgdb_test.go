package main

import (
	"context"
	"debug/elf"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/gvmspawn/gvmspawn/vmm/guesttest"
)

// gdbInit is the guest's init under the debugger.
const gdbInit = `echo HELLO; poweroff -f`

// gdbScript is what gdb does: it looks at the kernel's first instructions and
// steps, runs to the first instruction of a program, which is user code in the
// midst of a running system, steps there, goes back and to a breakpoint in memory,
// watches its stack, and lets the guest power itself off.
func gdbScript(target string, entry uint64) string {
	return fmt.Sprintf(`set pagination off
set confirm off
target remote %s
printf "start cs=%%x pg=%%d lma=%%d\n", $cs, $cr0 >> 31 & 1, $efer >> 10 & 1
set $first = $rip
stepi
stepi
printf "stepped %%d\n", $rip > $first
info threads
hbreak *%#x
continue
printf "entry rip=%%lx cpl=%%d argc=%%d mxcsr=%%x fctrl=%%x\n", $rip, $cs & 3, *(int*)$rsp > 0, $mxcsr, $fctrl
x/3i $rip
monitor info registers
delete
set $entry = $rip
stepi
stepi
set $next = $rip
set $rip = $entry
break *$next
continue
printf "again %%d\n", $rip == $next
delete
set $rdi = 0x1234567890
set $xmm3.v2_int64[0] = 77
printf "written rdi=%%lx xmm3=%%d\n", $rdi, $xmm3.v2_int64[0]
set $slot = $rsp - 16
watch *(long*)$slot
continue
printf "watched %%d\n", $rip > $next
delete
continue
`, target, entry)
}

// gdbWants are regular expressions of gdb's output, in order.
func gdbWants(entry uint64) []string {
	at := fmt.Sprintf("%x", entry)
	return []string{
		`start cs=10 pg=1 lma=1`, `stepped 1`, `Thread 1 \(CPU 0\)`, `Thread 2 \(CPU 1\)`,
		`[Hh]ardware assisted breakpoint 1`, `Breakpoint 1, 0x`, `entry rip=` + at + ` cpl=3 argc=1 mxcsr=1f80 fctrl=37f`, `=> 0x` + at + `:`, `(?m)^RIP 0*` + at + ` `,
		`Breakpoint 2, 0x`, `again 1`, `written rdi=1234567890 xmm3=77`, `[Ww]atchpoint 3: \*\(long\*\)\$slot`, `watched 1`, `exited normally`,
	}
}

// checkGDB reports which of the expressions is not in out, in their order.
func checkGDB(t *testing.T, out string, wants []string) {
	t.Helper()
	rest := out
	for _, want := range wants {
		at := regexp.MustCompile(want).FindStringIndex(rest)
		if at == nil {
			t.Errorf("gdb does not say %q; it says:\n%s", want, out)
			return
		}
		rest = rest[at[1]:]
	}
}

// entryOf is the address of a static program's first instruction.
func entryOf(t *testing.T, path string) uint64 {
	t.Helper()
	f, err := elf.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if f.Type != elf.ET_EXEC {
		t.Fatalf("%s is no program at a fixed address", path)
	}
	return f.Entry
}

// TestBootGDB has Debian's gdb drive a boot of a stock kernel on the software CPU.
func TestBootGDB(t *testing.T) {
	if testing.Short() {
		t.Skip("boots a machine")
	}
	gdb := guesttest.Tool(t, "gdb")
	entry := entryOf(t, guesttest.Busybox(t))
	dir := t.TempDir()
	script, socket := filepath.Join(dir, "script"), filepath.Join(dir, "socket")
	if err := os.WriteFile(script, []byte(gdbScript(socket, entry)), 0o644); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 4*time.Minute)
	defer cancel()
	vm := exec.CommandContext(ctx, guesttest.Binary(t), "-q", "--kvm=no", "--register=no", "--tpm=no", "--vsock=no", "-D", guesttest.BusyboxTree(t, gdbInit),
		"--linux="+guesttest.KernelAsset(t, "kernel-trixie").Path, "--ram=256M", "--cpus=2", "--gdb=unix:"+socket, "quiet")
	var console strings.Builder
	vm.Stdout, vm.Stderr = &console, &console
	if err := vm.Start(); err != nil {
		t.Fatal(err)
	}
	waitSocket(t, socket)
	out, err := exec.CommandContext(ctx, gdb, "-nx", "-batch", "-x", script).CombinedOutput()
	if err != nil {
		t.Errorf("gdb: %v", err)
	}
	checkGDB(t, string(out), gdbWants(entry))
	if err := vm.Wait(); err != nil || !strings.Contains(console.String(), "HELLO") {
		t.Errorf("the machine: %v; its console:\n%s", err, console.String())
	}
}

func waitSocket(t *testing.T, path string) {
	t.Helper()
	for range 200 {
		if st, err := os.Stat(path); err == nil && st.Mode().Type() == fs.ModeSocket {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatal("nobody listens for gdb")
}

// gdbScriptKVM is for the testbed, whose QEMU has in a nested guest neither
// breakpoints by debug register nor an intercept of INT3: steps, registers, memory,
// and an interrupt in the shell's loop.
const gdbScriptKVM = `set remotetimeout 60
set pagination off
set confirm off
target remote /tmp/socket
printf "start cs=%x pg=%d lma=%d\n", $cs, $cr0 >> 31 & 1, $efer >> 10 & 1
set $first = $rip
stepi
stepi
printf "stepped %d\n", $rip > $first
set $old = $r15
set $r15 = 0x1234567890
set $was = *(char*)$first
set *(char*)$first = 0x55
printf "written r15=%lx byte=%x\n", $r15, *(char*)$first & 0xff
set *(char*)$first = $was
set $r15 = $old
continue
printf "looping\n"
stepi
stepi
info threads
continue
`

// TestBootGDBOnKVM is the same on genuine kvm_amd.
func TestBootGDBOnKVM(t *testing.T) {
	if testing.Short() || os.Getenv("GVMSPAWN_LONG") == "" {
		t.Skip("boots a machine in the testbed; GVMSPAWN_LONG=1 runs it")
	}
	kernel := guesttest.KernelAsset(t, "kernel-trixie")
	script := filepath.Join(t.TempDir(), "script")
	if err := os.WriteFile(script, []byte(gdbScriptKVM), 0o644); err != nil {
		t.Fatal(err)
	}
	tree := guesttest.BusyboxTree(t, `echo LOOPING; n=0; while [ $n -lt 400000 ]; do n=$((n+1)); done; echo HELLO; poweroff -f`)
	files := map[string]string{
		"bin/gvmspawn": guesttest.Binary(t), "vmlinuz": kernel.Path, "tree": tree, "script": script,
		"usr/share/gdb": "/usr/share/gdb",
	}
	addProgram(t, files, guesttest.Tool(t, "gdb"))
	res := guesttest.Testbed{
		Files: files, SMP: true, Timeout: 6 * time.Minute,
		Modules: []string{"virtiofs", "virtio_pci", "virtio_console", "virtio_rng"},
		Script: `
timeout -s KILL 200 gvmspawn -q --kvm=yes --vsock=no -D /tree --linux=/vmlinuz --ram=256M --gdb=unix:/tmp/socket quiet >/tmp/out 2>&1 </dev/null &
vm=$!
while ! [ -S /tmp/socket ]; do sleep 0.2; done
gdb -nx -batch -x /script &
gdb=$!
while ! grep -q LOOPING /tmp/out && kill -0 $vm; do sleep 0.2; done
kill -INT $gdb
wait $vm
echo "machine ended with $?"
cat /tmp/out`,
	}.Run(t)
	wants := []string{`start cs=10 pg=1 lma=1`, `stepped 1`, `written r15=1234567890 byte=55`, `received signal SIGINT`, `looping`,
		`Thread 1 \(CPU 0\)`, `exited normally`, `machine ended with 0`, `HELLO`}
	checkGDB(t, res.Output, wants)
}

// addProgram adds a program with its libraries, and of Python's the part that
// gdb cannot start without.
func addProgram(t *testing.T, files map[string]string, path string) {
	t.Helper()
	files["bin/"+filepath.Base(path)] = path
	out, err := exec.Command("ldd", path).Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, lib := range regexp.MustCompile(`/\S+`).FindAllString(string(out), -1) {
		real, err := filepath.EvalSymlinks(lib)
		if err != nil {
			t.Fatal(err)
		}
		files[strings.TrimPrefix(lib, "/")] = real
	}
	python, _ := filepath.Glob("/usr/lib/python3.*")
	for _, dir := range python {
		names, _ := filepath.Glob(dir + "/*.py")
		for _, sub := range []string{"encodings", "importlib", "collections", "re", "json"} {
			more, _ := filepath.Glob(filepath.Join(dir, sub, "*.py"))
			names = append(names, more...)
		}
		for _, n := range names {
			files[strings.TrimPrefix(n, "/")] = n
		}
	}
}
