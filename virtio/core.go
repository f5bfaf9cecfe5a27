package virtio

import (
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gvmspawn/gvmspawn/virtio/virtq"
	"github.com/gvmspawn/gvmspawn/vmm/mem"
)

const (
	// resetPatience is how long a driver's write of 0 to the status waits for
	// the reset. A reset takes microseconds unless a request hangs in the
	// host; drivers that do not poll for its end (virtio-mmio in Linux, edk2)
	// find it done. After it, the CPU goes on and the driver polls.
	resetPatience = 100 * time.Millisecond
	// logInterval is the shortest time between two reports of one device.
	logInterval = time.Second
)

// Wiring is what a [Core] asks of its transport. The methods are called with
// Core.mu held, except for the interrupts, which come from any goroutine.
type Wiring interface {
	// OpenBell returns the bell of queue i and binds it to the queue's
	// notification address. The Core closes it.
	OpenBell(i int) (virtq.Bell, error)
	// CloseBells unbinds all bells; they are closed afterwards. It may be
	// called without Core.mu.
	CloseBells()
	// QueueInterrupt sends a used buffer notification for queue i (§2.3).
	QueueInterrupt(i int)
	// QueueInterruptFD is an eventfd that sends it, or -1.
	QueueInterruptFD(i int) int
	// ConfigInterrupt sends a configuration change notification (§2.3).
	ConfigInterrupt()
	// Cleared says that the device is in its initial state; the transport
	// brings its own registers there.
	Cleared()
}

// phase is where a Core is in its life, apart from the status that the driver sees.
type phase uint8

const (
	idle      phase = iota // the device is not active
	active                 // DRIVER_OK was set; the device runs or needs a reset
	resetting              // a goroutine resets it
	closed                 // for good
)

// Ring is what a driver programmed for a queue.
type Ring struct {
	Max     uint16 // the device's maximum size
	Size    uint16
	Enabled bool
	// Desc, Avail and Used are the descriptor area, the driver area and the
	// device area, unchecked.
	Desc, Avail, Used mem.GPA
}

// Core is the half of a transport that does not depend on its registers:
// device status, feature negotiation, queues, activation and reset (virtio 1.2
// §2.1, §2.2, §3.1). All methods may be called from any goroutine, at any time
// and with any value: the caller is a guest.
//
// Once the driver has set DRIVER_OK nothing but a reset changes features or
// queues. A reset runs in a goroutine of its own; until it is done the status
// reads as it was and every write is ignored.
//
// Lock order: Core.mu, then the locks of wiring and device.
type Core struct {
	dev     Device
	wiring  Wiring
	mem     *mem.Memory
	offered Features
	log     func(error)

	// status is changed with mu held, but for NEEDS_RESET, which the device
	// adds at any time.
	status     atomic.Uint32
	generation atomic.Uint32
	patience   time.Duration // how long a driver's reset waits for its end
	logged     atomic.Int64  // when report last logged, Unix nanoseconds
	// notified has the queues, nil if disabled, while the device is active.
	notified atomic.Pointer[[]*virtq.Queue]

	configMu sync.Mutex // guards config
	config   [8]byte

	mu      sync.Mutex // guards the rest
	phase   phase
	done    chan struct{} // closed at the end of the present reset
	driver  Features      // as written, unchecked before FEATURES_OK
	rings   []Ring
	queues  []*virtq.Queue
	current *activation
	final   bool // Close was called: the present or next reset is the last
	written [8]byte
}

// activation tells a running device from one that was reset meanwhile.
type activation struct {
	core *Core
	over atomic.Bool
}

// NewCore returns the core for a device, in its initial state. extra is added
// to the ring features that every transport offers; log, which may be nil, is
// told why a device stopped, at most once a second.
func NewCore(dev Device, m *mem.Memory, w Wiring, extra Features, log func(error)) *Core {
	c := &Core{dev: dev, wiring: w, mem: m, log: log, patience: resetPatience}
	// §2.2: bits 24 to 49 belong to ring and transport.
	const reserved = (1<<50 - 1) &^ (1<<24 - 1)
	c.offered = dev.Features()&^reserved | extra | Bits(FVersion1, FRingIndirectDesc, FRingEventIdx)
	for _, n := range dev.QueueSizes() {
		c.rings = append(c.rings, Ring{Max: n, Size: n})
	}
	return c
}

