package main

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"

	"github.com/gvmspawn/gvmspawn/vmm/guesttest"
)

// tinyGuest is 64-bit code that prints a line on the serial port and then
// echoes what it gets there, but powers off on "q" and, after printing "B", on
// the power button, resets on "r", spins on "i", halts for ever on "h",
// triple-faults on "t" and jumps into a device's registers on "m". It polls, so
// that it needs no interrupts.
var tinyGuest = []byte{
	0xfa, 0x48, 0x8d, 0x35, 0x6d, 0x00, 0x00, 0x00, // cli; lea rsi, banner
	0x8a, 0x06, 0x84, 0xc0, 0x74, 0x0a, 0x66, 0xba, 0xf8, 0x03, 0xee, 0x48, 0xff, 0xc6, 0xeb, 0xf0, // print it to 0x3f8
	0xbb, 0x00, 0x00, 0xd2, 0xfe, 0x8b, 0x03, 0xa8, 0x01, 0x75, 0x29, // loop: GED at 0xfed20000, bit 0: button
	0x66, 0xba, 0xfd, 0x03, 0xec, 0xa8, 0x01, 0x74, 0xec, // LSR, data ready?
	0x66, 0xba, 0xf8, 0x03, 0xec, 0x3c, 'q', 0x74, 0x1e, 0x3c, 'r', 0x74, 0x22,
	0x3c, 'i', 0x74, 0x26, 0x3c, 't', 0x74, 0x24, 0x3c, 'h', 0x74, 0x2b, 0x3c, 'm', 0x74, 0x2a, 0xee, 0xeb, 0xcc,
	0x66, 0xba, 0xf8, 0x03, 0xb0, 'B', 0xee, // button:
	0x66, 0xba, 0x80, 0x05, 0xb0, 0x34, 0xee, 0xf4, // off: SLEEP_CONTROL_REG 0x580
	0x66, 0xba, 0x82, 0x05, 0xb0, 0x01, 0xee, 0xf4, // reset: RESET_REG 0x582
	0xeb, 0xfe, // spin:
	0x31, 0xc0, 0x50, 0x50, 0x0f, 0x01, 0x1c, 0x24, 0x8a, 0x40, 0xff, // triple: lidt of zeroes; read -1
	0xf4, 0xeb, 0xfd, // halt:
	0xff, 0xe3, // device: jmp rbx
	't', 'i', 'n', 'y', ' ', 'g', 'u', 'e', 's', 't', '\r', '\n', 0,
}

// tinyKernel writes the guest as a vmlinux into dir.
func tinyKernel(t *testing.T, dir string) {
	t.Helper()
	const at = 0x1000000
	le := binary.LittleEndian
	b := make([]byte, 0x1000+len(tinyGuest))
	copy(b, "\x7fELF\x02\x01\x01")
	le.PutUint16(b[16:], 2)  // ET_EXEC
	le.PutUint16(b[18:], 62) // EM_X86_64
	le.PutUint32(b[20:], 1)
	le.PutUint64(b[24:], at)
	le.PutUint64(b[32:], 64) // program headers
	le.PutUint16(b[52:], 64)
	le.PutUint16(b[54:], 56)
	le.PutUint16(b[56:], 1)
	p := b[64:]
	le.PutUint32(p, 1)     // PT_LOAD
	le.PutUint32(p[4:], 7) // RWX
	le.PutUint64(p[8:], 0x1000)
	le.PutUint64(p[16:], at)
	le.PutUint64(p[24:], at)
	le.PutUint64(p[32:], uint64(len(tinyGuest)))
	le.PutUint64(p[40:], uint64(len(tinyGuest)))
	le.PutUint64(p[48:], 0x1000)
	copy(b[0x1000:], tinyGuest)
	if err := os.WriteFile(filepath.Join(dir, "kernel"), b, 0o644); err != nil {
		t.Fatal(err)
	}
}

// live is a running program.
type live struct {
	*exec.Cmd
	t     *testing.T
	dir   string
	stdin io.WriteCloser
	out   output
	errs  output
}

