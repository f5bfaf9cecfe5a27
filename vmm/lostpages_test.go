package vmm

import (
	"fmt"
	"testing"
	"time"
)

// counter is a CPU with a number of faults without a result.
type counter struct {
	n  uint64
	no bool
}

func (c *counter) UnresolvedFaults() (uint64, bool) { return c.n, !c.no }

func TestLostPagesLook(t *testing.T) {
	var repairs []bool
	cpu := &counter{}
	l := lostPages{repair: func(sure bool) bool { repairs = append(repairs, sure); return true }, cpus: []faultCounter{&counter{}, cpu}, seen: make([]uint64, 2)}
	for i, c := range []struct {
		more    uint64
		no      bool
		repairs string
	}{
		{0, false, "[]"},
		{hopeless, false, "[]"}, // the guest only shares the page with someone
		{1000, false, "[]"},     // once is a burst
		{0, false, "[]"},
		{1000, false, "[]"},
		{1000, false, "[true]"},
		{0, false, "[true]"},
		{0, true, "[true]"}, // KVM does not count: the sizes say it
		{0, true, "[true false]"},
	} {
		cpu.n += c.more
		cpu.no = c.no
		l.look()
		if got := fmt.Sprint(repairs); got != c.repairs {
			t.Errorf("look %d: repairs %s, want %s", i, got, c.repairs)
		}
	}
}

// The watch sleeps by the processor time of the process, and ends at once.
func TestLostPagesRun(t *testing.T) {
	looks := make(chan struct{}, 100)
	l := lostPages{repair: func(bool) bool { looks <- struct{}{}; return true }, cpus: []faultCounter{&counter{no: true}}, seen: make([]uint64, 1), done: make(chan struct{})}
	go l.run()
	for limit := time.Now().Add(20 * time.Second); len(looks) == 0; {
		if time.Now().After(limit) {
			t.Fatal("no look while the process was busy")
		}
	}
	started := time.Now()
	l.end()
	if d := time.Since(started); d > 5*time.Second {
		t.Errorf("it took %v to end", d)
	}
}
