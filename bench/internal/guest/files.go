package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	mountPoint = "/mnt"
	chunk      = 128 << 10 // of sequential file I/O
	page       = 4096
)

// mountShare mounts the directory that the host shares as "root".
func mountShare(a arguments) error {
	if err := os.MkdirAll(mountPoint, 0o755); err != nil {
		return err
	}
	err := unix.Mount("root", mountPoint, "virtiofs", 0, a.text("mount"))
	if err == unix.EBUSY {
		return nil
	}
	return err
}

// fsJobs read and write one big file.
func fsJobs(a arguments) error {
	if err := mountShare(a); err != nil {
		return err
	}
	ops := a.number("ops", 1000)
	data := filepath.Join(mountPoint, "data")
	out := filepath.Join(mountPoint, "out")
	return errors.Join(
		sequentialRead("fs-seqread", data),
		randomRead("fs-randread", data, ops),
		sequentialWrite("fs-seqwrite", out, a.number("mib", 32), a.number("sync", 1) != 0),
		randomWrite("fs-randwrite", out, ops, a.number("sync", 1) != 0),
	)
}

func sequentialRead(name, path string) error {
	if err := dropCaches(); err != nil {
		return err
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	d := plainFile(f.Fd())
	buf, total, start := make([]byte, chunk), 0, time.Now()
	for {
		n, err := d.readAt(buf, int64(total))
		if err != nil {
			return err
		}
		if n == 0 {
			break
		}
		total += n
	}
	rate(name, float64(total)/(1<<20), start)
	return nil
}

func randomRead(name, path string, ops int) error {
	if err := dropCaches(); err != nil {
		return err
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	// No read-ahead: each operation is a request.
	if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_RANDOM); err != nil {
		return err
	}
	d, r := plainFile(f.Fd()), rand.New(rand.NewPCG(1, 2))
	buf, start := make([]byte, page), time.Now()
	for range ops {
		if _, err := d.readAt(buf, r.Int64N(size/page)*page); err != nil {
			return err
		}
	}
	rate(name, float64(ops), start)
	return nil
}

func sequentialWrite(name, path string, mib int, sync bool) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	d := plainFile(f.Fd())
	buf, start := make([]byte, chunk), time.Now()
	for i := range mib << 20 / chunk {
		if _, err := d.writeAt(buf, int64(i)*chunk); err != nil {
			return err
		}
	}
	if sync {
		if err := f.Sync(); err != nil {
			return err
		}
	}
	rate(name, float64(mib), start)
	return nil
}

func randomWrite(name, path string, ops int, sync bool) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	d, r := plainFile(f.Fd()), rand.New(rand.NewPCG(3, 4))
	buf, start := make([]byte, page), time.Now()
	for range ops {
		if _, err := d.writeAt(buf, r.Int64N(size/page)*page); err != nil {
			return err
		}
	}
	if sync {
		if err := f.Sync(); err != nil {
			return err
		}
	}
	rate(name, float64(ops), start)
	return nil
}

// metaJobs walk a tree and make one, as find and tar do.
func metaJobs(a arguments) error {
	if err := mountShare(a); err != nil {
		return err
	}
	if err := dropCaches(); err != nil {
		return err
	}
	runtime.GOMAXPROCS(2)
	start, n := time.Now(), 0
	err := filepath.WalkDir(filepath.Join(mountPoint, "tree"), func(_ string, d fs.DirEntry, err error) error {
		calm()
		if err == nil {
			n++
			_, err = d.Info()
		}
		return err
	})
	if err != nil {
		return err
	}
	rate("fs-find", float64(n), start)
	return unpack(filepath.Join(mountPoint, "unpacked"), a.number("files", 400))
}

// calm keeps Go's monitor thread (see plainFile) from taking the processor away in long
// system calls. It does not where another one is idle, and the goroutine has been
// scheduled within 10 ms.
func calm() { runtime.Gosched() }

// unpack makes small files the way tar does: create, write, mode, times.
func unpack(dir string, files int) error {
	start := time.Now()
	content := make([]byte, 2000)
	when := time.Unix(1e9, 0)
	for i := range files {
		calm()
		sub := filepath.Join(dir, fmt.Sprint(i/20))
		if i%20 == 0 {
			if err := os.MkdirAll(sub, 0o755); err != nil {
				return err
			}
		}
		p := filepath.Join(sub, fmt.Sprint("file", i))
		err := errors.Join(os.WriteFile(p, content, 0o600), os.Chmod(p, 0o644), os.Chtimes(p, when, when))
		if err != nil {
			return err
		}
	}
	rate("fs-untar", float64(files), start)
	return nil
}

// blkJobs are direct I/O on /dev/vda.
func blkJobs(a arguments) error {
	f, err := os.OpenFile("/dev/vda", os.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	ops := a.number("ops", 1000)
	b := blkJob{f: f, size: size}
	return errors.Join(
		b.random("blk-randread-qd1", 1, ops, false),
		b.random("blk-randread-qd32", 32, 4*ops, false),
		b.random("blk-randwrite-qd1", 1, ops, true),
		b.random("blk-randwrite-qd32", 32, 4*ops, true),
		b.sequential("blk-seqread", a.number("mib", 64), false),
		b.sequential("blk-seqwrite", a.number("mib", 64), true),
	)
}

type blkJob struct {
	f    *os.File
	size int64
}

// random does ops operations of one page, depth at a time.
func (b blkJob) random(name string, depth, ops int, write bool) error {
	errs := make([]error, depth)
	start := time.Now()
	var wg sync.WaitGroup
	for i := range depth {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(i), 7))
			errs[i] = b.operate(page, ops/depth, write, func(int) int64 { return r.Int64N(b.size/page) * page })
		})
	}
	wg.Wait()
	rate(name, float64(ops/depth*depth), start)
	return errors.Join(errs...)
}

func (b blkJob) sequential(name string, mib int, write bool) error {
	start := time.Now()
	err := b.operate(1<<20, mib, write, func(i int) int64 { return int64(i) << 20 % b.size })
	rate(name, float64(mib), start)
	return err
}

func (b blkJob) operate(size, ops int, write bool, at func(int) int64) error {
	buf, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE|unix.MAP_POPULATE)
	if err != nil {
		return err
	}
	defer unix.Munmap(buf)
	for i := range ops {
		if write {
			_, err = b.f.WriteAt(buf, at(i))
		} else {
			_, err = b.f.ReadAt(buf, at(i))
		}
		if err != nil {
			return err
		}
	}
	return nil
}
