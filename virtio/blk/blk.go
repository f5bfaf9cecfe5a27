// Package blk is the virtio block device. Document: virtio 1.2 §5.2.
//
// Each queue has one goroutine that takes requests. It carries out at once
// what the image can do without waiting (see TryImage), and what is alone in
// the queue; the rest goes to a bounded pool, so that a slow request holds up
// no other one.
package blk

import (
	"encoding/binary"
	"fmt"
	"log/slog"
	"math/bits"
	"sync"
	"sync/atomic"

	"github.com/gvmspawn/gvmspawn/virtio"
)

const (
	queueSize = 256
	maxQueues = 64
	// segMax is the most data buffers of a request: with header and status
	// they fill a queue that has no indirect descriptors (§5.2.4).
	segMax = queueSize - 2
	// poolSize bounds the requests of one device that wait in the host.
	poolSize = 16

	// Bounds of one DISCARD or WRITE_ZEROES request.
	maxRangeSectors = 1 << 22 // 2 GiB
	maxRanges       = 16
)

// Config describes the device.
type Config struct {
	// Image is the disk. Close of the device closes it.
	Image Image
	// Queues is the number of request queues, 1 to 64; best one per CPU.
	Queues int
	// Serial is what GET_ID answers: up to 20 bytes.
	Serial string
	// Discard offers DISCARD, and lets WRITE_ZEROES give storage back.
	Discard bool
	// NoFlush answers flushes without making anything durable: for disks
	// that may be lost with the host.
	NoFlush bool
	// InOrder carries the requests of a queue out one after the other,
	// whatever time they take: deterministic machines need it.
	InOrder bool
	// Engine says how requests that may wait are carried out.
	Engine Engine
	// Log gets host I/O errors, at a bounded rate. Nil means slog.Default().
	Log *slog.Logger
}

// Engine is a way to carry out requests that may wait.
type Engine uint8

const (
	// EngineAuto is EngineURing for raw images with direct I/O, else
	// EnginePool. So it was measured (BenchmarkCold, 2 CPUs, virtual disk, 4 KiB
	// reads, depth 32): 33 µs a request against 62 with direct I/O, but 34
	// against 24 for a cold file through the page cache.
	EngineAuto Engine = iota
	// EnginePool is a bounded pool of goroutines, for every image.
	EnginePool
	// EngineURing is io_uring(7), for raw images; where the host has none,
	// or for other images, the pool takes its place.
	EngineURing
)

// Device is a virtio block device. It implements virtio.Device.
type Device struct {
	cfg   Config
	try   TryImage // Image, if it is one
	id    [idSize]byte
	sizes []uint16

	// writeback is the cache mode: with false, each write is flushed before
	// it is answered (§5.2.6.2).
	writeback atomic.Bool
	errors    errorLog

	workers sync.WaitGroup // queue workers and pool, between Activate and Reset
	mu      sync.Mutex     // guards act and jobs
	act     *virtio.Activation
	pool    *pool
}

