// Package guesttest is what whole-machine tests share: the Debian packages
// that they boot, and a testbed with genuine KVM for hosts without it.
package guesttest

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

// Asset returns the path of something that assets.sh can fetch, fetching it
// when it is not in the cache yet. It skips the test when that is impossible,
// for instance without the network; with CI=true that is a failure. Inside a testbed
// it is what CarryAsset brought.
func Asset(t testing.TB, name string) string {
	t.Helper()
	if dir := os.Getenv(carriedEnv); dir != "" {
		if dir = filepath.Join(dir, name); !exists(dir) {
			t.Fatalf("the testbed was not given %s", name)
		}
		return dir
	}
	cmd := exec.Command("bash", filepath.Join(sourceDir(), "assets.sh"), name)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		Skip(t, "cannot fetch %s: %s", name, strings.TrimSpace(stderr.String()))
	}
	return strings.TrimSpace(string(out))
}

// Kernel is a Debian kernel package, unpacked.
type Kernel struct {
	// Dir is the package's root: boot/, lib/modules/.
	Dir string
	// Path is the bzImage.
	Path string
	// Version is the kernel release.
	Version string
}

// KernelAsset returns a kernel of assets.sh: "kernel-bookworm", ….
func KernelAsset(t testing.TB, name string) Kernel {
	t.Helper()
	dir := Asset(t, name)
	path, err := filepath.EvalSymlinks(filepath.Join(dir, "vmlinuz"))
	if err != nil {
		t.Fatal(err)
	}
	return Kernel{Dir: dir, Path: path, Version: strings.TrimPrefix(filepath.Base(path), "vmlinuz-")}
}

// Busybox returns the path of a static busybox.
func Busybox(t testing.TB) string {
	t.Helper()
	dir := Asset(t, "busybox")
	for _, p := range []string{"bin/busybox", "usr/bin/busybox"} {
		if p = filepath.Join(dir, p); exists(p) {
			return p
		}
	}
	t.Fatalf("no busybox in %s", dir)
	return ""
}

// Tool returns the path of a program, or skips the test (see Skip).
func Tool(t testing.TB, name string) string {
	t.Helper()
	p, err := exec.LookPath(name)
	if err != nil {
		Skip(t, "%s is not installed", name)
	}
	return p
}

// Skip skips the test for something that this machine lacks. With CI=true that
// is a failure: CI's machine can provide everything that the tests ask for.
func Skip(t testing.TB, format string, args ...any) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatalf(format, args...)
	}
	t.Skipf(format, args...)
}

// CopyTree copies a directory with owners, links and attributes, so that a guest may
// write to it; where the file system can, the copy shares the data.
func CopyTree(from, to string) error {
	if out, err := exec.Command("cp", "-a", "--reflink=auto", from, to).CombinedOutput(); err != nil {
		return fmt.Errorf("copy the tree %s: %w: %s", from, err, out)
	}
	return nil
}

// sourceDir is the folder of this file. Tests run from a checkout.
func sourceDir() string {
	_, file, _, _ := runtime.Caller(0)
	return filepath.Dir(file)
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
