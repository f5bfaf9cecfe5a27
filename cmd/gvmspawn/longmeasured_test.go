package main

import (
	"bytes"
	"crypto"
	"crypto/sha256"
	"debug/pe"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-eventlog/tcg"
	"github.com/google/go-tpm-tools/proto/attest"
	tpmpb "github.com/google/go-tpm-tools/proto/tpm"
	"github.com/google/go-tpm-tools/server"
	"github.com/google/go-tpm/legacy/tpm2"
	"google.golang.org/protobuf/proto"

	"github.com/gvmspawn/gvmspawn/vmm/guesttest"
)

// ovmfDescriptor writes a descriptor of Debian's OVMF without Secure Boot.
func ovmfDescriptor(t *testing.T, dir string) string {
	t.Helper()
	ovmf, path := filepath.Join(guesttest.Asset(t, "ovmf"), "usr/share/OVMF"), filepath.Join(dir, "ovmf.json")
	writeDescriptor(t, path, filepath.Join(ovmf, "OVMF_CODE_4M.fd"), filepath.Join(ovmf, "OVMF_VARS_4M.fd"))
	return path
}

// measuredUKI makes a unified kernel image that starts this kernel.
func measuredUKI(t *testing.T, kernel string) string {
	t.Helper()
	dir := t.TempDir()
	file := func(name, content string) string {
		path := filepath.Join(dir, name)
		writeFile(t, path, []byte(content), 0o644)
		return path
	}
	return guesttest.UKI(t,
		guesttest.UKISection{Name: ".osrel", File: file("osrel", "ID=test\nPRETTY_NAME=Measured\n")},
		guesttest.UKISection{Name: ".cmdline", File: file("cmdline", "panic=-1 quiet in.uki")},
		guesttest.UKISection{Name: ".linux", File: kernel},
		guesttest.UKISection{Name: ".initrd", File: file("initrd", string(make([]byte, 512)))})
}

// stubPCR is what PCR 11 must be once systemd's stub has measured the image: the
// name of each section with its NUL and its content, in the order of the list in
// systemd's src/fundamental/uki.c.
func stubPCR(t *testing.T, uki string) []byte {
	t.Helper()
	f, err := pe.Open(uki)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	pcr := make([]byte, sha256.Size)
	extend := func(b []byte) {
		digest := sha256.Sum256(b)
		sum := sha256.Sum256(append(pcr, digest[:]...))
		pcr = sum[:]
	}
	for _, name := range []string{".linux", ".osrel", ".cmdline", ".initrd", ".sbat"} {
		s := f.Section(name)
		if s == nil {
			t.Fatalf("the image has no %s", name)
		}
		content := make([]byte, s.VirtualSize)
		if _, err := s.ReadAt(content, 0); err != nil {
			t.Fatal(err)
		}
		extend(append([]byte(name), 0))
		extend(content)
	}
	return pcr
}

// TestLongMeasuredBoot: OVMF and systemd's stub measure a unified kernel image that
// they start into the TPM. In the guest go-tpm-tools finds the bank and the
// endorsement key and attests; its quotes are over PCRs to which the event log
// replays, with what the image holds in PCR 11.
func TestLongMeasuredBoot(t *testing.T) {
	if os.Getenv("GVMSPAWN_LONG") == "" {
		t.Skip("boots firmware on the software CPU: set GVMSPAWN_LONG=1")
	}
	needSwtpm(t)
	kernel := guesttest.KernelAsset(t, "kernel-trixie")
	kernel.Path = measuredUKI(t, kernel.Path)
	const nonce = "of this run"
	for _, iface := range []string{"tis", "crb"} {
		t.Run(iface, func(t *testing.T) {
			dir := t.TempDir()
			tree := guestTree(t, `
is uki "$(grep -c in.uki /proc/cmdline)" 1
is vmgenid "$(ls /sys/bus/acpi/drivers/vmgenid /sys/bus/platform/drivers/vmgenid 2>/dev/null | grep -c GVMS0001)" 1
mount -t securityfs none /sys/kernel/security
attest / "`+nonce+`"
sync; poweroff -f`)
			copyFile(t, guesttest.AttestBinary(t), filepath.Join(tree, "bin/attest"))
			m := newMachine(t, dir, kernel, "-D", tree, "--tpm=yes", "--tpm-state=off", "--firmware="+ovmfDescriptor(t, dir), "--efi-nvram-state=off", "a.marker")
			m.Env = append(m.Env, "GVMSPAWN_TPM="+iface)
			m.start()
			if s := m.statusWithin(4 * bootTime); s != 0 {
				t.Fatalf("status %d", s)
			}
			m.check("uki", "vmgenid", "attest")
			data, err := os.ReadFile(filepath.Join(tree, "attestation"))
			a := &attest.Attestation{}
			if err == nil {
				err = proto.Unmarshal(data, a)
			}
			if err != nil {
				t.Fatal(err)
			}
			verifyAttestation(t, a, nonce, stubPCR(t, kernel.Path))
		})
	}
}

// verifyAttestation checks signature, nonce, PCRs and event log, and that each of
// them matters.
func verifyAttestation(t *testing.T, a *attest.Attestation, nonce string, stub []byte) {
	t.Helper()
	public, err := tpm2.DecodePublic(a.GetAkPub())
	if err != nil {
		t.Fatal(err)
	}
	key, err := public.Key()
	if err != nil {
		t.Fatal(err)
	}
	opts := server.VerifyOpts{Nonce: []byte(nonce), TrustedAKs: []crypto.PublicKey{key}, AllowEmptySBVar: true, AllowEFIAppBeforeCallingEvent: true}
	state, err := server.VerifyAttestation(a, opts)
	if err != nil {
		t.Fatal(err)
	}
	if len(a.GetQuotes()) != 1 || a.GetQuotes()[0].GetPcrs().GetHash() != tpmpb.HashAlgo_SHA256 {
		t.Fatalf("%d quotes", len(a.GetQuotes()))
	}
	pcrs := a.GetQuotes()[0].GetPcrs().GetPcrs()
	if !bytes.Equal(pcrs[11], stub) {
		t.Errorf("PCR 11 is %x, of the image's sections would be %x", pcrs[11], stub)
	}
	measured, application := map[uint32]int{}, false
	for _, e := range state.GetRawEvents() {
		measured[e.GetPcrIndex()]++
		application = application || e.GetPcrIndex() == 4 && e.GetUntrustedType() == uint32(tcg.EFIBootServicesApplication)
	}
	t.Logf("%d events, by PCR %v", len(state.GetRawEvents()), measured)
	// TCG PC Client Platform Firmware Profile 1.06 §3.3.4; 11 and 12 are the stub's.
	for _, pcr := range []uint32{0, 1, 2, 3, 4, 5, 6, 7, 11, 12} {
		if measured[pcr] == 0 {
			t.Errorf("nothing measured into PCR %d", pcr)
		}
	}
	if !application {
		t.Error("the image is not measured into PCR 4")
	}
	opts.Nonce = []byte("of another run")
	if _, err := server.VerifyAttestation(a, opts); err == nil {
		t.Error("an attestation for another nonce verifies, too")
	}
	opts.Nonce = []byte(nonce)
	a.EventLog = bytes.Replace(a.EventLog, stubEvent(".osrel"), stubEvent(".OSREL"), 1)
	if _, err := server.VerifyAttestation(a, opts); err == nil {
		t.Error("another event log verifies, too")
	}
}

// stubEvent is the digest of a section's name, which the event log has.
func stubEvent(name string) []byte {
	digest := sha256.Sum256(append([]byte(name), 0))
	return digest[:]
}
