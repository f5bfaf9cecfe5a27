package vmm

import (
	"fmt"
	"os"
	"slices"
	"strings"

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
		r, err := m.initrdRoot(root)
		if err != nil {
			return nil, err
		}
		r.MMIO = m.cfg.Transport == TransportMMIO
		if m.windows[root.Share] != nil && root.Options == "" {
			r.Options = []string{DAXOption, ""} // a kernel without CONFIG_FUSE_DAX refuses it
		}
		release := img.Release()
		for _, s := range m.cfg.Shares {
			if s.Tag == root.Share {
				if err := initrd.CheckInit(s.Path, m.cfg.Boot.CommandLine); err != nil {
					return nil, err
				}
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
		if r.Device && !strings.HasPrefix(r.Source, "/dev/") {
			return nil, fmt.Errorf("the initrd that this kernel needs finds no root=%s: name a partition of the image by its PARTUUID, or a device, or give an initrd (--initrd=)", r.Source)
		}
		m.log.Debug("the kernel gets an initrd", "modules", image.Modules, "bytes", image.Size())
		return []linux.Initrd{{Name: "initrd of gvmspawn", Size: image.Size(), Data: image}}, nil
	}
}

// initrdRoot is the root as the initrd's program mounts it.
func (m *Machine) initrdRoot(root *Root) (initrd.Root, error) {
	r := initrd.Root{Source: root.Share, Types: []string{"virtiofs"}, ReadOnly: root.ReadOnly}
	if root.Options != "" {
		r.Options = []string{root.Options}
	}
	if root.Share != "" {
		return r, nil
	}
	r.Types = rootTypes
	if root.FSType != "" {
		r.Types = []string{root.FSType}
	}
	if root.DiskID == "" {
		r.Source, r.Device = root.Device, true
		for _, d := range diskDrivers {
			if strings.HasPrefix(root.Device, d.name) {
				r.Drivers = d.modules
			}
		}
		return r, nil
	}
	i := slices.IndexFunc(m.cfg.Disks, func(d Disk) bool { return d.ID == root.DiskID })
	if i < 0 {
		return r, fmt.Errorf("the root is on the disk %s, which is none of the machine's", root.DiskID)
	}
	r.Source = m.cfg.Disks[i].Path
	r.Drivers = diskDrivers[m.cfg.Disks[i].Bus].modules
	r.Block = &initrd.BlockDevice{Place: m.diskPlaces[root.DiskID], Partition: root.Partition}
	if root.Partition > 0 {
		r.Source = fmt.Sprintf("%s, partition %d", r.Source, root.Partition)
		if m.cfg.Disks[i].Bus == DiskCDROM {
			r.Block.Partition, r.Block.Start, r.Block.Size = 0, root.Start, root.Size
		}
	}
	return r, nil
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

// diskDrivers are what the names of each kind of disk begin with, and its modules.
var diskDrivers = map[DiskBus]struct {
	name    string
	modules []initrd.Module
}{
	DiskVirtioBlk:  {"/dev/vd", []initrd.Module{{Name: "virtio_blk", Driver: "virtio_blk"}}},
	DiskVirtioSCSI: {"/dev/sd", []initrd.Module{{Name: "virtio_scsi", Driver: "virtio_scsi"}, {Name: "sd_mod", Driver: "sd"}}},
	DiskCDROM:      {"/dev/sr", []initrd.Module{{Name: "virtio_scsi", Driver: "virtio_scsi"}, {Name: "sr_mod", Driver: "sr"}}},
	DiskNVMe:       {"/dev/nvme", []initrd.Module{{Name: "nvme", Driver: "nvme"}}},
	DiskPmem:       {"/dev/pmem", []initrd.Module{{Name: "virtio_pmem", Driver: "virtio_pmem"}, {Name: "nd_pmem", Driver: "nd_pmem"}}},
}

// drivers are the modules of devices that the root does not need.
func (m *Machine) drivers() []string {
	drivers := []string{"virtio_balloon"}
	if len(m.cfg.NICs) > 0 {
		drivers = append(drivers, "virtio_net")
	}
	for i := range m.cfg.Disks {
		for _, mod := range diskDrivers[m.cfg.Disks[i].Bus].modules {
			drivers = append(drivers, mod.Name)
		}
	}
	if m.slots != nil {
		drivers = append(drivers, "virtio_mem")
	}
	if len(m.inFWCfg) > 0 {
		drivers = append(drivers, "qemu_fw_cfg")
	}
	if len(m.cfg.Shares) > 0 {
		drivers = append(drivers, "virtiofs")
	}
	return drivers
}
