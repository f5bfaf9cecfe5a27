package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/gvmspawn/gvmspawn/cmd/gvmspawn/internal/swtpm"
	"github.com/gvmspawn/gvmspawn/vmm/guesttest"
)

// needSwtpm skips a test where swtpm is missing.
func needSwtpm(t *testing.T) {
	t.Helper()
	if _, err := swtpm.Find(); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
}

// carrySwtpm adds swtpm and what it calls to a Testbed's Files.
func carrySwtpm(t *testing.T, files map[string]string) {
	t.Helper()
	for _, name := range []string{"swtpm", "swtpm_setup", "swtpm_localca", "swtpm_cert", "certtool"} {
		guesttest.CarryProgram(t, files, name)
	}
}

// TestBootTPM: Linux drives the TPM by either interface. What is sealed in one
// boot is unsealed after a reset, whose _TPM_Init clears the register that it
// is sealed to, and by the next machine with the same state.
func TestBootTPM(t *testing.T) {
	kernel := softBoot(t, "kernel-bookworm")
	needSwtpm(t)
	dir := t.TempDir()
	tree := guestTree(t, `
is version "$(cat /sys/class/tpm/tpm0/tpm_version_major)" 2
is reset "$(cat /sys/class/tpm/tpm0/pcr-sha256/16)" 0000000000000000000000000000000000000000000000000000000000000000
dmesg | grep -E 'tpm|TPM'
if [ ! -e /sealed.public ]; then guest tpm-seal /sealed; sync; reboot -f; fi
guest tpm-unseal /sealed
poweroff -f`)
	for _, run := range []struct {
		iface  string
		checks []string
	}{{"tis", []string{"version", "reset", "tpm-seal", "tpm-unseal"}}, {"crb", []string{"version", "reset", "tpm-unseal"}}} {
		m := newMachine(t, dir, kernel, "-q", "-D", tree, "--tpm=yes", "quiet")
		m.Env = append(m.Env, "GVMSPAWN_TPM="+run.iface)
		m.start()
		if s := m.status(); s != 0 {
			t.Errorf("%s: status %d", run.iface, s)
		}
		m.check(run.checks...)
	}
	for _, name := range []string{".manufactured", "tpm2-00.permall", "issuer-certificate.pem"} {
		if _, err := os.Stat(filepath.Join(tree+".tpmstate", name)); err != nil {
			t.Error(err)
		}
	}
	if fi, err := os.Stat(tree + ".tpmstate"); err != nil || fi.Mode().Perm() != 0o700 {
		t.Errorf("state directory: %v, %v", fi.Mode(), err)
	}
	if left, err := os.ReadDir(filepath.Join(dir, "run")); err == nil && len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}
