package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/gvmspawn/gvmspawn/vmm/guesttest"
)

// insideDisk is where the testbed has a file system that is not in memory.
const insideDisk = "/disk"

// kvmFSCase, kvmMetaCase and kvmDAXCase are the file systems of one run in the
// testbed: its time counts instructions of everyone, the server's too.
var (
	kvmFSCase = benchmark{
		name:    "kvm-fs",
		about:   "sequential and random file I/O over virtio-fs, on the testbed's KVM (time counts instructions)",
		prepare: func(e *environment) (*plan, error) { return e.kvmFSPlan(fsMetrics, "") },
	}
	kvmMetaCase = benchmark{
		name:    "kvm-fs-meta",
		about:   "find with stat, and unpacking small files, over virtio-fs, on the testbed's KVM (time counts instructions)",
		prepare: func(e *environment) (*plan, error) { return e.kvmFSPlan(metaMetrics, "") },
	}
	kvmDAXCase = benchmark{
		name:    "kvm-fs-dax",
		about:   "kvm-fs with the file's pages mapped into gvmspawn's guest",
		prepare: func(e *environment) (*plan, error) { return e.kvmFSPlan(fsMetrics, daxSubject) },
	}
)

// daxSubject is gvmspawn with a DAX window, plainSubject without.
const (
	plainSubject = "gvmspawn"
	daxSubject   = "gvmspawn with DAX"
)

// kvmFSPlan takes the metrics from the one run that all these cases share. dax
// is the subject that comes first instead of plainSubject.
func (e *environment) kvmFSPlan(metrics []metric, dax string) (*plan, error) {
	k := e.trixie()
	initrd, err := e.initrd("kvm-fs", k)
	if err != nil {
		return nil, err
	}
	disk := filepath.Join(e.dir, "share.img")
	if out, err := exec.Command("mke2fs", "-q", "-F", "-t", "ext4", disk, "1G").CombinedOutput(); err != nil {
		return nil, fmt.Errorf("mke2fs: %w: %s", err, out)
	}
	// The testbed's disk works in real time, in which the count of instructions
	// goes astray: nobody waits for it, and nothing is written back meanwhile.
	t, err := e.newInside(machine{kernel: k.Path, initrd: initrd, ram: 512, append: "bench.jobs=fs,meta bench.sync=0"})
	if err != nil {
		return nil, err
	}
	t.bed.Disks, t.bed.Timeout, t.bed.Memory = []string{disk}, 30*time.Minute, 3072
	t.bed.Script = fmt.Sprintf("mkdir -p %s /var/run/virtiofsd && mount -t ext4 -o commit=900 /dev/vda %[1]s && cd /proc/sys/vm && "+
		"echo 0 >dirty_writeback_centisecs && echo 80 >dirty_ratio && echo 70 >dirty_background_ratio && %s", insideDisk, t.bed.Script)
	p := &plan{metrics: metrics, runs: 1}
	t.addGvmspawn(plainSubject, "", "--dax=0")
	t.addGvmspawn(daxSubject, " bench.mount=dax=always", "--dax=256M")
	if err := t.addVirtiofsd(); err != nil {
		p.skip("%v", err)
	}
	out, err := t.run("fs")
	if err != nil {
		return nil, err
	}
	if err := insideSubjects(p, out, false); err != nil {
		return nil, err
	}
	for i := range p.subjects {
		if p.subjects[i].name == dax {
			p.subjects[0], p.subjects[i] = p.subjects[i], p.subjects[0]
		}
	}
	return p, nil
}

// fsLimit is in the testbed's seconds.
const fsLimit = 300

func (t *insideTestbed) addGvmspawn(name, line, option string) {
	m := t.machine
	m.share = filepath.Join(insideDisk, fmt.Sprint(len(t.jobs)))
	m.append += line
	t.jobs = append(t.jobs, insideJob{Name: name, Kind: insideJobs, Argv: t.inside.gvmspawnArgs(m, "yes", option), Share: m.share, Limit: fsLimit})
}

// addVirtiofsd adds QEMU with its file server, with either cache policy.
func (t *insideTestbed) addVirtiofsd() error {
	const program, socket = "/usr/lib/qemu/virtiofsd", "/run/virtiofsd.socket"
	if _, err := os.Stat(program); err != nil {
		return errors.New("virtiofsd is not installed (package qemu-system-common)")
	}
	t.bed.Files["bin/virtiofsd"] = program
	if err := errors.Join(carryQEMU(t.bed.Files), guesttest.CarryLibraries(t.bed.Files, program)); err != nil {
		return err
	}
	for _, policy := range []string{"always", "auto"} {
		m := t.machine
		m.share = filepath.Join(insideDisk, fmt.Sprint(len(t.jobs)))
		// An initramfs cannot be pivoted away from: it is the root of all.
		server := []string{"/bin/virtiofsd", "--socket-path=" + socket, "-o", "source=" + m.share, "-o", "sandbox=chroot", "-o", "cache=" + policy}
		t.jobs = append(t.jobs, insideJob{Name: "QEMU, virtiofsd cache=" + policy, Kind: insideJobs, Argv: t.qemu(m, socket), Share: m.share, Server: server, Limit: fsLimit})
	}
	return nil
}

// runGuest runs the guest program's jobs on a share of its own.
func (j *insideJob) runGuest(ctx context.Context, limit time.Duration) (numbers, error) {
	if j.Share != "" {
		if err := fillShare(j.Share); err != nil {
			return nil, err
		}
	}
	s := guestSubject{limit: limit, argv: func() ([]string, error) { return j.Argv, nil }}
	if len(j.Server) > 0 {
		server, err := launch(ctx, limit, j.Server, nil)
		if err != nil {
			return nil, err
		}
		s.server = server
		time.Sleep(time.Second)
	}
	return s.run(ctx)
}

// kvmMemoryCase is memoryCase on genuine KVM.
var kvmMemoryCase = benchmark{
	name:  "kvm-memory",
	about: "memory on the testbed's KVM: a VMM whose guest is idle",
	prepare: func(e *environment) (*plan, error) {
		k := guesttest.KernelAsset(e.host, "kernel-bookworm")
		initrd, err := e.initrd("idle", k)
		if err != nil {
			return nil, err
		}
		t, err := e.newInside(machine{kernel: k.Path, initrd: initrd, ram: 256, append: "bench.jobs=idle"})
		if err != nil {
			return nil, err
		}
		p := &plan{metrics: memoryMetrics, runs: 1}
		m := t.machine
		m.share = "/root"
		t.jobs = append(t.jobs, insideJob{Name: "gvmspawn", Kind: insideIdle, Argv: t.inside.gvmspawnArgs(m, "yes"), RAM: m.ram})
		if err := carryQEMU(t.bed.Files); err != nil {
			p.skip("%v", err)
		} else {
			m.share = ""
			t.jobs = append(t.jobs, insideJob{Name: "QEMU KVM", Kind: insideIdle, Argv: t.qemu(m, ""), RAM: m.ram})
		}
		out, err := t.run("memory")
		if err != nil {
			return nil, err
		}
		return p, insideSubjects(p, out, false)
	},
}
