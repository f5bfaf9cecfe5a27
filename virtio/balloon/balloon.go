// Package balloon is the virtio memory balloon: memory that the guest does not
// need goes back to the host. Document: virtio 1.2 §5.5.
//
// With free page reporting the guest does so by itself; with free page hinting
// it does when asked; with a target set by the host it gives up memory that it would rather keep.
package balloon

import (
	"context"
	"encoding/binary"
	"errors"
	"sync"
	"sync/atomic"

	"github.com/gvmspawn/gvmspawn/virtio"
	"github.com/gvmspawn/gvmspawn/virtio/virtq"
	"github.com/gvmspawn/gvmspawn/vmm/mem"
)

const queueSize = 128

// Errors of the host's side.
var (
	ErrInactive    = errors.New("virtio-balloon: the guest's driver is not up")
	ErrUnsupported = errors.New("virtio-balloon: the guest's driver cannot do this")
	ErrPoison      = errors.New("virtio-balloon: the guest relies on what it fills free pages with")
)

// Memory is what the balloon gives pages back to; *mem.Memory implements it.
type Memory interface {
	// Discard drops the content of [gpa, gpa+n), or fails if that is not RAM.
	Discard(gpa mem.GPA, n uint64) error
}

// Config describes the device.
type Config struct {
	Memory Memory
	// Reporting offers free page reporting, Stats the guest's statistics.
	Reporting, Stats bool
	// Hint, if set, offers free page hinting and is told of each range that
	// was free at some time during a run. The guest may use such a page
	// again at any time, so its content must not be dropped if anyone wrote
	// there since before the run began. Hint is called with the
	// device locked, and never for a run that StopHinting has ended.
	Hint func(gpa mem.GPA, n uint64)
}

// Stats are the guest's numbers (§5.5.6.4), in bytes or events; -1 where it told none.
type Stats struct {
	SwapIn, SwapOut, MajorFaults, MinorFaults int64
	Free, Total, Available, Caches            int64
	HugePages, HugePageFailures               int64
}

// Device is a virtio balloon. It implements virtio.Device.
type Device struct {
	cfg     Config
	workers sync.WaitGroup
	over    atomic.Bool // a reset is under way: long loops end

	mu    sync.Mutex // guards all below
	cond  sync.Cond  // broadcast after changes
	act   *virtio.Activation
	pages uint32 // num_pages: the host's target
	used  uint32 // actual: what the driver says it gave up
	cmdID uint32
	// poison is what the driver fills free pages with, if it negotiated PAGE_POISON.
	poison uint32
	runID  uint32 // last run of hinting
	told   uint32 // last run in which the driver told of all
	asked  uint64 // requests for statistics
	got    uint64 // answers
	stats  Stats
}

// New returns the device.
func New(cfg Config) *Device {
	d := &Device{cfg: cfg, runID: cmdFirst - 1, stats: noStats}
	d.cond.L = &d.mu
	return d
}

var noStats = Stats{-1, -1, -1, -1, -1, -1, -1, -1, -1, -1}

// Type is the balloon's device ID (§5.5.1).
func (d *Device) Type() virtio.Type { return virtio.TypeBalloon }

// Features are the feature bits offered (§5.5.3). Without PAGE_POISON a Linux that
// clears free pages (init_on_free=1) would not report them.
func (d *Device) Features() virtio.Features {
	f := virtio.Bits(VIRTIO_BALLOON_F_DEFLATE_ON_OOM, VIRTIO_BALLOON_F_PAGE_POISON)
	if d.cfg.Stats {
		f |= virtio.Bits(VIRTIO_BALLOON_F_STATS_VQ)
	}
	if d.cfg.Hint != nil {
		f |= virtio.Bits(VIRTIO_BALLOON_F_FREE_PAGE_HINT)
	}
	if d.cfg.Reporting {
		f |= virtio.Bits(VIRTIO_BALLOON_F_PAGE_REPORTING)
	}
	return f
}

// QueueSizes are those of the five queues of §5.5.2.
func (d *Device) QueueSizes() []uint16 {
	return []uint16{queueSize, queueSize, queueSize, queueSize, queueSize}
}

// ReadConfig reads the configuration of §5.5.4.
func (d *Device) ReadConfig(off uint64, p []byte) {
	var b [configSize]byte
	d.mu.Lock()
	binary.LittleEndian.PutUint32(b[configNumPages:], d.pages)
	binary.LittleEndian.PutUint32(b[configActual:], d.used)
	binary.LittleEndian.PutUint32(b[configCmdID:], d.cmdID)
	binary.LittleEndian.PutUint32(b[configPoison:], d.poison)
	d.mu.Unlock()
	virtio.ReadConfigBytes(p, b[:], off)
}

// WriteConfig takes actual and poison_val.
func (d *Device) WriteConfig(off uint64, p []byte) {
	if len(p) != 4 {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	switch off {
	case configActual:
		d.used = binary.LittleEndian.Uint32(p)
	case configPoison:
		d.poison = binary.LittleEndian.Uint32(p)
	}
}

// SetTarget asks the guest to give up n bytes of its memory, rounded down to
// pages. It may give up less; see Actual.
func (d *Device) SetTarget(n uint64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	pages := uint32(min(n>>pageShift, 1<<32-1))
	if pages == d.pages {
		return
	}
	d.pages = pages
	if d.act != nil {
		d.act.ConfigChanged()
	}
}

// Target is how many bytes the host asks for.
func (d *Device) Target() uint64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return uint64(d.pages) << pageShift
}

