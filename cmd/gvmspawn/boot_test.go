package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gvmspawn/gvmspawn/vmm/guesttest"
)

// kvmCase is one run of gvmspawn in the testbed.
type kvmCase struct {
	name   string
	kernel string // asset
	args   string // arguments, after the directory and the kernel
	status int
	want   string // an extended regular expression of the output
	after  string // a further shell condition
}

// kvmInit is the guest's init: it writes a file and ends as the command line
// says.
const kvmInit = `
echo "HELLO from $(uname -r) with $(nproc) CPU"
echo "guest wrote this" > /written
chown 7:8 /written
case "$(cat /proc/cmdline)" in
*do=poweroff*) poweroff -f ;;
*do=crash*) echo c > /proc/sysrq-trigger ;;
*do=reboot*) if [ -e /rebooted ]; then rm /rebooted; echo AGAIN; poweroff -f; fi; touch /rebooted; reboot -f ;;
esac
sleep 1000`

// TestBootOnKVM boots stock Debian kernels from a directory on genuine
// kvm_amd, each case in a testbed of its own.
func TestBootOnKVM(t *testing.T) {
	if testing.Short() {
		t.Skip("boots machines in the testbed")
	}
	cases := []kvmCase{
		{"modular kernel", "kernel-bookworm", "do=poweroff quiet", 0, "HELLO from 6[.]1[.].* with 1 CPU",
			`[ "$(cat /tree/written)" = "guest wrote this" ] && [ "$(stat -c %u:%g /tree/written)" = 7:8 ]`},
		{"kernel with virtio-fs built in", "kernel-trixie", "do=poweroff quiet", 0, "HELLO from 6[.]12[.].* with 1 CPU", "true"},
		{"kernel panic", "kernel-bookworm", "do=crash quiet", 1, "Kernel panic", "true"},
	}
	if os.Getenv("GVMSPAWN_LONG") != "" {
		cases = append(cases,
			kvmCase{"reboot", "kernel-bookworm", "do=reboot quiet", 0, "AGAIN", "true"},
			kvmCase{"four CPUs", "kernel-bookworm", "--cpus=4 do=poweroff quiet", 0, "HELLO from .* with 4 CPU", "true"})
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) { c.run(t) })
	}
}

func (c *kvmCase) run(t *testing.T) {
	kernel := guesttest.KernelAsset(t, c.kernel)
	builtin := filepath.Join("lib/modules", kernel.Version, "modules.builtin")
	res := guesttest.Testbed{
		Files: map[string]string{
			"bin/gvmspawn": guesttest.Binary(t),
			"vmlinuz":      kernel.Path,
			builtin:        filepath.Join(kernel.Dir, builtin),
			"tree":         guesttest.BusyboxTree(t, kvmInit),
		},
		Modules: []string{"virtiofs", "virtio_pci", "virtio_console", "vmw_vsock_virtio_transport", "virtio_rng"},
		Timeout: 8 * time.Minute,
		Script: fmt.Sprintf(`
timeout -s KILL 60 gvmspawn -q --kvm=yes --vsock=no -D /tree --linux=/vmlinuz --ram=256M %s >/tmp/out 2>&1 </dev/null
status=$?
cat /tmp/out
[ $status = %d ] && grep -q -E %q /tmp/out && %s && [ "$(ls -A /tmp)" = out ] && echo VERDICT PASS || echo "VERDICT FAIL, status $status"
`, c.args, c.status, c.want, c.after),
	}.Run(t)
	if !strings.Contains(res.Output, "VERDICT PASS") {
		t.Errorf("output:\n%s", res.Output)
	}
}
