// Package nvme is an NVM Express controller as a PCI function, with one
// namespace. Documents: NVM Express Base Specification 1.4 (section numbers
// without a document are its), with the NVM command set; PCI 3.0.
//
// Each submission queue has a goroutine that takes commands when its doorbell
// rings: the admin queue's carries them out, the others start them on a
// disk.Queue. A completion queue that the host does not empty holds up the
// queues that complete into it, and nothing else.
//
// Lock order: Controller.mu, completionQueue.mu, submissionQueue.mu. No CPU's
// thread waits for the host: a reset runs in a goroutine, while CSTS.RDY stays.
package nvme

import (
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gvmspawn/gvmspawn/devices/pci"
	"github.com/gvmspawn/gvmspawn/vmm/bus"
	"github.com/gvmspawn/gvmspawn/vmm/disk"
	"github.com/gvmspawn/gvmspawn/vmm/mem"
)

// Config describes a controller.
type Config struct {
	// Drive is the namespace. Close of the controller closes it.
	Drive *disk.Drive
	// Queues is the number of I/O queue pairs, 1 to 64; best one per CPU.
	Queues int
	// Serial is the serial number, up to 20 bytes.
	Serial string
	// ID tells the namespace and its subsystem from all others.
	ID [16]byte
	// InOrder makes a reset as good as immediate, which deterministic
	// machines need.
	InOrder bool
}

const serialSize = 20

// phase is where the controller is in its life.
type phase uint8

const (
	idle phase = iota
	active
	resetting
	closed
)

// Controller is an NVMe controller. Add its pci.Function to a bus.
type Controller struct {
	*pci.Function
	cfg   Config
	image disk.Image // of the drive
	shift uint       // log2 of the block size
	mem   *mem.Memory
	wires bus.Wires
	msix  *pci.MSIX

	csts       atomic.Uint32
	writeCache atomic.Bool
	// Queues by identifier; nil for one that does not exist.
	sqs []atomic.Pointer[submissionQueue]
	cqs []atomic.Pointer[completionQueue]
	// shadow are the doorbell buffers; nil without them.
	shadow atomic.Pointer[shadowDoorbells]

	events events

	workers sync.WaitGroup // between enable and the end of the reset

	mu       sync.Mutex // guards the rest
	phase    phase
	final    bool          // the present or next reset is the last
	done     chan struct{} // closed at the end of the present reset
	cc       uint32
	aqa      uint32
	asq, acq uint64
	features map[uint8]uint32
	base     uint64 // of BAR 0
	decoding bool
}

// New returns a controller whose queues lie in m; wires makes its interrupts
// and doorbells. name is for people.
func New(name string, cfg Config, m *mem.Memory, wires bus.Wires) (*Controller, error) {
	if cfg.Queues < 1 || cfg.Queues > maxQueues {
		return nil, fmt.Errorf("nvme %s: %d queues, must be 1 to %d", name, cfg.Queues, maxQueues)
	}
	if len(cfg.Serial) > serialSize {
		return nil, fmt.Errorf("nvme %s: serial number %q is longer than %d bytes", name, cfg.Serial, serialSize)
	}
	c := &Controller{
		Function: pci.NewFunction(name, pci.ID{
			Vendor: vendorID, Device: deviceID, SubVendor: vendorID, Subsystem: deviceID, Revision: 1, Class: pciClass,
		}),
		cfg: cfg, image: cfg.Drive.Image(), shift: 9, mem: m, wires: wires,
		sqs: make([]atomic.Pointer[submissionQueue], cfg.Queues+1),
		cqs: make([]atomic.Pointer[completionQueue], cfg.Queues+1),
	}
	if c.image.Geometry().BlockSize == 4096 {
		c.shift = 12
	}
	c.clear()
	if err := c.AddBAR(0, pci.BAR{Size: barSize, Device: registers{c}, Moved: c.moved}); err != nil {
		return nil, err
	}
	var err error
	if c.msix, err = c.NewMSIX(cfg.Queues+1, 0, tableAt, pbaAt, wires); err != nil {
		return nil, err
	}
	c.OnReset = func() { c.startReset(0) }
	return c, nil
}

