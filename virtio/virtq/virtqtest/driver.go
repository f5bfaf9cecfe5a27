// Package virtqtest is a driver for tests: it builds virtqueues in guest
// memory and talks to the device side of package virtq, as virtio 1.2 §2.6 to
// §2.8 ask of a good driver, or raw, as a hostile one would.
//
//	d := virtqtest.New(t, 256, virtqtest.Options{})
//	go device(d.Queue)
//	got := d.Do([][]byte{header}, []int{4096, 1}) // one request, answered
//	// got.In[0] is what the device wrote into the 4096 bytes.
package virtqtest

import (
	"bytes"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gvmspawn/gvmspawn/virtio/virtq"
	"github.com/gvmspawn/gvmspawn/vmm/mem"
)

// Timeout is how long Wait and Do wait for the device before they fail the test.
const Timeout = 20 * time.Second

// Fill is the byte that device-writable buffers hold before the device writes.
const Fill = 0xa5

// Options chooses what the driver negotiated and where its memory is.
type Options struct {
	// Memory holds rings and buffers; nil means 64 MiB of its own.
	Memory *Memory
	// EventIdx and Indirect are the feature bits of those names. With
	// Indirect, Add uses an indirect table for chains of two or more buffers.
	EventIdx, Indirect bool
	// Packed makes a packed ring instead of a split one.
	Packed bool
	// NoQueue leaves Queue nil: the caller makes it from Config.
	NoQueue bool
	// Hook, if set, changes the configuration before the queue is made.
	Hook func(*virtq.Config)
}

// layout is one of the two ring layouts, from the driver's side.
type layout interface {
	config(*virtq.Config)
	room(n int) bool
	add(chain []Desc) (id uint16)
	table(b []byte, chain []Desc)
	kickNeeded() bool
	kickWanted() bool
	take() (id uint16, written uint32, ok bool)
	interrupts(on bool)
}

// buffer is a piece of guest memory that belongs to a chain in flight.
type buffer struct {
	gpa mem.GPA
	n   uint32
	in  bool
}

// Driver is the driver's side of one queue. Its methods belong to one
// goroutine; the device side may run in others.
type Driver struct {
	Mem   *Memory
	Queue *virtq.Queue // the device side
	Bell  *Bell
	Split *Split // the raw ring; nil if it is packed
	// Packed is the raw ring; nil if it is split.
	Packed *Packed
	// Config is what the queue was made from.
	Config virtq.Config

	t          testing.TB
	layout     layout
	indirect   bool
	flight     map[uint16][]buffer
	interrupts atomic.Int64
	irq        chan struct{}
	broken     atomic.Pointer[error]
}

// New returns a driver and its device-side queue of size descriptors. The
// queue is closed when the test ends. Interrupts are on.
func New(t testing.TB, size uint16, o Options) *Driver {
	t.Helper()
	if o.Memory == nil {
		o.Memory = NewMemory(t, 64<<20)
	}
	d := &Driver{
		Mem: o.Memory, Bell: NewBell(), t: t, indirect: o.Indirect,
		flight: make(map[uint16][]buffer), irq: make(chan struct{}, 1),
	}
	var err error
	if o.Packed {
		d.Packed, err = newPacked(d.Mem, size, o.EventIdx)
		d.layout = d.Packed
	} else {
		d.Split, err = newSplit(d.Mem, size, o.EventIdx)
		d.layout = d.Split
	}
	if err != nil {
		t.Fatal(err)
	}
	d.Config = virtq.Config{
		Mem: d.Mem.Memory, Size: size, EventIdx: o.EventIdx, Indirect: o.Indirect, Packed: o.Packed,
		Bell: d.Bell, Interrupt: d.interrupt, Broken: func(err error) { d.broken.Store(&err) },
	}
	d.layout.config(&d.Config)
	if o.Hook != nil {
		o.Hook(&d.Config)
	}
	if !o.NoQueue {
		if d.Queue, err = virtq.New(d.Config); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(d.Queue.Close)
	}
	return d
}

func (d *Driver) interrupt() {
	d.interrupts.Add(1)
	select {
	case d.irq <- struct{}{}:
	default:
	}
}

// Interrupts is how many used buffer notifications the device sent.
func (d *Driver) Interrupts() int64 { return d.interrupts.Load() }

// Broken is the error with which the device side gave the ring up, or nil.
func (d *Driver) Broken() error {
	if p := d.broken.Load(); p != nil {
		return *p
	}
	return nil
}

// Add makes a chain available: copies of out as device-readable buffers, then
// device-writable ones of the lengths in. It returns the chain's identifier.
// It does not notify: see Kick. With no room it fails the test: see Room.
func (d *Driver) Add(out [][]byte, in []int) uint16 {
	d.t.Helper()
	var bufs []buffer
	for _, o := range out {
		gpa := d.Mem.Alloc(uint64(len(o)))
		copy(d.Mem.Bytes(gpa, uint64(len(o))), o)
		bufs = append(bufs, buffer{gpa, uint32(len(o)), false})
	}
	for _, n := range in {
		gpa := d.Mem.Alloc(uint64(n))
		for b := d.Mem.Bytes(gpa, uint64(n)); len(b) > 0; b = b[1:] {
			b[0] = Fill
		}
		bufs = append(bufs, buffer{gpa, uint32(n), true})
	}
	return d.addBuffers(bufs)
}

// AddAt makes a chain of the given descriptors available, which refer to memory
// of the caller's. Links, IDs and wrap counters are added to them.
func (d *Driver) AddAt(chain ...Desc) uint16 {
	id := d.layout.add(chain)
	d.flight[id] = nil
	return id
}

