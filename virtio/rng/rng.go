// Package rng is the virtio entropy device. Document: virtio 1.2 §5.4.
package rng

import (
	"fmt"
	"io"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gvmspawn/gvmspawn/virtio"
	"github.com/gvmspawn/gvmspawn/virtio/virtq"
)

const (
	queueSize = 64
	// MaxRequest is the most bytes that one request is answered with. A
	// larger buffer is filled in part, as §5.4.6.1 allows.
	MaxRequest = 64 << 10
)

// Config describes the device.
type Config struct {
	// Source yields the random bytes, for instance a seeded generator for a
	// deterministic machine. It may return fewer bytes than asked for. Nil
	// means the host kernel's getrandom(2).
	Source io.Reader
	// Rate bounds the bytes per second, with bursts of one second; 0 means
	// no bound.
	Rate int
}

// Device is a virtio entropy device. It implements virtio.Device.
type Device struct {
	source io.Reader
	bucket bucket
	worker sync.WaitGroup
	stop   chan struct{} // closed by Reset; nil while inactive
}

// New returns the device.
func New(cfg Config) (*Device, error) {
	if cfg.Rate < 0 {
		return nil, fmt.Errorf("virtio-rng: rate of %d bytes per second is negative", cfg.Rate)
	}
	d := &Device{source: cfg.Source, bucket: bucket{rate: cfg.Rate, now: time.Now}}
	if d.source == nil {
		d.source = kernel{}
	}
	return d, nil
}

// kernel is getrandom(2), written straight to where it is wanted.
type kernel struct{}

func (kernel) Read(p []byte) (int, error) {
	for {
		n, err := unix.Getrandom(p, 0)
		if err != unix.EINTR {
			return n, err
		}
	}
}

// Type is the entropy device ID (§5.4.1).
func (d *Device) Type() virtio.Type { return virtio.TypeEntropy }

// Features are none (§5.4.3).
func (d *Device) Features() virtio.Features { return 0 }

// QueueSizes is the one requestq (§5.4.2).
func (d *Device) QueueSizes() []uint16 { return []uint16{queueSize} }

// ReadConfig reads zeroes: there is no configuration (§5.4.4).
func (d *Device) ReadConfig(off uint64, p []byte) { clear(p) }

// WriteConfig ignores the write.
func (d *Device) WriteConfig(off uint64, p []byte) {}

// Activate starts the worker.
func (d *Device) Activate(a *virtio.Activation) error {
	d.stop = make(chan struct{})
	if len(a.Queues) > 0 && a.Queues[0] != nil {
		d.worker.Go(func() { d.serve(a.Queues[0], d.stop, a.NeedsReset) })
	}
	return nil
}

// Reset stops the worker and waits for it.
func (d *Device) Reset() {
	if d.stop == nil {
		return
	}
	close(d.stop)
	d.stop = nil
	d.worker.Wait()
}

// serve answers requests until the queue is closed.
func (d *Device) serve(q *virtq.Queue, stop <-chan struct{}, failed func()) {
	var c virtq.Chain
	for q.Wait() {
		for q.Pop(&c) {
			n, ok := d.fill(&c, stop)
			if !ok {
				return
			}
			// §5.4.6.1: one or more random bytes. A chain without a
			// writable byte is the driver's fault, a source without
			// bytes is ours.
			if n == 0 && c.WritableLen > 0 {
				failed()
				return
			}
			q.Push(&c, n)
			if d.bucket.rate != 0 {
				q.Notify()
			}
		}
		q.Notify()
	}
}

// fill puts random bytes into the chain and returns how many; ok is false on reset.
func (d *Device) fill(c *virtq.Chain, stop <-chan struct{}) (n uint32, ok bool) {
	left := MaxRequest
	for _, b := range c.Writable {
		p := b.Bytes[:min(len(b.Bytes), left)]
		for len(p) > 0 {
			take := d.bucket.take(len(p), stop)
			if take == 0 {
				return n, false
			}
			got, err := d.source.Read(p[:take])
			n += uint32(got)
			left -= got
			p = p[got:]
			if err != nil || got == 0 {
				return n, true
			}
		}
		if left == 0 {
			break
		}
	}
	return n, true
}

// bucket bounds a rate.
type bucket struct {
	rate   int // bytes per second, 0 for no bound
	now    func() time.Time
	last   time.Time
	tokens int
	timer  *time.Timer
}

// take waits for tokens and takes up to n. It returns 0 when stop is closed.
func (b *bucket) take(n int, stop <-chan struct{}) int {
	if b.rate == 0 || n == 0 {
		return n
	}
	for {
		b.refill()
		// Waiting for a useful amount keeps a waiting guest from waking
		// the host for every byte.
		want := min(n, max(1, b.rate/20))
		if b.tokens >= want {
			n = min(n, b.tokens)
			b.tokens -= n
			return n
		}
		wait := time.Duration(want-b.tokens) * time.Second / time.Duration(b.rate)
		if b.timer == nil {
			b.timer = time.NewTimer(wait)
		} else {
			b.timer.Reset(wait)
		}
		select {
		case <-b.timer.C:
		case <-stop:
			b.timer.Stop()
			return 0
		}
	}
}

// refill adds the tokens of the time since the last refill, up to one second's.
func (b *bucket) refill() {
	now := b.now()
	if b.last.IsZero() {
		b.last, b.tokens = now, b.rate
		return
	}
	since := min(now.Sub(b.last), time.Second)
	add := int(int64(since) * int64(b.rate) / int64(time.Second))
	if add > 0 {
		b.tokens = min(b.rate, b.tokens+add)
		b.last = now
	}
}
