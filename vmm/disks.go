package vmm

import (
	"errors"
	"fmt"
	"os"

	"github.com/gvmspawn/gvmspawn/devices/pci"
	"github.com/gvmspawn/gvmspawn/virtio/blk"
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
	if d.Format != FormatRaw {
		return nil, fmt.Errorf("disk %s: only raw images are supported yet", d.Path)
	}
	raw, err := blk.OpenRaw(d.Path, blk.Options{ReadOnly: d.ReadOnly || d.Ephemeral})
	if err != nil || !d.Ephemeral {
		return raw, err
	}
	overlay, err := blk.NewOverlay(raw, os.TempDir())
	if err != nil {
		return nil, errors.Join(err, raw.Close())
	}
	return overlay, nil
}
