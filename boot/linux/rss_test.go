package linux

import (
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
	"testing"

	"github.com/gvmspawn/gvmspawn/vmm/layout"
)

// resident is this process's resident memory in bytes (proc(5), statm).
func resident(t *testing.T) int {
	b, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		t.Skip(err)
	}
	pages, err := strconv.Atoi(strings.Fields(string(b))[1])
	if err != nil {
		t.Fatal(err)
	}
	return pages * os.Getpagesize()
}

// Loading leaves nothing of the kernel in the VMM's own memory: once the
// guest's RAM is gone, the process is as small as before.
func TestLoadKeepsNoMemory(t *testing.T) {
	path := filepath.Join(t.TempDir(), "vmlinuz")
	segs := []testSegment{{hugePage, testPref, pattern(9, 40*layout.MiB), 40 * layout.MiB}}
	if err := os.WriteFile(path, buildBzImage(pack(t, CompressionLZ4, buildELF(testPref, segs, nil)), 0), 0o600); err != nil {
		t.Fatal(err)
	}
	m := newMemory(t, 128*layout.MiB)
	load := func() {
		img, err := Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer img.Close()
		if _, err := Load(Boot{Memory: m, Image: img}); err != nil {
			t.Fatal(err)
		}
	}
	load() // the code's own pages are resident now
	if err := m.Discard(0, 128*layout.MiB); err != nil {
		t.Fatal(err)
	}
	debug.FreeOSMemory() // the garbage of making the kernel would go meanwhile
	before := resident(t)
	load()
	if n := resident(t) - before; n < 40*layout.MiB {
		t.Errorf("the guest has %d MiB, the kernel alone needs 40", n/layout.MiB)
	}
	if err := m.Discard(0, 128*layout.MiB); err != nil {
		t.Fatal(err)
	}
	if n := resident(t) - before; n > 4*layout.MiB {
		t.Errorf("%d KiB are left", n/layout.KiB)
	}
}
