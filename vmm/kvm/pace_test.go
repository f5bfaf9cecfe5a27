package kvm

import (
	"testing"
	"time"
)

// A CPU yields between 5 and 10 ms after it did so last, whatever time is between its
// exits, and looks at the clock at few of those that come in a row.
func TestPace(t *testing.T) {
	for _, gap := range []time.Duration{20 * time.Microsecond, 100 * time.Microsecond, 500 * time.Microsecond, 2 * time.Millisecond, 4 * time.Millisecond} {
		var p pace
		now := time.Now()
		start, last := now, now
		exits, looks := 0, 0
		for now.Sub(start) < time.Second {
			now = now.Add(gap)
			exits++
			if p.left--; p.left > 0 {
				continue
			}
			looks++
			if !p.look(now) {
				continue
			}
			if d := now.Sub(last); last != start && (d <= yieldEvery || d >= 10*time.Millisecond) {
				t.Errorf("an exit every %v: yields after %v", gap, d)
			}
			last = now
		}
		if now.Sub(last) > 10*time.Millisecond {
			t.Errorf("an exit every %v: the last yield is %v ago", gap, now.Sub(last))
		}
		if gap <= 100*time.Microsecond && looks > exits/10 {
			t.Errorf("an exit every %v: %d looks at %d exits", gap, looks, exits)
		}
	}
}
