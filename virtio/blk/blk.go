// Package blk is the virtio block device. Document: virtio 1.2 §5.2.
//
// Each virtqueue has one goroutine that takes requests, checks them and starts
// them on a disk.Queue, which carries out at once what needs no waiting.
package blk

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"sync"
	"sync/atomic"

	"github.com/gvmspawn/gvmspawn/virtio"
	"github.com/gvmspawn/gvmspawn/vmm/disk"
)

const (
	queueSize = disk.QueueDepth
	maxQueues = 64
	// segMax is the most data buffers of a request: with header and status
	// they fill a queue that has no indirect descriptors (§5.2.4).
	segMax = queueSize - 2

	// Bounds of one DISCARD or WRITE_ZEROES request.
	maxRangeSectors = 1 << 22 // 2 GiB
	maxRanges       = 16
)

// Config describes the device.
type Config struct {
	// Drive is the disk. Close of the device closes it.
	Drive *disk.Drive
	// Queues is the number of request queues, 1 to 64; best one per CPU.
	Queues int
	// Serial is what GET_ID answers: up to 20 bytes.
	Serial string
}

// Device is a virtio block device. It implements virtio.Device.
type Device struct {
	cfg   Config
	image disk.Image // of the drive
	id    [idSize]byte
	sizes []uint16

	// writeback is the cache mode: with false, each write is flushed before
	// it is answered (§5.2.6.2).
	writeback atomic.Bool

	workers sync.WaitGroup // between Activate and Reset
	mu      sync.Mutex     // guards act
	act     *virtio.Activation
}

// New returns the device.
func New(cfg Config) (*Device, error) {
	if cfg.Queues < 1 || cfg.Queues > maxQueues {
		return nil, fmt.Errorf("virtio-blk: %d queues, must be 1 to %d", cfg.Queues, maxQueues)
	}
	if len(cfg.Serial) > idSize {
		return nil, fmt.Errorf("virtio-blk: serial number %q is longer than %d bytes", cfg.Serial, idSize)
	}
	d := &Device{cfg: cfg, image: cfg.Drive.Image()}
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
	if d.image.ReadOnly() {
		return f | virtio.Bits(VIRTIO_BLK_F_RO)
	}
	f |= virtio.Bits(VIRTIO_BLK_F_WRITE_ZEROES)
	if d.cfg.Drive.Discards() {
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
	g := d.image.Geometry()
	le.PutUint64(b[configCapacity:], d.image.Size()>>sectorShift)
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
	if d.cfg.Drive.Discards() {
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
	// §5.2.6.2: a driver that cannot flush must not depend on flushes. §5.2.5.2:
	// "If VIRTIO_BLK_F_CONFIG_WCE is negotiated but VIRTIO_BLK_F_FLUSH is not, the
	// device MUST initialize writeback to 0."
	d.writeback.Store(a.Features.Has(VIRTIO_BLK_F_FLUSH))
	for i, q := range a.Queues {
		// §5.2.5.1: without MQ only the first queue is used.
		if q != nil && (i == 0 || a.Features.Has(VIRTIO_BLK_F_MQ)) {
			w := newWorker(d, q)
			if !d.cfg.Drive.InOrder() {
				q.Inline(w.inline)
			}
			d.workers.Go(w.run)
		}
	}
	return nil
}

// Reset stops the workers and waits for the requests that the host is carrying out.
func (d *Device) Reset() {
	d.mu.Lock()
	d.act = nil
	d.writeback.Store(true)
	d.mu.Unlock()
	d.workers.Wait()
}

// Close resets the device and closes its drive.
func (d *Device) Close() error {
	d.Reset()
	return d.cfg.Drive.Close()
}
