// Package virtq is the device side of a virtqueue: it takes descriptor chains
// that the driver made available, gives them back as used, and suppresses
// notifications both ways. Document: virtio 1.2, §2.6 to §2.8.
//
// Everything in a ring is the guest's and may change at any time. The package
// reads each field once, checks the copy, and hands out only slices that lie
// inside guest RAM. A ring that breaks a rule is broken for good: Pop and Wait
// return false, and the device's NeedsReset is called once.
package virtq

import (
	"errors"
	"fmt"
	"sync"

	"github.com/gvmspawn/gvmspawn/vmm/mem"
)

const (
	// MaxSize is the largest queue (virtio 1.2 §2.7: 2^15).
	MaxSize = 1 << 15
	// maxChain bounds the descriptors of one chain on queues that are
	// shorter. The specification allows as many as the queue is long
	// (§2.7.5.3.1); drivers with indirect tables on short queues are known
	// to use more.
	maxChain = 1024
)

// ErrRing is what every violation of the ring's rules wraps.
var ErrRing = errors.New("virtqueue")

// Bell wakes the worker of a queue; *bus.Doorbell describes it.
type Bell interface {
	Ring()
	Wait() bool
	Close() error
}

// Config describes an enabled queue.
type Config struct {
	Mem *mem.Memory
	// Size is the number of descriptors, up to MaxSize; in a split ring it is
	// a power of two.
	Size uint16
	// Desc, Avail and Used are the descriptor area, driver area and device
	// area, aligned to 16, 2 and 4 bytes (§2.7), 16, 4 and 4 if Packed (§2.8).
	Desc, Avail, Used mem.GPA

	EventIdx bool // VIRTIO_F_EVENT_IDX was negotiated
	Indirect bool // VIRTIO_F_INDIRECT_DESC was negotiated
	Packed   bool // VIRTIO_F_RING_PACKED was negotiated

	Bell      Bell
	Interrupt func()      // sends a used buffer notification
	Broken    func(error) // called once, without locks, when the ring is broken
}

// Buffer is one piece of guest RAM of a chain.
type Buffer struct {
	GPA   mem.GPA
	Bytes []byte
}

// Chain is a descriptor chain, taken by Pop and given back by Push. Its owner
// reuses it: the buffers' storage is kept, so that Pop does not allocate once
// the longest chain has been seen.
type Chain struct {
	// Readable is what the driver sends, Writable is where the device answers.
	Readable, Writable []Buffer
	// ReadableLen and WritableLen are their sums in bytes, below 2^32.
	ReadableLen, WritableLen uint64

	// Untouched says that the owner writes to no device-writable buffer, and only
	// wants to know where it is (see mem.Memory.Address). Pop leaves it as it is.
	Untouched bool

	id    uint16 // head descriptor (split ring) or buffer ID (packed ring)
	count uint16 // ring slots it occupies (packed ring)
}

func (c *Chain) reset() {
	c.Readable, c.Writable = c.Readable[:0], c.Writable[:0]
	c.ReadableLen, c.WritableLen = 0, 0
}

// ReadAt copies from the device-readable part, starting off bytes into it, and
// returns how many bytes there were, at most len(p).
func (c *Chain) ReadAt(p []byte, off uint64) int {
	n := 0
	for _, b := range c.Readable {
		if off >= uint64(len(b.Bytes)) {
			off -= uint64(len(b.Bytes))
			continue
		}
		n += copy(p[n:], b.Bytes[off:])
		off = 0
		if n == len(p) {
			break
		}
	}
	return n
}

// WriteAt copies p to the device-writable part, starting off bytes into it,
// and returns how many bytes found room.
func (c *Chain) WriteAt(p []byte, off uint64) int {
	n := 0
	for _, b := range c.Writable {
		if off >= uint64(len(b.Bytes)) {
			off -= uint64(len(b.Bytes))
			continue
		}
		n += copy(b.Bytes[off:], p[n:])
		off = 0
		if n == len(p) {
			break
		}
	}
	return n
}

// AppendRange appends to dst the pieces of n bytes of the buffers, from byte off on.
func AppendRange(dst [][]byte, bufs []Buffer, off, n uint64) [][]byte {
	for _, b := range bufs {
		p := b.Bytes
		k := min(off, uint64(len(p)))
		off -= k
		p = p[k:]
		p = p[:min(uint64(len(p)), n)]
		n -= uint64(len(p))
		if len(p) > 0 {
			dst = append(dst, p)
		}
	}
	return dst
}