// SetPatience says how long the driver's reset waits for its end, 100 ms unless
// set: if it takes longer the driver polls, and how often depends on the host.
// It is called before the driver runs.
func (c *Core) SetPatience(d time.Duration) { c.patience = d }

// Device is the device behind the transport.
func (c *Core) Device() Device { return c.dev }

// Offered are all feature bits that the driver may accept.
func (c *Core) Offered() Features { return c.offered }

// Status is what the driver reads from the status field.
func (c *Core) Status() Status { return Status(c.status.Load()) }

// Generation changes after each change of the configuration space (§2.5.1).
func (c *Core) Generation() uint32 { return c.generation.Load() }

// DeviceFeatures is word sel of the offered features; words beyond 1 are zero.
func (c *Core) DeviceFeatures(sel uint32) uint32 { return word(c.offered, sel) }

// DriverFeatures is word sel of what the driver wrote.
func (c *Core) DriverFeatures(sel uint32) uint32 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return word(c.driver, sel)
}

func word(f Features, sel uint32) uint32 {
	if sel > 1 {
		return 0
	}
	return uint32(f >> (32 * sel))
}

// SetDriverFeatures writes word sel of the features that the driver accepts.
func (c *Core) SetDriverFeatures(sel, v uint32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	// §3.1.1: "The driver MUST NOT accept new feature bits after this step"
	// (setting FEATURES_OK).
	if c.phase != idle || sel > 1 || c.Status()&StatusFeaturesOK != 0 {
		return
	}
	shift := 32 * sel
	c.driver = c.driver&^(0xffffffff<<shift) | Features(v)<<shift
}

// steps is the device status state machine (§2.1, §3.1.1): each bit that the
// driver may add, with the bits that must be there already or are added by
// the same write (needs), and those that must be there before it (after).
var steps = [...]struct{ bit, needs, after Status }{
	{StatusAcknowledge, 0, 0},
	{StatusDriver, StatusAcknowledge, 0},
	{StatusFeaturesOK, StatusAcknowledge | StatusDriver, StatusAcknowledge | StatusDriver},
	{StatusDriverOK, StatusAcknowledge | StatusDriver, StatusFeaturesOK},
	{StatusFailed, 0, 0},
}

// allowed reports whether the driver may go from old to next.
func allowed(old, next Status) bool {
	// §2.1.1: "The driver MUST NOT clear a device status bit."
	if old&^next&^StatusNeedsReset != 0 || old&StatusFailed != 0 {
		return false
	}
	known := StatusNeedsReset
	for _, s := range steps {
		known |= s.bit
		if next&^old&s.bit != 0 && (next&s.needs != s.needs || old&s.after != s.after) {
			return false
		}
	}
	return next&^known == 0
}

