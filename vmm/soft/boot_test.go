package soft

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/gvmspawn/gvmspawn/boot/linux"
	"github.com/gvmspawn/gvmspawn/firmware/acpi"
	"github.com/gvmspawn/gvmspawn/vmm/mem"
)

// testUART is just enough of a 16550 for a kernel's polled console.
type testUART struct {
	out  []byte
	live bool
	stop func(line string)
}

func (u *testUART) PortIn(port uint16, size int) uint32 {
	switch port {
	case 0x3f8 + 5:
		return 0x60
	case 0x3f8 + 6:
		return 0xb0
	case 0x3f8 + 1, 0x3f8 + 2, 0x3f8 + 3, 0x3f8 + 4, 0x3f8 + 7, 0x3f8:
		return 0
	}
	return 0xffffffff >> (32 - 8*size)
}

func (u *testUART) PortOut(port uint16, size int, v uint32) {
	if port != 0x3f8 {
		return
	}
	u.out = append(u.out, byte(v))
	if u.live {
		os.Stderr.Write([]byte{byte(v)})
	}
	if v == '\n' {
		i := bytes.LastIndexByte(u.out[:len(u.out)-1], '\n') + 1
		u.stop(string(u.out[i:]))
	}
}

func (u *testUART) MMIORead(addr uint64, size int) uint64     { return ^uint64(0) }
func (u *testUART) MMIOWrite(addr uint64, size int, v uint64) {}

func cpio(files map[string][]byte, order []string) []byte {
	var b bytes.Buffer
	put := func(name string, mode int, data []byte, dev [2]int) {
		fmt.Fprintf(&b, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x", 1, mode, 0, 0, 1, 0, len(data), 0, 0, dev[0], dev[1], len(name)+1, 0)
		b.WriteString(name + "\x00")
		for b.Len()%4 != 0 {
			b.WriteByte(0)
		}
		b.Write(data)
		for b.Len()%4 != 0 {
			b.WriteByte(0)
		}
	}
	for _, d := range []string{"bin", "dev", "proc", "sys"} {
		put(d, 0o40755, nil, [2]int{})
	}
	put("dev/console", 0o20600, nil, [2]int{5, 1})
	put("dev/kmsg", 0o20600, nil, [2]int{1, 11})
	for _, n := range order {
		put(n, 0o100755, files[n], [2]int{})
	}
	put("TRAILER!!!", 0, nil, [2]int{})
	return b.Bytes()
}

// bootGuest loads the kernel that the environment names, with a busybox
// initramfs, into a machine of cfg.
func bootGuest(t *testing.T, cfg Config, cmd string) (*VM, *testUART) {
	path := os.Getenv("GVMSPAWN_SOFT_KERNEL")
	if path == "" {
		t.Skip("set GVMSPAWN_SOFT_KERNEL to a bzImage")
	}
	m := mem.New()
	t.Cleanup(func() { m.Close() })
	if _, err := m.Add("ram", 0, 512<<20, mem.RAM); err != nil {
		t.Fatal(err)
	}
	img, err := linux.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Skip(err)
	}
	init := "#!/bin/busybox sh\n/bin/busybox mount -t proc proc /proc\n/bin/busybox uname -a >/dev/kmsg\n/bin/busybox sha256sum /bin/busybox > /dev/kmsg\necho HELLO from init >/dev/kmsg\necho DONE >/dev/kmsg; /bin/busybox poweroff -f\n"
	rd := cpio(map[string][]byte{"bin/busybox": busybox, "init": []byte(init)}, []string{"bin/busybox", "init"})
	rsdp, err := acpi.Write(m, acpi.Config{CPUs: 1, RAMEnd: m.RAMEnd()})
	if err != nil {
		t.Fatal(err)
	}
	regs, err := linux.Load(linux.Boot{Memory: m, Image: img, RSDP: rsdp, CommandLine: cmd, Random: rand.NewChaCha8([32]byte{}),
		Initrds: []linux.Initrd{{Name: "initrd", Size: int64(len(rd)), Data: bytes.NewReader(rd)}}})
	if err != nil {
		t.Fatal(err)
	}
	u := &testUART{}
	cfg.Memory, cfg.CPUs, cfg.IO = m, 1, u
	vm, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { vm.Close() })
	u.stop = func(line string) {
		if strings.Contains(line, "DONE") {
			vm.cpus[0].Kick()
		}
	}
	if err := vm.cpus[0].SetRegisters(&regs); err != nil {
		t.Fatal(err)
	}
	return vm, u
}

