package guesttest

import (
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
)

// built is a program of this repository, built once a test process.
type built struct {
	once sync.Once
	path string
	err  error
	out  []byte
}

var binary, raceBinary, guestBinary, attestBinary built

// shipped and raceFlags are flags of the compiler: for programs as they are shipped, and
// with the race detector, static all the same, so that a testbed needs no libraries.
var (
	shipped   = []string{"-ldflags", "-s -w"}
	raceFlags = []string{"-race", "-ldflags", "-linkmode external -extldflags -static"}
)

func (b *built) build(t testing.TB, name, pkg, cgo string, flags ...string) string {
	t.Helper()
	if InTestbed() {
		return Tool(t, name)
	}
	b.once.Do(func() {
		dir, err := os.MkdirTemp("", "gvmspawn-test-")
		if err != nil {
			b.err = err
			return
		}
		b.path = filepath.Join(dir, name)
		cmd := exec.Command("go", append(append([]string{"build", "-trimpath", "-o", b.path}, flags...), pkg)...)
		cmd.Dir = filepath.Join(sourceDir(), "..", "..")
		cmd.Env = append(os.Environ(), "CGO_ENABLED="+cgo)
		b.out, b.err = cmd.CombinedOutput()
	})
	if b.err != nil {
		t.Fatalf("build %s: %v\n%s", name, b.err, b.out)
	}
	return b.path
}

// Binary builds gvmspawn as it is shipped, once a test process, and returns
// its path.
func Binary(t testing.TB) string {
	t.Helper()
	return binary.build(t, "gvmspawn", "./cmd/gvmspawn", "0", shipped...)
}

// RaceBinary is Binary with the race detector, which needs a C compiler.
func RaceBinary(t testing.TB) string {
	t.Helper()
	return raceBinary.build(t, "gvmspawn", "./cmd/gvmspawn", "1", raceFlags...)
}

// GuestBinary builds the tests' program for guests, once a test process, and
// returns its path.
func GuestBinary(t testing.TB) string {
	t.Helper()
	return guestBinary.build(t, "guest", "./vmm/guesttest/guest", "0", shipped...)
}

// AttestBinary builds the program that attests in guests, once a test process, and
// returns its path.
func AttestBinary(t testing.TB) string {
	t.Helper()
	return attestBinary.build(t, "attest", "./vmm/guesttest/attest", "0", shipped...)
}

// RemoveBinary removes what the functions above built; TestMain calls it at the
// end.
func RemoveBinary() {
	for _, b := range []*built{&binary, &raceBinary, &guestBinary, &attestBinary} {
		if b.path != "" {
			_ = os.RemoveAll(filepath.Dir(b.path))
		}
	}
}

// BusyboxTree makes a small OS tree: busybox, and a shell script as init, which
// finds /proc, /sys and /dev mounted and should end with "poweroff -f".
func BusyboxTree(t testing.TB, init string) string {
	t.Helper()
	dir := t.TempDir()
	WriteBusyboxTree(t, dir, init)
	return dir
}

// WriteBusyboxTree is BusyboxTree into a directory of the caller's.
func WriteBusyboxTree(t testing.TB, dir, init string) {
	t.Helper()
	for _, d := range []string{"bin", "sbin", "proc", "sys", "dev", "tmp", "root", "etc"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	data, err := os.ReadFile(Busybox(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "bin/busybox"), data, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, n := range []string{"sh", "mount", "poweroff", "reboot", "cat", "echo", "ls"} {
		if err := os.Symlink("busybox", filepath.Join(dir, "bin", n)); err != nil && !os.IsExist(err) {
			t.Fatal(err)
		}
	}
	script := "#!/bin/busybox sh\nexport PATH=/bin:/sbin\n" +
		"mount -t proc proc /proc 2>/dev/null\nmount -t sysfs sysfs /sys 2>/dev/null\nmount -t devtmpfs dev /dev 2>/dev/null\n" +
		"/bin/busybox --install -s /bin 2>/dev/null\n" + init + "\n"
	if err := os.WriteFile(filepath.Join(dir, "sbin/init"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
}
