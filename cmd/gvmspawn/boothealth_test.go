package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gvmspawn/gvmspawn/vmm/guesttest"
)

// copyModules puts modules of a kernel into a tree's root, uncompressed.
func copyModules(t *testing.T, kernel guesttest.Kernel, tree string, names ...string) {
	t.Helper()
	for _, name := range names {
		found, err := filepath.Glob(filepath.Join(kernel.Dir, "lib/modules", kernel.Version, "kernel", name+".ko*"))
		if err != nil || len(found) != 1 {
			t.Fatalf("module %s: %v, %v", name, found, err)
		}
		to := filepath.Join(tree, filepath.Base(found[0]))
		data, err := os.ReadFile(found[0])
		if err != nil {
			t.Fatal(err)
		}
		writeFile(t, to, data, 0o644)
		if strings.HasSuffix(to, ".xz") {
			if out, err := exec.Command("xz", "-d", to).CombinedOutput(); err != nil {
				t.Fatalf("xz: %v %s", err, out)
			}
		}
	}
}

// TestBootHealth: the kernel finds the clock's interrupts, the generation
// identifier and the watchdog, which resets the machine when it expires; then
// a panic, reported by pvpanic with nothing on the console, ends it at once
// with status 1.
func TestBootHealth(t *testing.T) {
	kernel := softBoot(t, "kernel-trixie")
	dir := t.TempDir()
	tree := guestTree(t, `
if [ ! -e /expired ]; then
	is vmgenid "$(ls /sys/bus/acpi/drivers/vmgenid /sys/bus/platform/drivers/vmgenid 2>/dev/null | grep -c GVMS0001)" 1
	guest rtc
	hwclock -w -u; d=$(($(date +%s) - $(cat /sys/class/rtc/rtc0/since_epoch)))
	is hwclock "$([ $d -ge -2 ] && [ $d -le 2 ] && echo set || echo $d)" set
	insmod /watchdog.ko && insmod /wdat_wdt.ko timeout=2
	is watchdog "$(cat /sys/class/watchdog/watchdog0/identity) $(cat /sys/class/watchdog/watchdog0/timeout)" "wdat_wdt 2"
	touch /expired; sync
	(sleep 1; echo x; sleep 1; echo x; sleep 1; echo V; echo RESTARTED) >/dev/watchdog0
	echo SURVIVED
	echo x >/dev/watchdog0; sleep 100
fi
insmod /pvpanic.ko; insmod /pvpanic-mmio.ko
echo LAST WORDS
dmesg -n 1; echo 0 >/proc/sys/kernel/printk; echo c >/proc/sysrq-trigger; sleep 100`)
	copyModules(t, kernel, tree, "drivers/watchdog/watchdog", "drivers/watchdog/wdat_wdt", "drivers/misc/pvpanic/pvpanic", "drivers/misc/pvpanic/pvpanic-mmio")
	m := newMachine(t, dir, kernel, "-D", tree, "panic=0", "quiet")
	m.start()
	m.waitFor("LAST WORDS")
	start := time.Now()
	if s := m.status(); s != 1 || time.Since(start) > 20*time.Second {
		t.Errorf("status %d after %v", s, time.Since(start))
	}
	m.check("vmgenid", "rtc", "hwclock", "watchdog")
	for _, want := range []string{"the guest's kernel panicked", "watchdog has expired"} {
		if !strings.Contains(m.errs.String(), want) {
			t.Errorf("no message %q", want)
		}
	}
	if !strings.Contains(m.out.String(), "SURVIVED") {
		t.Error("a restarted watchdog expired")
	}
}
