package main

import (
	"crypto"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-eventlog/proto/state"
	"github.com/google/go-eventlog/register"
	"github.com/google/go-eventlog/tcg"

	"github.com/gvmspawn/gvmspawn/vmm/guesttest"
)

// ovmfDescriptor writes a descriptor of Debian's OVMF without Secure Boot.
func ovmfDescriptor(t *testing.T, dir string) string {
	t.Helper()
	ovmf := filepath.Join(guesttest.Asset(t, "ovmf"), "usr/share/OVMF")
	file := func(name string) map[string]string {
		return map[string]string{"filename": filepath.Join(ovmf, name), "format": "raw"}
	}
	b, err := json.Marshal(map[string]any{
		"description": "OVMF", "interface-types": []string{"uefi"}, "features": []string{}, "tags": []string{},
		"mapping": map[string]any{"device": "flash", "executable": file("OVMF_CODE_4M.fd"), "nvram-template": file("OVMF_VARS_4M.fd")},
		"targets": []any{map[string]any{"architecture": "x86_64", "machines": []string{"pc-q35-*"}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "ovmf.json")
	writeFile(t, path, b, 0o644)
	return path
}

// TestLongMeasuredBoot: OVMF measures what it starts into the TPM, and the
// PCRs are what its event log says, as Linux hands both on.
func TestLongMeasuredBoot(t *testing.T) {
	if os.Getenv("GVMSPAWN_LONG") == "" {
		t.Skip("boots firmware on the software CPU: set GVMSPAWN_LONG=1")
	}
	needSwtpm(t)
	kernel := guesttest.KernelAsset(t, "kernel-trixie")
	for _, iface := range []string{"tis", "crb"} {
		t.Run(iface, func(t *testing.T) {
			dir := t.TempDir()
			tree := guestTree(t, `
is vmgenid "$(ls /sys/bus/acpi/drivers/vmgenid /sys/bus/platform/drivers/vmgenid 2>/dev/null | grep -c GVMS0001)" 1
mount -t securityfs none /sys/kernel/security
cat /sys/kernel/security/tpm0/binary_bios_measurements >/log
for i in $(seq 0 23); do echo "$i $(cat /sys/class/tpm/tpm0/pcr-sha256/$i)"; done >/pcrs
sync; echo MEASURED; poweroff -f`)
			m := newMachine(t, dir, kernel, "-D", tree, "--tpm=yes", "--tpm-state=off", "--firmware="+ovmfDescriptor(t, dir), "--efi-nvram-state=off", "a.marker")
			m.Env = append(m.Env, "GVMSPAWN_TPM="+iface)
			m.start()
			if s := m.statusWithin(4 * bootTime); s != 0 {
				t.Fatalf("status %d", s)
			}
			m.check("vmgenid")
			log, err := os.ReadFile(filepath.Join(tree, "log"))
			if err != nil {
				t.Fatal(err)
			}
			replay(t, log, readPCRs(t, filepath.Join(tree, "pcrs")))
		})
	}
}

// readPCRs reads lines of an index and a digest.
func readPCRs(t *testing.T, path string) register.PCRBank {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	bank := register.PCRBank{TCGHashAlgo: state.HashAlgo_SHA256}
	for line := range strings.Lines(string(data)) {
		var index int
		var digest string
		if _, err := fmt.Sscan(line, &index, &digest); err != nil {
			t.Fatal(err)
		}
		d, err := hex.DecodeString(digest)
		if err != nil {
			t.Fatal(err)
		}
		bank.PCRs = append(bank.PCRs, register.PCR{Index: index, Digest: d, DigestAlg: crypto.SHA256})
	}
	return bank
}

// replay computes the PCRs from the log, and fails if they are others, or if
// the log says less than firmware must measure (TCG PC Client Platform Firmware
// Profile 1.06 §3.3.4).
func replay(t *testing.T, log []byte, bank register.PCRBank) {
	t.Helper()
	events, err := tcg.ParseAndReplay(log, bank.MRs(), tcg.ParseOpts{})
	if err != nil {
		t.Fatal(err)
	}
	measured, kernel := map[uint32]int{}, false
	for _, e := range events {
		measured[e.MRIndex()]++
		kernel = kernel || e.MRIndex() == 4 && e.UntrustedType() == tcg.EFIBootServicesApplication
	}
	t.Logf("%d events, by PCR %v", len(events), measured)
	for pcr := range uint32(8) {
		if measured[pcr] == 0 {
			t.Errorf("nothing measured into PCR %d", pcr)
		}
	}
	if !kernel {
		t.Error("the kernel is not measured into PCR 4")
	}
	bank.PCRs[4].Digest[0] ^= 1
	if _, err := tcg.ParseAndReplay(log, bank.MRs(), tcg.ParseOpts{}); err == nil {
		t.Error("another PCR 4 replays, too")
	}
}
