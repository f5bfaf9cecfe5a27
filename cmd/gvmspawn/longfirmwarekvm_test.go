package main

import (
	"os"
	"testing"
	"time"

	"github.com/gvmspawn/gvmspawn/vmm/guesttest"
)

// TestLongFirmwareOnKVM: on genuine KVM, too, a boot by firmware is measured, what is
// sealed to it opens after a reboot, and kill -9 loses no variable: the tests of the
// software CPU run in the testbed.
func TestLongFirmwareOnKVM(t *testing.T) {
	if os.Getenv("GVMSPAWN_LONG") == "" {
		t.Skip("boots machines in the testbed: set GVMSPAWN_LONG=1")
	}
	needSwtpm(t)
	bed := guesttest.Testbed{
		Files:   map[string]string{"bin/gvmspawn": guesttest.Binary(t), "bin/guest": guesttest.GuestBinary(t), "bin/attest": guesttest.AttestBinary(t)},
		Memory:  4096,
		Timeout: 45 * time.Minute,
	}
	carrySwtpm(t, bed.Files)
	guesttest.CarryProgram(t, bed.Files, "objcopy")
	guesttest.CarryKernel(t, bed.Files, "kernel-trixie")
	guesttest.CarryAsset(t, bed.Files, "busybox", "bin/busybox")
	guesttest.CarryAsset(t, bed.Files, "ovmf", "usr/share/OVMF/OVMF_CODE_4M.fd", "usr/share/OVMF/OVMF_VARS_4M.fd")
	guesttest.CarryAsset(t, bed.Files, "systemd-boot", "usr/lib/systemd/boot/efi/linuxx64.efi.stub")
	guesttest.CarryAsset(t, bed.Files, sealingAsset, guesttest.ProgramFiles(t, guesttest.Asset(t, sealingAsset), sealingPrograms...)...)
	bed.RunTests(t, "^(TestLongMeasuredBoot|TestLongSealedVolume|TestLongVariablesKilled)$/^crb$") // the sealed volume has tis
}
