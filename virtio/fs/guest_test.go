package fs_test

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gvmspawn/gvmspawn/vmm/guesttest"
)

// TestLinuxDriver runs this package's random operations inside a machine on
// the software CPU, with Linux's own virtio-fs driver in between: in the guest
// the same test binary compares the share with a tmpfs (see TestGuestHalf).
func TestLinuxDriver(t *testing.T) {
	if testing.Short() {
		t.Skip("boots machines on the software CPU")
	}
	kernel := guesttest.KernelAsset(t, "kernel-trixie")
	vmm := guesttest.Binary(t)
	defer guesttest.RemoveBinary()
	guest := filepath.Join(t.TempDir(), "fs.test")
	build := exec.Command("go", "test", "-c", "-o", guest, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for name, args := range map[string][]string{"plain": nil, "dax": {"--dax=64M"}} {
		t.Run(name, func(t *testing.T) {
			tree := guesttest.BusyboxTree(t, `
mount -t tmpfs tmpfs /tmp
mkdir -p /share /tmp/plain
export FS_TEST_IN_NS=1 FS_TEST_PAIR=/share:/tmp/plain
echo from-the-guest > /written
/fs.test -test.run '^TestGuestHalf$' -test.v
cp /fs.test /copy && cmp /fs.test /copy && echo COPIED
sync
poweroff -f`)
			b, err := os.ReadFile(guest)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(tree, "fs.test"), b, 0o755); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
			defer cancel()
			run := exec.CommandContext(ctx, vmm, append([]string{"-q", "-D", tree, "--linux", kernel.Path, "--kvm=no", "--vsock=no",
				"--ram=512M", "--console=read-only", "quiet"}, args...)...)
			out, err := run.CombinedOutput()
			if err != nil || !strings.Contains(string(out), "--- PASS: TestGuestHalf") || !strings.Contains(string(out), "COPIED") {
				t.Errorf("%v\n%s", err, out)
			}
			if w, err := os.ReadFile(filepath.Join(tree, "written")); string(w) != "from-the-guest\n" {
				t.Errorf("the guest's file: %q, %v", w, err)
			}
			if c, err := os.ReadFile(filepath.Join(tree, "copy")); err != nil || !bytes.Equal(b, c) {
				t.Errorf("the guest's copy has %d bytes, not %d: %v", len(c), len(b), err)
			}
		})
	}
}
