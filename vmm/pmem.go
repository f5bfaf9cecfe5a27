package vmm

import (
	"fmt"
	"os"

	"github.com/gvmspawn/gvmspawn/devices/pci"
	"github.com/gvmspawn/gvmspawn/virtio/pmem"
	"github.com/gvmspawn/gvmspawn/vmm/disk"
	"github.com/gvmspawn/gvmspawn/vmm/layout"
	"github.com/gvmspawn/gvmspawn/vmm/mem"
)

// pmemAlign is the unit in which Linux keeps track of memory (SECTION_SIZE):
// no window shares one with other memory.
const pmemAlign = 128 * layout.MiB

// pmemDisk is a disk that the guest maps.
type pmemDisk struct {
	disk   *Disk
	file   *os.File
	window *mem.Region
	dev    *pmem.Device // nil before addPmemDevices
}

// addPmemWindows opens the images of persistent memory and reserves a window for
// each, above all memory that may be plugged.
func (m *Machine) addPmemWindows() error {
	for i := range m.cfg.Disks {
		d := &m.cfg.Disks[i]
		if d.Bus != DiskPmem {
			continue
		}
		if d.Format != FormatRaw {
			return fmt.Errorf("disk %s: only a raw image can be persistent memory", d.Path)
		}
		f, err := disk.OpenFile(d.Path, disk.Options{ReadOnly: d.ReadOnly || d.Ephemeral})
		if err != nil {
			return err
		}
		m.onClose(f.Close)
		p := &pmemDisk{disk: d, file: f}
		size, err := pmem.WindowSize(f)
		if err != nil {
			return err
		}
		at := (max(uint64(m.memoryEnd()), layout.HighRAMStart) + pmemAlign - 1) &^ (pmemAlign - 1)
		if p.window, err = m.mem.Add("persistent memory "+d.Path, mem.GPA(at), size, mem.Window); err != nil {
			return err
		}
		m.pmem = append(m.pmem, p)
	}
	return nil
}

func (m *Machine) addPmemDevices(host *pci.Host) error {
	for _, p := range m.pmem {
		d := p.disk
		dev, err := pmem.New(pmem.Config{File: p.file, Private: d.ReadOnly || d.Ephemeral, Window: p.window, Addr: uint64(p.window.Base), Log: m.log})
		if err != nil {
			return err
		}
		p.dev = dev
		if m.diskPlaces[d.ID], err = m.plugAt(host, "virtio-pmem "+d.Path, dev); err != nil {
			return err
		}
	}
	return nil
}
