package guesttest

import (
	"fmt"
	"os/exec"
	"path/filepath"
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