// output collects what is written and can be waited on.
type output struct {
	mu sync.Mutex // guards b
	b  bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

// waitFor waits until the output contains text.
func (o *output) waitFor(t *testing.T, text string) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !strings.Contains(o.String(), text); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("no %q in %q", text, o.String())
		}
	}
}

// tinyCommand prepares a run of the tiny guest.
func tinyCommand(t *testing.T, dir string, args ...string) *live {
	t.Helper()
	tinyKernel(t, dir)
	if err := os.MkdirAll(filepath.Join(dir, "tree"), 0o755); err != nil {
		t.Fatal(err)
	}
	base := []string{"-D", "tree", "--linux=kernel", "--initrd=kernel", "--ram=64M", "--vsock=no", "--tpm=no", "--console-transport=serial"}
	if guesttest.InTestbed() {
		base = append(base, "--kvm=yes")
	}
	if why := noEngine(dir, base); why != "" {
		t.Skip("no CPU engine works here: " + why)
	}
	l := &live{t: t, dir: dir, Cmd: spawnCommand(dir, append(base, args...)...)}
	l.Stdout, l.Stderr = &l.out, &l.errs
	return l
}

var engine struct {
	once sync.Once
	why  string // no engine works
}

// noEngine says, once for all tests, why no machine can run on this host, or "".
func noEngine(dir string, args []string) string {
	engine.once.Do(func() {
		c := spawnCommand(dir, args...)
		c.Stdin = strings.NewReader("q")
		out, err := c.CombinedOutput()
		for _, why := range []string{"the software CPU is not there yet", "cannot run an unmodified kernel"} {
			if err != nil && bytes.Contains(out, []byte(why)) {
				engine.why = why
			}
		}
	})
	return engine.why
}

// startTiny starts the tiny guest with pipes and waits for its line.
func startTiny(t *testing.T, dir string, args ...string) *live {
	t.Helper()
	l := tinyCommand(t, dir, args...)
	var err error
	if l.stdin, err = l.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	l.start()
	l.out.waitFor(t, "tiny guest\r\n")
	return l
}

func (l *live) start() {
	l.t.Helper()
	if err := l.Start(); err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { l.Process.Kill(); l.Wait() })
}

func (l *live) say(s string) {
	if _, err := io.WriteString(l.stdin, s); err != nil {
		l.t.Error(err)
	}
}

// status waits for the end.
func (l *live) status() int {
	l.t.Helper()
	timer := time.AfterFunc(30*time.Second, func() { l.Process.Kill() })
	defer timer.Stop()
	l.Wait()
	return l.ProcessState.ExitCode()
}

func TestPipes(t *testing.T) {
	l := startTiny(t, t.TempDir())
	l.say("abc")
	l.out.waitFor(t, "abc")
	l.say("q")
	if s := l.status(); s != 0 || l.out.String() != "tiny guest\r\nabc" {
		t.Errorf("%d %q %q", s, l.out.String(), l.errs.String())
	}
	if !strings.Contains(l.errs.String(), "Spawning VM tree on ") {
		t.Errorf("%q", l.errs.String())
	}
}

// TestEndOfInput: the machine outlives its input.
func TestEndOfInput(t *testing.T) {
	l := startTiny(t, t.TempDir(), "-q")
	l.say("x")
	l.stdin.Close()
	l.out.waitFor(t, "x")
	time.Sleep(100 * time.Millisecond)
	l.Process.Signal(unix.SIGTERM)
	if s := l.status(); s != 0 || !strings.HasSuffix(l.out.String(), "xB") || l.errs.String() != "" {
		t.Errorf("%d %q %q", s, l.out.String(), l.errs.String())
	}
}

