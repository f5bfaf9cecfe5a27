package mem

import (
	"errors"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// A Window's page whose file was truncated, or cannot be read, or that is not
// mapped at all, raises SIGBUS or SIGSEGV when this process touches it: a
// software CPU, or a device. windowFault, a signal handler of our own in front
// of Go's, then puts zeroed memory in the place of the page and of what follows
// it in its range of 2 MiB, and the access is done again. It needs nothing from
// Go, so that translated guest code may fault like any Go code. The next
// MapFile or UnmapFile of the range replaces the zeros; how much memory they
// take is bounded by the window's size. System calls get EFAULT for such pages,
// KVM leaves the guest: see RepairWindow in virtio/fs.

// maxWindows is how many windows the process may have.
const maxWindows = 64

// guarded is a window's place in this process, [lo, hi), and how many faults
// there were. The handler reads it at any time.
type guarded struct{ lo, hi, faults atomic.Uint64 }

var (
	windows   [maxWindows]guarded
	windowsMu sync.Mutex // guards changes of windows and oldHandler
)

// Faults is how often this process touched a page of a Window that was not there.
func (r *Region) Faults() uint64 {
	if r.guard == nil {
		return 0
	}
	return r.guard.faults.Load()
}

// guardWindow makes accesses to the window at lo safe.
func guardWindow(lo, size uint64) (*guarded, error) {
	windowsMu.Lock()
	defer windowsMu.Unlock()
	for _, s := range [...]unix.Signal{unix.SIGBUS, unix.SIGSEGV} {
		if err := catchFault(s); err != nil {
			return nil, err
		}
	}
	for i := range windows {
		if w := &windows[i]; w.hi.Load() == 0 {
			w.faults.Store(0)
			w.lo.Store(lo)
			w.hi.Store(lo + size)
			return w, nil
		}
	}
	return nil, errors.New("too many windows of guest memory in one process")
}

func (w *guarded) free() {
	if w != nil {
		w.hi.Store(0)
	}
}