// ring is a queue's layout in memory: split or packed. Its methods are called
// with the queue's lock held.
type ring interface {
	// available reports whether pop would find a chain.
	available() (bool, error)
	// pop takes the next chain.
	pop(c *Chain) (bool, error)
	// put writes the used element of a chain, not yet visible to the driver.
	put(id, count uint16, written uint32)
	// publish makes visible what was put since the last publish, at once. At
	// least one chain was put.
	publish()
	// interruptWanted reports whether the driver wants to be notified of
	// what was pushed since the last call.
	interruptWanted() bool
	// enableKicks asks the driver to notify of the next chain; after it, the
	// caller looks again. disableKicks lets it be silent.
	enableKicks()
	disableKicks()
}

// Queue is an enabled virtqueue. Its methods may be called from several
// goroutines: one that pops and several that push, for instance.
type Queue struct {
	cfg   Config
	waits waitingBell // cfg.Bell, if it is one, else nil

	mu     sync.Mutex // guards the rest
	ring   ring
	flight int // chains that Pop gave and Push has not taken back
	closed bool
	err    error

	inlineMu sync.Mutex  // held while inline runs; guards the rest
	inline   func() bool // see Inline
	waiting  bool        // the worker waits for the bell
}

// New checks the ring's size and addresses and returns the queue.
func New(cfg Config) (*Queue, error) {
	if !ValidSize(uint32(cfg.Size), cfg.Packed) {
		return nil, fmt.Errorf("%w: a queue of %d descriptors", ErrRing, cfg.Size)
	}
	q := &Queue{cfg: cfg}
	q.waits, _ = cfg.Bell.(waitingBell)
	var err error
	if cfg.Packed {
		q.ring, err = newPacked(&cfg)
	} else {
		q.ring, err = newSplit(&cfg)
	}
	if err != nil {
		return nil, err
	}
	return q, nil
}

// ValidSize reports whether a queue can have n descriptors: 1 to MaxSize, and
// in a split ring a power of two (virtio 1.2 §2.7, §2.8.10.1).
func ValidSize(n uint32, packed bool) bool {
	return n > 0 && n <= MaxSize && (packed || n&(n-1) == 0)
}

// Size is the number of descriptors.
func (q *Queue) Size() uint16 { return q.cfg.Size }

// Areas are the addresses of descriptor, driver and device area, for a device whose
// queue somebody else serves (vhost). Nobody may use this Queue's methods but Size,
// Lend and Close then.
func (q *Queue) Areas() (desc, avail, used mem.GPA) { return q.cfg.Desc, q.cfg.Avail, q.cfg.Used }

// BellFD is an eventfd that the driver's notifications write to, or -1.
func (q *Queue) BellFD() int {
	if b, ok := q.cfg.Bell.(interface{ FD() int }); ok {
		return b.FD()
	}
	return -1
}

// Lend makes sure that a record of guest memory (mem.Record) knows every buffer that whom Areas
// were given to may write: all chains that are available and not used yet. He uses
// them in order, as vhost does. It reads the rings while the driver stands still.
func (q *Queue) Lend() error {
	q.mu.Lock()
	defer q.mu.Unlock()
	s, ok := q.ring.(*split)
	if !ok {
		return fmt.Errorf("%w: a packed ring does not tell what is available", ErrRing)
	}
	var c Chain
	used := s.used.LoadUint16(usedIdx) // may grow meanwhile: then there is more than needed
	n := s.avail.LoadUint16(availIdx) - used
	if n > s.size {
		return fmt.Errorf("%w: available index is %d ahead of the used index of a queue of %d", ErrRing, n, s.size)
	}
	for i := range n {
		c.reset()
		if err := s.walk(&c, s.avail.LoadUint16(availRing+2*uint64((used+i)%s.size))); err != nil {
			return err
		}
	}
	return nil
}

// Pop fills c with the next available chain. It returns false when there is
// none, or the queue is closed or broken.
func (q *Queue) Pop(c *Chain) bool {
	q.mu.Lock()
	if q.closed || q.err != nil {
		q.mu.Unlock()
		return false
	}
	c.reset()
	ok, err := q.ring.pop(c)
	if ok {
		// A chain has at least one descriptor, which the driver may not use
		// again before the chain is back. So what a device holds is bounded.
		if q.flight++; q.flight > int(q.cfg.Size) {
			ok, err = false, fmt.Errorf("%w: more chains in flight than the %d descriptors", ErrRing, q.cfg.Size)
		}
	}
	q.err = err
	q.mu.Unlock()
	if err != nil {
		q.report(err)
	}
	return ok
}

