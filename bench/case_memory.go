package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// memoryMetrics are what is watched of an idle guest's VMM. "own private" is its
// own memory without the program's file, which all its processes share;
// "wake-ups" are the threads' that do not run guest code, which on a software CPU
// are none.
var memoryMetrics = []metric{
	{"own memory", "MiB", false}, {"own private", "MiB", false}, {"guest memory", "MiB", false}, {"wake-ups", "1/s", false}, {"CPU-wake-ups", "1/s", false},
	{"CPU", "%", false}, {"guest-interrupts", "1/s", false}, {"threads", "", false}}

// memoryCase watches the process of an idle guest.
var memoryCase = benchmark{
	name:  "memory",
	about: "a VMM whose guest is idle: memory beyond the guest's, wake-ups and CPU time a second, on a software CPU",
	prepare: func(e *environment) (*plan, error) {
		k := e.trixie()
		initrd, err := e.initrd("idle", k)
		if err != nil {
			return nil, err
		}
		p := &plan{metrics: memoryMetrics}
		m := machine{kernel: k.Path, initrd: initrd, ram: 512, append: "bench.jobs=idle"}
		p.subjects = append(p.subjects, idleSubject("gvmspawn", m, e.gvmspawnArgs(m, "no")))
		if qemu, err := exec.LookPath("qemu-system-x86_64"); err == nil {
			p.subjects = append(p.subjects, idleSubject("QEMU TCG", m, qemuArgs(qemu, m, "tcg", "")))
		} else {
			p.skip("QEMU is not installed")
		}
		return p, nil
	},
}

// memoryTreeCase watches the process of a Debian tree that has booted: what the
// software CPUs have decoded and translated by then is most of its memory.
var memoryTreeCase = benchmark{
	name:  "memory-tree",
	about: "memory after the boot of a Debian tree, which is idle then, and the boot's CPU time; software CPU, 1, 4 and 8 CPUs",
	prepare: func(e *environment) (*plan, error) {
		m, share, err := e.tree(treeIdle)
		if err != nil {
			return nil, err
		}
		m.vsock = true // over it the guest says READY=1, as it does with the default options
		p := &plan{metrics: append([]metric{{"to init", "s", false}, {"boot CPU time", "s", false}}, memoryMetrics[:6]...)}
		for _, cpus := range []int{1, 4, 8} {
			name := "gvmspawn"
			if cpus > 1 {
				name = fmt.Sprintf("gvmspawn, %d CPUs", cpus)
			}
			p.subjects = append(p.subjects, subject{name, func(ctx context.Context) (numbers, error) {
				m := m
				var err error
				if m.share, err = share(); err != nil {
					return nil, err
				}
				defer os.RemoveAll(m.share)
				return watchTree(ctx, m.ram, e.gvmspawnArgs(m, "no", fmt.Sprintf("--cpus=%d", cpus)))
			}})
		}
		p.skip("QEMU TCG: trixie's kernel crashes in it (QEMU 7.2)")
		return p, nil
	},
}

// watchTree boots a tree that stays up, and watches it.
func watchTree(ctx context.Context, ram int, argv []string) (numbers, error) {
	p, err := launchIdle(ctx, 15*time.Minute, argv)
	if err != nil {
		return nil, err
	}
	defer p.kill()
	booted := readTicks(fmt.Sprint("/proc/", p.cmd.Process.Pid)) // with threads that have ended
	n, err := watchIdle(p.cmd.Process.Pid, ram)
	if err != nil {
		return nil, p.failure(err)
	}
	n["to init"], n["boot CPU time"] = p.seen.at(guestReady).Seconds(), float64(booted)/100
	return n, nil
}

// The idle process is watched for a window after what a kernel still does when
// its init runs already. The guest program's own times enclose the window.
const (
	settle = 7 * time.Second
	window = 5 * time.Second
)

// launchIdle starts a machine and waits until it is idle.
func launchIdle(ctx context.Context, limit time.Duration, argv []string) (*process, error) {
	p, err := launch(ctx, limit, argv, nil, guestReady)
	if err != nil {
		return nil, err
	}
	if err := p.await(guestReady); err != nil {
		p.kill()
		return nil, err
	}
	time.Sleep(settle)
	return p, nil
}

