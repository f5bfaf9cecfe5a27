package initrd

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestCheckInit: links are followed within the tree, absolute ones too; an init=
// of the command line is the only one that counts.
func TestCheckInit(t *testing.T) {
	dir := t.TempDir()
	for _, d := range []string{"sbin", "usr/lib"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := CheckInit(dir, "quiet"); err == nil || !strings.Contains(err.Error(), "has no init program (/sbin/init, ") {
		t.Errorf("an empty tree: %v", err)
	}
	if err := os.Symlink("/usr/lib/init", filepath.Join(dir, "sbin/init")); err != nil {
		t.Fatal(err)
	}
	if CheckInit(dir, "") == nil {
		t.Error("no error for a link that leads nowhere")
	}
	if err := os.WriteFile(filepath.Join(dir, "usr/lib/init"), nil, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := CheckInit(dir, "quiet"); err != nil {
		t.Error(err)
	}
	if err := CheckInit(dir, "init=/other"); err == nil || !strings.Contains(err.Error(), "(/other)") {
		t.Errorf("init=/other: %v", err)
	}
}
