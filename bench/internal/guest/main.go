// Command guest is the guest half of the whole-machine benchmarks: the first
// program of an initramfs. It loads the modules named in /modules, runs the
// jobs of the kernel argument bench.jobs=A,B,…, prints one line
// "RESULT NAME VALUE" a number, with "BEGIN NAME" before where time counts, and powers the machine off.
package main

import (
	"bufio"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// ready is the line that says that the guest program runs.
const ready = "BENCH-READY"

// jobs are what the guest can measure.
var jobs = map[string]func(arguments) error{
	"idle":     idle,
	"fs":       fsJobs,
	"meta":     metaJobs,
	"blk":      blkJobs,
	"net":      netJobs,
	"vsock":    vsockJobs,
	"compute":  computeJobs,
	"programs": programJobs,
	"fio":      fioJobs,
	"iperf3":   iperfJobs,
}

func main() {
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "guest: this is the first program of a benchmark's initramfs")
		os.Exit(1)
	}
	if err := start(); err != nil {
		fmt.Println("BENCH-ERROR", err)
	}
	powerOff()
}

func start() error {
	for _, m := range []struct{ dir, typ string }{{"/proc", "proc"}, {"/sys", "sysfs"}, {"/dev", "devtmpfs"}} {
		if err := os.MkdirAll(m.dir, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.typ, m.dir, m.typ, 0, ""); err != nil && err != unix.EBUSY {
			return fmt.Errorf("mount %s: %w", m.dir, err)
		}
	}
	fmt.Println(ready)
	args, err := kernelArguments()
	if err != nil {
		return err
	}
	if err := loadModules("/modules"); err != nil {
		return err
	}
	for name := range strings.SplitSeq(args.text("jobs"), ",") {
		job := jobs[name]
		if job == nil {
			continue
		}
		if err := job(args); err != nil {
			fmt.Println("BENCH-ERROR", name+":", err)
		}
	}
	return nil
}

// begin says that what the next result is about begins now: the processor time until
// then is counted.
func begin(name string) { fmt.Println("BEGIN", name) }

// result reports one number.
func result(name string, value float64) { fmt.Printf("RESULT %s %g\n", name, value) }

// rate reports units a second since start.
func rate(name string, units float64, start time.Time) {
	result(name, units/max(time.Since(start).Seconds(), 1e-9))
}

func powerOff() {
	unix.Sync()
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	select {}
}

// arguments are the bench.NAME=VALUE words of the kernel command line.
type arguments map[string]string

func (a arguments) text(name string) string { return a[name] }

// number is an argument as a number, or what stands for it.
func (a arguments) number(name string, or int) int {
	n := or
	if v, ok := a[name]; ok {
		fmt.Sscan(v, &n)
	}
	return n
}

func kernelArguments() (arguments, error) {
	line, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return nil, err
	}
	a := arguments{}
	for w := range strings.FieldsSeq(string(line)) {
		if kv, ok := strings.CutPrefix(w, "bench."); ok {
			k, v, _ := strings.Cut(kv, "=")
			a[k] = v
		}
	}
	return a, nil
}

// loadModules loads what a list names, one file a line.
func loadModules(list string) error {
	f, err := os.Open(list)
	if os.IsNotExist(err) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		m, err := os.Open(s.Text())
		if err != nil {
			return err
		}
		err = unix.FinitModule(int(m.Fd()), "", 0)
		m.Close()
		if err != nil && err != unix.EEXIST {
			return fmt.Errorf("module %s: %w", s.Text(), err)
		}
	}
	return nil
}

// dropCaches makes the next job start from the device.
func dropCaches() error {
	unix.Sync()
	return os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0)
}
