package soft

import (
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/gvmspawn/gvmspawn/vmm/mem"
	"github.com/gvmspawn/gvmspawn/vmm/vcpu"
)

// TestWindow: memory whose file was truncated ends Run with ExitFault and the
// guest address, before the instruction has done anything; when the memory is
// back the instruction succeeds.
func TestWindow(t *testing.T) {
	const base = 0x200000
	const report = "e7f5e6f4f4" // out 0xf5,eax; out 0xf4,al; hlt
	for _, tt := range []struct {
		name, code string
		want       uint32
	}{
		{"load", "bb000020008b03" + report, 0x00002ab8},
		{"store", "bb00002000b84d00000089038b03" + report, 77},
		{"locked", "bb00002000b84d000000f9f011038b03" + report, 0x2ab8 + 78},
		{"string", "be00002000bf00100400b910000000fcf3a48b042500100400" + report, 0x2ab8},
		{"code", "bb00002000ffe3", 42},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var w *mem.Region
			g := newGuestWith(t, Config{CPUs: 1}, func(m *mem.Memory) {
				var err error
				if w, err = m.Add("window", base, 2<<20, mem.Window); err != nil {
					t.Fatal(err)
				}
			})
			c := g.start(0, 3, 0x8000)
			g.setWord(0x3008, base|pteP|pteW|ptePS)
			g.put(0x8000, tt.code)
			fd, err := unix.MemfdCreate("window", 0)
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(fd)
			if err := w.MapFile(0, fd, 0, 4096, unix.PROT_READ|unix.PROT_WRITE); err != nil {
				t.Fatal(err)
			}
			ex, _ := c.Run() // the file is empty
			if ex.Reason != vcpu.ExitFault || ex.Address&^0xfff != base {
				t.Fatalf("exit %v at %#x", ex.Reason, ex.Address)
			}
			if _, err := unix.Pwrite(fd, make([]byte, 4096), 0); err != nil {
				t.Fatal(err)
			}
			b := []byte{0xb8, 42, 0, 0, 0, 0xe7, 0xf5, 0xe6, 0xf4, 0xf4}
			_, _ = unix.Pwrite(fd, b, 0)
			g.run()
			if !slices.Equal(g.out, []uint32{tt.want}) {
				t.Errorf("the guest reports %#x, want %#x", g.out, tt.want)
			}
		})
	}
}
