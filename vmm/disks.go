package vmm

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/gvmspawn/gvmspawn/devices/nvme"
	"github.com/gvmspawn/gvmspawn/devices/pci"
	"github.com/gvmspawn/gvmspawn/virtio"
	"github.com/gvmspawn/gvmspawn/virtio/blk"
	"github.com/gvmspawn/gvmspawn/virtio/scsi"
	"github.com/gvmspawn/gvmspawn/vmm/disk"
	"github.com/gvmspawn/gvmspawn/vmm/disk/qcow2"
)

// maxDiskQueues is how many request queues a disk has at most; one per CPU is best.
const maxDiskQueues = 16

func (m *Machine) addDisks(host *pci.Host) error {
	m.onClose(m.disks.close)
	for i := range m.cfg.Disks {
		d := &m.cfg.Disks[i]
		if d.Bus == DiskPmem {
			continue // addPmemDevices
		}
		f, closeDisk, err := m.newDisk(d)
		if err != nil {
			return err
		}
		if err := m.disks.attach(&attachedDisk{d.ID, f, closeDisk}); err != nil {
			return errors.Join(err, closeDisk())
		}
		if f == nil {
			m.diskPlaces[d.ID] = m.mmioPlace()
			continue
		}
		a, err := host.Add(f)
		if err != nil {
			return err
		}
		m.bootFrom(bootPaths[d.Bus], a)
		m.diskPlaces[d.ID] = pciPlace(a)
		if d.Removable && a.Function == 0 {
			m.disks.slots |= 1 << a.Slot
		}
	}
	return nil
}

// newDisk opens a disk and makes the PCI function that it is behind. A SCSI
// disk has a host adapter of its own.
func (m *Machine) newDisk(d *Disk) (*pci.Function, func() error, error) {
	image, err := openDisk(d)
	if err != nil {
		return nil, nil, err
	}
	drive := disk.NewDrive(disk.Config{Image: image, Discard: d.Discard, NoFlush: d.Cache == CacheUnsafe, InOrder: m.cfg.Deterministic, Log: m.log})
	queues := min(m.cfg.CPUs, maxDiskQueues)
	id := sha256.Sum256([]byte(m.cfg.Name + "\x00" + d.Path + "\x00" + d.ID))
	var f *pci.Function
	var closeDisk func() error
	switch d.Bus {
	case DiskVirtioBlk:
		var dev *blk.Device
		if dev, err = blk.New(blk.Config{Drive: drive, Serial: d.Serial, Queues: queues}); err == nil {
			f, closeDisk, err = m.virtioFunction("virtio-blk "+d.Path, dev)
		}
	case DiskVirtioSCSI, DiskCDROM:
		var dev *scsi.Device
		t := scsi.Target{Drive: drive, CD: d.Bus == DiskCDROM, Serial: d.Serial, ID: [16]byte(id[:])}
		if dev, err = scsi.New(scsi.Config{Targets: []scsi.Target{t}, Queues: queues}); err == nil {
			f, closeDisk, err = m.virtioFunction("virtio-scsi "+d.Path, dev)
		}
	case DiskNVMe:
		if m.pci == nil {
			err = fmt.Errorf("disk %s: NVMe needs PCI (--virtio-transport=pci)", d.Path)
			break
		}
		var dev *nvme.Controller
		// OVMF makes two queues and gives up when there is one.
		c := nvme.Config{Drive: drive, Queues: max(queues, 2), Serial: d.Serial, ID: [16]byte(id[:]), InOrder: m.cfg.Deterministic}
		if dev, err = nvme.New("nvme "+d.Path, c, m.mem, m.vm); err == nil {
			f, closeDisk = dev.Function, dev.Close
		}
	default:
		err = fmt.Errorf("disk %s: unknown bus", d.Path)
	}
	if err != nil {
		return nil, nil, errors.Join(err, drive.Close())
	}
	return f, closeDisk, nil
}

// virtioFunction makes a virtio device that has a Close a PCI function; in a machine
// without PCI there is none to add.
func (m *Machine) virtioFunction(name string, dev interface {
	virtio.Device
	io.Closer
}) (*pci.Function, func() error, error) {
	if m.pci == nil {
		d, err := m.newMMIO(name, dev)
		if err != nil {
			return nil, nil, err
		}
		return nil, func() error { d.Close(); return dev.Close() }, nil
	}
	f, err := m.virtioPCI(name, dev)
	if err != nil {
		return nil, nil, err
	}
	return f.Function, func() error { f.Close(); return dev.Close() }, nil
}

// openDisk opens the image of a disk in the named format.
func openDisk(d *Disk) (disk.Image, error) {
	o := disk.Options{ReadOnly: d.ReadOnly || d.Ephemeral || d.Bus == DiskCDROM, File: d.File, AnyBacking: d.AnyBacking}
	var image disk.Image
	var err error
	switch d.Format {
	case FormatRaw:
		o.Direct = d.Cache == CacheNone
		image, err = disk.OpenRaw(d.Path, o)
	case FormatQcow2:
		image, err = qcow2.Open(d.Path, o)
	default:
		err = fmt.Errorf("disk %s: unknown image format", d.Path)
	}
	if err != nil {
		return nil, err
	}
	if !d.Ephemeral || d.Bus == DiskCDROM {
		return image, nil
	}
	overlay, err := disk.NewOverlay(image, os.TempDir())
	if err != nil {
		return nil, errors.Join(err, image.Close())
	}
	return overlay, nil
}

// DiskReader reads a disk image without changing it, as to look for a kernel
// in it before the machine is made.
type DiskReader struct{ image disk.Image }

// OpenDisk opens a disk for reading.
func OpenDisk(d Disk) (*DiskReader, error) {
	d.ReadOnly, d.Ephemeral = true, false
	image, err := openDisk(&d)
	if err != nil {
		return nil, err
	}
	return &DiskReader{image}, nil
}

// Size is the disk's length in bytes.
func (r *DiskReader) Size() int64 { return int64(r.image.Size()) }

// Close closes the image.
func (r *DiskReader) Close() error { return r.image.Close() }

// ReadAt implements io.ReaderAt.
func (r *DiskReader) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off >= r.Size() {
		return 0, io.EOF
	}
	n := int(min(int64(len(p)), r.Size()-off))
	// The image wants whole sectors.
	start := off &^ (disk.SectorSize - 1)
	end := (off + int64(n) + disk.SectorSize - 1) &^ (disk.SectorSize - 1)
	b := p[:n]
	if start != off || end != off+int64(n) {
		b = make([]byte, end-start)
	}
	if err := r.image.ReadAt([][]byte{b}, uint64(start)); err != nil {
		return 0, err
	}
	if len(b) != n || start != off {
		copy(p[:n], b[off-start:])
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}
