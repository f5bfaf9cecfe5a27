package disk

import "sync"

// FreeList holds a queue's requests that are not in use, at most as many as
// were in flight at once. T is a device's request, which embeds [Request].
type FreeList[T any] struct {
	// New makes a request, when all that there are are in use.
	New func() *T

	mu   sync.Mutex // guards free
	free []*T
}

// Get returns a request that is not in use.
func (l *FreeList[T]) Get() *T {
	l.mu.Lock()
	defer l.mu.Unlock()
	if n := len(l.free); n > 0 {
		r := l.free[n-1]
		l.free = l.free[:n-1]
		return r
	}
	return l.New()
}

// Put takes back a request that is done. It may be called on any goroutine.
func (l *FreeList[T]) Put(r *T) {
	l.mu.Lock()
	l.free = append(l.free, r)
	l.mu.Unlock()
}
