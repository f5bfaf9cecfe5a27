package vsock

import "time"

// Indices of Conn.deadline.
const (
	reads = iota
	writes
)

// deadline of a connection's reads or writes. Device.mu guards it.
type deadline struct {
	timer   *time.Timer
	expired bool
	gen     int // counts set, so that a late timer of before does nothing
}

func (d *deadline) stop() {
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
	d.gen++
}

// SetDeadline sets both deadlines; the zero time means none.
func (c *Conn) SetDeadline(t time.Time) error { return c.setDeadlines(t, reads, writes) }

// SetReadDeadline sets the time at which Read fails with os.ErrDeadlineExceeded.
func (c *Conn) SetReadDeadline(t time.Time) error { return c.setDeadlines(t, reads) }

// SetWriteDeadline sets the time at which Write fails with os.ErrDeadlineExceeded.
func (c *Conn) SetWriteDeadline(t time.Time) error { return c.setDeadlines(t, writes) }

func (c *Conn) setDeadlines(t time.Time, which ...int) error {
	c.dev.mu.Lock()
	if c.closed {
		c.dev.mu.Unlock()
		return c.opError("set deadline", errClosed)
	}
	for _, w := range which {
		d := &c.deadline[w]
		d.stop()
		d.expired = !t.IsZero() && !time.Now().Before(t)
		if !t.IsZero() && !d.expired {
			gen := d.gen
			d.timer = time.AfterFunc(time.Until(t), func() { c.expire(d, gen) })
		}
	}
	c.cond.Broadcast()
	c.dev.mu.Unlock()
	c.dev.rx.kick()
	return nil
}

func (c *Conn) expire(d *deadline, gen int) {
	c.dev.mu.Lock()
	if d.gen == gen {
		d.expired = true
		c.cond.Broadcast()
	}
	c.dev.mu.Unlock()
	c.dev.rx.kick()
}