// TestSignals: SIGTERM, SIGINT and SIGRTMIN+4 press the power button, a second
// one kills (vmspawn.md §2.12, and better).
func TestSignals(t *testing.T) {
	for _, s := range []unix.Signal{unix.SIGTERM, unix.SIGINT, sigPowerOff} {
		l := startTiny(t, t.TempDir())
		l.Process.Signal(s)
		if st := l.status(); st != 0 || !strings.HasSuffix(l.out.String(), "B") || !strings.Contains(l.errs.String(), "powering the machine off") {
			t.Errorf("%v: %d %q %q", s, st, l.out.String(), l.errs.String())
		}
	}
	for _, deaf := range []string{"xi", "xh"} { // the guest listens to nothing any more
		l := startTiny(t, t.TempDir())
		l.say(deaf)
		l.out.waitFor(t, "x")
		time.Sleep(50 * time.Millisecond)
		l.Process.Signal(unix.SIGTERM)
		l.errs.waitFor(t, "powering the machine off")
		l.Process.Signal(unix.SIGTERM)
		if st := l.status(); st != 0 || !strings.Contains(l.errs.String(), "killing the machine") {
			t.Errorf("%q: %d %q", deaf, st, l.errs.String())
		}
	}
	l := startTiny(t, t.TempDir(), "--stop-timeout=1")
	l.say("xi")
	l.out.waitFor(t, "x")
	l.Process.Signal(unix.SIGTERM)
	if st := l.status(); st != 0 || !strings.Contains(l.errs.String(), "did not power off within 1 s") {
		t.Errorf("%d %q", st, l.errs.String())
	}
}

// TestCrash: a triple fault, and code where no memory is, are status 1 and a
// message with the place and the console's last line, never 0. For the latter, KVM
// gives up; the software CPU reads ones there, which are no instruction.
func TestCrash(t *testing.T) {
	for say, want := range map[string]string{"t": `shutdown \(triple fault\)`, "m": `internal error: KVM cannot emulate an instruction|shutdown \(triple fault\): exception 6 `} {
		if guesttest.InTestbed() {
			want, _, _ = strings.Cut(want, "|")
		}
		l := startTiny(t, t.TempDir(), "-q")
		l.say("x" + say)
		st, message := l.status(), l.errs.String()
		want = `^gvmspawn: CPU 0: (` + want + `).* \(RIP 0x[0-9a-f]+, .*\); the last line on its console: x\n`
		if st != 1 || !regexp.MustCompile(want).MatchString(message) {
			t.Errorf("%q: status %d and %q, want 1 and %s", say, st, message, want)
		}
	}
}

// TestReboot: a reset restarts the machine, and no input is lost.
func TestReboot(t *testing.T) {
	l := startTiny(t, t.TempDir())
	l.say("r")
	l.out.waitFor(t, "tiny guest\r\ntiny guest\r\n")
	l.say("yq")
	if st := l.status(); st != 0 || !strings.HasSuffix(l.out.String(), "guest\r\ny") {
		t.Errorf("%d %q", st, l.out.String())
	}
}

// TestTerminal: raw while it runs, ^] three times kills, and the terminal is
// as before, also after a crash and after SIGKILL.
func TestTerminal(t *testing.T) {
	for keys, want := range map[string]int{"\x1d\x1d\x1d": 0, "t": 1, "kill -9": -1} {
		master, tty, err := pty.Open()
		if err != nil {
			t.Skipf("no pseudo terminals here: %v", err)
		}
		before, err := unix.IoctlGetTermios(int(tty.Fd()), unix.TCGETS)
		if err != nil {
			t.Fatal(err)
		}
		l := tinyCommand(t, t.TempDir())
		l.Stdin, l.Stdout, l.Stderr = tty, tty, tty
		l.start()
		go io.Copy(&l.out, master)
		l.out.waitFor(t, "tiny guest\r\n")
		if keys == "kill -9" {
			l.Process.Kill()
		} else if _, err := io.WriteString(master, "\x03"+keys); err != nil {
			t.Fatal(err)
		}
		if st := l.status(); st != want {
			t.Errorf("%q: %d %q", keys, st, l.out.String())
		}
		for end := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
			after, err := unix.IoctlGetTermios(int(tty.Fd()), unix.TCGETS)
			if err != nil {
				t.Fatal(err)
			}
			if *after == *before {
				break
			}
			if time.Now().After(end) {
				t.Fatalf("%q: the terminal is not restored", keys)
			}
		}
		tty.Close()
		master.Close()
	}
}

