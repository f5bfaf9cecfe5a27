package disk

import (
	"log/slog"
	"sync"
	"time"
)

// logEvery is the least time between two log lines of a drive: a guest can
// make as many errors as it likes.
const logEvery = 5 * time.Second

// errorLog logs host I/O errors at a bounded rate.
type errorLog struct {
	log *slog.Logger

	mu         sync.Mutex // guards last and suppressed
	last       time.Time
	suppressed int
}

func (l *errorLog) report(op Op, off uint64, err error) {
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
	l.log.Error("disk I/O error", "request", op.String(), "offset", off, "error", err, "suppressed", n)
}
