package soft

import (
	"fmt"
	"strings"
	"testing"
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
