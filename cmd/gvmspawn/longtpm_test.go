package main

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gvmspawn/gvmspawn/vmm/guesttest"
)

// tpmSetup makes what only the TPM opens again: a credential, and a volume whose
// key systemd-cryptenroll gave to the TPM.
const tpmSetup = `set -e; cd /var/lib
printf secret | systemd-creds encrypt --with-key=tpm2 --tpm2-pcrs=7+16 --name=x - x.cred
truncate -s 32M volume; printf pass >key
cryptsetup luksFormat -q --type luks2 --pbkdf pbkdf2 --pbkdf-force-iterations 1000 volume key
systemd-cryptenroll --tpm2-device=auto --tpm2-pcrs=7 --unlock-key-file=key volume >/dev/null 2>&1
systemd-cryptenroll --wipe-slot=password volume >/dev/null 2>&1; rm key; sync; echo made`

// tpmUse opens it.
const tpmUse = `cd /var/lib; systemd-creds decrypt --name=x x.cred -; echo
d=$(losetup -f --show volume); /usr/bin/systemd-cryptsetup attach vol $d - tpm2-device=auto,headless=1 >/dev/null 2>&1
[ -b /dev/mapper/vol ] && echo open; systemd-cryptsetup detach vol 2>/dev/null; losetup -d $d`

// TestLongTPM: Debian's systemd and tpm2-tools use the TPM; what it sealed opens
// after a reboot, and in the next machine, by the other interface.
func TestLongTPM(t *testing.T) {
	needSwtpm(t)
	d := newDebianTree(t, "tree-trixie-tpm")
	kernel := guesttest.KernelAsset(t, "kernel-trixie")
	modules := filepath.Join(d.dir, "tree/usr/lib/modules")
	if out, err := exec.Command("cp", "-a", filepath.Join(kernel.Dir, "usr/lib/modules"), modules).CombinedOutput(); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	if out, err := exec.Command("depmod", "-b", filepath.Join(d.dir, "tree"), kernel.Version).CombinedOutput(); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	l, _ := d.boot("--tpm=yes")
	has := d.in("systemd-analyze has-tpm2; true")
	for _, want := range []string{"+driver", "+system", "+subsystem", "+libraries"} {
		if !strings.Contains(has, want) {
			t.Errorf("systemd-analyze has-tpm2: no %s in %q", want, has)
		}
	}
	if got := d.in("tpm2_pcrread sha256:16; tpm2_getrandom --hex 8 | wc -c"); !strings.Contains(got, "0x"+strings.Repeat("0", 64)) || !strings.HasSuffix(got, "16\n") {
		t.Errorf("tpm2-tools: %q", got)
	}
	if got := d.in(tpmSetup); got != "made\n" {
		t.Fatalf("%q", got)
	}
	use := func(when string) {
		t.Helper()
		start := time.Now()
		if got := d.in(tpmUse); got != "secret\nopen\n" {
			t.Errorf("%s: %q", when, got)
		}
		t.Logf("%s: %v", when, time.Since(start))
	}
	use("at once")
	spawnCommand(d.dir, "ssh", "debian", "systemctl reboot").Run() //nolint:errcheck // the connection ends first
	d.until("READY=1")
	use("after a reboot")
	d.end(l)
	t.Setenv("GVMSPAWN_TPM", "crb")
	l, _ = d.boot("--tpm=yes")
	use("in the next machine")
	d.in("tpm2_pcrextend 16:sha256=" + strings.Repeat("11", 32))
	if got := d.in("systemd-creds decrypt --name=x /var/lib/x.cred - 2>/dev/null; echo $?"); got == "0\n" || strings.Contains(got, "secret") {
		t.Errorf("the credential opens with another PCR: %q", got)
	}
	d.end(l)
}

// end powers the machine off.
func (d *debian) end(l *live) {
	d.t.Helper()
	spawnCommand(d.dir, "ssh", "debian", "systemctl poweroff").Run() //nolint:errcheck // the connection ends first
	timer := time.AfterFunc(5*time.Minute, func() { l.Process.Kill() })
	defer timer.Stop()
	l.Wait()
	if st := l.ProcessState.ExitCode(); st != 0 {
		d.t.Errorf("status %d, %s", st, l.errs.String())
	}
}
