package vmm

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gvmspawn/gvmspawn/virtio/balloon"
	"github.com/gvmspawn/gvmspawn/vmm/layout"
	"github.com/gvmspawn/gvmspawn/vmm/mem"
)

const (
	// hintTime is how long a guest may tell of its free pages; what it has told until
	// then counts.
	hintTime = 10 * time.Second
	// reclaimStep is how much memory is looked at while the CPUs stand still: some
	// milliseconds' worth.
	reclaimStep = 64 * layout.MiB
)

// reclaim is the state of ReclaimMemory.
type reclaim struct {
	record atomic.Pointer[mem.Record] // of the run under way

	mu     sync.Mutex // held by the one call under way; guards the field below
	closed bool       // memory goes
}

// close waits for the call under way and refuses the next.
func (r *reclaim) close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = true
	return nil
}

// hinted is told of memory that was free since the run began.
func (m *Machine) hinted(gpa mem.GPA, n uint64) {
	if w := m.reclaim.record.Load(); w != nil {
		w.Free(gpa, n)
	}
}

// ReclaimMemory asks the guest which memory is free (virtio 1.2 §5.5.6.5) and gives that back
// to the host; n is how many bytes. The guest may use such a page again before we know of
// it, so only pages go that nobody wrote since before it was asked.
func (m *Machine) ReclaimMemory(ctx context.Context) (n uint64, err error) {
	if !m.reclaim.mu.TryLock() {
		return 0, errors.New("its free memory is being reclaimed already")
	}
	defer m.reclaim.mu.Unlock()
	switch {
	case m.reclaim.closed || m.runner.over():
		return 0, ErrNotRunning
	case m.runner.isPaused():
		return 0, errors.New("it is paused and cannot tell which memory is free")
	}
	w, err := m.mem.Record()
	if err != nil {
		return 0, err
	}
	m.reclaim.record.Store(w)
	defer func() {
		m.reclaim.record.Store(nil)
		err = errors.Join(err, w.Close())
	}()
	if err := m.collectHints(ctx); err != nil {
		return 0, err
	}
	defer m.balloon.StopHinting()
	for more := true; more; {
		err := m.runner.still(func() (err error) {
			var dropped uint64
			dropped, more, err = w.Discard(reclaimStep)
			n += dropped
			return err
		})
		if err != nil {
			return n, err
		}
		if err := ctx.Err(); err != nil {
			return n, err
		}
	}
	return n, nil
}

// collectHints begins a run of hinting and waits until the guest has told of all, or its time
// is up. After an error there is no run.
func (m *Machine) collectHints(ctx context.Context) error {
	limited, cancel := context.WithTimeout(ctx, hintTime)
	defer cancel()
	err := m.balloon.StartHinting()
	if err == nil {
		if err = m.balloon.WaitHinting(limited); errors.Is(err, context.DeadlineExceeded) {
			err = ctx.Err()
		}
		if err != nil {
			m.balloon.StopHinting()
		}
	}
	switch {
	case err != nil && m.runner.over():
		return ErrNotRunning
	case errors.Is(err, balloon.ErrInactive), errors.Is(err, balloon.ErrUnsupported):
		return fmt.Errorf("the guest cannot tell which memory is free: its kernel has no driver for free page hinting (Linux 4.18)")
	case errors.Is(err, balloon.ErrPoison):
		return errors.New("the guest fills free memory with a pattern (page_poison=) that it relies on, so none of it can go")
	}
	return err
}
