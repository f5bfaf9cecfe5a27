package nvme

import (
	"encoding/binary"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/gvmspawn/gvmspawn/vmm/bus"
	"github.com/gvmspawn/gvmspawn/vmm/disk"
	"github.com/gvmspawn/gvmspawn/vmm/mem"
)

// completionQueue is where the controller answers (§4.6).
type completionQueue struct {
	c      *Controller
	id     uint16
	size   uint32
	gpa    mem.GPA
	ring   mem.Ordered
	irq    bool
	vector uint16

	head  atomic.Uint32 // the host has taken everything before it
	stuck atomic.Bool   // waiting is not empty

	mu      sync.Mutex // guards the rest
	tail    uint32
	phase   uint16 // phase tag of the next entry
	posted  bool   // entries since the last interrupt
	waiting []*command
}

// newCQ returns a completion queue in guest memory.
func (c *Controller) newCQ(id uint16, size uint32, at uint64, irq bool, vector uint16) (*completionQueue, error) {
	if size < 2 {
		return nil, fmt.Errorf("completion queue of %d entries", size)
	}
	ring, err := c.mem.OrderedSlice(mem.GPA(at), uint64(size)<<cqEntryShift)
	if err != nil {
		return nil, err
	}
	return &completionQueue{c: c, id: id, size: size, gpa: mem.GPA(at), ring: ring, irq: irq, vector: vector, phase: 1}, nil
}

// setHead is the host's doorbell. It reports whether the value can be.
func (q *completionQueue) setHead(v uint32) bool {
	if v >= q.size {
		return false
	}
	q.head.Store(v)
	if q.stuck.Load() {
		q.mu.Lock()
		q.drain()
		q.mu.Unlock()
		q.notify()
	}
	return true
}

// room reports whether the queue has a free entry. One always stays free
// (§4.1.1).
//
// Preconditions: q.mu is held.
func (q *completionQueue) room() bool {
	next := q.tail + 1
	if next == q.size {
		next = 0
	}
	if next != q.head.Load() {
		return true
	}
	sh := q.c.shadow.Load()
	if sh == nil || q.id == 0 {
		return false
	}
	// The doorbell is to be rung as soon as the head moves from here.
	sh.waitForHead(q.id, uint16(q.head.Load()))
	if v := sh.head(q.id); v < q.size {
		q.head.Store(v)
	}
	return next != q.head.Load()
}

// post answers a command, now or when the host has made room.
func (q *completionQueue) post(cmd *command, result uint32, st status) {
	cmd.result, cmd.status = result, st
	q.mu.Lock()
	if len(q.waiting) == 0 && q.room() {
		q.put(cmd)
	} else {
		q.waiting = append(q.waiting, cmd)
		q.stuck.Store(true)
		q.drain() // the host may have made room since
	}
	q.mu.Unlock()
}

// drain posts what waits.
//
// Preconditions: q.mu is held.
func (q *completionQueue) drain() {
	n := 0
	for n < len(q.waiting) && q.room() {
		q.put(q.waiting[n])
		n++
	}
	q.waiting = slices.Delete(q.waiting, 0, n)
	q.stuck.Store(len(q.waiting) > 0)
}

// put writes an entry (§4.6) and gives the command back to its queue.
//
// Preconditions: q.mu is held, the queue has room.
func (q *completionQueue) put(cmd *command) {
	at := uint64(q.tail) << cqEntryShift
	e := q.ring[at : at+1<<cqEntryShift]
	le := binary.LittleEndian
	le.PutUint32(e, cmd.result)
	le.PutUint32(e[4:], 0)
	le.PutUint16(e[8:], uint16(cmd.sq.head.Load()))
	le.PutUint16(e[10:], cmd.sq.id)
	le.PutUint16(e[12:], cmd.id)
	// The phase tag makes the entry the host's; it comes last.
	q.ring.StoreUint16(at+14, uint16(cmd.status)<<1|q.phase)
	q.c.mem.MarkWritten(q.gpa+mem.GPA(at), 1<<cqEntryShift)
	if q.tail++; q.tail == q.size {
		q.tail, q.phase = 0, q.phase^1
	}
	q.posted = true
	cmd.sq.put(cmd)
}

// notify interrupts the host if there are new entries.
func (q *completionQueue) notify() {
	q.mu.Lock()
	posted := q.posted
	q.posted = false
	q.mu.Unlock()
	if posted && q.irq {
		q.c.msix.Trigger(q.vector)
	}
}

