package vmm

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/gvmspawn/gvmspawn/vmm/guesttest"
)

// TestLongFirmwareKVM: OVMF on genuine kvm_amd reaches its shell, boots the disk and its
// flash keeps a variable over a reboot, and so does the build that enforces Secure Boot from
// System Management Mode: this program runs the tests below there.
func TestLongFirmwareKVM(t *testing.T) {
	if os.Getenv("GVMSPAWN_LONG") == "" {
		t.Skip("boots a machine in the testbed: set GVMSPAWN_LONG=1")
	}
	code, vars := ovmf(t)
	secure := secureOVMF(t, "OVMF_VARS_4M.ms.fd")
	guesttest.Testbed{
		Files: map[string]string{"ovmf/code.fd": code, "ovmf/vars.fd": vars, "ovmf/shell.fd": vars,
			"ovmf/debian.fd": vars, "ovmf/secure.fd": secure.Code, "ovmf/keys.fd": secure.Vars, "ovmf/signed.fd": secure.Vars},
		Disks:   []string{efiDisk(t, "kernel-trixie"), debianDisk(t), signedDisk(t)},
		Memory:  3072,
		Timeout: 50 * time.Minute,
	}.RunTests(t, "InTestbed$")
}

// inTestbedOnly skips a test elsewhere.
func inTestbedOnly(t *testing.T) {
	t.Helper()
	if !guesttest.InTestbed() {
		t.Skip("TestLongFirmwareKVM runs it")
	}
}

// testbedDir is where the testbed has the firmware.
const testbedDir = "/ovmf"

func TestShellInTestbed(t *testing.T) {
	inTestbedOnly(t)
	useShell(t, Config{
		Name: "shell", CPUs: 1, RAM: 512 << 20, Accel: AccelKVM,
		Firmware: &Firmware{Code: filepath.Join(testbedDir, "code.fd"), Vars: filepath.Join(testbedDir, "shell.fd")},
	}, 15*time.Minute)
}

func TestFirmwareInTestbed(t *testing.T) {
	inTestbedOnly(t)
	end := converse(context.Background(), t, Config{
		Name: "kvm", CPUs: 2, RAM: 512 << 20, Accel: AccelKVM,
		Firmware: &Firmware{Code: filepath.Join(testbedDir, "code.fd"), Vars: filepath.Join(testbedDir, "vars.fd")},
		Disks:    []Disk{{Path: "/dev/vda", Format: FormatRaw}},
	}, 15*time.Minute,
		step{text: "EFI /sys/firmware/efi 64"},
		step{text: "CPUS 2"},
		step{text: "VARIABLE SET", do: func() { t.Log("the variable is set") }},
		step{text: "READY", answer: "reboot\n"},
		step{text: "VARIABLE value", do: func() { t.Log("the variable is kept") }},
		step{text: "READY", answer: "off\n"},
	)
	if end != EndPowerOff {
		t.Errorf("end %d instead of a power-off", end)
	}
}

// TestDebianInTestbed boots Debian through the firmware to its login prompt and
// lets it power off.
func TestDebianInTestbed(t *testing.T) {
	inTestbedOnly(t)
	end := converse(t.Context(), t, Config{
		Name: "debian", CPUs: 1, RAM: 1 << 30, Accel: AccelKVM,
		Firmware: &Firmware{Code: filepath.Join(testbedDir, "code.fd"), Vars: filepath.Join(testbedDir, "debian.fd")},
		Disks:    []Disk{{Path: "/dev/vdb", Format: FormatRaw}},
	}, 20*time.Minute,
		step{text: "login: ", answer: "root\r"},
		step{text: "# ", answer: "systemctl is-system-running --wait | sed s/^/STATE-/\r"},
		step{text: "STATE-running"},
		step{text: "# ", answer: "poweroff\r"},
	)
	if end != EndPowerOff {
		t.Errorf("end %d instead of a power-off", end)
	}
}

// TestSignedInTestbed: the firmware that enforces Secure Boot starts what Microsoft
// and Debian have signed.
func TestSignedInTestbed(t *testing.T) {
	inTestbedOnly(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	converse(ctx, t, Config{
		Name: "signed", CPUs: 1, RAM: 512 << 20, Accel: AccelKVM,
		Firmware: &Firmware{Code: filepath.Join(testbedDir, "secure.fd"), Vars: filepath.Join(testbedDir, "signed.fd"), SMM: true},
		Disks:    []Disk{{Path: "/dev/vdc", Format: FormatRaw}},
	}, 15*time.Minute, step{text: "grub>", do: cancel})
}

func TestSecureBootInTestbed(t *testing.T) {
	inTestbedOnly(t)
	vars := filepath.Join(testbedDir, "keys.fd")
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	end := converse(ctx, t, Config{
		// One CPU: the testbed has one as well, on which others would meet in System
		// Management Mode only after a slice of time each.
		Name: "secure", CPUs: 1, RAM: 512 << 20, Accel: AccelKVM,
		Firmware: &Firmware{Code: filepath.Join(testbedDir, "secure.fd"), Vars: vars, SMM: true},
		Disks:    []Disk{{Path: "/dev/vda", Format: FormatRaw}},
	}, 15*time.Minute, step{text: "failed to load Boot0001"}, step{text: ": Access Denied", do: cancel})
	if end != EndKilled {
		t.Errorf("end %d", end)
	}
	store, err := os.ReadFile(vars)
	if err != nil || !bytes.Contains(store, []byte("B\x00o\x00o\x00t\x000\x000\x000\x001\x00")) {
		t.Errorf("the firmware has not written Boot0001 to its store (%v)", err)
	}
}
