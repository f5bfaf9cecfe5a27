// Package memdev is the virtio memory device, virtio-mem: RAM that is plugged
// and unplugged in blocks while the guest runs. Document: virtio 1.2 §5.15.
//
// The host says how much of the region the guest should use; the driver asks
// for blocks, or gives them back, until it has that much. It never has more.
package memdev

import (
	"encoding/binary"
	"fmt"
	"sync"

	"github.com/gvmspawn/gvmspawn/virtio"
	"github.com/gvmspawn/gvmspawn/virtio/virtq"
)

const queueSize = 128

// Region is the memory behind the device; a *mem.Region of the kind
// mem.Pluggable is one. Ranges are whole blocks inside the region.
type Region interface {
	Size() uint64
	// Plugged and Unplugged report whether all blocks, or none, of a range
	// are plugged.
	Plugged(off, n uint64) bool
	Unplugged(off, n uint64) bool
	// SetPlugged changes the blocks of a range.
	SetPlugged(off, n uint64, on bool) error
}

// Config describes the device.
type Config struct {
	Region Region
	// Addr is the region's guest physical address, a multiple of BlockSize.
	Addr uint64
	// BlockSize is the unit of plugging in bytes, a power of two of at least 4096.
	BlockSize uint64
	// Requested is how many bytes the guest should have plugged at first.
	Requested uint64
}

// Device is a virtio memory device. It implements virtio.Device.
type Device struct {
	cfg    Config
	worker sync.WaitGroup

	mu        sync.Mutex // guards the fields below and changes of the region
	act       *virtio.Activation
	requested uint64
	plugged   uint64
}

// New returns the device. All blocks of the region are unplugged.
func New(cfg Config) (*Device, error) {
	size, block := cfg.Region.Size(), cfg.BlockSize
	if block < 4096 || block&(block-1) != 0 || cfg.Addr%block != 0 || size == 0 || size%block != 0 {
		return nil, fmt.Errorf("virtio-mem: region %#x+%#x is not made of blocks of %#x bytes", cfg.Addr, size, block)
	}
	d := &Device{cfg: cfg}
	return d, d.SetRequested(cfg.Requested)
}

// SetRequested says how many bytes the guest should use, rounded up to blocks.
// The guest follows in its own time, and as far as it can: see [Device.Plugged].
func (d *Device) SetRequested(n uint64) error {
	if n > d.cfg.Region.Size() {
		return fmt.Errorf("virtio-mem: %d MiB are more than the region's %d MiB", n>>20, d.cfg.Region.Size()>>20)
	}
	n = (n + d.cfg.BlockSize - 1) &^ (d.cfg.BlockSize - 1)
	d.mu.Lock()
	defer d.mu.Unlock()
	if n == d.requested {
		return nil
	}
	d.requested = n
	if d.act != nil {
		d.act.ConfigChanged()
	}
	return nil
}

// Requested is how many bytes the guest should use.
func (d *Device) Requested() uint64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.requested
}

// Plugged is how many bytes it does use.
func (d *Device) Plugged() uint64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.plugged
}

// Type is the memory device's ID (§5.15.1).
func (d *Device) Type() virtio.Type { return virtio.TypeMem }

// Features are the feature bits offered (§5.15.3): unplugged memory is nothing
// that a guest may rely on reading.
func (d *Device) Features() virtio.Features {
	return virtio.Bits(VIRTIO_MEM_F_UNPLUGGED_INACCESSIBLE)
}

// QueueSizes is the one guest-request queue (§5.15.2).
func (d *Device) QueueSizes() []uint16 { return []uint16{queueSize} }

// ReadConfig reads struct virtio_mem_config (§5.15.4). The whole region is
// usable at any time; the requested size is the bound.
func (d *Device) ReadConfig(off uint64, p []byte) {
	var b [configSize]byte
	le := binary.LittleEndian
	le.PutUint64(b[configBlockSize:], d.cfg.BlockSize)
	le.PutUint64(b[configAddr:], d.cfg.Addr)
	le.PutUint64(b[configRegionSize:], d.cfg.Region.Size())
	le.PutUint64(b[configUsableSize:], d.cfg.Region.Size())
	d.mu.Lock()
	le.PutUint64(b[configPluggedSize:], d.plugged)
	le.PutUint64(b[configRequestedSize:], d.requested)
	d.mu.Unlock()
	virtio.ReadConfigBytes(p, b[:], off)
}

// WriteConfig ignores the write: all fields are read-only.
func (d *Device) WriteConfig(off uint64, p []byte) {}

// Activate starts the worker.
func (d *Device) Activate(a *virtio.Activation) error {
	d.mu.Lock()
	d.act = a
	d.mu.Unlock()
	if q := a.Queues[queueGuestRequest]; q != nil {
		d.worker.Go(func() { d.serve(q) })
	}
	return nil
}

