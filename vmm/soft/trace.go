package soft

import (
	"fmt"
	"slices"
	"strings"
)

// TraceKind is a set of things that Config.Trace is told of.
type TraceKind uint8

// The kinds of trace.
const (
	// TraceInt is exceptions and interrupts.
	TraceInt TraceKind = 1 << iota
	// TraceIO is port and memory-mapped I/O.
	TraceIO
	// TraceMMU is translations as they are made, and loads of CR3.
	TraceMMU
	// TraceExec is every block of instructions; nothing is translated then.
	TraceExec
)

// traceNames are the kinds' names, by bit.
var traceNames = []string{"int", "io", "mmu", "exec"}

// ParseTrace reads a comma-separated list of int, io, mmu and exec.
func ParseTrace(s string) (TraceKind, error) {
	var k TraceKind
	for w := range strings.SplitSeq(s, ",") {
		i := slices.Index(traceNames, w)
		if i < 0 {
			return 0, fmt.Errorf("unknown kind of trace %q: choose from exec, int, io and mmu", w)
		}
		k |= 1 << i
	}
	return k, nil
}

// traced runs one block and says so.
func (c *CPU) traced(b *block) int {
	s := c.s
	c.vm.trace("cpu %d exec %#x cpl %d rsp %#x count %d", c.id, s.RIP, s.CPL, s.R[4], s.Count)
	return c.exec(b)
}

// traceIO reports an access to a port or device.
func (c *CPU) traceIO(what string, addr, v uint64, size uint8) {
	if c.vm.tracing&TraceIO != 0 {
		c.vm.trace("cpu %d %s %#x size %d value %#x", c.id, what, addr, size, v)
	}
}
