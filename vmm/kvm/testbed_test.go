package kvm_test

import (
	"os"
	"os/exec"
	"path/filepath"
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
	if os.Getenv("GVMSPAWN_IN_TESTBED") != "" || kvm.Probe(nil) == nil {
		t.Skip("the tests themselves run on genuine KVM here")
	}
	self := filepath.Join(t.TempDir(), "kvm.test")
	build := exec.Command("go", "test", "-c", "-o", self, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	res := guesttest.Testbed{
		Script: "cd /tmp && GVMSPAWN_IN_TESTBED=1 /kvm.test -test.v -test.short -test.skip TestSpec -test.timeout 9m -test.run '" + os.Getenv("GVMSPAWN_TESTBED_RUN") + "'",
		Files: map[string]string{"kvm.test": self, guestDir + "/initrd": guestInitrd(t),
			guestDir + "/vmlinuz": guesttest.KernelAsset(t, "kernel-bookworm").Path},
		Timeout: 15 * time.Minute,
	}.Run(t)
	if res.Status != 0 {
		t.Errorf("status %d", res.Status)
	}
	t.Log(res.Output)
}