// TestClosedOutput: when nobody reads, the machine powers off.
func TestClosedOutput(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	l := tinyCommand(t, t.TempDir())
	l.Stdout = w
	if l.stdin, err = l.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	l.start()
	w.Close()
	if _, err := io.ReadFull(r, make([]byte, len("tiny guest\r\n"))); err != nil {
		t.Fatal(err)
	}
	r.Close()
	l.say("x")
	if st := l.status(); st != 0 || !strings.Contains(l.errs.String(), "The terminal is gone") {
		t.Errorf("%d %q", st, l.errs.String())
	}
}

// TestVerbs: list, status and stop of a running machine, and what is left
// after SIGKILL.
func TestVerbs(t *testing.T) {
	dir := t.TempDir()
	l := startTiny(t, dir, "-q", "-M", "tiny")
	if r := execute(t, dir, "list"); r.status != 0 || !strings.Contains(r.stdout, "tiny") || !strings.Contains(r.stdout, "running") {
		t.Errorf("%+v", r)
	}
	if r := execute(t, dir, "status", "tiny"); r.status != 0 || !strings.Contains(r.stdout, "engine: ") || !strings.Contains(r.stdout, "console=ttyS0") {
		t.Errorf("%+v", r)
	}
	if r := execute(t, dir, "-D", "tree", "--linux=kernel", "-M", "tiny"); r.status != 1 || !strings.Contains(r.stderr, "is running already") {
		t.Errorf("%+v", r)
	}
	if r := execute(t, dir, "ssh", "tiny"); r.status != 1 || !strings.Contains(r.stderr, "without an SSH key") {
		t.Errorf("%+v", r)
	}
	if r := execute(t, dir, "stop", "tiny"); r.status != 0 || r.stderr != "" {
		t.Errorf("%+v", r)
	}
	if st := l.status(); st != 0 || !strings.HasSuffix(l.out.String(), "B") {
		t.Errorf("%d %q", st, l.out.String())
	}
	for _, c := range []struct{ args, want string }{{"stop tiny", "no machine 'tiny' is running"}, {"status", "needs the name of a machine"}, {"ssh ../x", "invalid machine name"}, {"list x", "takes no arguments"}} {
		if r := execute(t, dir, strings.Fields(c.args)...); r.status != 1 || !strings.Contains(r.stderr, c.want) {
			t.Errorf("%s: %+v", c.args, r)
		}
	}

	l = startTiny(t, dir, "-q")
	l.Process.Kill()
	l.status()
	if r := execute(t, dir, "list"); strings.Contains(r.stdout, "tree") {
		t.Errorf("%+v", r)
	}
	if left, _ := os.ReadDir(filepath.Join(dir, "run")); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

// TestSecondOfAName: a derived name gives way.
func TestSecondOfAName(t *testing.T) {
	dir := t.TempDir()
	startTiny(t, dir, "-q")
	startTiny(t, dir, "-q")
	if r := execute(t, dir, "list"); !strings.Contains(r.stdout, "tree ") || !strings.Contains(r.stdout, "tree-2 ") {
		t.Errorf("%+v", r)
	}
	for _, name := range []string{"tree", "tree-2"} {
		if r := execute(t, dir, "stop", "--force", name); r.status != 0 {
			t.Errorf("%+v", r)
		}
	}
}

// TestServiceManager: what our own manager hears (vmspawn.md §2.7).
func TestServiceManager(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "notify")
	s, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	messages := make(chan string, 100)
	go func() {
		for b := make([]byte, 4096); ; {
			n, err := s.Read(b)
			if err != nil {
				close(messages)
				return
			}
			messages <- string(b[:n])
		}
	}()
	for _, c := range []struct {
		say  string
		want []string
	}{
		{"q", []string{"STATUS=VM started.", "X_VMSPAWN_LEADER_PID=", "READY=1", "EXIT_STATUS=0"}},
		{"t", []string{"READY=1", "ERRNO="}},
	} {
		l := tinyCommand(t, dir)
		l.Env = append(l.Env, "NOTIFY_SOCKET="+path)
		if l.stdin, err = l.StdinPipe(); err != nil {
			t.Fatal(err)
		}
		l.start()
		l.out.waitFor(t, "tiny guest\r\n")
		l.say(c.say)
		l.status()
		all := ""
		for len(messages) > 0 {
			all += <-messages + "\n"
		}
		for _, w := range c.want {
			if !strings.Contains(all, w) {
				t.Errorf("%q: no %s in %q", c.say, w, all)
			}
		}
	}
}

