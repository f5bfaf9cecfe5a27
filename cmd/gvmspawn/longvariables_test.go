package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/gvmspawn/gvmspawn/vmm/guesttest"
)

// variableRounds is the init of a guest that says what is in the variables of the
// boots before, and then writes one of its own again and again, each time
// wholly of lines with the round's number.
const variableRounds = `
insmod /efivarfs.ko && mount -t efivarfs none /sys/firmware/efi/efivars || echo NO EFIVARFS
for f in /sys/firmware/efi/efivars/GvmRound*; do
	[ -e "$f" ] || continue
	tail -c +5 "$f" >/old
	echo "KEPT $(basename "$f" | cut -c9) $(sort -u /old | wc -l) lines $(wc -c </old) bytes $(head -n 1 /old)"
done
echo KEPT ALL
case "$(cat /proc/cmdline)" in *do=poweroff*) poweroff -f ;; esac
exec 3>/sys/firmware/efi/efivars/GvmRound$(cat /boot)-67766d73-7061-776e-8000-000000000001
i=1
while :; do
	(printf '\007\000\000\000'; yes "$(printf '%07d' $i)" | head -c 6000) >/new
	dd if=/new bs=8k count=1 2>/dev/null >&3 || echo FAILED $i
	echo "ROUND $i"; i=$((i+1))
done`

// TestLongVariablesKilled: kill -9 in the middle of the guest's writes of EFI variables,
// three times, loses none that the guest was told is written, and leaves no torn one: the
// firmware of the next boot finds the last value, or the one on its way.
func TestLongVariablesKilled(t *testing.T) {
	if os.Getenv("GVMSPAWN_LONG") == "" {
		t.Skip("boots firmware on the software CPU: set GVMSPAWN_LONG=1")
	}
	kernel := guesttest.KernelAsset(t, "kernel-trixie")
	dir, tree := t.TempDir(), guesttest.BusyboxTree(t, variableRounds)
	copyModules(t, kernel, tree, "fs/efivarfs/efivarfs")
	state := filepath.Join(dir, "variables")
	args := []string{"-q", "-D", tree, "--firmware=" + ovmfDescriptor(t, dir), "--efi-nvram-state=" + state, "--vsock=no", "--console=read-only", "quiet"}
	kept := regexp.MustCompile(`KEPT (\d) 1 lines 6000 bytes (\d{7})\b`)
	said := map[int]int{} // the last round of each boot
	look := func(m *booted) {
		t.Helper()
		found := kept.FindAllStringSubmatch(m.out.String(), -1)
		if len(found) != len(said) {
			t.Fatalf("%d variables are whole, of %d", len(found), len(said))
		}
		for _, f := range found {
			boot, _ := strconv.Atoi(f[1])
			if round, _ := strconv.Atoi(f[2]); round != said[boot] && round != said[boot]+1 {
				t.Errorf("boot %d was told of round %d, and %d is kept", boot, said[boot], round)
			}
		}
	}
	kills := 3
	if guesttest.InTestbed() {
		kills = 1 // each is a boot by firmware there
	}
	for boot := 1; boot <= kills; boot++ {
		writeFile(t, filepath.Join(tree, "boot"), fmt.Append(nil, boot), 0o644)
		m := newMachine(t, dir, kernel, args...)
		m.start()
		m.waitFor("KEPT ALL")
		look(m)
		// At run time the firmware does not tidy up its store: all rounds must fit into 256 KiB.
		m.waitFor(fmt.Sprintf("ROUND %d", 7+boot))
		time.Sleep(time.Duration(boot) * 7 * time.Millisecond)
		m.Process.Kill() //nolint:errcheck // the next line waits for the end
		<-m.ended
		rounds := strings.Split(m.out.String(), "ROUND ")
		last, _, _ := strings.Cut(rounds[len(rounds)-1], "\n")
		n, err := strconv.Atoi(strings.TrimSpace(last))
		if err != nil || strings.Contains(m.out.String(), "FAILED") {
			t.Fatalf("boot %d: %v", boot, err)
		}
		said[boot] = n
		t.Logf("boot %d: killed in round %d", boot, n+1)
		if out, err := exec.Command(guesttest.Binary(t), "firmware", "vars", state).CombinedOutput(); err != nil {
			t.Errorf("%v %s", err, out)
		}
	}
	m := newMachine(t, dir, kernel, append(args, "do=poweroff")...)
	m.start()
	if st := m.status(); st != 0 {
		t.Errorf("status %d", st)
	}
	look(m)
}
