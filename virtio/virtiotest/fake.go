package virtiotest

import (
	"sync"
	"sync/atomic"

	"github.com/gvmspawn/gvmspawn/virtio"
	"github.com/gvmspawn/gvmspawn/virtio/virtq"
)

// FakeFeature is a feature bit that a Fake offers.
const FakeFeature = 5

// Fake is a device for tests of transports: every queue answers a chain with
// its own readable bytes, and the configuration space is 16 bytes of memory.
type Fake struct {
	// Queues are the maximum sizes; nil means two queues of 64.
	Queues []uint16
	// ActivateError, if set, is what Activate returns.
	ActivateError error
	// HoldReset, if set, keeps Reset from returning until it is closed.
	HoldReset chan struct{}
	// Shared are its shared memory regions.
	Shared []virtio.SharedMemory

	// Activations and Resets count the calls.
	Activations, Resets atomic.Int64
	// Inline says that it wants notifications on the CPU's thread.
	Inline bool

	// Misuse counts calls that break the contract of virtio.Device.
	Misuse atomic.Int64

	mu     sync.Mutex // guards the rest
	config [16]byte
	act    *virtio.Activation
	calls  atomic.Int32 // of the serialised methods
	wg     sync.WaitGroup
}

func (*Fake) Type() virtio.Type                     { return virtio.TypeEntropy }
func (*Fake) Features() virtio.Features             { return virtio.Bits(FakeFeature) }
func (f *Fake) SharedMemory() []virtio.SharedMemory { return f.Shared }

// ServesInline returns Inline.
func (f *Fake) ServesInline(int) bool { return f.Inline }

// QueueSizes returns Queues.
func (f *Fake) QueueSizes() []uint16 {
	if f.Queues == nil {
		return []uint16{64, 64}
	}
	return f.Queues
}

// serial checks that the transport calls one method at a time.
func (f *Fake) serial() func() {
	if f.calls.Add(1) != 1 {
		f.Misuse.Add(1)
	}
	return func() { f.calls.Add(-1) }
}

// ReadConfig reads the 16 bytes.
func (f *Fake) ReadConfig(off uint64, p []byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := range p {
		if at := off + uint64(i); at < uint64(len(f.config)) {
			p[i] = f.config[at]
		}
	}
}

// WriteConfig writes them.
func (f *Fake) WriteConfig(off uint64, p []byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := range p {
		if at := off + uint64(i); at < uint64(len(f.config)) {
			f.config[at] = p[i]
		}
	}
}

// Activate starts the echo.
func (f *Fake) Activate(a *virtio.Activation) error {
	defer f.serial()()
	f.Activations.Add(1)
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.act != nil {
		f.Misuse.Add(1)
	}
	f.act = a
	if f.ActivateError != nil {
		return f.ActivateError
	}
	for _, q := range a.Queues {
		if q != nil {
			f.wg.Go(func() { echo(q) })
		}
	}
	return nil
}

func echo(q *virtq.Queue) {
	var c virtq.Chain
	b := make([]byte, 256)
	for q.Wait() {
		for q.Pop(&c) {
			n := c.ReadAt(b, 0)
			q.Push(&c, uint32(c.WriteAt(b[:n], 0)))
		}
		q.Notify()
	}
}

// Reset waits for the workers.
func (f *Fake) Reset() {
	defer f.serial()()
	f.Resets.Add(1)
	if f.HoldReset != nil {
		<-f.HoldReset
	}
	f.wg.Wait()
	f.mu.Lock()
	f.act = nil
	f.mu.Unlock()
}

// Activation is the present one; nil while the device is not active.
func (f *Fake) Activation() *virtio.Activation {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.act
}