// TestListenFDs: descriptors of our service manager (vmspawn.md §2.13).
func TestListenFDs(t *testing.T) {
	kvm, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		t.Skipf("needs /dev/kvm: %v", err)
	}
	defer kvm.Close()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	l := tinyCommand(t, t.TempDir())
	// The program's own process ID has to stand in $LISTEN_PID.
	self := l.Path
	l.Path = "/bin/sh"
	l.Args = append([]string{"sh", "-c", `LISTEN_PID=$$ exec "$0" "$@"`, self}, l.Args[1:]...)
	l.Env = append(l.Env, "LISTEN_FDS=2", "LISTEN_FDNAMES=odd:kvm")
	l.ExtraFiles = []*os.File{w, kvm}
	if l.stdin, err = l.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	l.start()
	w.Close()
	l.out.waitFor(t, "tiny guest")
	if n, err := r.Read(make([]byte, 1)); n != 0 || err != io.EOF { // the unknown one was closed
		t.Error(n, err)
	}
	l.say("q")
	if st := l.status(); st != 0 || !strings.Contains(l.errs.String(), "under the unexpected name 'odd'") {
		t.Errorf("%d %q", st, l.errs.String())
	}
}

// writeDisk makes a disk image whose only partition is a root partition with
// the given content.
func writeDisk(t *testing.T, path string, partition []byte) {
	t.Helper()
	const start = 2048
	le := binary.LittleEndian
	d := make([]byte, start*512, start*512+len(partition))
	array := d[1024 : 1024+128*128]
	copy(array, []byte{0xe3, 0xbc, 0x68, 0x4f, 0xcd, 0xe8, 0xb1, 0x4d, 0x96, 0xe7, 0xfb, 0xca, 0xf9, 0x84, 0xb7, 0x09, 0x42})
	le.PutUint64(array[32:], start)
	le.PutUint64(array[40:], uint64(start+len(partition)/512-1))
	h := d[512:604]
	copy(h, "EFI PART")
	le.PutUint32(h[12:], 92)
	le.PutUint64(h[72:], 2)
	le.PutUint32(h[80:], 128)
	le.PutUint32(h[84:], 128)
	le.PutUint32(h[88:], crc32.ChecksumIEEE(array))
	le.PutUint32(h[16:], crc32.ChecksumIEEE(h))
	if err := os.WriteFile(path, append(d, partition...), 0o644); err != nil {
		t.Fatal(err)
	}
}

