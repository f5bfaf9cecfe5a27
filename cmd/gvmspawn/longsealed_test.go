package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/gvmspawn/gvmspawn/vmm/guesttest"
)

// sealingAsset is the Debian tree whose programs seal, and sealingPrograms are those
// with what they load by name.
const sealingAsset = "tree-trixie-tpm"

var sealingPrograms = []string{
	"usr/bin/systemd-cryptenroll", "usr/sbin/cryptsetup", "usr/bin/tpm2", "usr/lib/x86_64-linux-gnu/cryptsetup/libcryptsetup-token-systemd-tpm2.so",
	"usr/lib/x86_64-linux-gnu/libtss2-esys.so.0", "usr/lib/x86_64-linux-gnu/libtss2-mu.so.0", "usr/lib/x86_64-linux-gnu/libtss2-rc.so.0",
	"usr/lib/x86_64-linux-gnu/libtss2-tcti-device.so.0",
}

// sealedVolume is the init of a guest that gives the key of an encrypted volume to the
// TPM, bound to what firmware and systemd's stub have measured, and after a reboot
// opens it by that, until something else is measured.
const sealedVolume = `
export PATH=/usr/bin:/usr/sbin:$PATH; mkdir -p /run
modprobe -a af_alg algif_skcipher xts
open() { cryptsetup open --test-passphrase --token-only /volume 2>/said && echo opens || echo "stays shut"; }
if [ ! -e /volume ]; then
	truncate -s 20M /volume; printf pass >/key
	cryptsetup luksFormat -q --type luks2 --pbkdf pbkdf2 --pbkdf-force-iterations 1000 /volume /key; is format $? 0
	systemd-cryptenroll --tpm2-device=auto --tpm2-pcrs=4+7+11 --unlock-key-file=/key /volume; is enroll $? 0
	systemd-cryptenroll --wipe-slot=password /volume; is wipe $? 0
	rm /key; cp /sys/class/tpm/tpm0/pcr-sha256/11 /pcr11; sync; reboot -f
fi
is measured "$(cat /sys/class/tpm/tpm0/pcr-sha256/11)" "$(cat /pcr11)"
is unseal "$(open)" opens; cat /said
tpm2 pcrextend 11:sha256=1111111111111111111111111111111111111111111111111111111111111111; is extend $? 0
is changed "$(open)" "stays shut"; cat /said
poweroff -f`

// TestLongSealedVolume: systemd-cryptenroll gives the key of an encrypted volume to the
// TPM of a machine that OVMF and a unified kernel image started; it opens after a
// reboot, by the same PCRs, and not any more when tpm2-tools have extended one.
func TestLongSealedVolume(t *testing.T) {
	if os.Getenv("GVMSPAWN_LONG") == "" {
		t.Skip("boots firmware on the software CPU: set GVMSPAWN_LONG=1")
	}
	needSwtpm(t)
	kernel, dir, tree := guesttest.KernelAsset(t, "kernel-trixie"), t.TempDir(), guestTree(t, sealedVolume)
	asset := guesttest.Asset(t, sealingAsset)
	for _, file := range guesttest.ProgramFiles(t, asset, sealingPrograms...) {
		if err := os.MkdirAll(filepath.Join(tree, filepath.Dir(file)), 0o755); err != nil {
			t.Fatal(err)
		}
		copyFile(t, filepath.Join(asset, file), filepath.Join(tree, file))
	}
	modules := filepath.Join("lib/modules", kernel.Version)
	if err := os.CopyFS(filepath.Join(tree, modules), os.DirFS(filepath.Join(kernel.Dir, modules))); err != nil {
		t.Fatal(err)
	}
	kernel.Path = measuredUKI(t, kernel.Path)
	m := newMachine(t, dir, kernel, "-q", "-D", tree, "--tpm=yes", "--tpm-state=off", "--firmware="+ovmfDescriptor(t, dir), "--efi-nvram-state=off")
	m.start()
	if s := m.statusWithin(4 * bootTime); s != 0 {
		t.Errorf("status %d", s)
	}
	m.check("format", "enroll", "wipe", "measured", "unseal", "extend", "changed")
}
