package main

import (
	"errors"
	"fmt"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/gvmspawn/gvmspawn/cmd/gvmspawn/internal/control"
	"github.com/gvmspawn/gvmspawn/vmm"
)

// diskDrivers are the types of disks as the control socket calls them.
var diskDrivers = map[vmm.DiskBus]string{
	vmm.DiskVirtioBlk: "virtio_blk", vmm.DiskVirtioSCSI: "scsi_hd", vmm.DiskCDROM: "scsi_cd", vmm.DiskNVMe: "nvme",
	vmm.DiskPmem: "virtio_pmem", // only at boot
}

// attached are the disks that came while the machine ran, and those that are
// asked to go: a reboot takes both into account.
type attached struct {
	files  map[string]*os.File
	next   int             // of the names bdN
	adding map[string]bool // names that are being added
	going  map[string]bool
}

// Disks implements control.Machine.
func (c remote) Disks() []control.Disk {
	c.r.mu.Lock()
	defer c.r.mu.Unlock()
	var all []control.Disk
	for i := range c.r.cfg.Disks {
		d := &c.r.cfg.Disks[i]
		format := "raw"
		if d.Format == vmm.FormatQcow2 {
			format = "qcow2"
		}
		all = append(all, control.Disk{ID: d.ID, Format: format, Driver: diskDrivers[d.Bus], ReadOnly: d.ReadOnly, Discard: d.Discard, Serial: d.Serial})
	}
	return all
}

// AddDisk implements control.Machine. The disk outlives a reboot.
func (c remote) AddDisk(d control.Disk) (string, error) {
	disk, err := c.newDisk(d)
	if err != nil {
		d.File.Close()
		return "", err
	}
	m, err := c.reserve(&disk)
	if err != nil {
		d.File.Close()
		return "", err
	}
	err = m.AddDisk(disk)
	r := c.r
	r.mu.Lock()
	delete(r.attached.adding, disk.ID)
	if err == nil && r.machine != m {
		err = vmm.ErrNotRunning // it ended meanwhile, with the disk
	}
	if err == nil {
		r.attached.files[disk.ID] = d.File
		r.cfg.Disks = append(r.cfg.Disks, disk)
		if !m.HasDisk(disk.ID) {
			r.forgetDisk(disk.ID) // a guest has ejected it unasked
		}
	}
	r.mu.Unlock()
	if err != nil {
		d.File.Close()
		return "", diskError(err)
	}
	return disk.ID, nil
}

// newDisk is a disk as the machine gets it.
func (c remote) newDisk(d control.Disk) (vmm.Disk, error) {
	disk := vmm.Disk{ID: d.ID, File: d.File, Format: diskFormat(d.Format), ReadOnly: d.ReadOnly, Discard: d.Discard, Serial: d.Serial, Removable: true, Cache: diskCache(c.r.s.diskCache), AnyBacking: c.r.s.anyBacking()}
	for bus, name := range diskDrivers {
		if name == d.Driver {
			disk.Bus = bus
		}
	}
	flags, err := unix.FcntlInt(d.File.Fd(), unix.F_GETFL, 0)
	if err != nil {
		return disk, err
	}
	if flags&unix.O_PATH != 0 || flags&unix.O_ACCMODE == unix.O_WRONLY {
		return disk, errors.New("the file is not open for reading")
	}
	if flags&unix.O_ACCMODE == unix.O_RDONLY || disk.Bus == vmm.DiskCDROM {
		disk.ReadOnly = true
	}
	// The name is for messages, and for what lies beside the image.
	if disk.Path, err = os.Readlink(fmt.Sprintf("/proc/self/fd/%d", d.File.Fd())); err != nil {
		return disk, err
	}
	if disk.Serial == "" {
		disk.Serial = serial(disk.Path, disk.Bus)
	}
	return disk, nil
}

// reserve takes a name for a disk and returns the machine that gets it.
func (c remote) reserve(d *vmm.Disk) (*vmm.Machine, error) {
	r := c.r
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.machine == nil {
		return nil, control.ErrNotRunning
	}
	if d.ID == "" {
		for d.ID = r.attached.name(); r.hasDisk(d.ID); {
			d.ID = r.attached.name()
		}
	}
	if r.hasDisk(d.ID) {
		return nil, control.ErrDiskExists
	}
	if r.attached.adding == nil {
		r.attached.adding, r.attached.files, r.attached.going = map[string]bool{}, map[string]*os.File{}, map[string]bool{}
	}
	r.attached.adding[d.ID] = true
	return r.machine, nil
}

// name is the next name that is made for a disk.
func (a *attached) name() string {
	a.next++
	return fmt.Sprintf("bd%d", a.next-1)
}

// hasDisk reports whether a name is taken.
//
// Preconditions: r.mu is held.
func (r *session) hasDisk(id string) bool {
	return r.attached.adding[id] || slices.ContainsFunc(r.cfg.Disks, func(d vmm.Disk) bool { return d.ID == id })
}

// RemoveDisk implements control.Machine.
func (c remote) RemoveDisk(id string) error {
	m, err := c.current()
	if err != nil {
		return control.ErrNotRunning
	}
	err = m.RemoveDisk(id)
	c.r.mu.Lock()
	defer c.r.mu.Unlock()
	switch {
	case errors.Is(err, vmm.ErrNoDisk) && c.r.hasDisk(id):
		return control.ErrDiskIsFixed // no disk of the machine's, but memory
	case err != nil:
		return diskError(err)
	}
	if c.r.attached.going == nil {
		c.r.attached.adding, c.r.attached.files, c.r.attached.going = map[string]bool{}, map[string]*os.File{}, map[string]bool{}
	}
	if c.r.hasDisk(id) {
		c.r.attached.going[id] = true
	}
	return nil
}

// diskError is the control socket's error for one of the machine's.
func diskError(err error) error {
	var busy *vmm.DiskInUseError
	switch {
	case errors.Is(err, vmm.ErrDiskExists):
		return control.ErrDiskExists
	case errors.Is(err, vmm.ErrNoDisk):
		return control.ErrNoDisk
	case errors.Is(err, vmm.ErrDiskIsFixed):
		return control.ErrDiskIsFixed
	case errors.Is(err, vmm.ErrNotRunning):
		return control.ErrNotRunning
	case errors.As(err, &busy):
		return control.ErrDiskInUse
	}
	return err
}

// diskRemoved is told by the machine of a disk that the guest has let go.
func (r *session) diskRemoved(id string) {
	r.mu.Lock()
	r.forgetDisk(id)
	r.mu.Unlock()
	if r.control != nil {
		r.control.Emit(control.EventDiskRemoved, map[string]any{"id": id})
	}
}

// forgetDisk takes a disk out of what the next boot gets.
//
// Preconditions: r.mu is held.
func (r *session) forgetDisk(id string) {
	r.cfg.Disks = slices.DeleteFunc(slices.Clone(r.cfg.Disks), func(d vmm.Disk) bool { return d.ID == id })
	if f := r.attached.files[id]; f != nil {
		f.Close()
	}
	delete(r.attached.files, id)
	delete(r.attached.going, id)
}

// dropGoing forgets the disks that the last boot was asked to let go: a reset
// is the guest's last chance to keep them.
func (r *session) dropGoing() {
	r.mu.Lock()
	var gone []string
	for id := range r.attached.going {
		gone = append(gone, id)
	}
	r.mu.Unlock()
	for _, id := range gone {
		r.diskRemoved(id)
	}
}
