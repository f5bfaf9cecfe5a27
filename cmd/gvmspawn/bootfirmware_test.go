package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/gvmspawn/gvmspawn/vmm/guesttest"
)

// firmwareDescriptors makes Debian's descriptors of OVMF, for where its package
// is unpacked, those of the user whose home is dir.
func firmwareDescriptors(t *testing.T, dir string) {
	t.Helper()
	share := filepath.Join(guesttest.Asset(t, "ovmf"), "usr/share")
	found, err := filepath.Glob(filepath.Join(share, "qemu/firmware/*.json"))
	if err != nil || len(found) == 0 {
		t.Fatalf("no descriptors in %s: %v", share, err)
	}
	to := filepath.Join(dir, ".config/qemu/firmware")
	if err := os.MkdirAll(to, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, p := range found {
		b, err := os.ReadFile(p)
		if err == nil {
			b = bytes.ReplaceAll(b, []byte("/usr/share/"), []byte(share+"/"))
			err = os.WriteFile(filepath.Join(to, filepath.Base(p)), b, 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// TestBootFirmware: --firmware=uefi starts a modular kernel of a directory by
// OVMF, a reboot goes through the firmware again, and its variables stay in a
// file beside the directory, which "gvmspawn firmware vars" can read.
func TestBootFirmware(t *testing.T) {
	if testing.Short() {
		t.Skip("boots a machine")
	}
	dir, tree := t.TempDir(), guesttest.BusyboxTree(t, bootInit)
	firmwareDescriptors(t, dir)
	m := newMachine(t, dir, guesttest.KernelAsset(t, "kernel-bookworm"),
		"-q", "-D", tree, "--firmware=uefi", "--vsock=no", "--console=read-only", "do=reboot", "quiet")
	m.start()
	if st := m.status(); st != 0 || !strings.Contains(m.out.String(), "AGAIN") {
		t.Fatalf("status %d; output:\n%s\n%s", st, m.out.String(), m.errs.String())
	}
	state := tree + ".efinvramstate"
	fi, err := os.Stat(state)
	if err != nil {
		t.Fatal(err)
	}
	template, err := os.Stat(filepath.Join(guesttest.Asset(t, "ovmf"), "usr/share/OVMF/OVMF_VARS_4M.fd"))
	if err != nil || fi.Size() != template.Size() {
		t.Errorf("the variables have %d bytes, the template %v %v", fi.Size(), template, err)
	}
	list, err := exec.Command(guesttest.Binary(t), "firmware", "vars", state).Output()
	if err != nil || !regexp.MustCompile("BootOrder +global +NV,BS,RT").Match(list) {
		t.Errorf("%v; the variables:\n%s", err, list)
	}
}

// TestBootFirmwareAuto: an image in which no kernel is found, but that firmware can
// start, is started by firmware without being asked for it.
func TestBootFirmwareAuto(t *testing.T) {
	kernel := softBoot(t, "kernel-trixie")
	dir := t.TempDir()
	firmwareDescriptors(t, dir)
	uki := guesttest.LinuxUKI(t, kernel.Path, guesttest.SmallInitrd(t), "console=ttyS0 quiet panic=-1 in.uki")
	disk := guesttest.EFIDisk(t, uki, t.TempDir(), 2)
	m := newMachine(t, dir, kernel, "-q", "-i", disk, "--vsock=no", "--console-transport=serial", "--console=read-only")
	m.Args = slices.DeleteFunc(m.Args, func(a string) bool { return strings.HasPrefix(a, "--linux=") })
	m.start()
	if st := m.status(); st != 0 || !regexp.MustCompile("BOOTED 64 .*in.uki").MatchString(m.out.String()) {
		t.Errorf("status %d", st)
	}
	if _, err := os.Stat(disk + ".efinvramstate"); err != nil {
		t.Error(err)
	}
}