func idleSubject(name string, m machine, argv []string) subject {
	return subject{name, func(ctx context.Context) (numbers, error) {
		p, err := launchIdle(ctx, 2*time.Minute, argv)
		if err != nil {
			return nil, err
		}
		defer p.kill()
		n, err := watchIdle(p.cmd.Process.Pid, m.ram)
		if err != nil {
			return nil, err
		}
		if err := p.wait(); err != nil {
			return nil, p.failure(err)
		}
		r, err := p.results()
		n["guest-interrupts"] = r["guest-interrupts"]
		return n, err
	}}
}

// watchIdle measures a process over the window. ram is the guest's in MiB.
func watchIdle(pid, ram int) (numbers, error) {
	before, err := readThreads(pid)
	if err != nil {
		return nil, err
	}
	start := time.Now()
	time.Sleep(window)
	after, err := readThreads(pid)
	if err != nil {
		return nil, err
	}
	seconds := time.Since(start).Seconds()
	own, private, guest, err := readMemory(pid, ram)
	if err != nil {
		return nil, err
	}
	return numbers{
		"own memory": own, "own private": private, "guest memory": guest, "threads": float64(after.count),
		"wake-ups":     float64(after.switches-before.switches) / seconds,
		"CPU-wake-ups": float64(after.guestSwitches-before.guestSwitches) / seconds,
		"CPU":          float64(after.ticks-before.ticks) / seconds, // a tick is 10 ms
	}, nil
}

type threads struct{ count, switches, guestSwitches, ticks int }

// inGuest reports whether a thread runs guest code: it is in an ioctl, KVM_RUN.
func inGuest(task string) bool {
	const ioctl, run = "16", "0xae80"
	call, _ := os.ReadFile(task + "/syscall")
	f := strings.Fields(string(call))
	return len(f) > 2 && f[0] == ioctl && f[2] == run
}

// readThreads sums voluntary context switches and CPU ticks of all threads.
func readThreads(pid int) (threads, error) {
	var t threads
	dirs, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", pid))
	if err != nil || len(dirs) == 0 {
		return t, fmt.Errorf("process %d is gone", pid)
	}
	for _, d := range dirs {
		status, err := os.ReadFile(d + "/status")
		if err != nil {
			continue // the thread has ended meanwhile
		}
		t.count++
		for line := range strings.Lines(string(status)) {
			var n int
			if _, err := fmt.Sscanf(line, "voluntary_ctxt_switches: %d", &n); err == nil {
				if inGuest(d) {
					t.guestSwitches += n
				} else {
					t.switches += n
				}
			}
		}
		t.ticks += readTicks(d)
	}
	return t, nil
}

// readTicks is the processor time of the thread or process that dir in /proc stands for.
func readTicks(dir string) int {
	stat, _ := os.ReadFile(dir + "/stat")
	// The fields after the name: utime and stime are the 12th and 13th (proc_pid_stat(5)).
	_, rest, _ := strings.Cut(string(stat), ") ")
	var u, s int
	if f := strings.Fields(rest); len(f) > 12 {
		fmt.Sscan(f[11], &u)
		fmt.Sscan(f[12], &s)
	}
	return u + s
}

// readMemory returns the resident memory in MiB that is not the guest's, what of
// it is not the program's file, and the guest's. The guest's mapping is
// recognised by its size.
func readMemory(pid, ram int) (own, private, guest float64, err error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/smaps", pid))
	if err != nil {
		return 0, 0, 0, err
	}
	defer f.Close()
	size, file := 0, false
	for s := bufio.NewScanner(f); s.Scan(); {
		var kib int
		if fields := strings.Fields(s.Text()); len(fields) >= 5 && strings.Contains(fields[0], "-") {
			file = len(fields) > 5 && fields[1][1] == '-' && filepath.IsAbs(fields[5])
		}
		if _, err := fmt.Sscanf(s.Text(), "Size: %d kB", &kib); err == nil {
			size = kib
		}
		if _, err := fmt.Sscanf(s.Text(), "Rss: %d kB", &kib); err != nil {
			continue
		}
		switch mib := float64(kib) / 1024; {
		case size >= ram<<10 && size <= (ram+4)<<10:
			guest += mib
		case file:
			own += mib
		default:
			own, private = own+mib, private+mib
		}
	}
	return own, private, guest, nil
}
