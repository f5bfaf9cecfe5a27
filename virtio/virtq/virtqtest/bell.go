package virtqtest

import (
	"sync"
	"sync/atomic"
)

// Bell is a doorbell without a machine. It implements virtq.Bell and, with
// Bind, Unbind and FD that do nothing, bus.Doorbell.
type Bell struct {
	ring  chan struct{}
	done  chan struct{}
	once  sync.Once
	rings atomic.Int64
}

// NewBell returns a silent bell.
func NewBell() *Bell {
	return &Bell{ring: make(chan struct{}, 1), done: make(chan struct{})}
}

// Ring wakes one present or future Wait. On a closed bell it does nothing.
func (b *Bell) Ring() {
	b.rings.Add(1)
	select {
	case b.ring <- struct{}{}:
	default:
	}
}

// Rings is how often Ring was called.
func (b *Bell) Rings() int64 { return b.rings.Load() }

// Wait blocks until the bell has rung since the last Wait; false once closed.
func (b *Bell) Wait() bool {
	select {
	case <-b.done:
		return false
	default:
	}
	select {
	case <-b.done:
		return false
	case <-b.ring:
		return true
	}
}

// Close makes every Wait return false.
func (b *Bell) Close() error {
	b.once.Do(func() { close(b.done) })
	return nil
}

// Closed reports whether Close was called.
func (b *Bell) Closed() bool {
	select {
	case <-b.done:
		return true
	default:
		return false
	}
}

// Bind does nothing.
func (b *Bell) Bind(uint64) error { return nil }

// Unbind does nothing.
func (b *Bell) Unbind() error { return nil }

// FD is -1: the kernel knows nothing of this bell.
func (b *Bell) FD() int { return -1 }
