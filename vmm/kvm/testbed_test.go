package kvm_test

import (
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