// tinyDisk makes the file system "volume" with the tiny guest as its kernel,
// and the disk "disk.raw" with it as a partition.
func tinyDisk(t *testing.T, dir string) {
	t.Helper()
	root := filepath.Join(dir, "root")
	if err := os.MkdirAll(filepath.Join(root, "boot"), 0o755); err != nil {
		t.Fatal(err)
	}
	for from, to := range map[string]string{"kernel": "vmlinuz-1", "./kernel": "initrd.img-1"} {
		b, err := os.ReadFile(filepath.Join(dir, from))
		if err == nil {
			err = os.WriteFile(filepath.Join(root, "boot", to), b, 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	volume := filepath.Join(dir, "volume")
	if out, err := exec.Command("sh", "-c", `PATH=$PATH:/usr/sbin; truncate -s 4M "$1" && mke2fs -q -F -t ext4 -d "$2" "$1"`, "sh", volume, root).CombinedOutput(); err != nil {
		t.Skipf("needs mke2fs: %v %s", err, out)
	}
	b, err := os.ReadFile(volume)
	if err != nil {
		t.Fatal(err)
	}
	writeDisk(t, filepath.Join(dir, "disk.raw"), b)
}

// TestDiskImage: the kernel and the root partition of a disk image are found
// without firmware, raw and qcow2 (vmspawn.md §2.1 and acceptance 2 and 3).
func TestDiskImage(t *testing.T) {
	dir := t.TempDir()
	tinyCommand(t, dir)
	tinyDisk(t, dir)
	var err error
	images := [][]string{{"-i", "disk.raw"}, {"-i", "disk.raw", "-x"}, {"-i", "volume", "root=/dev/vda", "rw"}}
	if exec.Command("qemu-img", "convert", "-O", "qcow2", filepath.Join(dir, "disk.raw"), filepath.Join(dir, "disk.qcow2")).Run() == nil {
		images = append(images, []string{"-i", "disk.qcow2", "--image-format=qcow2"})
	}
	for _, args := range images {
		l := &live{t: t, dir: dir, Cmd: spawnCommand(dir, append([]string{"-q", "--ram=64M", "--vsock=no", "--tpm=no", "--console-transport=serial", "-M", "disk"}, args...)...)}
		l.Stdout, l.Stderr = &l.out, &l.errs
		if l.stdin, err = l.StdinPipe(); err != nil {
			t.Fatal(err)
		}
		l.start()
		l.out.waitFor(t, "tiny guest")
		want := "root=PARTUUID=00000042-0000-0000-0000-000000000000 rw"
		if args[1] == "volume" {
			want = "root=/dev/vda rw"
		}
		if r := execute(t, dir, "status", "disk"); !strings.Contains(r.stdout, want) {
			t.Errorf("%q: %+v", args, r)
		}
		l.say("q")
		if st := l.status(); st != 0 {
			t.Errorf("%q: %d %q", args, st, l.errs.String())
		}
	}
}

// TestMonitor: --console=native has a monitor on Ctrl-a c, and Ctrl-a x quits.
func TestMonitor(t *testing.T) {
	l := startTiny(t, t.TempDir(), "--console=native")
	l.say("\x01c")
	for line, want := range map[string]string{"info status": "VM status: running", "info machine": "engine: ", "info stats": "goroutines: ", "info registers": "RIP 00000000010000", "info mem": "port   PCI configuration address", "info pci": "class 06", "info virtio": "virtio-rng: status ", "info irq": "IOAPIC pin 4: serial port", "set_link off": "Error: the machine has no network card", "help": "system_powerdown", "nonsense": "Unknown command nonsense"} {
		l.say(line + "\r")
		l.out.waitFor(t, want)
	}
	l.say("screendump\r")
	for end := time.Now().Add(10 * time.Second); strings.Count(l.out.String(), "tiny guest") < 2; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("no screendump in %q", l.out.String())
		}
	}
	l.say("info status\rstop\rinfo status\r")
	l.out.waitFor(t, "VM status: paused")
	l.say("cont\r\x01cabc")
	l.out.waitFor(t, "abc")
	l.say("\x01x")
	if st := l.status(); st != 0 {
		t.Errorf("%d %q", st, l.errs.String())
	}
}

// TestAttach: "gvmspawn console" sees what was printed before, and types.
func TestAttach(t *testing.T) {
	dir := t.TempDir()
	l := startTiny(t, dir, "-q", "--console=read-only", "-M", "tiny")
	l.say("x") // which nobody reads
	a := &live{t: t, dir: dir, Cmd: spawnCommand(dir, "console", "tiny")}
	a.Stdout, a.Stderr = &a.out, &a.errs
	var err error
	if a.stdin, err = a.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	a.start()
	a.out.waitFor(t, "tiny guest\r\n")
	a.say("abc")
	a.out.waitFor(t, "abc")
	if r := execute(t, dir, "connect", "tiny", "22"); r.status != 1 || !strings.Contains(r.stderr, "cannot connect to port 22") {
		t.Errorf("%+v", r)
	}
	a.say("q")
	if st := a.status(); st != 0 || a.errs.String() != "" {
		t.Errorf("%d %q", st, a.errs.String())
	}
	if st := l.status(); st != 0 || l.out.String() != "tiny guest\r\nabc" {
		t.Errorf("%d %q", st, l.out.String())
	}
	if r := execute(t, dir, "console", "tiny"); r.status != 1 {
		t.Errorf("%+v", r)
	}
}

// TestHostTrouble: a host without machined, without a usable runtime directory
// and with a service manager that is gone.
func TestHostTrouble(t *testing.T) {
	l := tinyCommand(t, t.TempDir(), "--register=yes")
	if _, err := os.Stat("/run/systemd/machine/io.systemd.Machine"); err == nil {
		t.Skip("there is a systemd-machined here")
	}
	l.Env = append(l.Env, "DBUS_SYSTEM_BUS_ADDRESS=unix:path=/nonexistent", "DBUS_SESSION_BUS_ADDRESS=unix:path=/nonexistent")
	l.start()
	if st := l.status(); st != 1 || !strings.Contains(l.errs.String(), "gvmspawn: option --register=yes: systemd-machined cannot be reached") {
		t.Errorf("%d %q", st, l.errs.String())
	}

	for _, dir := range []string{"/proc/nowhere", "/" + strings.Repeat("x", 100)} {
		l = tinyCommand(t, t.TempDir())
		l.Env = append(l.Env, "RUNTIME_DIRECTORY="+dir, "NOTIFY_SOCKET=/nonexistent/socket")
		l.stdin, _ = l.StdinPipe()
		l.start()
		l.out.waitFor(t, "tiny guest")
		l.say("q")
		if st := l.status(); st != 0 || !strings.Contains(l.errs.String(), "There is no runtime directory") || !strings.Contains(l.errs.String(), "failed to notify the service manager") {
			t.Errorf("%d %q", st, l.errs.String())
		}
	}
}

// TestTAP: the interface outlives a reboot, and goes with the machine.
func TestTAP(t *testing.T) {
	f, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
	if err != nil || os.Geteuid() != 0 {
		t.Skip("needs root and /dev/net/tun")
	}
	f.Close()
	l := startTiny(t, t.TempDir(), "-n", "-M", "gvmspawn-test-of-taps")
	const name = "vt-gvmspawn" // and a hash
	interfaces := func() string {
		all := ""
		for _, i := range must(net.Interfaces()) {
			all += i.Name + " "
		}
		return all
	}
	if !strings.Contains(interfaces(), name) {
		t.Error(interfaces())
	}
	l.say("r")
	l.out.waitFor(t, "guest\r\ntiny guest\r\n")
	if !strings.Contains(interfaces(), name) {
		t.Error("the interface is gone after a reboot")
	}
	l.say("q")
	if st := l.status(); st != 0 {
		t.Errorf("%d %q", st, l.errs.String())
	}
	if strings.Contains(interfaces(), name) {
		t.Error("the interface is left")
	}
}

// must returns v; the error is impossible where it is used.
func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// TestSilentResets: a guest that panics before it has a console does not reset
// for ever. The tiny guest prints on the serial port only, so that on hvc0 it
// is silent; here it resets at once.
func TestSilentResets(t *testing.T) {
	dir := t.TempDir()
	l := tinyCommand(t, dir, "-q", "--console-transport=virtio")
	kernel := filepath.Join(dir, "kernel")
	b, err := os.ReadFile(kernel)
	if err != nil {
		t.Fatal(err)
	}
	b = append(b[:0x1000:0x1000], bytes.Repeat([]byte{0x66, 0xba, 0x82, 0x05, 0xb0, 0x01, 0xee, 0xf4}, len(tinyGuest))...)
	if err := os.WriteFile(kernel, b, 0o644); err != nil {
		t.Fatal(err)
	}
	l.start()
	if st := l.status(); st != 1 || !strings.Contains(l.errs.String(), "resets again and again") {
		t.Errorf("%d %q %q", st, l.out.String(), l.errs.String())
	}
}