// Actual is how many bytes the guest says it has given up.
func (d *Device) Actual() uint64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return uint64(d.used) << pageShift
}

// Activate starts a worker per enabled queue.
func (d *Device) Activate(a *virtio.Activation) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.act = a
	d.over.Store(false)
	q := arrange(a)
	d.start(q[queueInflate], d.inflate)
	d.start(q[queueDeflate], d.deflate)
	d.start(q[queueStats], d.statistics)
	d.start(q[queueFreePage], d.hints)
	// §5.5.6.6.1: poison_val does not change once the driver is up.
	keep := a.Features.Has(VIRTIO_BALLOON_F_PAGE_POISON) && d.poison != 0
	d.start(q[queueReporting], func(q *virtq.Queue) { d.reports(q, keep) })
	return nil
}

func (d *Device) start(q *virtq.Queue, f func(*virtq.Queue)) {
	if q != nil {
		d.workers.Go(func() { f(q) })
	}
}

// arrange finds the queues. §5.5.2 gives them fixed numbers; Linux numbers the
// queues of the negotiated features without gaps. Where the two differ, the
// queues that the driver enabled decide.
func arrange(a *virtio.Activation) [numQueues]*virtq.Queue {
	var fixed, packed [numQueues]*virtq.Queue
	next := queueStats
	ok := true
	for i, bit := range [numQueues]int{-1, -1, VIRTIO_BALLOON_F_STATS_VQ, VIRTIO_BALLOON_F_FREE_PAGE_HINT, VIRTIO_BALLOON_F_PAGE_REPORTING} {
		if bit < 0 {
			fixed[i], packed[i] = queue(a, i), queue(a, i)
			continue
		}
		if !a.Features.Has(uint(bit)) {
			continue
		}
		fixed[i], packed[i] = queue(a, i), queue(a, next)
		next++
		ok = ok && packed[i] != nil
	}
	if ok {
		return packed
	}
	return fixed
}

func queue(a *virtio.Activation, i int) *virtq.Queue {
	if i < len(a.Queues) {
		return a.Queues[i]
	}
	return nil
}

// Reset stops the workers. Pages that the guest gave up are its own again.
func (d *Device) Reset() {
	d.over.Store(true)
	d.mu.Lock()
	d.act = nil
	d.used, d.poison = 0, 0
	d.cmdID = VIRTIO_BALLOON_CMD_ID_STOP
	d.cond.Broadcast()
	d.mu.Unlock()
	d.workers.Wait()
}

// Stats asks the guest for fresh statistics and waits for them.
func (d *Device) Stats(ctx context.Context) (Stats, error) {
	defer d.wakeAfter(ctx)()
	d.mu.Lock()
	defer d.mu.Unlock()
	act := d.act
	if act == nil {
		return noStats, ErrInactive
	}
	if !act.Features.Has(VIRTIO_BALLOON_F_STATS_VQ) {
		return noStats, ErrUnsupported
	}
	d.asked++
	mine := d.asked
	d.cond.Broadcast()
	for d.got < mine && d.act == act && ctx.Err() == nil {
		d.cond.Wait()
	}
	switch {
	case d.act != act:
		return noStats, ErrInactive
	case d.got < mine:
		return noStats, ctx.Err()
	}
	return d.stats, nil
}

// wakeAfter wakes who waits for cond when ctx ends, until stop is called.
func (d *Device) wakeAfter(ctx context.Context) (stop func() bool) {
	return context.AfterFunc(ctx, func() {
		d.mu.Lock()
		d.cond.Broadcast()
		d.mu.Unlock()
	})
}

// StartHinting begins a run in which the guest tells Config.Hint of its free pages.
func (d *Device) StartHinting() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case d.act == nil:
		return ErrInactive
	case !d.act.Features.Has(VIRTIO_BALLOON_F_FREE_PAGE_HINT):
		return ErrUnsupported
	case d.act.Features.Has(VIRTIO_BALLOON_F_PAGE_POISON) && d.poison != 0:
		return ErrPoison // the guest does not fill a page again when it takes it (§5.5.6.6)
	}
	if d.runID++; d.runID < cmdFirst {
		d.runID = cmdFirst
	}
	d.cmdID = d.runID
	d.act.ConfigChanged()
	return nil
}

// WaitHinting waits until the guest has told of all its free pages in the run that
// StartHinting began. The pages are still its own to use.
func (d *Device) WaitHinting(ctx context.Context) error {
	defer d.wakeAfter(ctx)()
	d.mu.Lock()
	defer d.mu.Unlock()
	act, id := d.act, d.cmdID
	for id >= cmdFirst && d.act == act && d.cmdID == id && d.told != id && ctx.Err() == nil {
		d.cond.Wait()
	}
	switch {
	case act == nil || d.act != act || d.cmdID != id || id < cmdFirst:
		return ErrInactive
	case d.told != id:
		return ctx.Err()
	}
	return nil
}

// StopHinting ends the run; the guest may use the pages again.
func (d *Device) StopHinting() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.act != nil && d.cmdID >= cmdFirst {
		d.cmdID = VIRTIO_BALLOON_CMD_ID_DONE
		d.cond.Broadcast()
		d.act.ConfigChanged()
	}
}
