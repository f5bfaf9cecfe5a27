package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/gvmspawn/gvmspawn/vmm/guesttest"
)

// debianTree copies a Debian tree and has it run script when it has started,
// with the console as its output. It powers off then.
func debianTree(t *testing.T, asset, script string) string {
	t.Helper()
	if os.Getenv("GVMSPAWN_LONG") == "" {
		t.Skip("boots Debian trees on the software CPU: set GVMSPAWN_LONG=1")
	}
	tree := filepath.Join(t.TempDir(), "tree")
	if out, err := exec.Command("cp", "-a", "--reflink=auto", guesttest.Asset(t, asset), tree).CombinedOutput(); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	writeFile(t, filepath.Join(tree, "etc/report"), []byte("#!/bin/sh\nstate=$(systemctl is-system-running --wait)\necho STATE $state\n"+
		"[ $state = running ] || systemctl --failed --no-legend\n"+script+"\nsystemctl poweroff\n"), 0o755)
	writeFile(t, filepath.Join(tree, "etc/systemd/system/report.service"),
		[]byte("[Service]\nExecStart=/etc/report\nStandardOutput=tty\nStandardError=tty\nTTYPath=/dev/console\n"), 0o644)
	wants := filepath.Join(tree, "etc/systemd/system/multi-user.target.wants")
	if err := os.MkdirAll(wants, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("../report.service", filepath.Join(wants, "report.service")); err != nil {
		t.Fatal(err)
	}
	return tree
}

// TestLongBoots boots a Debian tree with every kernel of Debian, on one CPU and
// on four, again and again (GVMSPAWN_BOOTS times, 20 if it is not set): each
// time systemd says that everything is running, and the machine powers off.
func TestLongBoots(t *testing.T) {
	times, err := strconv.Atoi(os.Getenv("GVMSPAWN_BOOTS"))
	if err != nil {
		times = 20
	}
	tree := debianTree(t, "tree-trixie", "")
	for _, kernel := range []string{"kernel-bookworm", "kernel-trixie", "kernel-bookworm-generic", "kernel-trixie-generic"} {
		for _, cpus := range []int{1, 4} {
			t.Run(fmt.Sprintf("%s/%d", kernel, cpus), func(t *testing.T) {
				k := guesttest.KernelAsset(t, kernel)
				for i := range times {
					m := newMachine(t, t.TempDir(), k, "-x", "-D", tree, fmt.Sprintf("--cpus=%d", cpus), "-q")
					m.start()
					if s := m.status(); s != 0 || !strings.Contains(m.out.String(), "STATE running") {
						t.Fatalf("boot %d: status %d", i+1, s)
					}
				}
			})
		}
	}
}