// forget drops the unposted answers of a queue that is deleted.
func (q *completionQueue) forget(s *submissionQueue) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.waiting = slices.DeleteFunc(q.waiting, func(cmd *command) bool { return cmd.sq == s })
	q.stuck.Store(len(q.waiting) > 0)
}

// submissionQueue is where the host puts commands (§4.2). Its goroutine takes
// them one after the other.
type submissionQueue struct {
	c     *Controller
	id    uint16
	cq    *completionQueue
	size  uint32
	ring  []byte
	bell  bus.Doorbell
	disk  *disk.Queue   // nil for the admin queue
	ended chan struct{} // closed when the goroutine has ended

	tail atomic.Uint32 // as the doorbell said
	head atomic.Uint32 // set by the goroutine
	over atomic.Bool   // stop was called

	inlineMu sync.Mutex // guards waiting, and who serves: a CPU or the goroutine
	waiting  bool       // the goroutine, for the bell

	mu   sync.Mutex // guards the rest; cond is signalled when free grows
	cond *sync.Cond
	free []*command
	made int // commands
}

// startSQ makes a submission queue in guest memory and its goroutine.
//
// Preconditions: c.mu is held, c.phase is active.
func (c *Controller) startSQ(id uint16, size uint32, at uint64, cq *completionQueue) error {
	if size < 2 {
		return fmt.Errorf("submission queue of %d entries", size)
	}
	ring, err := c.mem.Slice(mem.GPA(at), uint64(size)<<sqEntryShift)
	if err != nil {
		return err
	}
	bell, err := c.wires.NewDoorbell()
	if err != nil {
		return err
	}
	s := &submissionQueue{c: c, id: id, cq: cq, size: size, ring: ring, bell: bell, ended: make(chan struct{})}
	s.cond = sync.NewCond(&s.mu)
	if id != 0 {
		s.disk = c.cfg.Drive.NewQueue(cq.notify)
	}
	c.sqs[id].Store(s)
	c.bind(s)
	c.workers.Go(s.run)
	return nil
}

// stop makes the goroutine end once the host has carried out what it was given.
func (s *submissionQueue) stop() {
	s.mu.Lock()
	s.over.Store(true)
	s.cond.Broadcast()
	s.mu.Unlock()
	_ = s.bell.Unbind()
	_ = s.bell.Close()
}

// get returns a command that is not in flight. It waits for one if the most
// that may be are, and returns nil when the queue is stopped.
func (s *submissionQueue) get() *command {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		if cmd := s.take(); cmd != nil || s.over.Load() {
			return cmd
		}
		s.cond.Wait()
	}
}

func (s *submissionQueue) put(cmd *command) {
	s.mu.Lock()
	s.free = append(s.free, cmd)
	if len(s.free) == 1 {
		s.cond.Signal()
	}
	s.mu.Unlock()
}

// newest is the tail as the host has it now.
func (s *submissionQueue) newest() uint32 {
	sh := s.c.shadow.Load()
	if sh == nil || s.id == 0 {
		return s.tail.Load()
	}
	v := sh.tail(s.id)
	if v >= s.size {
		s.c.events.raise(s.c, eventBadValue)
		return s.head.Load() // nothing that makes sense
	}
	return v
}

// wait returns when there is a command, or false when the queue is stopped.
func (s *submissionQueue) wait() bool {
	for !s.over.Load() {
		if !s.idle() {
			return true
		}
		if !s.waitBell() {
			return false
		}
	}
	return false
}

// notifyBytes is after how much data the host is interrupted, even when more
// commands are waiting.
const notifyBytes = 512 << 10

// run takes commands until the queue is stopped.
func (s *submissionQueue) run() {
	defer close(s.ended)
	for s.wait() {
		moved := uint64(0)
		for tail := s.newest(); s.head.Load() != tail; tail = s.newest() {
			cmd := s.get()
			if cmd == nil {
				break
			}
			next := s.fetch(cmd)
			s.head.Store(next)
			moved += cmd.start(next != tail)
			if moved >= notifyBytes {
				moved = 0
				s.cq.notify()
			}
		}
		if s.disk != nil {
			s.disk.Submit()
		}
		s.cq.notify()
	}
	if s.disk != nil {
		s.disk.Close()
	}
}

// fetch copies the command at the head, and returns the next head.
func (s *submissionQueue) fetch(cmd *command) uint32 {
	head := s.head.Load()
	at := head << sqEntryShift
	copy(cmd.raw[:], s.ring[at:at+1<<sqEntryShift])
	cmd.id = binary.LittleEndian.Uint16(cmd.raw[2:])
	if head++; head == s.size {
		head = 0
	}
	return head
}
