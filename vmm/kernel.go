package vmm

import (
	"fmt"
	"os"

	"github.com/gvmspawn/gvmspawn/boot/initrd"
	"github.com/gvmspawn/gvmspawn/boot/linux"
)

// openInitrds opens the initrds; the second result closes them.
func openInitrds(paths []string) ([]linux.Initrd, func(), error) {
	var files []*os.File
	closeAll := func() {
		for _, f := range files {
			_ = f.Close()
		}
	}
	var initrds []linux.Initrd
	for _, p := range paths {
		f, err := os.Open(p)
		if err != nil {
			closeAll()
			return nil, nil, fmt.Errorf("cannot open the initrd: %w", err)
		}
		files = append(files, f)
		st, err := f.Stat()
		if err == nil && !st.Mode().IsRegular() {
			err = fmt.Errorf("initrd %s is not a regular file", p)
		}
		if err != nil {
			closeAll()
			return nil, nil, err
		}
		initrds = append(initrds, linux.Initrd{Name: p, Size: st.Size(), Data: f})
	}
	return initrds, closeAll, nil
}

// rootTypes are the file systems tried for a root device of unknown type.
var rootTypes = []string{"ext4", "btrfs", "xfs", "f2fs", "squashfs", "erofs", "vfat", "iso9660"}

// DAXOption is the mount option with which Linux uses the window of a share.
const DAXOption = "dax=always"

// synthesise returns what makes the initrd of a modular kernel, or nil if the
// caller brought initrds or said nothing about a root.
func (m *Machine) synthesise(img *linux.Image) func(linux.Kernel) ([]linux.Initrd, error) {
	root := m.cfg.Boot.Root
	if root == nil || len(m.cfg.Boot.Initrds) > 0 {
		return nil
	}
	return func(k linux.Kernel) ([]linux.Initrd, error) {
		r := initrdRoot(root)
		r.MMIO = m.cfg.Transport == TransportMMIO
		if m.windows[root.Share] != nil && root.Options == "" {
			r.Options = []string{DAXOption, ""} // a kernel without CONFIG_FUSE_DAX refuses it
		}
		release := img.Release()
		if root.Share != "" && root.ModuleTree != "" {
			if err := initrd.CheckInit(root.ModuleTree, m.cfg.Boot.CommandLine); err != nil {
				return nil, err
			}
		}
		image, err := initrd.Build(initrd.Config{
			Release: release, Kernel: m.cfg.Boot.Kernel, Places: m.modulePlaces(release),
			Modules: initrd.Wanted(r, m.drivers()...), BuiltIn: k.HasString,
			Root: r, CommandLine: m.cfg.Boot.CommandLine, Credentials: m.handOver,
			Warn: func(s string) { m.log.Warn(s) },
		})
		if err != nil || image == nil {
			return nil, err
		}
		m.log.Debug("the kernel gets an initrd", "modules", image.Modules, "bytes", image.Size())
		return []linux.Initrd{{Name: "initrd of gvmspawn", Size: image.Size(), Data: image}}, nil
	}
}

// initrdRoot is the root as the initrd's program mounts it.
func initrdRoot(root *Root) initrd.Root {
	r := initrd.Root{Source: root.Share, Types: []string{"virtiofs"}, ReadOnly: root.ReadOnly}
	if root.Device != "" {
		r.Source, r.Device, r.Types = root.Device, true, rootTypes
		if root.FSType != "" {
			r.Types = []string{root.FSType}
		}
	}
	if root.Options != "" {
		r.Options = []string{root.Options}
	}
	return r
}

// modulePlaces are where the kernel's modules may be: the guest's own tree, the
// host, near the kernel.
func (m *Machine) modulePlaces(release string) []initrd.Place {
	var places []initrd.Place
	if tree := m.cfg.Boot.Root.ModuleTree; tree != "" {
		places = append(places, initrd.Place{Root: tree, Guest: true})
	}
	places = append(places, initrd.Place{Root: "/"})
	return append(places, initrd.NextTo(m.cfg.Boot.Kernel, release)...)
}

// diskDrivers are the modules of each kind of disk.
var diskDrivers = map[DiskBus][]string{
	DiskVirtioBlk:  {"virtio_blk"},
	DiskVirtioSCSI: {"virtio_scsi", "sd_mod"},
	DiskCDROM:      {"virtio_scsi", "sr_mod"},
	DiskNVMe:       {"nvme"},
}

// drivers are the modules of devices that the root does not need.
func (m *Machine) drivers() []string {
	drivers := []string{"virtio_balloon"}
	if len(m.cfg.NICs) > 0 {
		drivers = append(drivers, "virtio_net")
	}
	for i := range m.cfg.Disks {
		drivers = append(drivers, diskDrivers[m.cfg.Disks[i].Bus]...)
	}
	if len(m.pmem) > 0 {
		drivers = append(drivers, "virtio_pmem", "nd_pmem")
	}
	if m.slots != nil {
		drivers = append(drivers, "virtio_mem")
	}
	if len(m.cfg.Shares) > 0 {
		drivers = append(drivers, "virtiofs")
	}
	return drivers
}
