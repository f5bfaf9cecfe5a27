package vmm

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// rssFile is this process's resident memory of files, in KiB (proc(5), status).
func rssFile(t *testing.T) (kib int) {
	t.Helper()
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if _, err := fmt.Sscanf(line, "RssFile: %d kB", &kib); err == nil {
			return kib
		}
	}
	t.Skip("the kernel does not tell RssFile")
	return 0
}

// TestTrim: the program's pages go, and the program lives on.
func TestTrim(t *testing.T) {
	before := rssFile(t)
	trim()
	if after := rssFile(t); after > before*3/4 {
		t.Errorf("%d KiB of files before, %d after", before, after)
	}
}

func TestProgramPages(t *testing.T) {
	for line, want := range map[string]uintptr{
		"00400000-00988000 r-xp 00000000 00:1c 12 /bin/self": 0x588000,
		"00988000-0101b000 r--p 00588000 00:1c 12 /bin/self": 0x693000,
		"0101b000-01061000 rw-p 00c1b000 00:1c 12 /bin/self": 0,
		"0101b000-01061000 r--s 00c1b000 00:1c 12 /bin/self": 0,
		"00400000-00988000 r-xp 00000000 00:1c 12 /bin/else": 0,
		"7ffd0000-7ffe0000 r-xp 00000000 00:00 0 [vdso]":     0,
		"7ffd0000-7ffe0000 rw-p 00000000 00:00 0":            0,
		"what-ever r-xp 00000000 00:1c 12 /bin/self":         0,
		"": 0,
	} {
		if _, size, ok := programPages(line, "/bin/self"); ok != (want != 0) || size != want {
			t.Errorf("%q: %#x, %v", line, size, ok)
		}
	}
}
