package vmm

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/gvmspawn/gvmspawn/vmm/guesttest"
)

// TestLongSecureBoot: with Microsoft's keys enrolled, OVMF refuses an unsigned
// unified kernel image, which boots without keys (TestBootFirmwareDisk), and starts
// Debian's shim, which starts Debian's GRUB.
func TestLongSecureBoot(t *testing.T) {
	if os.Getenv("GVMSPAWN_LONG") == "" {
		t.Skip("set GVMSPAWN_LONG=1")
	}
	cfg := Config{
		Name: "secure", CPUs: 1, RAM: 512 << 20, Accel: AccelSoft, Firmware: secureOVMF(t, "OVMF_VARS_4M.ms.fd"),
		Disks: []Disk{{Path: efiDisk(t, "kernel-trixie"), Format: FormatRaw}},
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	converse(ctx, t, cfg, 6*time.Minute,
		step{text: `failed to load Boot0001`}, step{text: ": Access Denied"},
		step{text: `"EFI Internal Shell"`}, step{text: ": Security Violation"},
		step{text: "No bootable option or device was found", do: cancel})

	// A kernel given by fw_cfg is the firmware's to judge: this build starts it by the
	// old boot protocol, as with QEMU, and Linux knows that Secure Boot is on.
	k := guesttest.KernelAsset(t, "kernel-trixie")
	given := cfg
	given.Disks = nil
	given.Firmware = secureOVMF(t, "OVMF_VARS_4M.ms.fd")
	given.Boot = Boot{Kernel: k.Path, Initrds: []string{guesttest.SmallInitrd(t)}, CommandLine: "console=ttyS0 panic=-1"}
	converse(t.Context(), t, given, 6*time.Minute, step{text: "secureboot: Secure boot enabled"}, step{text: "BOOTED 64"})

	cfg.Firmware = secureOVMF(t, "OVMF_VARS_4M.ms.fd")
	cfg.Disks = []Disk{{Path: signedDisk(t), Format: FormatRaw}}
	ctx, cancel = context.WithCancel(t.Context())
	defer cancel()
	converse(ctx, t, cfg, 6*time.Minute, step{text: "grub>", do: cancel})
}

// signedDisk makes an image with Debian's shim and GRUB.
func signedDisk(t testing.TB) string {
	t.Helper()
	shim := filepath.Join(guesttest.Asset(t, "shim-signed"), "usr/lib/shim/shimx64.efi.signed")
	grub := filepath.Join(guesttest.Asset(t, "grub-signed"), "usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed")
	disk := guesttest.EFIDisk(t, shim, t.TempDir(), 8)
	guesttest.Command(t, "", "mcopy", "-i", disk+"@@1M", grub, "::/EFI/BOOT/grubx64.efi")
	return disk
}
