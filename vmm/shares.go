package vmm

import (
	"runtime"

	"github.com/gvmspawn/gvmspawn/devices/pci"
	"github.com/gvmspawn/gvmspawn/virtio/fs"
	"github.com/gvmspawn/gvmspawn/vmm/mem"
)

// inlineRead is about what is copied in the time that another thread takes to wake up.
const inlineRead = 64 << 10

func (m *Machine) addShares(host *pci.Host) error {
	squashed := false
	for i := range m.cfg.Shares {
		s := &m.cfg.Shares[i]
		dev, err := m.addShare(host, s)
		if err != nil {
			return err
		}
		squashed = squashed || dev.Squashed() && !s.ReadOnly
	}
	if squashed {
		m.log.Warn("without root's rights the guest's users share your files: what they make is yours, which they see as root's, " +
			"and they cannot change owners (as root, --private-users= gives them ids of their own)")
	}
	return nil
}

func (m *Machine) addShare(host *pci.Host, s *Share) (*fs.Device, error) {
	cfg := fs.Config{
		Tag: s.Tag, Path: s.Path, ReadOnly: s.ReadOnly, InOrder: m.cfg.Deterministic, Log: m.log,
		IDMap: fs.IDMap{Shift: s.IDShift, Range: s.IDRange},
	}
	if o := s.Owner; o != nil {
		cfg.Owner = &fs.Owner{HostUID: o.HostUID, HostGID: o.HostGID, Guest: o.Guest}
	}
	if w := m.windows[s.Tag]; w != nil {
		cfg.DAXSize = w.Size()
	}
	if m.vm.Name() == "kvm" && runtime.NumCPU() > 1 {
		cfg.InlineRead = inlineRead
	}
	if s.Ephemeral {
		root, err := fs.Ephemeral(s.Path)
		if err != nil {
			return nil, err
		}
		defer root.Close() // the device has its own
		cfg.Root = root
	}
	dev, err := fs.New(cfg)
	if err != nil {
		return nil, err
	}
	m.onClose(dev.Close)
	var windows []*mem.Region
	if w := m.windows[s.Tag]; w != nil {
		if err := dev.SetWindow(w); err != nil {
			return nil, err
		}
		windows = append(windows, w)
		m.dax = append(m.dax, daxShare{dev, w})
	}
	return dev, m.plug(host, "virtio-fs "+s.Tag, dev, windows...)
}

// daxShare is a share with a DAX window.
type daxShare struct {
	dev    *fs.Device
	window *mem.Region
}

// repairWindow deals with a CPU that touched a page which the host could not
// provide, at gpa or, with 0, who knows where: a file may have been truncated
// under its mapping. It reports whether the CPU can go on.
func (m *Machine) repairWindow(gpa mem.GPA) bool {
	if gpa == 0 {
		return m.repairLost(true)
	}
	for _, p := range m.pmem {
		if gpa >= p.window.Base && gpa < p.window.End() {
			return p.dev.Repair(uint64(gpa-p.window.Base)) == nil
		}
	}
	for _, s := range m.dax {
		if gpa >= s.window.Base && gpa < s.window.End() {
			return s.dev.RepairWindow(uint64(gpa-s.window.Base)) == nil
		}
	}
	return false
}

// repairLost repairs wherever a file has become shorter. sure says that a CPU
// wants such a page. It reports whether anything changed.
func (m *Machine) repairLost(sure bool) bool {
	repaired := false
	for _, p := range m.pmem {
		repaired = p.dev.RepairShrunk() || repaired
	}
	for _, s := range m.dax {
		repaired = s.dev.RepairShrunk(sure) > 0 || repaired
	}
	return repaired
}
