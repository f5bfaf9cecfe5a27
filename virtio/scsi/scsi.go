// Package scsi is the virtio SCSI host device with disks and CD-ROM drives
// behind it. Documents: virtio 1.2 §5.6; SCSI: SAM-5, SPC-4, SBC-3, MMC-6.
//
// Each target has one logical unit, number 0. Each request queue has one
// goroutine that takes commands and starts them on disk.Queues; what needs no
// disk is answered at once. A task management function that ends tasks waits
// for them: what the host is carrying out cannot be called back.
package scsi

import (
	"encoding/binary"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/gvmspawn/gvmspawn/virtio"
	"github.com/gvmspawn/gvmspawn/vmm/disk"
)

const (
	queueSize  = disk.QueueDepth
	maxQueues  = 64
	maxTargets = 256
	maxSerial  = 30
	// segMax is the most data buffers of a command: with header and answer
	// they fill a queue that has no indirect descriptors.
	segMax = queueSize - 2
	// maxSectors is the longest transfer in units of 512 bytes.
	maxSectors = 0xffff
)

// Target is a disk or a CD-ROM drive.
type Target struct {
	// Drive is what it holds. Close of the device closes it.
	Drive *disk.Drive
	// CD makes it a CD-ROM drive, of which nothing can be written.
	CD bool
	// Serial is the unit serial number, up to 30 bytes.
	Serial string
	// ID tells the unit from all others.
	ID [16]byte
}

// Config describes the device.
type Config struct {
	// Targets are numbered from 0 on; at most 256.
	Targets []Target
	// Queues is the number of request queues, 1 to 64; best one per CPU.
	Queues int
}

// Device is a virtio SCSI host device. It implements virtio.Device.
type Device struct {
	units []*unit
	sizes []uint16

	// Both are the driver's to choose (§5.6.4).
	senseSize, cdbSize atomic.Uint32

	running sync.WaitGroup // between Activate and Reset

	mu      sync.Mutex // guards the rest
	workers []*worker
	active  bool
}

// New returns the device.
func New(cfg Config) (*Device, error) {
	switch {
	case cfg.Queues < 1 || cfg.Queues > maxQueues:
		return nil, fmt.Errorf("virtio-scsi: %d queues, must be 1 to %d", cfg.Queues, maxQueues)
	case len(cfg.Targets) < 1 || len(cfg.Targets) > maxTargets:
		return nil, fmt.Errorf("virtio-scsi: %d targets, must be 1 to %d", len(cfg.Targets), maxTargets)
	}
	d := &Device{sizes: make([]uint16, firstRequests+cfg.Queues)}
	for i := range d.sizes {
		d.sizes[i] = queueSize
	}
	for _, t := range cfg.Targets {
		if len(t.Serial) > maxSerial {
			return nil, fmt.Errorf("virtio-scsi: serial number %q is longer than %d bytes", t.Serial, maxSerial)
		}
		d.units = append(d.units, newUnit(t))
	}
	d.clear()
	return d, nil
}

// clear brings what the driver may change into its initial state.
func (d *Device) clear() {
	d.senseSize.Store(defaultSenseSize)
	d.cdbSize.Store(defaultCDBSize)
	for _, u := range d.units {
		u.clear()
	}
}

// Type is the SCSI host device ID (§5.6.1).
func (d *Device) Type() virtio.Type { return virtio.TypeSCSI }

// Features are the feature bits offered (§5.6.3): none. Units neither come nor
// go while the device is there.
func (d *Device) Features() virtio.Features { return 0 }

// QueueSizes are those of the control, event and request queues (§5.6.2).
func (d *Device) QueueSizes() []uint16 { return d.sizes }

// ReadConfig reads the configuration of §5.6.4.
func (d *Device) ReadConfig(off uint64, p []byte) {
	var b [configSize]byte
	le := binary.LittleEndian
	le.PutUint32(b[configNumQueues:], uint32(len(d.sizes)-firstRequests))
	le.PutUint32(b[configSegMax:], segMax)
	le.PutUint32(b[configMaxSectors:], maxSectors)
	le.PutUint32(b[configCmdPerLUN:], queueSize/2)
	le.PutUint32(b[configEventSize:], eventSize)
	le.PutUint32(b[configSenseSize:], d.senseSize.Load())
	le.PutUint32(b[configCDBSize:], d.cdbSize.Load())
	le.PutUint16(b[configMaxTarget:], uint16(len(d.units)-1))
	le.PutUint32(b[configMaxLUN:], 0)
	virtio.ReadConfigBytes(p, b[:], off)
}

// WriteConfig takes sense_size and cdb_size. Any value will do: no buffer here
// is as long as they say.
func (d *Device) WriteConfig(off uint64, p []byte) {
	if len(p) != 4 {
		return
	}
	v := binary.LittleEndian.Uint32(p)
	switch off {
	case configSenseSize:
		d.senseSize.Store(v)
	case configCDBSize:
		d.cdbSize.Store(v)
	}
}

// Activate starts a worker for each enabled queue. The event queue's buffers
// stay where they are: there are no events.
func (d *Device) Activate(a *virtio.Activation) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.active, d.workers = true, nil
	for i, q := range a.Queues {
		switch {
		case q == nil || i == eventQueue:
		case i == controlQueue:
			d.running.Go(func() { d.control(q) })
		default:
			w := newWorker(d, q)
			d.workers = append(d.workers, w)
			if !d.inOrder() {
				q.Inline(w.inline)
			}
			d.running.Go(w.run)
		}
	}
	return nil
}

// inOrder reports whether a disk wants its requests carried out one after the other.
func (d *Device) inOrder() bool {
	return slices.ContainsFunc(d.units, func(u *unit) bool { return u.drive.InOrder() })
}

// Reset stops the workers and waits for the commands that the host is carrying out.
func (d *Device) Reset() {
	d.running.Wait()
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.active {
		d.active, d.workers = false, nil
		d.clear()
	}
}

// Close resets the device and closes its drives.
func (d *Device) Close() error {
	d.Reset()
	var first error
	for _, u := range d.units {
		if err := u.drive.Close(); first == nil {
			first = err
		}
	}
	return first
}

// unit finds the logical unit that an address names (§5.6.6.1: byte 0 is 1,
// byte 1 the target, bytes 2 and 3 a LUN in single-level format). ok says that
// the target is there; the unit is nil if only that is.
func (d *Device) unit(lun [8]byte) (u *unit, target int, ok bool) {
	target = int(lun[1])
	if lun[0] != 1 || target >= len(d.units) {
		return nil, 0, false
	}
	// SAM-5 §4.7.7: 00b is peripheral, 01b is flat space addressing.
	n := uint16(lun[2])<<8 | uint16(lun[3])
	if n&0x3fff != 0 || n>>15 != 0 {
		return nil, target, true
	}
	return d.units[target], target, true
}
