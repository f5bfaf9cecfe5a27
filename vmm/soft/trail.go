package soft

import (
	"fmt"
	"strings"
)

// trailSize is how many events a CPU remembers for its last message.
const trailSize = 16

// trailEvent is an exception or interrupt.
type trailEvent struct {
	vec  uint8
	kind uint8 // trailException, trailInterrupt
	err  uint32
	rip  uint64
	at   uint64 // State.Count
}

const (
	trailException = iota + 1
	trailInterrupt
)

// remember notes an event at the present RIP.
func (c *CPU) remember(kind, vec uint8, err uint32) {
	c.trail[c.trailLen%trailSize] = trailEvent{vec, kind, err, c.s.RIP, c.s.Count}
	c.trailLen++
}

// writeTrail describes the last events, the oldest first.
func (c *CPU) writeTrail(b *strings.Builder) {
	b.WriteString("last events, with the instructions executed before:\n")
	first := uint(0)
	if c.trailLen > trailSize {
		first = c.trailLen - trailSize
	}
	for i := first; i < c.trailLen; i++ {
		e := c.trail[i%trailSize]
		name := "exception"
		if e.kind == trailInterrupt {
			name = "interrupt"
		}
		fmt.Fprintf(b, "%12d %s %d error %#x rip %016x\n", e.at, name, e.vec, e.err, e.rip)
	}
}
