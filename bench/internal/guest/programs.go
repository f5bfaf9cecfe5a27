package main

import (
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// programsRoot is where the disk with the Debian tree is mounted.
const programsRoot = "/debian"

// cpuMethods are all methods of stress-ng's cpu stressor ("all" takes turns, which
// would count the slow ones alone).
var cpuMethods = strings.Fields("ackermann apery bitops callfunc cdouble cfloat clongdouble collatz correlate crc16 decimal32 decimal64 decimal128 " +
	"dither div8 div16 div32 div64 div128 double euler explog factorial fibonacci fft fletcher16 float float32 float64 float80 float128 " +
	"floatconversion gamma gcd gray hamming hanoi hyperbolic idct int128 int64 int32 int16 int8 int128float int128double int128longdouble " +
	"int128decimal32 int128decimal64 int128decimal128 int64float int64double int64longdouble int32float int32double int32longdouble intconversion " +
	"ipv4checksum jmp lfsr32 ln2 logmap longdouble loop matrixprod nsqrt omega parity phi pi prime psi queens rand rand48 rgb sieve stats sqrt trig union zeta")

// program runs one of the Debian tree's programs and says how long it took.
func program(args ...string) (string, time.Duration, error) {
	// env looks for the program there; exec.Command would look here.
	c := exec.Command("/usr/bin/env", args...)
	c.SysProcAttr = &syscall.SysProcAttr{Chroot: programsRoot}
	c.Dir, c.Env = "/usr/src/lua/src", []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C"}
	start := time.Now()
	out, err := c.CombinedOutput()
	took := time.Since(start)
	if err != nil {
		err = fmt.Errorf("%s: %w: %.300s", args[0], err, strings.Join(strings.Fields(string(out)), " "))
	}
	return string(out), took, err
}

// programJobs are a distribution's own programs: sha256sum, gcc, gzip, perl and
// stress-ng's cpu stressor. Each runs once before it counts, so that its files
// are in memory.
func programJobs(a arguments) error {
	disk, err := firstDisk()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(programsRoot, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(disk, programsRoot, "ext4", unix.MS_RDONLY, ""); err != nil {
		return fmt.Errorf("mount %s: %w", disk, err)
	}
	defer func() { _ = unix.Unmount(programsRoot, 0) }()
	for _, m := range []string{"proc", "sys", "dev"} {
		if err := unix.Mount("/"+m, programsRoot+"/"+m, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("mount %s in the tree: %w", m, err)
		}
		defer func() { _ = unix.Unmount(programsRoot+"/"+m, 0) }()
	}
	if err := unix.Mount("tmp", programsRoot+"/tmp", "tmpfs", 0, ""); err != nil {
		return fmt.Errorf("mount /tmp in the tree: %w", err)
	}
	defer func() { _ = unix.Unmount(programsRoot+"/tmp", 0) }()
	// 64 MiB of the compiler's own code, which is neither all alike nor random.
	if _, _, err := program("sh", "-c", "head -c 16M $(gcc -print-prog-name=cc1) >/tmp/data && cat /tmp/data /tmp/data /tmp/data /tmp/data >/tmp/data4"); err != nil {
		return err
	}
	for _, j := range []struct {
		name string
		args []string
	}{
		{"sha256sum", []string{"sha256sum", "/tmp/data4"}},
		{"gcc", []string{"sh", "-ec", "for f in lvm lparser lstrlib ltable; do gcc -O2 -Wall -std=gnu99 -DLUA_USE_LINUX -c -o /tmp/$f.o $f.c; done"}},
		{"gzip", []string{"sh", "-c", "gzip -6 </tmp/data >/tmp/data.gz"}},
		{"perl", []string{"perl", "-e", `my %h; my $x = 1; for (1 .. 400000) { $x = ($x * 1103515245 + 12345) & 0x7fffffff; $h{$x % 5003} .= chr(65 + $x % 26); }
			my $n = 0; for my $k (sort { $h{$a} cmp $h{$b} } keys %h) { $n += () = $h{$k} =~ /[AEIOU][^AEIOU]+/g; } print "$n\n";`}},
	} {
		if _, _, err := program(j.args...); err != nil {
			return err
		}
		begin(j.name)
		_, took, err := program(j.args...)
		if err != nil {
			return err
		}
		result(j.name, took.Seconds())
	}
	return stressMethods(a.number("seconds", 2))
}

// stressMethods runs each method for a number of seconds, longer where that is too
// short for one operation, and reports how many operations that were.
func stressMethods(seconds int) error {
	for _, m := range cpuMethods {
		ops := 0.0
		for t := seconds; ops == 0; t *= 4 {
			if t > 64*seconds {
				return fmt.Errorf("%s: not one operation in %d s", m, t/4)
			}
			begin("ops-" + m)
			out, _, err := program("stress-ng", "--temp-path", "/tmp", "--cpu", "1", "--cpu-method", m, "-t", strconv.Itoa(t), "--metrics")
			if err != nil {
				return err
			}
			if ops, err = stressOps(out); err != nil {
				return fmt.Errorf("%s: %w", m, err)
			}
		}
		result("ops-"+m, ops)
	}
	return nil
}

// stressOps finds the bogo operations in what stress-ng's --metrics writes, whose
// line of the stressor is: name, operations, seconds, and more.
func stressOps(out string) (float64, error) {
	for line := range strings.Lines(out) {
		f := strings.Fields(line)
		for i, w := range f {
			if w == "cpu" && i+1 < len(f) {
				if r, err := strconv.ParseFloat(f[i+1], 64); err == nil {
					return r, nil
				}
			}
		}
	}
	return 0, fmt.Errorf("stress-ng tells no number of operations: %.300s", out)
}
