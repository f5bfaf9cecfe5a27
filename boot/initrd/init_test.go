package initrd

import (
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// outcome gives results by the beginning of the call; nil: 7 for open, else 0.
func outcome(special map[string]int64) func(string) int64 {
	return func(call string) int64 {
		for prefix, v := range special {
			if strings.HasPrefix(call, prefix) {
				return v
			}
		}
		if strings.HasPrefix(call, "open") {
			return 7
		}
		return 0
	}
}

var testMods = []bootModule{{"virtio", "", true}, {"virtiofs", "a=1 b", true}, {"button", "", false}}

func testProgram() []byte {
	return firstProgram(testMods, Root{Source: "root", Types: []string{"virtiofs"}, Options: []string{"dax=always", ""}}, nil, fallbackInits, false)
}

// traceEqual compares a trace with lines, of which "..." matches any number.
func traceEqual(t *testing.T, got []string, want string) {
	t.Helper()
	lines := strings.Split(strings.TrimSpace(want), "\n")
	rest := got
	for i := 0; i < len(lines); i++ {
		line := strings.TrimSpace(lines[i])
		if line == "..." {
			i++
			line = strings.TrimSpace(lines[i])
			n := slices.Index(rest, line)
			if n < 0 {
				t.Fatalf("no %s in\n%s", line, strings.Join(got, "\n"))
			}
			rest = rest[n:]
		}
		if len(rest) == 0 || rest[0] != line {
			t.Fatalf("want %s at %d of\n%s", line, len(got)-len(rest), strings.Join(got, "\n"))
		}
		rest = rest[1:]
	}
	if len(rest) != 0 {
		t.Fatalf("unexpected %v", rest)
	}
}

func TestFirstProgram(t *testing.T) {
	traceEqual(t, run(t, testProgram(), outcome(nil)), `
		mount("devtmpfs", "/dev", "devtmpfs", 0x1000002, "mode=0755") = 0
		open("/dev/kmsg", 0x80001) = 7
		open("/m/virtio", 0x80000) = 7
		finit_module(7, "", 0) = 0
		close(7) = 0
		unlink("/m/virtio") = 0
		open("/m/virtiofs", 0x80000) = 7
		finit_module(7, "a=1 b", 0) = 0
		close(7) = 0
		unlink("/m/virtiofs") = 0
		open("/m/button", 0x80000) = 7
		finit_module(7, "", 0) = 0
		close(7) = 0
		unlink("/m/button") = 0
		open("/dev/console", 0x80002) = 7
		dup2(7, 0) = 0
		fcntl(0, 2, 0) = 0
		dup2(7, 1) = 0
		fcntl(1, 2, 0) = 0
		dup2(7, 2) = 0
		fcntl(2, 2, 0) = 0
		mount("root", "/root", "virtiofs", 0x0, "dax=always") = 0
		mount("/dev", "/root/dev", NULL, 0x2000, NULL) = 0
		unlink("/init") = 0
		chdir("/root") = 0
		mount(".", "/", NULL, 0x2000, NULL) = 0
		chroot(".") = 0
		chdir("/") = 0
		execve("/sbin/init", argv[0]="/sbin/init", argv+8, envp+24) = 0`)
}

func TestFirstProgramWithoutDAX(t *testing.T) {
	got := run(t, testProgram(), outcome(map[string]int64{
		`mount("root", "/root", "virtiofs", 0x0, "dax=always")`: -int64(unix.EINVAL),
		"execve(\"/sbin/init\"":                                 -int64(unix.ENOENT),
		"execve(\"/etc/init\"":                                  -int64(unix.EACCES),
		"finit_module(7, \"\"":                                  -int64(unix.EEXIST),
	}))
	traceEqual(t, got, `
		...
		mount("root", "/root", "virtiofs", 0x0, "dax=always") = -22
		mount("root", "/root", "virtiofs", 0x0, "") = 0
		mount("/dev", "/root/dev", NULL, 0x2000, NULL) = 0
		...
		execve("/sbin/init", argv[0]="/sbin/init", argv+8, envp+24) = -2
		execve("/etc/init", argv[0]="/etc/init", argv+8, envp+24) = -13
		report(7, "<2>gvmspawn: cannot execute /etc/init: errno " 13)
		execve("/bin/init", argv[0]="/bin/init", argv+8, envp+24) = 0`)
}

func TestFirstProgramFailures(t *testing.T) {
	for _, tt := range []struct {
		name    string
		special map[string]int64
		want    string
	}{
		{"required module", map[string]int64{`finit_module(7, "a=1 b"`: -int64(unix.ENOEXEC)},
			`report(7, "<2>gvmspawn: cannot load kernel module virtiofs: errno " 8)`},
		{"module file", map[string]int64{`open("/m/virtio"`: -int64(unix.ENOMEM)},
			`report(7, "<2>gvmspawn: cannot load kernel module virtio: errno " 12)`},
		{"no log", map[string]int64{`open("/dev/kmsg"`: -int64(unix.ENOENT), `open("/m/virtio"`: -int64(unix.ENOMEM)},
			`report(2, "<2>gvmspawn: cannot load kernel module virtio: errno " 12)`},
		{"root", map[string]int64{`mount("root"`: -int64(unix.EINVAL)},
			`report(7, "<2>gvmspawn: cannot mount root root (virtiofs): errno " 22)`},
		{"chroot", map[string]int64{"chroot": -int64(unix.EPERM)},
			`report(7, "<2>gvmspawn: cannot move into the root file system: errno " 1)`},
		{"no init", map[string]int64{"execve": -int64(unix.ENOENT)},
			`report(7, "<2>gvmspawn: the root file system has no init (/sbin/init, /etc/init, /bin/init, /bin/sh): errno " 2)`},
	} {
		got := run(t, testProgram(), outcome(tt.special))
		if n := len(got); n < 2 || got[n-2] != tt.want || got[n-1] != "exit(1)" {
			t.Errorf("%s: ends with %q", tt.name, got[max(0, n-3):])
		}
	}
	// An optional module that fails is only reported.
	got := run(t, firstProgram([]bootModule{{"button", "", false}}, Root{Types: []string{"x"}}, nil, []string{"/i"}, true),
		outcome(map[string]int64{"finit_module": -int64(unix.ENODEV)}))
	if want := `report(7, "<2>gvmspawn: cannot load kernel module button: errno " 19)`; !slices.Contains(got, want) || !strings.HasPrefix(got[len(got)-1], `execve("/i"`) {
		t.Errorf("%q", got)
	}
}

// A device that is late is waited for, and a mount that fails at first tried again.
func TestFirstProgramWaits(t *testing.T) {
	n := 0
	got := run(t, firstProgram(nil, Root{Source: "/dev/vda1", Types: []string{"ext4", "btrfs"}, ReadOnly: true, Device: true}, nil, []string{"/i"}, true),
		func(call string) int64 {
			if n++; n < 16 && (strings.HasPrefix(call, "access") || strings.HasPrefix(call, `mount("/dev/vda1"`)) {
				return -int64(unix.ENOENT)
			}
			return 0
		})
	traceEqual(t, got[9:], `
		access("/dev/vda1", 0) = -2
		nanosleep(0, 10000000) = 0
		access("/dev/vda1", 0) = -2
		nanosleep(0, 10000000) = 0
		access("/dev/vda1", 0) = -2
		nanosleep(0, 10000000) = 0
		access("/dev/vda1", 0) = 0
		mount("/dev/vda1", "/root", "ext4", 0x1, "") = 0
		mount("/dev", "/root/dev", NULL, 0x2000, NULL) = 0
		...
		execve("/i", argv[0]="/i", argv+8, envp+24) = 0`)
	calls := 0
	got = run(t, firstProgram(nil, Root{Source: "x", Types: []string{"a", "b"}}, nil, []string{"/i"}, true), func(call string) int64 {
		if strings.HasPrefix(call, "mount(\"x\"") {
			calls++
			return -int64(unix.ENODEV)
		}
		return 0
	})
	if calls != 2*mountRetries || got[len(got)-1] != "exit(1)" {
		t.Errorf("%d attempts, %q", calls, got[len(got)-2:])
	}
}

func TestFirstProgramIsSmall(t *testing.T) {
	if n := len(testProgram()); n > 4096 {
		t.Errorf("%d bytes", n)
	} else {
		t.Logf("%d bytes for %d modules", n, len(testMods))
	}
}

func BenchmarkFirstProgram(b *testing.B) {
	for b.Loop() {
		testProgram()
	}
}