// SetStatus is the driver's write to the status field. 0 resets the device;
// what the state machine does not allow is ignored.
func (c *Core) SetStatus(next Status) {
	if next == 0 {
		c.startReset(c.patience)
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	old := c.Status()
	if (c.phase != idle && c.phase != active) || !allowed(old, next) {
		return
	}
	added := next &^ old &^ StatusNeedsReset // only the device sets that bit
	if added&StatusFeaturesOK != 0 && !c.acceptable() {
		// §3.1.1: the driver re-reads the status "to ensure the FEATURES_OK
		// bit is still set: otherwise, the device does not support our subset".
		added &^= StatusFeaturesOK
	}
	c.status.Or(uint32(added))
	if added&StatusDriverOK != 0 {
		c.activate()
	}
}

// acceptable checks the driver's features (§2.2.2, §6.2).
//
// Preconditions: c.mu is held.
func (c *Core) acceptable() bool {
	// §2.2.1: "The driver MUST NOT accept a feature which the device did not
	// offer"; §6.1: "A driver MUST accept VIRTIO_F_VERSION_1 if it is offered."
	return c.driver&^c.offered == 0 && c.driver.Has(FVersion1)
}

// Rings is the number of queues.
func (c *Core) Rings() int { return len(c.rings) }

// Ring returns the state of queue i; ok is false if there is none.
func (c *Core) Ring(i uint32) (r Ring, ok bool) {
	if i >= uint32(len(c.rings)) {
		return Ring{}, false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.rings[i], true
}

// settable returns queue i if the driver may change it now, else nil: between
// FEATURES_OK and DRIVER_OK (§3.1.1 step 7), while it is not enabled.
//
// Preconditions: c.mu is held.
func (c *Core) settable(i uint32) *Ring {
	const need, want = StatusFeaturesOK | StatusDriverOK | StatusFailed, StatusFeaturesOK
	if i >= uint32(len(c.rings)) || c.phase != idle || c.Status()&need != want || c.rings[i].Enabled {
		return nil
	}
	return &c.rings[i]
}

// SetRingSize sets the size of queue i. A size that the queue cannot have is
// ignored (§4.1.4.3.2: "If VIRTIO_F_RING_PACKED has not been negotiated, the
// driver MUST NOT write a value which is not a power of 2 to queue_size").
func (c *Core) SetRingSize(i, size uint32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if r := c.settable(i); r != nil && size <= uint32(r.Max) && virtq.ValidSize(size, c.driver.Has(FRingPacked)) {
		r.Size = uint16(size)
	}
}

// Area is one of the three parts of a ring (§2.6).
type Area uint8

// The areas.
const (
	DescArea   Area = iota // descriptor area
	DriverArea             // available ring
	DeviceArea             // used ring
)

// SetRingAddress sets the low or the high half of the address of an area.
func (c *Core) SetRingAddress(i uint32, a Area, high bool, v uint32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := c.settable(i)
	if r == nil {
		return
	}
	p := [...]*mem.GPA{&r.Desc, &r.Avail, &r.Used}[a]
	if high {
		*p = *p&0xffffffff | mem.GPA(v)<<32
	} else {
		*p = *p&^0xffffffff | mem.GPA(v)
	}
}

// EnableRing enables queue i.
func (c *Core) EnableRing(i uint32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if r := c.settable(i); r != nil {
		r.Enabled = true
	}
}

// DisableRing disables queue i before DRIVER_OK. A running queue stops with a
// reset of the device only.
func (c *Core) DisableRing(i uint32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if i < uint32(len(c.rings)) && c.phase == idle && c.Status()&StatusDriverOK == 0 {
		c.rings[i].Enabled = false
	}
}

// Notify is the driver's available buffer notification for queue i (§2.3). A
// queue that does not exist or does not run ignores it.
func (c *Core) Notify(i uint32) {
	if queues := c.notified.Load(); queues != nil && i < uint32(len(*queues)) && (*queues)[i] != nil {
		(*queues)[i].Ring()
	}
}

// ReadConfig reads size (1, 2, 4 or 8) bytes of the device configuration space.
func (c *Core) ReadConfig(off uint64, size int) uint64 {
	c.configMu.Lock()
	defer c.configMu.Unlock()
	c.config = [8]byte{}
	c.dev.ReadConfig(off, c.config[:size])
	v := uint64(0)
	for i := range size {
		v |= uint64(c.config[i]) << (8 * i)
	}
	return v
}

// WriteConfig writes the low size (1, 2, 4 or 8) bytes of v to it.
func (c *Core) WriteConfig(off uint64, size int, v uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	// §2.1.1, §3.1.1: the driver announces itself first.
	if (c.phase != idle && c.phase != active) || c.Status()&StatusDriver == 0 {
		return
	}
	for i := range size {
		c.written[i] = byte(v >> (8 * i))
	}
	c.dev.WriteConfig(off, c.written[:size])
}

// report logs why the device stopped. It needs no lock.
func (c *Core) report(err error) {
	now := time.Now().UnixNano()
	if last := c.logged.Load(); c.log == nil || now-last < int64(logInterval) || !c.logged.CompareAndSwap(last, now) {
		return
	}
	c.log(fmt.Errorf("virtio device %d: %w", c.dev.Type(), err))
}
