package vmm

import (
	"errors"
	"fmt"
	"sync"

	"github.com/gvmspawn/gvmspawn/devices/pci"
	"github.com/gvmspawn/gvmspawn/devices/power"
	"github.com/gvmspawn/gvmspawn/vmm/disk"
	"github.com/gvmspawn/gvmspawn/vmm/layout"
)

// Errors of AddDisk and RemoveDisk.
var (
	ErrDiskExists  = errors.New("the machine has a disk of that name")
	ErrNoDisk      = errors.New("the machine has no disk of that name")
	ErrDiskIsFixed = errors.New("the disk cannot be removed")
)

// DiskInUseError says that another machine or program has locked an image.
type DiskInUseError = disk.InUseError

// attachedDisk is a disk in the machine.
type attachedDisk struct {
	id       string
	function *pci.Function
	close    func() error
}

// disks are the machine's disks, some of which come and go.
type disks struct {
	plug  *pci.Hotplug // nil if no slot is left
	slots uint32       // of the disks that may go

	leaving sync.WaitGroup // disks that are being closed

	mu       sync.Mutex // guards the rest
	attached []*attachedDisk
	closed   bool
}

// addHotplug gives the slots that are left, and those of disks that may go, to
// the guest's hot-plug driver. All devices that are there at boot have been added.
func (m *Machine) addHotplug(host *pci.Host) error {
	if host == nil {
		return nil // a machine without PCI
	}
	slots := m.disks.slots
	for slot := uint8(1); slot < 32; slot++ {
		if host.At(pci.Address{Slot: slot}) == nil {
			slots |= 1 << slot
		}
	}
	if slots == 0 {
		return nil
	}
	m.disks.plug = pci.NewHotplug(host, slots, func() { m.raise(power.PCIHotplug) }, m.diskLeft)
	return m.bus.MMIO.Map("PCI hot-plug", layout.PCIHotplug, pci.HotplugSize, m.disks.plug)
}

// AddDisk plugs a disk into the running machine. It is there when the guest's
// driver has found it. Path, or File, and ID must be set.
func (m *Machine) AddDisk(d Disk) error {
	if m.runner.over() {
		return ErrNotRunning
	}
	if m.disks.plug == nil {
		return errors.New("the machine has no place for another device")
	}
	if m.disks.find(d.ID) != nil {
		return ErrDiskExists
	}
	f, closeDisk, err := m.newDisk(&d)
	if err != nil {
		return err
	}
	a := &attachedDisk{id: d.ID, function: f, close: closeDisk}
	if err := m.disks.attach(a); err != nil {
		return errors.Join(err, closeDisk())
	}
	if err := m.disks.plug.Add(f); err != nil {
		m.disks.take(f)
		return errors.Join(err, closeDisk())
	}
	return nil
}

// HasDisk reports whether the machine has a disk of that name.
func (m *Machine) HasDisk(id string) bool { return m.disks.find(id) != nil }

// RemoveDisk asks the guest to let go of a disk. When it has done so, the disk
// is closed and Config.DiskRemoved is called.
func (m *Machine) RemoveDisk(id string) error {
	if m.runner.over() {
		return ErrNotRunning
	}
	a := m.disks.find(id)
	switch {
	case a == nil:
		return ErrNoDisk
	case m.disks.plug == nil || !m.disks.plug.Remove(a.function):
		return ErrDiskIsFixed
	}
	return nil
}

// diskLeft is told that the guest has ejected a disk. It runs on a CPU's
// thread, which does not wait for the host's I/O.
func (m *Machine) diskLeft(f *pci.Function) {
	a := m.disks.take(f)
	if a == nil {
		return
	}
	m.disks.leaving.Go(func() {
		if err := a.close(); err != nil {
			m.log.Warn("closing a disk that was removed", "disk", a.id, "error", err)
		}
		if m.cfg.DiskRemoved != nil {
			m.cfg.DiskRemoved(a.id)
		}
	})
}

// attach remembers a disk.
func (d *disks) attach(a *attachedDisk) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return ErrNotRunning
	}
	for _, o := range d.attached {
		if a.id != "" && o.id == a.id {
			return fmt.Errorf("%w: %s", ErrDiskExists, a.id)
		}
	}
	d.attached = append(d.attached, a)
	return nil
}

func (d *disks) find(id string) *attachedDisk {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, a := range d.attached {
		if a.id == id {
			return a
		}
	}
	return nil
}

// take forgets the disk behind a function and returns it, or nil.
func (d *disks) take(f *pci.Function) *attachedDisk {
	d.mu.Lock()
	defer d.mu.Unlock()
	for i, a := range d.attached {
		if a.function == f {
			d.attached = append(d.attached[:i:i], d.attached[i+1:]...)
			return a
		}
	}
	return nil
}

// close closes all disks. No CPU runs.
func (d *disks) close() error {
	d.leaving.Wait()
	d.mu.Lock()
	d.closed = true
	attached := d.attached
	d.attached = nil
	d.mu.Unlock()
	var errs []error
	for _, a := range attached {
		errs = append(errs, a.close())
	}
	return errors.Join(errs...)
}
