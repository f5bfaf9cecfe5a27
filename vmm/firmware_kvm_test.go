package vmm

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gvmspawn/gvmspawn/vmm/guesttest"
)

// inTestbed is set in the environment of this test program inside the testbed.
const inTestbed = "GVMSPAWN_IN_TESTBED"

// TestLongFirmwareKVM: OVMF on genuine kvm_amd boots the disk, and its flash
// keeps a variable over a reboot: this program runs TestFirmwareInTestbed there.
func TestLongFirmwareKVM(t *testing.T) {
	if os.Getenv("GVMSPAWN_LONG") == "" {
		t.Skip("boots a machine in the testbed: set GVMSPAWN_LONG=1")
	}
	code, vars := ovmf(t)
	res := guesttest.Testbed{
		Files:   map[string]string{"bin/vmm.test": os.Args[0], "ovmf/code.fd": code, "ovmf/vars.fd": vars},
		Disks:   []string{efiDisk(t, "kernel-trixie")},
		Timeout: 30 * time.Minute,
		Script:  inTestbed + "=1 vmm.test -test.v -test.run '^TestFirmwareInTestbed$'",
	}.Run(t)
	if res.Status != 0 || !strings.Contains(res.Output, "--- PASS: TestFirmwareInTestbed") {
		t.Errorf("status %d:\n%s", res.Status, res.Output)
	}
}

// TestFirmwareInTestbed is the half of TestLongFirmwareKVM inside the testbed.
func TestFirmwareInTestbed(t *testing.T) {
	if os.Getenv(inTestbed) == "" {
		t.Skip("TestLongFirmwareKVM runs it")
	}
	const dir = "/ovmf"
	end := converse(context.Background(), t, Config{
		Name: "kvm", CPUs: 2, RAM: 512 << 20, Accel: AccelKVM,
		Firmware: &Firmware{Code: filepath.Join(dir, "code.fd"), Vars: filepath.Join(dir, "vars.fd")},
		Disks:    []Disk{{Path: "/dev/vda", Format: FormatRaw}},
	}, 25*time.Minute,
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
