package vmm

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/gvmspawn/gvmspawn/vmm/guesttest"
	"github.com/gvmspawn/gvmspawn/vmm/soft"
)

// TestBootDeterministic boots a Debian kernel twice from a directory: the
// consoles are the same byte for byte, and so is the number of instructions.
// The kernel prints its time stamps and random numbers, the guest more of both.
func TestBootDeterministic(t *testing.T) {
	if testing.Short() {
		t.Skip("boots machines")
	}
	config := deterministicConfig(t, "kernel-trixie")
	run := func() (string, uint64) {
		var out bytes.Buffer
		m, err := New(config(&out))
		if err != nil {
			t.Fatal(err)
		}
		defer m.Close()
		ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
		defer cancel()
		end, err := m.Run(ctx)
		if end != EndPowerOff || err != nil {
			t.Fatalf("the machine ended with %v, %v:\n%s", end, err, out.Bytes())
		}
		return out.String(), m.vm.(*soft.VM).Instructions()
	}
	start := time.Now()
	a, n := run()
	t.Logf("%d instructions in %v", n, time.Since(start))
	b, k := run()
	if n != k {
		t.Errorf("%d instructions, then %d", n, k)
	}
	if a == b {
		return
	}
	i := 0
	for i < min(len(a), len(b)) && a[i] == b[i] {
		i++
	}
	t.Errorf("the consoles differ from byte %d on:\n%q\n%q", i, a[i:min(len(a), i+300)], b[i:min(len(b), i+300)])
}

// deterministicConfig makes a directory with a guest that prints what is random
// and what time it is, and returns the configuration of a machine that boots it.
func deterministicConfig(t *testing.T, kernelAsset string) func(console io.Writer) Config {
	t.Helper()
	kernel := guesttest.KernelAsset(t, kernelAsset)
	busybox, err := os.ReadFile(guesttest.Busybox(t))
	if err != nil {
		t.Fatal(err)
	}
	tree := t.TempDir()
	for _, d := range []string{"bin", "sbin", "dev", "proc", "sys", "tmp"} {
		if err := os.Mkdir(filepath.Join(tree, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	init := `#!/bin/busybox sh
cd /bin; PATH=/bin
busybox mount -t proc proc /proc
busybox uname -a; busybox date
busybox cat /proc/sys/kernel/random/uuid /proc/interrupts /proc/sys/kernel/random/boot_id
busybox sha256sum /bin/busybox
busybox usleep 100000; busybox cat /proc/uptime
busybox poweroff -f
`
	for name, data := range map[string][]byte{"bin/busybox": busybox, "sbin/init": []byte(init)} {
		if err := os.WriteFile(filepath.Join(tree, name), data, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return func(console io.Writer) Config {
		return Config{
			CPUs: 1, RAM: 256 << 20, Accel: AccelSoft, Deterministic: true, Seed: 42,
			Console: Console{Out: console},
			Shares:  []Share{{Tag: "root", Path: tree, ReadOnly: true}},
			Boot: Boot{Kernel: kernel.Path,
				CommandLine: "console=hvc0 root=root rootfstype=virtiofs ro reboot=t panic=-1",
				Root:        &Root{Share: "root", ReadOnly: true}},
		}
	}
}
