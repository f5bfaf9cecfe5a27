package nvme

import "github.com/gvmspawn/gvmspawn/vmm/disk"

// inlineMost is how many commands a CPU starts at once. When there are more, it
// is better to do them beside it.
const inlineMost = 4

// rung is the host's doorbell. While the queue's goroutine waits, the CPU that
// rings starts a few commands itself: what needs no waiting is answered at once,
// which spares the change to another thread and back. With the doorbell bound to
// the kernel (see bind) no CPU comes here.
func (s *submissionQueue) rung() {
	if !s.serveInline() {
		s.bell.Ring()
	}
}

// serveInline reports whether the goroutine is not needed.
func (s *submissionQueue) serveInline() bool {
	if s.disk == nil || s.c.cfg.InOrder || !s.inlineMu.TryLock() {
		return false // another CPU serves, or the goroutine comes or goes
	}
	defer s.inlineMu.Unlock()
	if !s.waiting {
		return false
	}
	for range inlineMost {
		tail := s.newest()
		if s.head.Load() == tail {
			break
		}
		cmd := s.spare()
		if cmd == nil {
			break
		}
		s.head.Store(s.fetch(cmd))
		cmd.start(true)
	}
	s.disk.Submit()
	s.cq.notify()
	s.waiting = s.idle() // what is left to the goroutine is not touched again
	return s.waiting
}

// idle asks for the next doorbell and reports whether there is no command.
func (s *submissionQueue) idle() bool {
	head := s.head.Load()
	if s.newest() != head {
		return false
	}
	if sh := s.c.shadow.Load(); sh != nil && s.id != 0 {
		sh.waitForTail(s.id, uint16(head))
		return s.newest() == head
	}
	return true
}

// waitBell waits for the bell. What CPUs do for the goroutine is done when it returns.
func (s *submissionQueue) waitBell() bool {
	s.setWaiting(true)
	ok := s.bell.Wait()
	s.setWaiting(false)
	return ok
}

func (s *submissionQueue) setWaiting(w bool) {
	s.inlineMu.Lock()
	s.waiting = w
	s.inlineMu.Unlock()
}

// spare returns a command that is not in flight, or nil if there is none, or the
// queue is stopped.
func (s *submissionQueue) spare() *command {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.take()
}

// take is spare.
//
// Preconditions: s.mu is held.
func (s *submissionQueue) take() *command {
	if s.over.Load() {
		return nil
	}
	if n := len(s.free); n > 0 {
		cmd := s.free[n-1]
		s.free = s.free[:n-1]
		return cmd
	}
	if s.made == disk.QueueDepth {
		return nil
	}
	s.made++
	cmd := &command{sq: s}
	cmd.Done = cmd.done
	return cmd
}
