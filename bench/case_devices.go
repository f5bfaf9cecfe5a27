package main

import (
	"crypto/rand"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

const deviceLimit = 4 * time.Minute

var fsMetrics = []metric{
	{"fs-seqread", "MiB/s", true}, {"fs-randread", "4 KiB/s", true}, {"fs-seqwrite", "MiB/s", true}, {"fs-randwrite", "4 KiB/s", true}}

var metaMetrics = []metric{{"fs-find", "files/s", true}, {"fs-untar", "files/s", true}}

// fsCase is file I/O over virtio-fs.
var fsCase = benchmark{
	name:    "fs",
	about:   "sequential and random file I/O over virtio-fs, on a software CPU",
	prepare: func(e *environment) (*plan, error) { return e.fsPlan("fs", fsMetrics) },
}

// metaCase is file system work with many small files.
var metaCase = benchmark{
	name:  "fs-meta",
	about: "find with stat, and unpacking small files, over virtio-fs, on a software CPU",
	prepare: func(e *environment) (*plan, error) {
		return e.fsPlan("meta", metaMetrics)
	},
}

// fsDAXCase compares gvmspawn with itself: QEMU has no DAX window.
var fsDAXCase = benchmark{
	name:  "fs-dax",
	about: "the same file I/O with the file's pages mapped into the guest, against without",
	prepare: func(e *environment) (*plan, error) {
		k := e.trixie()
		initrd, err := e.initrd("dax", k)
		if err != nil {
			return nil, err
		}
		p := &plan{metrics: fsMetrics}
		m := machine{kernel: k.Path, initrd: initrd, ram: 512, append: "bench.jobs=fs"}
		plain := m
		m.append += " bench.mount=dax=always"
		e.addGvmspawn(p, "gvmspawn with DAX", m, deviceLimit, e.makeShare, "--dax=256M")
		e.addGvmspawn(p, "gvmspawn without", plain, deviceLimit, e.makeShare, "--dax=0")
		p.skip("QEMU 7.2 has no DAX window for virtio-fs")
		return p, nil
	},
}

func (e *environment) fsPlan(job string, metrics []metric) (*plan, error) {
	k := e.trixie()
	initrd, err := e.initrd(job, k)
	if err != nil {
		return nil, err
	}
	p := &plan{metrics: append(metrics, metric{"CPU time", "s", false})}
	e.software(p, machine{kernel: k.Path, initrd: initrd, ram: 512, append: "bench.jobs=" + job}, deviceLimit, e.makeShare)
	return p, nil
}

// makeShare makes a directory for one run: a big file and a tree of small ones.
func (e *environment) makeShare() (string, error) {
	dir, err := os.MkdirTemp(e.dir, "share")
	if err != nil {
		return "", err
	}
	return dir, fillShare(dir)
}

// fillShare is makeShare in a directory of the caller's.
func fillShare(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	content := make([]byte, 32<<20)
	_, _ = rand.Read(content)
	if err := os.WriteFile(filepath.Join(dir, "data"), content, 0o644); err != nil {
		return err
	}
	for i := range 40 {
		sub := filepath.Join(dir, "tree", fmt.Sprint(i))
		if err := os.MkdirAll(sub, 0o755); err != nil {
			return err
		}
		for j := range 50 {
			if err := os.WriteFile(filepath.Join(sub, fmt.Sprint(j)), content[:1000], 0o644); err != nil {
				return err
			}
		}
	}
	return nil
}

// randomFile makes a file of size bytes.
func randomFile(path string, size int) error {
	content := make([]byte, size)
	_, _ = rand.Read(content)
	return os.WriteFile(path, content, 0o644)
}

// blkCase is direct I/O on a raw image.
var blkCase = benchmark{
	name:  "blk",
	about: "direct I/O on a raw virtio-blk disk, on a software CPU; QEMU with aio=io_uring",
	prepare: func(e *environment) (*plan, error) {
		k := e.trixie()
		initrd, err := e.initrd("blk", k, "virtio_blk")
		if err != nil {
			return nil, err
		}
		disk := filepath.Join(e.dir, "disk.raw")
		if err := randomFile(disk, 64<<20); err != nil {
			return nil, err
		}
		p := &plan{metrics: []metric{
			{"blk-randread-qd1", "4 KiB/s", true}, {"blk-randread-qd32", "4 KiB/s", true},
			{"blk-randwrite-qd1", "4 KiB/s", true}, {"blk-randwrite-qd32", "4 KiB/s", true},
			{"blk-seqread", "MiB/s", true}, {"blk-seqwrite", "MiB/s", true}, {"CPU time", "s", false}}}
		e.software(p, machine{kernel: k.Path, initrd: initrd, ram: 512, disk: disk, append: "bench.jobs=blk"}, deviceLimit, nil)
		return p, nil
	},
}
