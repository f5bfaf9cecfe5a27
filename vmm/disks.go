package vmm

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/gvmspawn/gvmspawn/devices/pci"
	"github.com/gvmspawn/gvmspawn/virtio/blk"
	"github.com/gvmspawn/gvmspawn/vmm/disk"
	"github.com/gvmspawn/gvmspawn/vmm/disk/qcow2"
)

func (m *Machine) addDisks(host *pci.Host) error {
	for i := range m.cfg.Disks {
		d := &m.cfg.Disks[i]
		if d.Bus != DiskVirtioBlk {
			return fmt.Errorf("disk %s: only virtio-blk is supported yet", d.Path)
		}
		image, err := openDisk(d)
		if err != nil {
			return err
		}
		drive := disk.NewDrive(disk.Config{Image: image, Discard: d.Discard, InOrder: m.cfg.Deterministic, Log: m.log})
		dev, err := blk.New(blk.Config{Drive: drive, Serial: d.Serial, Queues: min(m.cfg.CPUs, 16)})
		if err != nil {
			return err
		}
		m.onClose(dev.Close)
		if err := m.plug(host, "virtio-blk "+d.Path, dev); err != nil {
			return err
		}
	}
	return nil
}

// openDisk opens the image of a disk in the named format.
func openDisk(d *Disk) (disk.Image, error) {
	o := disk.Options{ReadOnly: d.ReadOnly || d.Ephemeral}
	var image disk.Image
	var err error
	switch d.Format {
	case FormatRaw:
		image, err = disk.OpenRaw(d.Path, o)
	case FormatQcow2:
		image, err = qcow2.Open(d.Path, o)
	default:
		err = fmt.Errorf("disk %s: unknown image format", d.Path)
	}
	if err != nil {
		return nil, err
	}
	if !d.Ephemeral {
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