// Reset stops the worker. Plugged memory stays plugged (§5.15.5): a driver that
// comes back asks for its state, or lets go of all of it by UNPLUG_ALL.
func (d *Device) Reset() {
	d.mu.Lock()
	d.act = nil
	d.mu.Unlock()
	d.worker.Wait()
}

// serve answers requests until the queue is closed.
func (d *Device) serve(q *virtq.Queue) {
	var c virtq.Chain
	for q.Wait() {
		for q.Pop(&c) {
			q.Push(&c, d.answer(&c))
		}
		q.Notify()
	}
}

// answer serves the request in c and returns how many bytes it wrote.
func (d *Device) answer(c *virtq.Chain) uint32 {
	var req [reqSize]byte
	var resp [respSize]byte
	n := c.ReadAt(req[:], 0)
	kind, state := d.request(req[:n])
	binary.LittleEndian.PutUint16(resp[respType:], kind)
	binary.LittleEndian.PutUint16(resp[respState:], state)
	return uint32(c.WriteAt(resp[:], 0))
}

// request does what a request asks for and returns the response type and, for
// STATE, the state.
func (d *Device) request(req []byte) (resp, state uint16) {
	le := binary.LittleEndian
	if len(req) < reqAddr {
		return VIRTIO_MEM_RESP_ERROR, 0
	}
	kind := le.Uint16(req[reqType:])
	d.mu.Lock()
	defer d.mu.Unlock()
	if kind == VIRTIO_MEM_REQ_UNPLUG_ALL {
		return d.unplugAll(), 0
	}
	if len(req) < reqSize {
		return VIRTIO_MEM_RESP_ERROR, 0
	}
	off, n, ok := d.blocks(le.Uint64(req[reqAddr:]), le.Uint16(req[reqBlocks:]))
	if !ok {
		return VIRTIO_MEM_RESP_ERROR, 0
	}
	switch kind {
	case VIRTIO_MEM_REQ_PLUG:
		return d.plug(off, n), 0
	case VIRTIO_MEM_REQ_UNPLUG:
		return d.unplug(off, n), 0
	case VIRTIO_MEM_REQ_STATE:
		return VIRTIO_MEM_RESP_ACK, d.state(off, n)
	}
	return VIRTIO_MEM_RESP_ERROR, 0
}

// blocks is the range of nb blocks at addr. Requests for none, for blocks that are
// not aligned or not wholly inside the usable region get ERROR (§5.15.6).
func (d *Device) blocks(addr uint64, nb uint16) (off, n uint64, ok bool) {
	off, n = addr-d.cfg.Addr, uint64(nb)*d.cfg.BlockSize
	size := d.cfg.Region.Size()
	ok = addr >= d.cfg.Addr && off%d.cfg.BlockSize == 0 && n != 0 && off < size && n <= size-off
	return off, n, ok
}

// plug plugs blocks that are all unplugged. NACK: it would be more than requested.
//
// Preconditions: d.mu is held.
func (d *Device) plug(off, n uint64) uint16 {
	switch {
	case !d.cfg.Region.Unplugged(off, n):
		return VIRTIO_MEM_RESP_ERROR
	case n > d.requested || d.plugged > d.requested-n:
		return VIRTIO_MEM_RESP_NACK
	case d.cfg.Region.SetPlugged(off, n, true) != nil:
		return VIRTIO_MEM_RESP_BUSY
	}
	d.plugged += n
	return VIRTIO_MEM_RESP_ACK
}

// unplug unplugs blocks that are all plugged.
//
// Preconditions: d.mu is held.
func (d *Device) unplug(off, n uint64) uint16 {
	if !d.cfg.Region.Plugged(off, n) {
		return VIRTIO_MEM_RESP_ERROR
	}
	if d.cfg.Region.SetPlugged(off, n, false) != nil {
		return VIRTIO_MEM_RESP_BUSY
	}
	d.plugged -= n
	return VIRTIO_MEM_RESP_ACK
}

// unplugAll unplugs everything.
//
// Preconditions: d.mu is held.
func (d *Device) unplugAll() uint16 {
	if d.cfg.Region.SetPlugged(0, d.cfg.Region.Size(), false) != nil {
		return VIRTIO_MEM_RESP_BUSY
	}
	d.plugged = 0
	return VIRTIO_MEM_RESP_ACK
}

// state is what STATE answers.
func (d *Device) state(off, n uint64) uint16 {
	switch {
	case d.cfg.Region.Plugged(off, n):
		return VIRTIO_MEM_STATE_PLUGGED
	case d.cfg.Region.Unplugged(off, n):
		return VIRTIO_MEM_STATE_UNPLUGGED
	}
	return VIRTIO_MEM_STATE_MIXED
}
