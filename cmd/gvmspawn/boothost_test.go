package main

import (
	"regexp"
	"strings"
	"testing"

	"github.com/gvmspawn/gvmspawn/vmm/guesttest"
)

// TestBootOnOldHost boots a machine on the software CPU of a host without KVM whose own
// CPU is QEMU's default, x86-64-v1: the guest is offered what such a host can run
// and computes what it should.
func TestBootOnOldHost(t *testing.T) {
	if testing.Short() {
		t.Skip("boots a machine in a machine")
	}
	tree := guesttest.BusyboxTree(t, "grep -m 1 flags /proc/cpuinfo; sha256sum /bin/busybox; poweroff -f")
	res := guesttest.Testbed{
		CPU:   "qemu64",
		Files: map[string]string{"bin/gvmspawn": guesttest.Binary(t), "tree": tree, "vmlinuz": guesttest.KernelAsset(t, "kernel-trixie").Path},
		Script: `sha256sum /bin/busybox
gvmspawn -q --vsock=no --tpm=no -D /tree --linux=/vmlinuz --ram=256M quiet 2>&1 </dev/null; echo "STATUS $?"`,
	}.Run(t)
	sums := regexp.MustCompile(`([0-9a-f]{64})  /bin/busybox`).FindAllStringSubmatch(res.Output, -1)
	if len(sums) != 2 || sums[0][1] != sums[1][1] || !regexp.MustCompile(`flags\s*:.* sse2 .*popcnt`).MatchString(res.Output) ||
		regexp.MustCompile(`flags\s*:.*(ssse3|sse4|avx)`).MatchString(res.Output) || !strings.Contains(res.Output, "STATUS 0") {
		t.Errorf("output:\n%s", res.Output)
	}
}
