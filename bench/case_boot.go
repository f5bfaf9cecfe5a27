package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/gvmspawn/gvmspawn/vmm/guesttest"
)

var bootMetrics = []metric{{"to init", "s", false}, {"to end", "s", false}, {"CPU time", "s", false}}

// bootSoftCase is the first row of the software CPU's promises: the kernel as the user gives it.
var bootSoftCase = benchmark{
	name:  "boot-soft",
	about: "bookworm's cloud bzImage and an initramfs on a software CPU: start, init, power-off",
	prepare: func(e *environment) (*plan, error) {
		k := guesttest.KernelAsset(e.host, "kernel-bookworm")
		initrd, err := e.initrd("boot", k)
		if err != nil {
			return nil, err
		}
		p := &plan{metrics: bootMetrics}
		e.software(p, machine{kernel: k.Path, initrd: initrd, ram: 512}, 3*time.Minute, nil)
		return p, nil
	},
}

// computeCase is work without devices.
var computeCase = benchmark{
	name:  "compute",
	about: "work without devices in a Go program in the guest, on a software CPU",
	prepare: func(e *environment) (*plan, error) {
		k := e.trixie()
		initrd, err := e.initrd("compute", k)
		if err != nil {
			return nil, err
		}
		p := &plan{metrics: []metric{{"sha256", "MiB/s", true}, {"sieve", "primes/s", true}, {"sort", "numbers/s", true},
			{"deflate", "MiB/s", true}, {"float", "Mflop/s", true}, {"interpret", "M/s", true}, {"parse", "KiB/s", true}}}
		e.software(p, machine{kernel: k.Path, initrd: initrd, ram: 512, append: "bench.jobs=compute"}, 5*time.Minute, nil)
		return p, nil
	},
}

// treeUnit powers the machine off when systemd has reached multi-user.
const treeUnit = `[Unit]
Description=Benchmark
After=multi-user.target
[Service]
Type=oneshot
StandardOutput=tty
ExecStart=/bin/echo ` + guestReady + `
ExecStart=/bin/systemctl poweroff --no-block
[Install]
WantedBy=multi-user.target
`

// treeSoftCase is the second row of them.
var treeSoftCase = benchmark{
	name:  "tree-soft",
	about: "a Debian tree on virtio-fs with systemd, on a software CPU: start, multi-user, power-off",
	prepare: func(e *environment) (*plan, error) {
		if os.Geteuid() != 0 {
			return nil, errors.New("the tree's files belong to root: run it as root")
		}
		tree := guesttest.Asset(e.host, "tree-trixie")
		k := e.trixie()
		number := 0
		p := &plan{metrics: bootMetrics}
		p.metrics[0].Name = "to init"
		e.software(p, machine{kernel: k.Path, ram: 1024, append: "root=root rootfstype=virtiofs rw"}, 15*time.Minute, func() (string, error) {
			number++
			return copyTree(tree, filepath.Join(e.dir, fmt.Sprint("tree", number)))
		})
		return p, nil
	},
}

// copyTree copies the Debian tree, so that each run finds it fresh, and adds
// the unit.
func copyTree(from, to string) (string, error) {
	if err := guesttest.CopyTree(from, to); err != nil {
		return "", err
	}
	dir := filepath.Join(to, "etc/systemd/system")
	wants := filepath.Join(dir, "multi-user.target.wants")
	return to, errors.Join(os.MkdirAll(wants, 0o755), os.WriteFile(filepath.Join(dir, "bench.service"), []byte(treeUnit), 0o644),
		os.Symlink("../bench.service", filepath.Join(wants, "bench.service")))
}
