package main

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/gvmspawn/gvmspawn/vmm/guesttest"
)

// bootCase is one run of gvmspawn.
type bootCase struct {
	name   string
	kernel string // asset
	path   string // another kernel with the same modules, if not ""
	args   string // arguments, after the directory and the kernel
	status int
	want   string // an extended regular expression of the output
	after  string // a further shell condition
}

// bootInit is the guest's init: it writes a file and ends as the command line
// says.
const bootInit = `
echo "HELLO from $(uname -r) with $(nproc) CPU"
echo "guest wrote this" > /written
chown 7:8 /written
case "$(cat /proc/cmdline)" in
*do=poweroff*) poweroff -f ;;
*do=topology*)
	cd /sys/devices/system/cpu
	echo "$(cat cpu*/topology/core_id | sort -n | uniq | wc -l) cores in $(cat cpu*/topology/physical_package_id | sort | uniq | wc -l) package"
	poweroff -f ;;
*do=crash*) echo c > /proc/sysrq-trigger ;;
*do=reboot*) if [ -e /rebooted ]; then rm /rebooted; echo AGAIN; poweroff -f; fi; touch /rebooted; reboot -f ;;
esac
sleep 1000`

// TestBootOnKVM boots stock Debian kernels from a directory on genuine
// kvm_amd, one after the other in one testbed.
func TestBootOnKVM(t *testing.T) {
	if testing.Short() {
		t.Skip("boots machines in the testbed")
	}
	cases := []bootCase{
		{"modular kernel", "kernel-bookworm", "", "do=poweroff quiet", 0, "HELLO from 6[.]1[.].* with 1 CPU",
			`[ "$(cat /tree/written)" = "guest wrote this" ] && [ "$(stat -c %u:%g /tree/written)" = 7:8 ]`},
		{"kernel with virtio-fs built in", "kernel-trixie", "", "do=poweroff quiet", 0, "HELLO from 6[.]12[.].* with 1 CPU", "true"},
		{"kernel panic", "kernel-bookworm", "", "do=crash quiet", 1, "Kernel panic", "true"},
	}
	if os.Getenv("GVMSPAWN_LONG") != "" {
		cases = append(cases,
			bootCase{"reboot", "kernel-bookworm", "", "do=reboot quiet", 0, "AGAIN", "true"},
			bootCase{"four CPUs", "kernel-bookworm", "", "--cpus=4 do=poweroff quiet", 0, "HELLO from .* with 4 CPU", "true"})
	}
	runOnKVM(t, cases)
}

// runOnKVM runs the cases in a testbed whose clock counts instructions, so that
// a time limit in it does not depend on how busy this host is.
func runOnKVM(t *testing.T, cases []bootCase) {
	t.Helper()
	bed := guesttest.Testbed{
		Files:   map[string]string{"bin/gvmspawn": guesttest.Binary(t), "tree": guesttest.BusyboxTree(t, bootInit)},
		Modules: []string{"virtiofs", "virtio_pci", "virtio_console", "vmw_vsock_virtio_transport", "virtio_rng"},
		Timeout: time.Duration(10+2*len(cases)) * time.Minute,
	}
	for i, c := range cases {
		kernel := guesttest.KernelAsset(t, c.kernel)
		builtin := filepath.Join("lib/modules", kernel.Version, "modules.builtin")
		path := cmp.Or(c.path, kernel.Path)
		image := filepath.Base(path)
		bed.Files[image], bed.Files[builtin] = path, filepath.Join(kernel.Dir, builtin)
		bed.Script += fmt.Sprintf(`
timeout -s KILL 60 gvmspawn -q --kvm=yes --vsock=no -D /tree --linux=/%s --ram=256M %s >/tmp/out 2>&1 </dev/null
status=$?
[ $status = %d ] && grep -q -E %q /tmp/out && %s && [ "$(ls -A /tmp)" = out ] && echo VERDICT %d PASS || { cat /tmp/out; echo "VERDICT %d FAIL, status $status"; }
`, image, c.args, c.status, c.want, c.after, i, i)
	}
	res := bed.Run(t)
	for i, c := range cases {
		if !strings.Contains(res.Output, fmt.Sprintf("VERDICT %d PASS", i)) {
			t.Errorf("%s failed; output:\n%s", c.name, res.Output)
		}
	}
}

// TestBootEnds runs what ends a machine on the software CPU: power-off, reboot and
// panic, of a kernel with and one without modules.
func TestBootEnds(t *testing.T) {
	if testing.Short() {
		t.Skip("boots machines")
	}
	for _, c := range []bootCase{
		{"reboot", "kernel-bookworm", "", "do=reboot quiet", 0, "AGAIN", ""},
		{"reboot, nothing but ACPI", "kernel-trixie", "", "do=reboot quiet", 0, "AGAIN", ""},
		{"kernel panic", "kernel-bookworm", "", "do=crash quiet", 1, "the guest's kernel panicked: .*sysrq triggered crash", ""},
		{"panic=0 is the user's", "kernel-bookworm", "", "do=poweroff panic=0 quiet", 0, "HELLO", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			tree := guesttest.BusyboxTree(t, bootInit)
			args := append([]string{"-q", "--kvm=no", "--register=no", "--tpm=no", "-D", tree, "--linux=" + guesttest.KernelAsset(t, c.kernel).Path, "--ram=256M"},
				strings.Fields(c.args)...)
			ctx, cancel := context.WithTimeout(context.Background(), 4*time.Minute)
			defer cancel()
			cmd := exec.CommandContext(ctx, guesttest.Binary(t), args...)
			out, err := cmd.CombinedOutput()
			if ctx.Err() != nil || cmd.ProcessState == nil || cmd.ProcessState.ExitCode() != c.status || !regexp.MustCompile(c.want).Match(out) {
				t.Errorf("%v, want status %d and %q; output:\n%s", err, c.status, c.want, out)
			}
		})
	}
}
