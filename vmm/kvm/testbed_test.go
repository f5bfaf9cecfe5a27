package kvm_test

import (
	"os"
	"testing"
	"time"

	"github.com/gvmspawn/gvmspawn/vmm/guesttest"
	"github.com/gvmspawn/gvmspawn/vmm/kvm"
)

// TestBootTestbed runs the other tests of this package on genuine kvm_amd, and
// with them a stock Debian kernel without PIT, PCI and virtio; or those of them
// that GVMSPAWN_TESTBED_RUN, a pattern without quotes, selects.
func TestBootTestbed(t *testing.T) {
	if testing.Short() {
		t.Skip("boots a machine in QEMU")
	}
	if guesttest.InTestbed() || kvm.Probe(nil) == nil {
		t.Skip("the tests themselves run on genuine KVM here")
	}
	guesttest.Testbed{
		Files:   map[string]string{guestDir + "/initrd": guestInitrd(t), guestDir + "/vmlinuz": guesttest.KernelAsset(t, "kernel-bookworm").Path},
		Timeout: 15 * time.Minute,
	}.RunTests(t, "", "-test.short", "-test.skip TestSpec", "-test.timeout 9m")
}

// TestBootTestbedRaces runs the same in a testbed with two CPUs in real time, with the
// race detector.
func TestBootTestbedRaces(t *testing.T) {
	if os.Getenv("GVMSPAWN_LONG") == "" {
		t.Skip("boots a machine in QEMU: set GVMSPAWN_LONG=1")
	}
	if guesttest.InTestbed() {
		t.Skip("it runs the other tests")
	}
	guesttest.Testbed{
		SMP: true, Race: true,
		Files:   map[string]string{guestDir + "/initrd": guestInitrd(t), guestDir + "/vmlinuz": guesttest.KernelAsset(t, "kernel-bookworm").Path},
		Timeout: 20 * time.Minute,
	}.RunTests(t, "", "-test.short", "-test.skip TestSpec", "-test.timeout 18m")
}
