package guesttest

import (
	"cmp"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// carriedEnv is set inside a testbed to the directory of the assets that it has.
const (
	carriedEnv = "GVMSPAWN_IN_TESTBED"
	carriedDir = "carried"
)

// InTestbed reports whether this test program runs inside a testbed, by RunTests.
func InTestbed() bool { return os.Getenv(carriedEnv) != "" }

// RunTests runs the calling package's tests inside, those that match a pattern without
// quotes or the one of GVMSPAWN_TESTBED_RUN, and fails the test if one of them fails or
// none runs. There, InTestbed is true, Asset finds what CarryAsset brought, and the
// functions that build programs find them as Files["bin/…"].
func (b Testbed) RunTests(t testing.TB, pattern string, flags ...string) {
	t.Helper()
	self := filepath.Join(t.TempDir(), "package.test")
	build := exec.Command("go", "test", "-c", "-o", self)
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if b.Race {
		build.Args = append(build.Args, raceFlags...)
		build.Env = append(os.Environ(), "CGO_ENABLED=1")
	}
	build.Args = append(build.Args, ".")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	b.Files = maps.Clone(b.Files)
	b.Files["bin/package.test"] = self
	b.Script += fmt.Sprintf("cd /tmp && GVMSPAWN_LONG='%s' %s=/%s package.test -test.v -test.run '%s' %s", os.Getenv("GVMSPAWN_LONG"),
		carriedEnv, carriedDir, cmp.Or(os.Getenv("GVMSPAWN_TESTBED_RUN"), pattern), strings.Join(flags, " "))
	res := b.Run(t)
	t.Log(res.Output)
	if res.Status != 0 || !strings.Contains(res.Output, "--- PASS: ") {
		t.Errorf("status %d", res.Status)
	}
}

// CarryAsset adds files and directories of an asset to a Testbed's Files.
func CarryAsset(t testing.TB, files map[string]string, name string, paths ...string) {
	t.Helper()
	dir := Asset(t, name)
	for _, p := range paths {
		real, err := filepath.EvalSymlinks(filepath.Join(dir, p))
		if err != nil {
			t.Fatal(err)
		}
		files[filepath.Join(carriedDir, name, p)] = real
	}
}

// CarryKernel adds a kernel with its modules, or some of these, to a Testbed's Files.
func CarryKernel(t testing.TB, files map[string]string, name string, modules ...string) {
	t.Helper()
	k := KernelAsset(t, name)
	files[filepath.Join(carriedDir, name, "vmlinuz")] = filepath.Join(k.Dir, "vmlinuz") // a link, which tells the version
	list := []string{"boot/" + filepath.Base(k.Path)}
	if len(modules) == 0 {
		modules = []string{""}
	}
	for _, m := range modules {
		list = append(list, filepath.Join("lib/modules", k.Version, m))
	}
	CarryAsset(t, files, name, list...)
}
