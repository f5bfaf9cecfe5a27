// Package pmem is the virtio persistent memory device: a file of the host that
// the guest maps instead of reading it. Document: virtio 1.2 §5.19.
//
// What the guest writes is in the host's page cache at once; a flush request
// makes it durable. A page of a file that shrank beneath the mapping, or that cannot
// be read, becomes zeros: by the Window when this process touches it, by
// [Device.Repair] when KVM's CPU does. Flushes fail from then on.
package pmem

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/gvmspawn/gvmspawn/virtio"
	"github.com/gvmspawn/gvmspawn/virtio/virtq"
)

const queueSize = 64

// Align is what a window's size and address are a multiple of, in bytes: Linux
// maps persistent memory in units of it (include/linux/mmzone.h, SUBSECTION_SIZE).
const Align = 2 << 20

// Window is guest physical memory made of mappings; a *mem.Region of the kind
// mem.Window is one. Offsets and lengths are multiples of the page size.
type Window interface {
	Size() uint64
	// MapFile maps a file, MapPrivate a copy of it that is written in memory.
	MapFile(at uint64, fd int, off int64, length uint64, prot int) error
	MapPrivate(at uint64, fd int, off int64, length uint64) error
	// MapZero maps zeroed memory.
	MapZero(at, length uint64) error
	// Faults is how often this process found a page lost and put zeros there.
	Faults() uint64
}

// Config describes the device.
type Config struct {
	// File is a regular file or block device, open for writing unless Private is
	// set. It stays open while the device lives.
	File *os.File
	// Private keeps the guest's writes in memory and away from the file, and
	// drops them at the end: for read-only and ephemeral images. Persistent
	// memory that cannot be written is nothing that a driver knows of.
	Private bool
	// Window has the size that [WindowSize] says and the guest physical address
	// Addr, a multiple of Align.
	Window Window
	Addr   uint64
	Log    *slog.Logger // nil for none
}

// Device is a virtio persistent memory device. It implements virtio.Device.
type Device struct {
	cfg    Config
	pages  uint64 // of the file, in bytes; what follows up to the window's end is zeroed memory
	worker sync.WaitGroup

	mu   sync.Mutex         // guards the fields below and changes of the mappings
	sync func(fd int) error // makes the file durable
	lost bool               // a part of the file is not mapped any more
}

// pageSize is the unit of mappings.
const pageSize = 4096

// WindowSize is the size of the window for a file: the file's size rounded up to
// Align. An empty file is an error.
func WindowSize(f *os.File) (uint64, error) {
	n, err := fileSize(f)
	switch {
	case err != nil:
		return 0, fmt.Errorf("size of disk image %s: %w", f.Name(), err)
	case n == 0:
		return 0, fmt.Errorf("disk image %s is empty, it cannot be persistent memory", f.Name())
	}
	return (n + Align - 1) &^ (Align - 1), nil
}

// fileSize works for block devices, too.
func fileSize(f *os.File) (uint64, error) {
	end, err := f.Seek(0, io.SeekEnd)
	return uint64(max(end, 0)), err
}

// New maps the file and returns the device.
func New(cfg Config) (*Device, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	d := &Device{cfg: cfg, sync: fdatasync}
	if err := d.mapAll(); err != nil {
		return nil, fmt.Errorf("disk image %s: %w", cfg.File.Name(), err)
	}
	return d, nil
}

func (d *Device) mapAll() error {
	want, err := WindowSize(d.cfg.File)
	if err != nil {
		return err
	}
	n, err := fileSize(d.cfg.File)
	if err != nil {
		return err
	}
	w, fd := d.cfg.Window, int(d.cfg.File.Fd())
	if w.Size() != want || d.cfg.Addr%Align != 0 {
		return fmt.Errorf("a window of %#x bytes at %#x is not for a file of %#x bytes", w.Size(), d.cfg.Addr, n)
	}
	d.pages = (n + pageSize - 1) &^ (pageSize - 1)
	if d.cfg.Private {
		err = w.MapPrivate(0, fd, 0, d.pages)
	} else {
		err = w.MapFile(0, fd, 0, d.pages, unix.PROT_READ|unix.PROT_WRITE)
	}
	if err != nil || d.pages == want {
		return err
	}
	return w.MapZero(d.pages, want-d.pages)
}

// repairUnit is how much is replaced where the file is long enough, but cannot
// be read: at most 4,096 mappings, however often the guest faults.
func (d *Device) repairUnit() uint64 {
	unit := uint64(Align)
	for d.pages/unit > 4096 {
		unit *= 2
	}
	return unit
}