// report tells of a broken ring; it is called once, by who broke it.
func (q *Queue) report(err error) {
	q.Away() // the worker ends
	if q.cfg.Broken != nil {
		q.cfg.Broken(err)
	}
}

// Push gives the chain back; the device wrote the first written bytes of its
// writable part. On a closed or broken queue it does nothing. The driver
// learns of it by Notify.
func (q *Queue) Push(c *Chain, written uint32) {
	q.mark(c, written)
	q.mu.Lock()
	if !q.closed && q.err == nil {
		q.flight--
		q.ring.put(c.id, c.count, written)
		q.ring.publish()
	}
	q.mu.Unlock()
}

// PushAll gives several chains back so that the driver sees either none or all
// of them; written[i] belongs to cs[i]. A packet in merged buffers needs it:
// its first buffer says how many follow, and the driver takes them at once
// (§5.1.6.4).
func (q *Queue) PushAll(cs []*Chain, written []uint32) {
	for i, c := range cs {
		q.mark(c, written[i])
	}
	q.mu.Lock()
	if !q.closed && q.err == nil && len(cs) > 0 {
		for i, c := range cs {
			q.flight--
			q.ring.put(c.id, c.count, written[i])
		}
		q.ring.publish()
	}
	q.mu.Unlock()
}

// mark tells the dirty log of what the device wrote to a chain.
func (q *Queue) mark(c *Chain, written uint32) {
	left := uint64(written)
	for _, b := range c.Writable {
		n := min(left, uint64(len(b.Bytes)))
		if n == 0 {
			break
		}
		q.cfg.Mem.MarkWritten(b.GPA, n)
		left -= n
	}
}

// Notify interrupts the driver if it wants to know of the chains pushed since
// the last Notify. Devices call it once a batch.
func (q *Queue) Notify() {
	q.mu.Lock()
	wanted := !q.closed && q.err == nil && q.ring.interruptWanted()
	q.mu.Unlock()
	if wanted {
		q.cfg.Interrupt()
	}
}

// Wait blocks until a chain is available, or returns false for good when the
// queue is closed or broken. While it waits the driver's notifications are
// on, else they are off.
func (q *Queue) Wait() bool {
	for {
		ok, done := q.poll()
		if ok || done {
			return ok
		}
		if !q.waitBell() {
			return false
		}
	}
}

// poll looks for a chain and, when there is none, turns notifications on and
// looks again, so that no chain is missed.
func (q *Queue) poll() (ok, done bool) {
	q.mu.Lock()
	if q.closed || q.err != nil {
		q.mu.Unlock()
		return false, true
	}
	ok, err := q.ring.available()
	if err == nil && !ok {
		q.ring.enableKicks()
		ok, err = q.ring.available()
	}
	if ok {
		q.ring.disableKicks()
	}
	q.err = err
	q.mu.Unlock()
	if err != nil {
		q.report(err)
	}
	return ok, err != nil
}

// waitingBell is a bell whose Ring waits for the worker, a deterministic engine's.
type waitingBell interface {
	// Away says that the worker waits for something else; Ring returns at
	// once then, until the worker's next Wait.
	Away()
	// Settle returns when the worker is in Wait, or away.
	Settle()
}

// Away is called by a worker that is going to wait for something else than the
// queue, and by Activate for one that begins so. Otherwise a driver's
// notification might wait for it in vain on a deterministic machine.
func (q *Queue) Away() {
	if q.waits != nil {
		q.waits.Away()
	}
}

// Settle is called behind Activate: on a deterministic machine it returns when the
// worker is ready for the driver's first notification.
func (q *Queue) Settle() {
	if q.waits != nil {
		q.waits.Settle()
	}
}

// Kick makes a Wait return as if the driver had notified; devices use it to
// wake their own worker. Wait then still returns only for a chain or the end,
// so a worker with other work must use [Queue.WaitAny].
func (q *Queue) Kick() { q.cfg.Bell.Ring() }

// WaitAny is Wait that also returns after one Kick without a chain. The
// result is false only for a closed or broken queue.
func (q *Queue) WaitAny() bool {
	ok, done := q.poll()
	if ok || done {
		return ok
	}
	return q.waitBell()
}

// Close ends the queue: every Wait returns false, Push and Notify do nothing.
func (q *Queue) Close() {
	q.mu.Lock()
	q.closed = true
	q.mu.Unlock()
	_ = q.cfg.Bell.Close()
}