// Close resets the controller for good, frees its interrupts and closes its drive.
func (c *Controller) Close() error {
	c.mu.Lock()
	c.final = true
	c.mu.Unlock()
	c.startReset(0)
	c.msix.Close()
	return c.cfg.Drive.Close()
}

// setCC is a write to the controller configuration (§3.1.5).
func (c *Controller) setCC(v uint32) {
	c.mu.Lock()
	old := c.cc
	c.cc = v
	reset := false
	switch {
	case c.phase == idle && v&ccEnable != 0:
		c.enable()
	case c.phase == active && v&ccEnable == 0:
		reset = true
	case c.phase == active && v&ccSHN != 0 && old&ccSHN == 0:
		c.shutdown()
	}
	c.mu.Unlock()
	if reset {
		patience := time.Nanosecond
		if c.cfg.InOrder {
			patience = inOrderPatience
		}
		c.startReset(patience)
	}
}

// inOrderPatience is how long a write to CC waits for the reset in a
// deterministic machine, so that it is seen done.
const inOrderPatience = time.Second

// enable makes the admin queues and tells that the controller is ready, or
// that its configuration cannot be (§7.6.1).
//
// Preconditions: c.mu is held, c.phase is idle.
func (c *Controller) enable() {
	c.phase = active
	const fixed = ccCSS | ccMPS | ccAMS
	if c.cc&fixed != 0 {
		c.csts.Store(cstsFatal)
		return
	}
	// AQA has the sizes of the admin queues, less one (§3.1.8).
	cq, err := c.newCQ(0, c.aqa>>16&0xfff+1, c.acq, true, 0)
	if err != nil {
		c.csts.Store(cstsFatal)
		return
	}
	c.cqs[0].Store(cq)
	if c.startSQ(0, c.aqa&0xfff+1, c.asq, cq) != nil {
		c.csts.Store(cstsFatal)
		return
	}
	c.csts.Store(cstsReady)
}

// shutdown makes everything durable (§7.6.2).
//
// Preconditions: c.mu is held, c.phase is active.
func (c *Controller) shutdown() {
	if c.csts.Load()&cstsSHST != 0 {
		return
	}
	c.csts.Or(shutdownOccurring)
	c.workers.Go(func() {
		// An error has been logged, and there is nobody to tell.
		_ = c.cfg.Drive.Flush()
		c.csts.Or(shutdownComplete)
		c.csts.And(^uint32(shutdownOccurring))
	})
}

// startReset begins a reset unless one is under way or there is nothing to
// reset, and waits for its end, but not longer than patience; 0 is no limit.
func (c *Controller) startReset(patience time.Duration) {
	c.mu.Lock()
	switch c.phase {
	case idle, closed:
		c.clear()
		if c.final {
			c.phase = closed
		}
		c.mu.Unlock()
		return
	case active:
		c.phase = resetting
		c.done = make(chan struct{})
		go c.reset(c.done)
	}
	done := c.done
	c.mu.Unlock()
	if patience == 0 {
		<-done
		return
	}
	t := time.NewTimer(patience)
	defer t.Stop()
	select {
	case <-done:
	case <-t.C:
	}
}

// reset stops all queues, which waits for what the host is carrying out, and
// brings the controller into its initial state (§7.3.2). The driver may have
// enabled it again meanwhile.
func (c *Controller) reset(done chan struct{}) {
	for i := range c.sqs {
		if s := c.sqs[i].Load(); s != nil {
			s.stop()
		}
	}
	c.workers.Wait()
	c.mu.Lock()
	c.clear()
	switch {
	case c.final:
		c.phase = closed
	case c.cc&ccEnable != 0:
		c.enable()
	}
	c.mu.Unlock()
	close(done)
}

// clear brings everything but the admin queues' registers into the initial state.
//
// Preconditions: c.mu is held, or nobody else knows c.
func (c *Controller) clear() {
	for i := range c.sqs {
		c.sqs[i].Store(nil)
		c.cqs[i].Store(nil)
	}
	c.shadow.Store(nil)
	c.events.clear()
	c.writeCache.Store(true)
	c.features = map[uint8]uint32{}
	c.phase = idle
	c.csts.Store(0)
}
