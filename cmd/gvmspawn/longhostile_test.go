package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/gvmspawn/gvmspawn/vmm/guesttest"
)

// TestLongFirmwareHostile: a guest started by firmware writes garbage to all ports,
// the flash, the TPM's registers and the chips below 4 GiB (hostile-guest.md row 26). The
// machine lives on, says little, and what is left of the variables is read or refused in
// one sentence.
func TestLongFirmwareHostile(t *testing.T) {
	if os.Getenv("GVMSPAWN_LONG") == "" {
		t.Skip("boots firmware on the software CPU: set GVMSPAWN_LONG=1")
	}
	needSwtpm(t)
	kernel := guesttest.KernelAsset(t, "kernel-trixie")
	for _, iface := range []string{"tis", "crb"} {
		t.Run(iface, func(t *testing.T) {
			dir := t.TempDir()
			tree := guestTree(t, `
for d in tpm_tis tpm_crb; do for n in platform acpi; do
	[ -e /sys/bus/$n/drivers/$d/MSFT0101:00 ] && echo MSFT0101:00 >/sys/bus/$n/drivers/$d/unbind && echo UNBOUND $d
done; done
guest memory 0xfed40000 0x5000
guest memory 0xffc00000 0x84000
guest memory 0xffc84000 0x37c000
guest ports
guest memory 0xffc00000 0x84000
echo; is alive "$(cat /proc/1/comm)" init
poweroff -f`)
			state := filepath.Join(dir, "variables")
			m := newMachine(t, dir, kernel, "-q", "-D", tree, "--tpm=yes", "--tpm-state=off", "--firmware="+ovmfDescriptor(t, dir), "--efi-nvram-state="+state, "iomem=relaxed", "quiet")
			m.Env = append(m.Env, "GVMSPAWN_TPM="+iface)
			m.start()
			if s := m.statusWithin(2 * bootTime); s != 0 {
				t.Errorf("status %d", s)
			}
			m.check("memory 0xfed40000", "memory 0xffc00000", "memory 0xffc84000", "ports", "alive")
			if n := len(m.errs.String()); n > 16<<10 {
				t.Errorf("the guest made us say %d bytes", n)
			}
			out, err := exec.Command(guesttest.Binary(t), "firmware", "vars", state).CombinedOutput()
			if err != nil && exitStatus(err) != 1 {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
}