func TestBootLinux(t *testing.T) {
	path := os.Getenv("GVMSPAWN_SOFT_KERNEL")
	if path == "" {
		t.Skip("set GVMSPAWN_SOFT_KERNEL to a bzImage")
	}
	m := mem.New()
	if _, err := m.Add("ram", 0, 512<<20, mem.RAM); err != nil {
		t.Fatal(err)
	}
	img, err := linux.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Fatal(err)
	}
	init := "#!/bin/busybox sh\n/bin/busybox mount -t proc proc /proc\n/bin/busybox uname -a >/dev/kmsg\n/bin/busybox head -20 /proc/cpuinfo > /dev/kmsg\necho HELLO from init >/dev/kmsg\n/bin/busybox sleep 1; echo DONE >/dev/kmsg; /bin/busybox poweroff -f\n"
	rd := cpio(map[string][]byte{"bin/busybox": busybox, "init": []byte(init)}, []string{"bin/busybox", "init"})
	cmd := os.Getenv("GVMSPAWN_SOFT_CMDLINE")
	if cmd == "" {
		cmd = "console=ttyS0 earlyprintk=ttyS0 panic=-1 reboot=t"
	}
	rsdp, err := acpi.Write(m, acpi.Config{CPUs: 1, RAMEnd: m.RAMEnd()})
	if err != nil {
		t.Fatal(err)
	}
	regs, err := linux.Load(linux.Boot{Memory: m, Image: img, RSDP: rsdp, CommandLine: cmd,
		Initrds: []linux.Initrd{{Name: "initrd", Size: int64(len(rd)), Data: bytes.NewReader(rd)}}})
	if err != nil {
		t.Fatal(err)
	}
	u := &testUART{live: os.Getenv("LIVE") != ""}
	cfg := Config{Memory: m, CPUs: 1, IO: u, Log: func(f string, a ...any) { fmt.Fprintf(os.Stderr, "LOG "+f+"\n", a...) }}
	if os.Getenv("TRACE") != "" {
		cfg.Tracing = TraceInt
		cfg.Trace = func(f string, a ...any) { fmt.Fprintf(os.Stderr, f+"\n", a...) }
	}
	vm, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	c := vm.cpus[0]
	if c.jit != nil && os.Getenv("JITSTATS") != "" {
		c.jit.stats = &jitStats{exits: map[string]uint64{}}
		defer func() { t.Log(c.jit.stats) }()
	}
	start := time.Now()
	u.stop = func(line string) {
		if strings.Contains(line, "HELLO") {
			t.Logf("HELLO after %v, %d instructions, %.1f MIPS", time.Since(start), c.s.Count, float64(c.s.Count)/time.Since(start).Seconds()/1e6)
		}
		if strings.Contains(line, "Power down") || strings.Contains(line, "DONE") {
			c.Kick()
		}
	}
	c.SetRegisters(&regs)
	limit := time.AfterFunc(time.Duration(limitSeconds())*time.Second, c.Kick)
	defer limit.Stop()
	ex, err := c.Run()
	if err != nil {
		t.Error(err)
	}
	t.Logf("exit %v %v after %v, %d instructions, %.1f MIPS rip %#x\n%s", ex.Reason, ex.Detail, time.Since(start), c.s.Count, float64(c.s.Count)/time.Since(start).Seconds()/1e6, c.s.RIP, "")
	if !bytes.Contains(u.out, []byte("HELLO")) {
		dumpLog(m)
		if len(u.out) > 4000 {
			u.out = u.out[len(u.out)-4000:]
		}
		t.Fatalf("no HELLO:\n%s", u.out)
	}
}

func limitSeconds() int {
	n := 100
	fmt.Sscan(os.Getenv("SECONDS_MAX"), &n)
	return n
}

// dumpLog prints what looks like the kernel's log in guest memory.
func dumpLog(m *mem.Memory) {
	b, _ := m.Slice(0, 512<<20)
	i := bytes.Index(b, []byte("Linux version 6"))
	for n := 0; i >= 0 && n < 6; n++ {
		fmt.Fprintf(os.Stderr, "at %#x: %q\n", i, b[i:i+1500])
		j := bytes.Index(b[i+1:], []byte("Linux version 6"))
		if j < 0 {
			break
		}
		i += 1 + j
	}
}
