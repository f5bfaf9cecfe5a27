package console

import (
	"context"
	"errors"
	"io"
	"sync"

	"github.com/gvmspawn/gvmspawn/virtio"
	"github.com/gvmspawn/gvmspawn/virtio/virtq"
)

// bufferSize bounds, in bytes, what a port holds in each direction.
const bufferSize = 64 << 10

// ErrClosed is returned by operations on a closed device.
var ErrClosed = errors.New("virtio-console: closed")

// PortConfig describes a port.
type PortConfig struct {
	// Name is what the guest sees in /sys/class/virtio-ports and below
	// /dev/virtio-ports. Port 0's name matters only when there are more ports.
	Name string
	// Console makes the port a console (hvc0, hvc1, ...). Port 0 always is one.
	Console bool
	// Output takes what the guest writes. Write may block as long as it
	// likes: the guest then waits (back-pressure). After an error the rest of
	// the guest's output is discarded. Nil discards everything.
	Output io.Writer
}

// Port is one byte stream between host and guest. Its methods may be called
// from any goroutine.
type Port struct {
	cfg PortConfig
	id  int
	dev *Device

	mu   sync.Mutex // guards all below; taken after Device.mu
	cond sync.Cond  // broadcast after every change
	// in holds input for the guest, out its output for the host. Both
	// survive a reset, so that a reboot loses neither.
	in, out virtio.FIFO
	room    chan struct{} // has an element after in got room, for Feed
	active  bool          // between Activate and Reset
	open    bool          // the guest wants input: a console, or a port that is open in the guest
	closed  bool
	writing bool // drain is inside Output.Write
	err     error
}

func newPort(d *Device, id int, cfg PortConfig) *Port {
	p := &Port{cfg: cfg, id: id, dev: d, in: virtio.NewFIFO(bufferSize), out: virtio.NewFIFO(bufferSize), room: make(chan struct{}, 1)}
	p.cond.L = &p.mu
	return p
}

// Push queues input for the guest and returns how many bytes of b found room;
// it never blocks. Up to 64 KiB are held while the guest does not read, is
// being reset, or has not started yet.
func (p *Port) Push(b []byte) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return 0
	}
	n := p.in.Put(b)
	if n > 0 {
		p.cond.Broadcast()
	}
	return n
}

// Feed queues all of b, waiting for room until ctx is done or the device is closed.
func (p *Port) Feed(ctx context.Context, b []byte) error {
	for {
		b = b[p.Push(b):]
		if len(b) == 0 {
			return nil
		}
		select {
		case <-p.room:
		case <-ctx.Done():
			return ctx.Err()
		case <-p.dev.done:
			return ErrClosed
		}
	}
}

// Flush waits until everything that the guest has written so far, and what
// comes meanwhile, has reached Output.
func (p *Port) Flush(ctx context.Context) error {
	stop := context.AfterFunc(ctx, p.wake)
	defer stop()
	p.mu.Lock()
	defer p.mu.Unlock()
	for (p.out.Len() > 0 || p.writing) && p.err == nil && !p.closed && ctx.Err() == nil {
		p.cond.Wait()
	}
	if p.out.Len() > 0 && p.err == nil {
		return ctx.Err()
	}
	return p.err
}

// wake makes every waiter look again.
func (p *Port) wake() {
	p.mu.Lock()
	p.cond.Broadcast()
	p.mu.Unlock()
}

// drain copies the guest's output to the host for as long as the device lives.
func (p *Port) drain() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for {
		for p.out.Len() == 0 && !p.closed {
			p.cond.Wait()
		}
		if p.closed {
			return
		}
		b := p.out.Peek()
		if p.cfg.Output != nil && p.err == nil {
			p.writing = true
			p.mu.Unlock()
			// The bytes belong to this goroutine until drop.
			n, err := p.cfg.Output.Write(b)
			p.mu.Lock()
			p.writing = false
			if err != nil {
				p.err = err
			} else {
				b = b[:n]
			}
		}
		p.out.Drop(len(b))
		p.cond.Broadcast()
	}
}

// transmit is the worker of the port's transmitq (§5.3.6).
func (p *Port) transmit(q *virtq.Queue) {
	var c virtq.Chain
	for q.Wait() {
		for q.Pop(&c) {
			for _, b := range c.Readable {
				if !p.output(q, b.Bytes) {
					return
				}
			}
			q.Push(&c, 0)
		}
		q.Notify()
	}
}

// output appends b to the output buffer, waiting for room. It returns false
// when the device is reset meanwhile.
func (p *Port) output(q *virtq.Queue, b []byte) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for {
		n := p.out.Put(b)
		if b = b[n:]; n > 0 {
			p.cond.Broadcast()
		}
		if len(b) == 0 {
			return true
		}
		if !p.active || p.closed {
			return false
		}
		// What is done so far need not wait for the slow host.
		p.mu.Unlock()
		q.Notify()
		p.mu.Lock()
		for p.out.Room() == 0 && p.active && !p.closed {
			p.cond.Wait()
		}
	}
}

// receive is the worker of the port's receiveq. It waits for input first and
// then for a buffer of the guest's.
func (p *Port) receive(q *virtq.Queue) {
	var c virtq.Chain
	for p.waitInput(q) && q.Wait() {
		for p.hasInput() && q.Pop(&c) {
			q.Push(&c, p.fill(&c))
		}
		q.Notify()
	}
}

// waitInput blocks until there is input that the guest wants. It returns false on reset.
func (p *Port) waitInput(q *virtq.Queue) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for p.active && !p.closed && (p.in.Len() == 0 || !p.open) {
		q.Away()
		p.cond.Wait()
	}
	return p.active && !p.closed
}

func (p *Port) hasInput() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.active && p.open && p.in.Len() > 0
}

// fill moves input into the chain and returns how many bytes.
func (p *Port) fill(c *virtq.Chain) uint32 {
	p.mu.Lock()
	defer p.mu.Unlock()
	off := uint64(0)
	for p.in.Len() > 0 && off < c.WritableLen {
		n := c.WriteAt(p.in.Peek(), off)
		p.in.Drop(n)
		off += uint64(n)
	}
	if off > 0 {
		select {
		case p.room <- struct{}{}:
		default:
		}
	}
	return uint32(off)
}

// start and stop bracket the time between Activate and Reset.
func (p *Port) start(open bool) {
	p.mu.Lock()
	p.active, p.open = true, open
	p.mu.Unlock()
}

func (p *Port) stop() {
	p.mu.Lock()
	p.active, p.open = false, false
	p.cond.Broadcast()
	p.mu.Unlock()
}

// setOpen is the guest's PORT_OPEN message.
func (p *Port) setOpen(open bool) {
	p.mu.Lock()
	p.open = open || p.console()
	p.cond.Broadcast()
	p.mu.Unlock()
}

func (p *Port) console() bool { return p.id == 0 || p.cfg.Console }

// emergency takes one byte of emerg_wr without blocking: it runs on a CPU.
func (p *Port) emergency(b byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.closed && p.out.Put([]byte{b}) > 0 {
		p.cond.Broadcast()
	}
}

// close ends the port; drain ends after the Write that it is in.
func (p *Port) close() {
	p.mu.Lock()
	p.closed = true
	p.cond.Broadcast()
	p.mu.Unlock()
}
