package fs

import (
	"sync/atomic"
	"time"
)

// warnEvery is the least time between two warnings that a guest can cause.
const warnEvery = 10 * time.Second

// limiter drops what comes too often and counts it.
type limiter struct {
	next    atomic.Int64 // Unix time in nanoseconds
	dropped atomic.Uint64
}

// allow reports whether to go on, and how many were dropped before.
func (l *limiter) allow() (dropped uint64, ok bool) {
	now := time.Now().UnixNano()
	next := l.next.Load()
	if now < next || !l.next.CompareAndSwap(next, now+int64(warnEvery)) {
		l.dropped.Add(1)
		return 0, false
	}
	return l.dropped.Swap(0), true
}

// warn logs something the guest did, but not often.
func (d *Device) warn(msg string, key string, value uint64) {
	if n, ok := d.quiet.allow(); ok {
		log := d.cfg.Log.With("tag", d.cfg.Tag, key, value)
		if n > 0 {
			log = log.With("dropped", n)
		}
		log.Warn("virtio-fs: " + msg)
	}
}
