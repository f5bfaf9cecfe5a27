package soft

import (
	"testing"
	"time"
)

// TestSyncBell: Ring returns when the worker is done, however long that takes, and
// at once for a worker that waits for something else.
func TestSyncBell(t *testing.T) {
	b := newSyncBell()
	done := 0
	go func() {
		time.Sleep(20 * time.Millisecond) // a busy host starts it late
		for b.Wait() {
			time.Sleep(20 * time.Millisecond)
			done++
		}
	}()
	b.Settle()
	for i := range 5 {
		if b.Ring(); done != i+1 {
			t.Fatalf("Ring %d returned when %d were done", i, done)
		}
	}
	start := time.Now()
	away := newSyncBell()
	away.Away()
	away.Settle()
	away.Ring()
	away.Close()
	b.Close()
	b.Ring()
	if d := time.Since(start); d > bellPatience/2 {
		t.Errorf("waited %v for a worker that is away", d)
	}
}
