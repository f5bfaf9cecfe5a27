package blk

import (
	"log/slog"
	"sync"
	"time"
)

// logEvery is the least time between two log lines of a device: a guest can
// make as many errors as it likes.
const logEvery = 5 * time.Second

// errorLog logs host I/O errors at a bounded rate.
type errorLog struct {
	log *slog.Logger

	mu         sync.Mutex // guards last and suppressed
	last       time.Time
	suppressed int
}

func (l *errorLog) report(typ uint32, off uint64, err error) {
	l.mu.Lock()
	now := time.Now()
	if !l.last.IsZero() && now.Sub(l.last) < logEvery {
		l.suppressed++
		l.mu.Unlock()
		return
	}
	n := l.suppressed
	l.last, l.suppressed = now, 0
	l.mu.Unlock()
	l.log.Error("disk I/O error", "request", requestName(typ), "offset", off, "error", err, "suppressed", n)
}

func requestName(typ uint32) string {
	switch typ {
	case VIRTIO_BLK_T_IN:
		return "read"
	case VIRTIO_BLK_T_OUT:
		return "write"
	case VIRTIO_BLK_T_FLUSH:
		return "flush"
	case VIRTIO_BLK_T_DISCARD:
		return "discard"
	}
	return "write zeroes"
}
