package soft

import (
	"fmt"
	"strings"
	"testing"

	"github.com/gvmspawn/gvmspawn/vmm/vcpu"
)

// TestTrace: each kind of trace reports what it is for, and nothing else.
func TestTrace(t *testing.T) {
	for kind, want := range map[string]string{"exec": "exec 0x8000", "int": "exception 6", "io": "out 0xf4", "mmu": "translate 0x8000"} {
		k, err := ParseTrace(kind)
		if err != nil {
			t.Fatal(err)
		}
		var b strings.Builder
		g, _ := protectedWith(t, false, Config{CPUs: 1, Tracing: k, Trace: func(f string, a ...any) { fmt.Fprintf(&b, f+"\n", a...) }})
		g.put(atCode, "0f0b")
		g.run()
		if !strings.Contains(b.String(), want) {
			t.Errorf("%s: no %q in\n%s", kind, want, b.String())
		}
	}
	if k, err := ParseTrace("exec,int,io,mmu"); err != nil || k != 15 {
		t.Errorf("all kinds: %d, %v", k, err)
	}
	for _, bad := range []string{"", "x", "int,", "int io", "ec"} {
		if _, err := ParseTrace(bad); err == nil {
			t.Errorf("%q is accepted", bad)
		}
	}
}

// TestTraceCostsNothingWhenOff: without a trace, ports, devices and exceptions
// allocate nothing.
func TestTraceCostsNothingWhenOff(t *testing.T) {
	// out 0xf5, al; mov ebx, 0xd0000000; mov eax, [rbx]; mov [rbx], eax; out 0xf4, al; jmp to itself
	g := newGuest(t, Config{CPUs: 1})
	g.put(0x8000, "e6f5bb000000d08b038903e6f4ebfe")
	for at := uint64(0); at < 4; at++ { // the first 4 GiB, by pages of 1 GiB
		g.setWord(0x2000+at*8, at<<30|0x83)
	}
	c := g.start(0, 3, 0x8000)
	for at := uint64(0); at < 4; at++ {
		g.setWord(0x2000+at*8, at<<30|0x83)
	}
	g.out = make([]uint32, 0, 1000)
	n := testing.AllocsPerRun(50, func() {
		c.s.RIP = 0x8000
		if ex, err := c.Run(); err != nil || ex.Reason != vcpu.ExitKick {
			t.Errorf("%+v, %v", ex, err)
		}
	})
	if n != 0 || len(g.out) == 0 {
		t.Errorf("%v allocations, %d writes", n, len(g.out))
	}
}