// New returns the device.
func New(cfg Config) (*Device, error) {
	if cfg.Queues < 1 || cfg.Queues > maxQueues {
		return nil, fmt.Errorf("virtio-blk: %d queues, must be 1 to %d", cfg.Queues, maxQueues)
	}
	if len(cfg.Serial) > idSize {
		return nil, fmt.Errorf("virtio-blk: serial number %q is longer than %d bytes", cfg.Serial, idSize)
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	d := &Device{cfg: cfg, errors: errorLog{log: cfg.Log}}
	d.try, _ = cfg.Image.(TryImage)
	copy(d.id[:], cfg.Serial)
	for range cfg.Queues {
		d.sizes = append(d.sizes, queueSize)
	}
	d.writeback.Store(true)
	return d, nil
}

// Type is the block device ID (§5.2.1).
func (d *Device) Type() virtio.Type { return virtio.TypeBlock }

// Features are the feature bits offered (§5.2.3).
func (d *Device) Features() virtio.Features {
	f := virtio.Bits(VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_CONFIG_WCE)
	if d.cfg.Queues > 1 {
		f |= virtio.Bits(VIRTIO_BLK_F_MQ)
	}
	if d.cfg.Image.ReadOnly() {
		return f | virtio.Bits(VIRTIO_BLK_F_RO)
	}
	f |= virtio.Bits(VIRTIO_BLK_F_WRITE_ZEROES)
	if d.cfg.Discard {
		f |= virtio.Bits(VIRTIO_BLK_F_DISCARD)
	}
	return f
}

// QueueSizes are those of the request queues (§5.2.2).
func (d *Device) QueueSizes() []uint16 { return d.sizes }

// ReadConfig reads the configuration of §5.2.4.
func (d *Device) ReadConfig(off uint64, p []byte) {
	var b [configSize]byte
	le := binary.LittleEndian
	g := d.cfg.Image.Geometry()
	le.PutUint64(b[configCapacity:], d.cfg.Image.Size()>>sectorShift)
	le.PutUint32(b[configSegMax:], segMax)
	le.PutUint32(b[configBlkSize:], g.BlockSize)
	b[configPhysicalBlockExp] = uint8(bits.TrailingZeros32(max(g.PhysicalBlock/g.BlockSize, 1)))
	le.PutUint16(b[configMinIOSize:], uint16(max(g.PhysicalBlock/g.BlockSize, 1)))
	le.PutUint32(b[configOptIOSize:], 0)
	if d.writeback.Load() {
		b[configWriteback] = 1
	}
	le.PutUint16(b[configNumQueues:], uint16(d.cfg.Queues))
	le.PutUint32(b[configMaxDiscardSectors:], maxRangeSectors)
	le.PutUint32(b[configMaxDiscardSeg:], maxRanges)
	le.PutUint32(b[configDiscardAlignment:], max(g.Cluster, g.BlockSize)>>sectorShift)
	le.PutUint32(b[configMaxWriteZeroesSectors:], maxRangeSectors)
	le.PutUint32(b[configMaxWriteZeroesSeg:], maxRanges)
	if d.cfg.Discard {
		b[configWriteZeroesMayUnmap] = 1
	}
	virtio.ReadConfigBytes(p, b[:], off)
}

// WriteConfig takes the writeback field (§5.2.5.2): 0 is write-through.
func (d *Device) WriteConfig(off uint64, p []byte) {
	if off > configWriteback || off+uint64(len(p)) <= configWriteback {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.act != nil && d.act.Features.Has(VIRTIO_BLK_F_CONFIG_WCE) {
		d.writeback.Store(p[configWriteback-off] != 0)
	}
}

// Resized tells the driver that the image has another size (§5.2.4).
func (d *Device) Resized() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.act != nil {
		d.act.ConfigChanged()
	}
}

// Activate starts a worker for each enabled queue.
func (d *Device) Activate(a *virtio.Activation) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.act = a
	// §5.2.6.2: a driver that cannot flush must not depend on flushes.
	d.writeback.Store(a.Features.Has(VIRTIO_BLK_F_FLUSH) || a.Features.Has(VIRTIO_BLK_F_CONFIG_WCE))
	d.pool = newPool(d)
	for i, q := range a.Queues {
		// §5.2.5.1: without MQ only the first queue is used.
		if q != nil && (i == 0 || a.Features.Has(VIRTIO_BLK_F_MQ)) {
			w := &worker{dev: d, q: q, pool: d.pool, writable: !d.cfg.Image.ReadOnly()}
			raw, ok := d.cfg.Image.(*Raw)
			if ok && (d.cfg.Engine == EngineURing || (d.cfg.Engine == EngineAuto && raw.direct)) {
				w.ring = newRing(w, raw)
			}
			d.workers.Go(w.run)
		}
	}
	return nil
}

// Reset stops the workers and waits for the requests that the host is carrying out.
func (d *Device) Reset() {
	d.mu.Lock()
	pool := d.pool
	d.act, d.pool = nil, nil
	d.writeback.Store(true)
	d.mu.Unlock()
	if pool != nil {
		d.workers.Wait()
		pool.close()
	}
}

// Close resets the device and closes its image.
func (d *Device) Close() error {
	d.Reset()
	return d.cfg.Image.Close()
}
