package serial

import (
	"io"
	"sync"
)

// Queue is a bounded [Sink] that a goroutine reads, typically with io.Copy to
// the host's side. Lock order: the chip's, then the queue's.
type Queue struct {
	flush func()

	mu      sync.Mutex
	filled  sync.Cond
	buf     []byte
	head, n int
	refused bool
	closed  bool
}

// NewQueue returns a queue for size bytes. flush, typically UART.Flush, is
// called by the reader when there is room again after a refusal.
func NewQueue(size int, flush func()) *Queue {
	q := &Queue{flush: flush, buf: make([]byte, size)}
	q.filled.L = &q.mu
	return q
}

// Put implements Sink. After Close it takes everything and drops it, so that
// a guest does not wait for a host that is gone.
func (q *Queue) Put(b byte) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return true
	}
	if q.n == len(q.buf) {
		q.refused = true
		return false
	}
	q.buf[(q.head+q.n)%len(q.buf)] = b
	q.n++
	if q.n == 1 {
		q.filled.Signal()
	}
	return true
}

// Read takes bytes out, waiting for the first. It returns io.EOF once the
// queue is closed and empty.
func (q *Queue) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	n, room, err := q.take(p)
	if room {
		q.flush()
	}
	return n, err
}

func (q *Queue) take(p []byte) (n int, room bool, err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for q.n == 0 && !q.closed {
		q.filled.Wait()
	}
	if q.n == 0 {
		return 0, false, io.EOF
	}
	for n < len(p) && q.n > 0 {
		c := copy(p[n:], q.buf[q.head:min(q.head+q.n, len(q.buf))])
		q.head = (q.head + c) % len(q.buf)
		q.n -= c
		n += c
	}
	room, q.refused = q.refused, false
	return n, room, nil
}

// Close lets Read return io.EOF after what is still queued.
func (q *Queue) Close() error {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	q.filled.Broadcast()
	return nil
}
