package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
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

// programsCase is the work of a distribution's own programs.
var programsCase = benchmark{
	name:  "programs",
	about: "sha256sum, gcc, gzip, perl and the methods of stress-ng's cpu stressor, from a Debian tree on a disk, on a software CPU; needs root",
	prepare: func(e *environment) (*plan, error) {
		if os.Geteuid() != 0 {
			return nil, errors.New("the tree's files belong to root: run it as root")
		}
		k := e.trixie()
		initrd, err := e.initrd("programs", k, "virtio_blk", "ext4")
		if err != nil {
			return nil, err
		}
		disk := filepath.Join(e.dir, "programs.img")
		if out, err := exec.Command("mke2fs", "-q", "-t", "ext4", "-d", guesttest.Asset(e.host, "tree-trixie-build"), disk, "2G").CombinedOutput(); err != nil {
			return nil, fmt.Errorf("mke2fs: %w: %s", err, out)
		}
		p := &plan{}
		for _, name := range []string{"sha256sum", "gcc", "gzip", "perl"} {
			p.metrics = append(p.metrics, metric{name, "s", false}, metric{name + " CPU", "s", false})
		}
		p.metrics = append(p.metrics, metric{stressMean, "ops/s CPU", true})
		e.software(p, machine{kernel: k.Path, initrd: initrd, ram: 1024, disk: disk, append: "bench.jobs=programs"}, 20*time.Minute, nil)
		for i := range p.subjects {
			run := p.subjects[i].run
			p.subjects[i].run = func(ctx context.Context) (numbers, error) {
				n, err := run(ctx)
				stressRates(n)
				return n, err
			}
		}
		return p, nil
	},
}

// stressMean is the geometric mean of what stressRates finds.
const stressMean = "stress-ng-cpu"

// stressRates turns numbers of operations into those a second of processor time.
func stressRates(n numbers) {
	logs, count := 0.0, 0.0
	for name, ops := range maps.Clone(n) {
		method, ok := strings.CutPrefix(name, "ops-")
		if !ok || strings.HasSuffix(name, " CPU") {
			continue
		}
		if t := n[name+" CPU"]; t > 0 {
			n["cpu-"+method] = ops / t
			logs += math.Log(ops / t)
			count++
		}
		delete(n, name)
		delete(n, name+" CPU")
	}
	if count > 0 {
		n[stressMean] = math.Exp(logs / count)
	}
}

// treeUnit says that systemd has reached multi-user, and does then what it is told.
func treeUnit(then string) string {
	return `[Unit]
Description=Benchmark
After=multi-user.target
[Service]
Type=oneshot
StandardOutput=tty
ExecStart=/bin/echo ` + guestReady + "\n" + then + `[Install]
WantedBy=multi-user.target
`
}

// treeOff powers the machine off, treeIdle leaves it alone.
const (
	treeOff  = "ExecStart=/bin/systemctl poweroff --no-block\n"
	treeIdle = ""
)

// treeSoftCase is the second row of them.
var treeSoftCase = benchmark{
	name:  "tree-soft",
	about: "a Debian tree on virtio-fs with systemd, on a software CPU: start, multi-user, power-off",
	prepare: func(e *environment) (*plan, error) {
		m, share, err := e.tree(treeOff)
		if err != nil {
			return nil, err
		}
		p := &plan{metrics: bootMetrics}
		p.metrics[0].Name = "to init"
		e.software(p, m, 15*time.Minute, share)
		return p, nil
	},
}

// tree is a machine with a Debian tree, of which share makes a fresh copy.
func (e *environment) tree(then string) (m machine, share func() (string, error), err error) {
	if os.Geteuid() != 0 {
		return m, nil, errors.New("the tree's files belong to root: run it as root")
	}
	tree := guesttest.Asset(e.host, "tree-trixie")
	share = func() (string, error) {
		dir, err := os.MkdirTemp(e.dir, "tree")
		if err != nil {
			return "", err
		}
		return copyTree(tree, filepath.Join(dir, "root"), then)
	}
	return machine{kernel: e.trixie().Path, ram: 1024, append: "root=root rootfstype=virtiofs rw"}, share, nil
}

// copyTree copies the Debian tree, so that each run finds it fresh, and adds
// the unit.
func copyTree(from, to, then string) (string, error) {
	if err := guesttest.CopyTree(from, to); err != nil {
		return "", err
	}
	dir := filepath.Join(to, "etc/systemd/system")
	wants := filepath.Join(dir, "multi-user.target.wants")
	return to, errors.Join(os.MkdirAll(wants, 0o755), os.WriteFile(filepath.Join(dir, "bench.service"), []byte(treeUnit(then)), 0o644),
		os.Symlink("../bench.service", filepath.Join(wants, "bench.service")))
}
