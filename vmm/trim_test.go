package vmm

import (
	"context"
	"fmt"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
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

// TestTrimAfterBoot: memory is returned when the start is over and when the boot is,
// which a guest tells as often as it likes, or never.
func TestTrimAfterBoot(t *testing.T) {
	for name, c := range map[string]struct{ ready, trims []time.Duration }{
		"ready":        {[]time.Duration{10, 11, 20}, []time.Duration{2, 12}},
		"ready early":  {[]time.Duration{1, 25}, []time.Duration{2, 3}},
		"never ready":  {nil, []time.Duration{2, 30}},
		"ready late":   {[]time.Duration{40, 41}, []time.Duration{2, 30, 42}},
		"not any more": {[]time.Duration{59, 61}, []time.Duration{2, 30}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				start := time.Now()
				var n atomic.Int32
				r := newRunner(newFakeVM(0), 0)
				r.trim = func() {
					if i := int(n.Add(1)) - 1; i >= len(c.trims) || time.Since(start) != c.trims[i]*time.Second {
						t.Errorf("trim %d after %v", i, time.Since(start))
					}
				}
				r.ready() // counts for nothing, as there is no guest yet
				for _, at := range c.ready {
					time.AfterFunc(at*time.Second, r.ready)
				}
				time.AfterFunc(time.Minute, func() { r.finish(EndPowerOff, nil) })
				if _, err := r.run(context.Background()); err != nil {
					t.Error(err)
				}
				time.Sleep(time.Minute)
				if int(n.Load()) != len(c.trims) {
					t.Errorf("%d trims", n.Load())
				}
			})
		})
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