func (d *Driver) addBuffers(bufs []buffer) uint16 {
	d.t.Helper()
	chain := make([]Desc, len(bufs))
	for i, b := range bufs {
		chain[i] = Desc{Addr: b.gpa, Len: b.n}
		if b.in {
			chain[i].Flags = DescWrite
		}
	}
	if d.indirect && len(chain) > 1 {
		t := d.table(chain)
		bufs = append(bufs, t)
		chain = []Desc{{Addr: t.gpa, Len: t.n, Flags: DescIndirect}}
	}
	if !d.layout.room(len(chain)) {
		d.t.Fatalf("virtqtest: no room for a chain of %d descriptors", len(chain))
	}
	id := d.layout.add(chain)
	d.flight[id] = bufs
	return id
}

// table writes an indirect table and returns it as a buffer.
func (d *Driver) table(chain []Desc) buffer {
	t := buffer{gpa: d.Mem.Alloc(16 * uint64(len(chain))), n: uint32(16 * len(chain))}
	d.layout.table(d.Mem.Bytes(t.gpa, uint64(t.n)), chain)
	return t
}

// Room reports whether a chain of n buffers can be added now.
func (d *Driver) Room(n int) bool {
	if d.indirect && n > 1 {
		n = 1
	}
	return d.layout.room(n)
}

// InFlight is how many chains were added and not yet seen as used.
func (d *Driver) InFlight() int { return len(d.flight) }

// KickNeeded reports whether the device wants to be notified of the chains
// added since the last KickNeeded or Kick.
func (d *Driver) KickNeeded() bool { return d.layout.kickNeeded() }

// Kick rings the bell if the device wants it, and reports whether it did.
func (d *Driver) Kick() bool {
	if !d.layout.kickNeeded() {
		return false
	}
	d.ring()
	return true
}

// UntilKickWanted returns once the device would want to be notified of the next
// chain, which is when its worker waits. It fails the test after Timeout.
func (d *Driver) UntilKickWanted() {
	d.t.Helper()
	for end := time.Now().Add(Timeout); !d.layout.kickWanted(); time.Sleep(10 * time.Microsecond) {
		if time.Now().After(end) {
			d.t.Fatalf("virtqtest: the device does not wait for chains")
		}
	}
}

// SetInterrupts asks the device for an interrupt at the next used chain, or
// for none.
func (d *Driver) SetInterrupts(on bool) { d.layout.interrupts(on) }

// Used is a chain that the device gave back.
type Used struct {
	ID      uint16
	Written uint32 // bytes, as the device said
	// In holds copies of the device-writable buffers, whole; bytes that the
	// device left alone are Fill.
	In [][]byte
}

// Bytes is the first Written bytes of In in one slice.
func (u Used) Bytes() []byte {
	b := bytes.Join(u.In, nil)
	return b[:min(len(b), int(u.Written))]
}

// Used takes the next used chain; false if there is none.
func (d *Driver) Used() (Used, bool) {
	id, written, ok := d.layout.take()
	if !ok {
		return Used{}, false
	}
	bufs, known := d.flight[id]
	if !known {
		d.t.Helper()
		d.t.Errorf("virtqtest: used chain %d was not in flight", id)
		return Used{ID: id, Written: written}, true
	}
	delete(d.flight, id)
	u := Used{ID: id, Written: written}
	for _, b := range bufs {
		if b.in {
			u.In = append(u.In, bytes.Clone(d.Mem.Bytes(b.gpa, uint64(b.n))))
		}
		d.Mem.Free(b.gpa, uint64(b.n))
	}
	return u, true
}

// Wait returns the next used chain, sleeping until the device interrupts. It
// fails the test if the device breaks the ring or takes longer than Timeout.
func (d *Driver) Wait() Used {
	d.t.Helper()
	deadline := time.NewTimer(Timeout)
	defer deadline.Stop()
	for {
		if u, ok := d.Used(); ok {
			return u
		}
		d.layout.interrupts(true)
		if u, ok := d.Used(); ok {
			return u
		}
		if err := d.Broken(); err != nil {
			d.t.Fatalf("virtqtest: the device gave the ring up: %v", err)
		}
		select {
		case <-d.irq:
		case <-deadline.C:
			d.t.Fatalf("virtqtest: no used chain within %v, %d in flight", Timeout, len(d.flight))
		}
	}
}

// Do adds a chain, kicks and waits for the next used one.
func (d *Driver) Do(out [][]byte, in []int) Used {
	d.t.Helper()
	d.Add(out, in)
	d.Kick()
	return d.Wait()
}

// Release frees the memory of the rings and of what is in flight. The device
// does not use the queue any more, and the Driver must not be used again.
func (d *Driver) Release() {
	for _, bufs := range d.flight {
		for _, b := range bufs {
			d.Mem.Free(b.gpa, uint64(b.n))
		}
	}
	d.flight = nil
	n := uint64(d.Config.Size)
	sizes := [3]uint64{16 * n, 6 + 2*n, 6 + 8*n}
	if d.Packed != nil {
		sizes = [3]uint64{16 * n, 4, 4}
	}
	for i, gpa := range [3]mem.GPA{d.Config.Desc, d.Config.Avail, d.Config.Used} {
		d.Mem.Free(gpa, sizes[i])
	}
}

// ring notifies the device, as a CPU does.
func (d *Driver) ring() {
	if d.Queue != nil {
		d.Queue.Ring()
		return
	}
	d.Bell.Ring()
}