// Repair makes the page at byte offset off of the window usable again, after a
// CPU of the guest faulted on it: the file was truncated beneath, or could not
// be read. Zeroed memory that belongs to no file takes the place of what is
// lost, and from then on every flush fails. An error says that off is outside
// the window.
func (d *Device) Repair(off uint64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if off >= d.cfg.Window.Size() {
		return fmt.Errorf("virtio-pmem: no window at offset %#x", off)
	}
	if n, err := d.shrunk(); err == nil && n <= off {
		return d.replace(n, d.pages-n)
	}
	unit := d.repairUnit()
	start := off &^ (unit - 1)
	return d.replace(start, min(unit, d.cfg.Window.Size()-start))
}

// RepairShrunk is Repair for engines that do not know where a CPU faulted. It
// reports whether the file had become shorter since it was mapped or repaired.
func (d *Device) RepairShrunk() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	n, err := d.shrunk()
	return err == nil && n < d.pages && d.replace(n, d.pages-n) == nil
}

// shrunk is the end of the file in whole pages.
func (d *Device) shrunk() (uint64, error) {
	n, err := fileSize(d.cfg.File)
	return min((n+pageSize-1)&^(pageSize-1), d.pages), err
}

// replace puts zeroed memory somewhere. What it replaces at the file's end
// counts as the file no longer.
//
// Preconditions: d.mu is held.
func (d *Device) replace(at, n uint64) error {
	if n == 0 {
		return errors.New("virtio-pmem: nothing is lost there")
	}
	if !d.lost {
		d.cfg.Log.Warn("a disk image shrank or cannot be read, the guest reads zeros there and its flushes fail", "image", d.cfg.File.Name(), "offset", at)
	}
	d.lost = true
	if at+n == d.pages {
		d.pages = at
	}
	return d.cfg.Window.MapZero(at, n)
}

// Type is the persistent memory device ID (§5.19.1).
func (d *Device) Type() virtio.Type { return virtio.TypePmem }

// Features are none (§5.19.3).
func (d *Device) Features() virtio.Features { return 0 }

// QueueSizes is the one req_vq (§5.19.2).
func (d *Device) QueueSizes() []uint16 { return []uint16{queueSize} }

// ReadConfig reads struct virtio_pmem_config (§5.19.4).
func (d *Device) ReadConfig(off uint64, p []byte) {
	var b [configSize]byte
	binary.LittleEndian.PutUint64(b[configStart:], d.cfg.Addr)
	binary.LittleEndian.PutUint64(b[configLen:], d.cfg.Window.Size())
	virtio.ReadConfigBytes(p, b[:], off)
}

// WriteConfig ignores the write.
func (d *Device) WriteConfig(off uint64, p []byte) {}

// Activate starts the worker.
func (d *Device) Activate(a *virtio.Activation) error {
	if q := a.Queues[queueRequest]; q != nil {
		d.worker.Go(func() { d.serve(q) })
	}
	return nil
}

// Reset waits for the worker. A flush under way ends before.
func (d *Device) Reset() { d.worker.Wait() }

// serve answers requests until the queue is closed. All requests that wait are
// answered by one flush of the file, which begins after they came: a flood of
// them costs no more than one after the other.
func (d *Device) serve(q *virtq.Queue) {
	chains := make([]virtq.Chain, queueSize)
	for q.Wait() {
		for {
			n := 0
			for n < len(chains) && q.Pop(&chains[n]) {
				n++
			}
			if n == 0 {
				break
			}
			d.answer(q, chains[:n])
			q.Notify()
		}
	}
}

// answer flushes once, if any of the chains asks for it, and answers all.
func (d *Device) answer(q *virtq.Queue, chains []virtq.Chain) {
	flushed, ret := false, uint32(retFailure)
	for i := range chains {
		var req [reqSize]byte
		resp := [respSize]byte{retFailure}
		if n := chains[i].ReadAt(req[:], 0); n == reqSize && binary.LittleEndian.Uint32(req[:]) == VIRTIO_PMEM_REQ_TYPE_FLUSH {
			if !flushed {
				ret, flushed = d.flush(), true
			}
			binary.LittleEndian.PutUint32(resp[:], ret)
		}
		q.Push(&chains[i], uint32(chains[i].WriteAt(resp[:], 0)))
	}
}

// flush makes everything durable. §5.19.6: ret is 0 for success.
func (d *Device) flush() uint32 {
	d.mu.Lock()
	n, err := d.shrunk()
	lost, durable := d.lost || err != nil || n < d.pages || d.cfg.Window.Faults() > 0, d.sync
	d.mu.Unlock()
	switch {
	case lost:
		return retFailure
	case d.cfg.Private:
		return retSuccess
	case durable(int(d.cfg.File.Fd())) != nil:
		return retFailure
	}
	return retSuccess
}

// fdatasync is fdatasync(2).
func fdatasync(fd int) error {
	for {
		if err := unix.Fdatasync(fd); err != unix.EINTR {
			return err
		}
	}
}
