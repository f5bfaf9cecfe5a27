package soft

import (
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/gvmspawn/gvmspawn/vmm/mem"
	"github.com/gvmspawn/gvmspawn/vmm/vcpu"
)

// windowBase is where the test guests see their window, of 2 MiB.
const windowBase = 0x200000

// windowGuest is a guest with a window onto a file of n bytes, and nothing at
// 0x400000.
func windowGuest(t *testing.T, cfg Config, n int64) (g *guest, w *mem.Region, fd int) {
	t.Helper()
	cfg.CPUs = 1
	g = newGuestWith(t, cfg, func(m *mem.Memory) {
		var err error
		if w, err = m.Add("window", windowBase, 2<<20, mem.Window); err != nil {
			t.Fatal(err)
		}
	})
	g.start(0, 3, 0x8000)
	g.setWord(0x3008, windowBase|pteP|pteW|ptePS)
	g.setWord(0x3010, 0x400000|pteP|pteW|ptePS)
	fd, err := unix.MemfdCreate("window", 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := unix.Ftruncate(fd, n); err != nil {
		t.Fatal(err)
	}
	if err := w.MapFile(0, fd, 0, 2<<20, unix.PROT_READ|unix.PROT_WRITE); err != nil {
		t.Fatal(err)
	}
	return g, w, fd
}

// engines runs f with the translator and without.
func engines(t *testing.T, f func(t *testing.T, cfg Config)) {
	t.Run("translator", func(t *testing.T) { f(t, Config{}) })
	t.Run("interpreter", func(t *testing.T) { f(t, Config{NoTranslator: true}) })
}

// TestWindowLost: zeros take the place of memory whose file was truncated, in
// the middle of every kind of instruction, and the user is told once.
func TestWindowLost(t *testing.T) {
	const report = "e7f5e6f4f4" // out 0xf5,eax; out 0xf4,al; hlt
	for _, tt := range []struct {
		name, code string
		want       []uint32
	}{
		{"load", "bb00002000b84d0000008b03" + report, []uint32{0}},
		{"store", "bb00002000b84d00000089038b03" + report, []uint32{77}},
		{"locked", "bb00002000b84d000000f9f011038b03" + report, []uint32{78}},
		{"string", "be00002000bf00100400b910000000fcf3a48b042500100400" + report, []uint32{0}},
		{"vector", "bb00002000660f6f03660f7ec0" + report, []uint32{0}},
		{"code", "b800600000bb00002000ffe3", nil}, // add [rax],al until the window ends
	} {
		t.Run(tt.name, func(t *testing.T) {
			engines(t, func(t *testing.T, cfg Config) {
				var said []string
				cfg.Warn = func(format string, args ...any) { said = append(said, format) }
				g, w, fd := windowGuest(t, cfg, 0)
				g.put(0x8000, tt.code)
				ex := g.run()
				if !slices.Equal(g.out, tt.want) {
					t.Errorf("the guest reports %#x, want %#x", g.out, tt.want)
				}
				if (ex[0].Reason == vcpu.ExitShutdown) != (tt.want == nil) {
					t.Errorf("exit %v", ex[0].Reason)
				}
				g.vm.noteWindows()
				g.vm.noteWindows()
				if len(said) != 1 || !strings.Contains(said[0], "shrank") {
					t.Errorf("warnings: %q", said)
				}
				// The next mapping shows its file again.
				if _, err := unix.Pwrite(fd, []byte{9}, 0); err != nil {
					t.Fatal(err)
				}
				if err := w.MapFile(0, fd, 0, 2<<20, unix.PROT_READ); err != nil || w.Bytes()[0] != 9 {
					t.Errorf("after the next mapping: %d, %v", w.Bytes()[0], err)
				}
			})
		})
	}
}

// TestWindowShrinks: a loop that reads a window all the time goes on when the
// file goes away.
func TestWindowShrinks(t *testing.T) {
	engines(t, func(t *testing.T, cfg Config) {
		g, w, fd := windowGuest(t, cfg, 8192)
		if _, err := unix.Pwrite(fd, []byte{3}, 0); err != nil {
			t.Fatal(err)
		}
		g.read = func(uint64, int) uint64 {
			if err := unix.Ftruncate(fd, 0); err != nil {
				t.Error(err)
			}
			return 0
		}
		// xor esi,esi; mov ecx,2; M: mov edx,200; L: mov eax,[rbx]; add esi,eax; dec edx; jne L;
		// mov eax,[0x400000]; dec ecx; jne M; mov eax,esi
		g.put(0x8000, "bb0000200031f6b902000000bac80000008b0301c6ffca75f88b042500004000ffc975e889f0e7f5e6f4f4")
		g.run()
		if !slices.Equal(g.out, []uint32{600}) {
			t.Errorf("the guest reports %v, want 600", g.out)
		}
		// Nothing is mapped, and a mapping that may not be written, are no different.
		if err := w.UnmapFile(0, 2<<20); err != nil {
			t.Fatal(err)
		}
		w.Bytes()[4096] = 1
		if err := w.MapFile(0, fd, 0, 2<<20, unix.PROT_READ); err != nil {
			t.Fatal(err)
		}
		w.Bytes()[4096] = 1
	})
}

// TestWindowCode: code of a window is code of its address space only. Two of
// them have different files at the same address, and the kernel's pages are global.
func TestWindowCode(t *testing.T) {
	engines(t, func(t *testing.T, cfg Config) {
		g, w, _ := windowGuest(t, cfg, 8192)
		// Two page directories: 0x200000 is the window's first or second page.
		for i, at := range []uint64{0x10000, 0x14000} {
			g.setWord(at, at+0x1000|pteP|pteW)
			g.setWord(at+0x1000, at+0x2000|pteP|pteW)
			g.setWord(at+0x2000, 0|pteP|pteW|ptePS|pteG)
			g.setWord(at+0x2008, at+0x3000|pteP|pteW)
			g.setWord(at+0x3000, windowBase+uint64(i)*4096|pteP|pteW)
			copy(w.Bytes()[i*4096:], []byte{0x83, 0xc6, byte(1 + i*99), 0xc3}) // add esi,1 or 100; ret
		}
		// mov rax,cr4; or al,0x80; mov cr4,rax; xor esi,esi; mov ebx,0x200000; mov ecx,100;
		// L: mov eax,0x10000; mov cr3,rax; call rbx; mov eax,0x14000; mov cr3,rax; call rbx; dec ecx; jne L; mov eax,esi
		g.put(0x8000, "0f20e00c800f22e031f6bb00002000b964000000"+
			"b8000001000f22d8ffd3b8004001000f22d8ffd3ffc975e889f0e7f5e6f4f4")
		g.run()
		if !slices.Equal(g.out, []uint32{100 * 101}) {
			t.Errorf("the guest reports %v, want %d", g.out, 100*101)
		}
	})
}
