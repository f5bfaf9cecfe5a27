package vmm

import (
	"errors"
	"fmt"
	"os"

	"github.com/gvmspawn/gvmspawn/devices/pci"
	"github.com/gvmspawn/gvmspawn/virtio/blk"
	"github.com/gvmspawn/gvmspawn/virtio/blk/qcow2"
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
		dev, err := blk.New(blk.Config{Image: image, Serial: d.Serial, Queues: min(m.cfg.CPUs, 16), Discard: d.Discard, Log: m.log})
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
func openDisk(d *Disk) (blk.Image, error) {
	o := blk.Options{ReadOnly: d.ReadOnly || d.Ephemeral}
	var image blk.Image
	var err error
	switch d.Format {
	case FormatRaw:
		image, err = blk.OpenRaw(d.Path, o)
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
	overlay, err := blk.NewOverlay(image, os.TempDir())
	if err != nil {
		return nil, errors.Join(err, image.Close())
	}
	return overlay, nil
}
