package guesttest

import (
	"fmt"
	"maps"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// CarryLibraries adds the shared libraries of a program to a Testbed's Files.
func CarryLibraries(files map[string]string, program string) error {
	out, err := exec.Command("ldd", program).Output()
	if err != nil {
		return fmt.Errorf("libraries of %s: %w", program, err)
	}
	for line := range strings.Lines(string(out)) {
		for _, w := range strings.Fields(line) {
			if !filepath.IsAbs(w) {
				continue
			}
			// A name in the archive, and the file behind its links.
			real, err := filepath.EvalSymlinks(w)
			if err != nil {
				return err
			}
			files[strings.TrimPrefix(w, "/")] = real
		}
	}
	return nil
}

// loader is the dynamic loader of a tree, and treeLibraries are where it looks.
const loader = "lib64/ld-linux-x86-64.so.2"

var treeLibraries = []string{"usr/lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu/systemd"}

// ProgramFiles returns files of a Debian tree (programs, libraries) and all libraries
// that they need there, with the loader, as paths below the tree.
func ProgramFiles(t testing.TB, tree string, names ...string) []string {
	t.Helper()
	var path []string
	for _, dir := range treeLibraries {
		path = append(path, filepath.Join(tree, dir))
	}
	files := map[string]bool{loader: true}
	for _, name := range names {
		files[name] = true
		out, err := exec.Command(filepath.Join(tree, loader), "--library-path", strings.Join(path, ":"), "--list", filepath.Join(tree, name)).CombinedOutput()
		if err != nil {
			t.Fatalf("libraries of %s: %v\n%s", name, err, out)
		}
		for w := range strings.FieldsSeq(string(out)) {
			if rel, ok := strings.CutPrefix(w, tree+"/"); ok {
				files[rel] = true
			}
		}
	}
	return slices.Sorted(maps.Keys(files))
}

// CarryProgram adds a program of this machine to a Testbed's Files, as /bin/NAME
// and with its libraries. It skips the test where the program is missing (see
// Skip).
func CarryProgram(t testing.TB, files map[string]string, name string) {
	t.Helper()
	program, err := filepath.EvalSymlinks(Tool(t, name))
	if err != nil {
		t.Fatal(err)
	}
	files["bin/"+name] = program
	if err := CarryLibraries(files, program); err != nil {
		t.Fatal(err)
	}
}
