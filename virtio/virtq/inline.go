package virtq

// Inline lets serve take the place of a worker that waits, on the thread of the
// CPU that notifies, where notifications come by [Queue.Ring]. That spares the
// change to another thread and back, which takes longer than many a request.
// The worker stays where it is meanwhile, so serve may use what is the worker's.
//
// serve takes chains without waiting for anything, calls [Queue.Idle] when there
// are no more, and returns whether the worker is to be woken; it must wait by
// WaitAny then. Inline is called before the first Wait.
func (q *Queue) Inline(serve func() (wake bool)) {
	q.inlineMu.Lock()
	q.inline = serve
	q.inlineMu.Unlock()
}

// Ring is the driver's notification.
func (q *Queue) Ring() {
	if !q.serveInline() {
		q.cfg.Bell.Ring()
	}
}

// serveInline reports whether no worker is needed.
func (q *Queue) serveInline() bool {
	if !q.inlineMu.TryLock() {
		return false // another CPU serves, or the worker comes or goes
	}
	defer q.inlineMu.Unlock()
	if !q.waiting || q.inline == nil {
		return false
	}
	q.waiting = !q.inline() // what is left to the worker is not touched again
	return q.waiting
}

// waitBell waits for the bell. What CPUs do for the worker is done when it returns.
func (q *Queue) waitBell() bool {
	q.setWaiting(true)
	ok := q.cfg.Bell.Wait()
	q.setWaiting(false)
	return ok
}

func (q *Queue) setWaiting(w bool) {
	q.inlineMu.Lock()
	q.waiting = w
	q.inlineMu.Unlock()
}

// Idle turns notifications on and reports whether the queue is empty: false
// means that there is a chain after all, or that the queue has ended.
func (q *Queue) Idle() bool {
	ok, done := q.poll()
	return !ok && !done
}
