package main

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/gvmspawn/gvmspawn/cmd/gvmspawn/internal/arg"
	"github.com/gvmspawn/gvmspawn/cmd/gvmspawn/internal/identity"
	"github.com/gvmspawn/gvmspawn/cmd/gvmspawn/internal/image"
	"github.com/gvmspawn/gvmspawn/vmm"
)

// plan is a machine as the command line describes it, with its image found.
type plan struct {
	s     *settings
	image image.Image
	name  string
	cfg   vmm.Config

	kvm        *os.File          // passed to us
	vhostVsock *os.File          // the same
	partitions []image.Partition // of a disk image
	options    []string          // kernel arguments of the boot entry
	mounts     int               // shares besides the root
	unified    bool              // firmware starts a whole UKI
	files      []*os.File        // kernel and initrds, where cfg names /proc/self/fd
}

// close closes what the machine was made of. The machine has ended.
func (p *plan) close() {
	for _, f := range p.files {
		f.Close()
	}
}

// newPlan finds the image and names the machine.
func newPlan(s *settings) (*plan, error) {
	p := &plan{s: s}
	if err := p.findImage(); err != nil {
		return nil, err
	}
	p.name = s.machine
	if p.name != "" {
		return p, nil
	}
	name, err := image.Name(p.image)
	if err != nil {
		return nil, err
	}
	p.name = name
	return p, nil
}

func (p *plan) findImage() (err error) {
	s := p.s
	switch {
	case s.directory != "":
		if p.image, err = image.Open(s.directory); err == nil && !p.image.Directory {
			err = fmt.Errorf("option --directory: %s is not a directory, use --image= for a disk image", s.directory)
		}
	case s.image != "":
		if p.image, err = image.Open(s.image); err == nil && p.image.Directory {
			err = fmt.Errorf("option --image: %s is a directory, use --directory=", s.image)
		}
	case s.machine != "":
		dirs := image.Directories
		if os.Geteuid() != 0 && !s.system || s.user {
			dirs = append(image.UserDirectories(), dirs...)
		}
		p.image, err = image.Lookup(s.machine, dirs)
	default:
		wd, werr := os.Getwd()
		if werr != nil {
			return fmt.Errorf("cannot determine the current directory, use -D or -i: %w", werr)
		}
		p.image = image.Image{Path: wd, Directory: true}
	}
	return pathError(err)
}

// pathError is an error about a file as one sentence without the system call.
func pathError(err error) error {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		return fmt.Errorf("%s: %w", pe.Path, pe.Err)
	}
	return err
}

// assemble fills the machine's configuration in.
func (p *plan) assemble(log *slog.Logger) error {
	s := p.s
	p.cfg = vmm.Config{
		Name: p.name, CPUs: s.cpus.CPUs, Sockets: s.cpus.Sockets, Threads: s.cpus.Threads, RAM: s.ram.Size, RAMMax: s.ram.Max, UUID: s.uuid,
		Accel:         map[arg.Tristate]vmm.Accel{arg.Auto: vmm.AccelAuto, arg.Yes: vmm.AccelKVM, arg.No: vmm.AccelSoft}[s.kvm],
		Deterministic: s.deterministic, Seed: s.seed, Generation: p.generation(), Log: log, KVM: p.kvm,
	}
	if s.deterministic {
		p.cfg.Accel = vmm.AccelSoft
	}
	p.cfg.PackedRings = s.ring == "packed"
	if s.virtio == "mmio" {
		p.cfg.Transport = vmm.TransportMMIO
	}
	if err := p.kernel(); err != nil {
		return err
	}
	root, err := p.rootFileSystem()
	if err != nil {
		return err
	}
	for _, f := range []func() error{p.addMounts, p.addDrives, p.addNetwork} {
		if err := f(); err != nil {
			return err
		}
	}
	for i := range p.cfg.Disks {
		p.cfg.Disks[i].ID = fmt.Sprintf("bd%d", i)
		p.cfg.Disks[i].Cache = diskCache(s.diskCache)
		p.cfg.Disks[i].AnyBacking = s.anyBacking()
	}
	line, err := s.commandLine(p.options, root, p.serialToo())
	p.cfg.Boot.KASLR = s.kaslr
	p.cfg.OEMStrings = append([]string(nil), s.smbios11...)
	for _, c := range s.credentials.List() {
		p.cfg.Credentials = append(p.cfg.Credentials, vmm.Credential(c))
	}
	if p.byStub() {
		p.cfg.Boot.Root = nil // what is started brings its own initrd
		p.cfg.OEMStrings = append(p.cfg.OEMStrings, stubStrings(line)...)
	} else {
		p.cfg.Boot.CommandLine = line
	}
	return err
}

// generation is the machine's generation identifier. A deterministic machine
// has none: it would differ each time.
func (p *plan) generation() [16]byte {
	if p.s.deterministic {
		return [16]byte{}
	}
	return identity.Generation(os.Getenv("INVOCATION_ID"))
}

// serialToo reports whether the serial port must be a console besides hvc0: an
// initrd that is not ours may not have the driver of that, and its init
// cannot do without any console.
func (p *plan) serialToo() bool {
	return p.s.transport == "virtio" && p.s.console != "headless" && len(p.cfg.Boot.Initrds) > 0
}

// rootFileSystem adds the image to the machine and returns what the kernel
// command line needs to mount it.
func (p *plan) rootFileSystem() ([]string, error) {
	if !p.image.Directory {
		return p.rootDisk()
	}
	if err := unix.Access(p.image.Path, unix.R_OK|unix.X_OK); err != nil {
		return nil, fmt.Errorf("directory %s cannot be read: %w", p.image.Path, err)
	}
	share := vmm.Share{Tag: "root", Path: p.image.Path, Ephemeral: p.s.ephemeral, DAX: p.s.dax}
	share.IDShift, share.IDRange = p.idMap()
	p.cfg.Shares = append(p.cfg.Shares, share)
	p.cfg.Boot.Root = &vmm.Root{Share: "root", ModuleTree: p.image.Path}
	root := []string{"root=root", "rootfstype=virtiofs", "rw"}
	if _, ok := p.argument("rootflags"); p.s.dax > 0 && !ok {
		root = append(root, "rootflags="+vmm.DAXOption)
	}
	return root, nil
}

// idMap is --private-users=, or by default the range that the owner of a
// directory given by --directory= begins.
func (p *plan) idMap() (shift, count uint32) {
	if p.s.privateUsersOn {
		return p.s.privateUsers.Shift, p.s.privateUsers.Count
	}
	if p.s.directory == "" || os.Geteuid() != 0 {
		return 0, 0
	}
	fi, err := os.Stat(p.image.Path)
	if err != nil {
		return 0, 0
	}
	if st, ok := fi.Sys().(*syscall.Stat_t); ok && st.Uid != 0 {
		return st.Uid, 65536
	}
	return 0, 0
}

// rootImage is the disk image as the machine gets it.
func (p *plan) rootImage() vmm.Disk {
	s := p.s
	d := vmm.Disk{Path: p.image.Path, Format: diskFormat(s.imageFormat), Bus: diskBus(s.diskType), Discard: s.discard, Ephemeral: s.ephemeral, AnyBacking: s.anyBacking()}
	d.ReadOnly, d.Serial, d.ID = d.Bus == vmm.DiskCDROM, serial(p.image.Path, d.Bus), rootDiskID
	return d
}

// rootDisk adds the disk image.
func (p *plan) rootDisk() ([]string, error) {
	s, disk := p.s, p.rootImage()
	if s.growImage > 0 {
		if err := grow(p.image.Path, s.growImage); err != nil {
			return nil, err
		}
	}
	p.cfg.Disks = append(p.cfg.Disks, disk)
	root, err := p.rootArguments(&disk)
	if disk.ReadOnly && p.hasWord("rw") && !slices.Contains(root, "ro") {
		root = append(root, "ro") // the last one counts
	}
	return root, err
}

// rootArguments says what the kernel mounts as root, unless the user has said so.
func (p *plan) rootArguments(disk *vmm.Disk) ([]string, error) {
	if p.byStub() {
		return nil, nil // what is on the disk knows its root
	}
	flags, _ := p.argument("rootflags")
	if dev, ok := p.argument("root"); ok {
		fsType, _ := p.argument("rootfstype")
		r := &vmm.Root{Device: dev}
		if part, ok := p.namedRoot(dev, disk.Bus); ok {
			r = rootOn(disk.ID, part)
		}
		r.FSType, r.Options, r.ReadOnly = fsType, flags, disk.ReadOnly || !p.hasWord("rw")
		p.cfg.Boot.Root = r
		return nil, nil
	}
	if _, ok := p.argument("mount.usr"); ok {
		return nil, nil
	}
	root, part, err := image.RootArgument(p.partitions)
	if err != nil {
		return nil, err
	}
	mode := "rw"
	if disk.ReadOnly || part.ReadOnly || p.hasWord("ro") {
		mode = "ro"
	}
	if strings.HasPrefix(root, "root=") {
		p.cfg.Boot.Root = rootOn(disk.ID, part)
		p.cfg.Boot.Root.Options, p.cfg.Boot.Root.ReadOnly = flags, mode == "ro"
	}
	return []string{root, mode}, nil
}

// rootDiskID is the name of the image's disk. The others are bd1, bd2 and so on.
const rootDiskID = "bd0"

// rootOn is the root on a partition of a disk, or on all of it.
func rootOn(disk string, part *image.Partition) *vmm.Root {
	if part == nil {
		return &vmm.Root{DiskID: disk}
	}
	return &vmm.Root{DiskID: disk, Partition: part.Number, Start: part.Start, Size: part.Size}
}

// firstDisk is what Linux calls the first disk of a kind, and what comes between
// that and a partition's number. A CD-ROM has no partitions to Linux.
var firstDisk = map[vmm.DiskBus]struct{ name, infix string }{
	vmm.DiskVirtioBlk:  {"/dev/vda", ""},
	vmm.DiskVirtioSCSI: {"/dev/sda", ""},
	vmm.DiskCDROM:      {"/dev/sr0", ""},
	vmm.DiskNVMe:       {"/dev/nvme0n1", "p"},
	vmm.DiskPmem:       {"/dev/pmem0", "p"},
}

// namedRoot reports whether root=dev means the image, which is the first disk
// of its kind, and which partition of it, nil for all of it.
func (p *plan) namedRoot(dev string, bus vmm.DiskBus) (part *image.Partition, ok bool) {
	for i := range p.partitions {
		if part := &p.partitions[i]; strings.EqualFold(dev, "PARTUUID="+part.UUID.String()) {
			return part, true
		}
	}
	first := firstDisk[bus]
	if dev == first.name {
		return nil, true
	}
	number, ok := strings.CutPrefix(dev, first.name+first.infix)
	n, err := strconv.ParseUint(number, 10, 8)
	return &image.Partition{Number: int(n)}, ok && err == nil && n > 0 && bus != vmm.DiskCDROM
}

func diskFormat(s string) vmm.DiskFormat {
	if s == "qcow2" {
		return vmm.FormatQcow2
	}
	return vmm.FormatRaw
}

// anyBacking reports whether images may have backing files anywhere.
func (s *settings) anyBacking() bool { return s.diskBacking == "anywhere" }

func diskCache(s string) vmm.DiskCache {
	return map[string]vmm.DiskCache{"none": vmm.CacheNone, "unsafe": vmm.CacheUnsafe}[s]
}

func diskBus(s string) vmm.DiskBus {
	return map[string]vmm.DiskBus{"virtio-blk": vmm.DiskVirtioBlk, "virtio-scsi": vmm.DiskVirtioSCSI, "nvme": vmm.DiskNVMe, "scsi-cd": vmm.DiskCDROM, "pmem": vmm.DiskPmem}[s]
}

// maxSerial is the length of a serial number: virtio 1.2 §5.2.6 and NVMe 1.4
// §5.15.2.2; the longest that is customary for SCSI.
func maxSerial(bus vmm.DiskBus) int {
	if bus == vmm.DiskVirtioSCSI || bus == vmm.DiskCDROM {
		return 30
	}
	return 20
}

// serial names a disk after its image, so that the guest has a
// /dev/disk/by-id link for it.
func serial(path string, bus vmm.DiskBus) string {
	name, most := filepath.Base(path), maxSerial(bus)
	if len(name) <= most {
		return name
	}
	h := sha256.Sum256([]byte(name))
	return hex.EncodeToString(h[:])[:most]
}

// grow makes an image file at least size bytes long, rounded up to 4096.
func grow(path string, size uint64) error {
	const block = 4096
	if size > 1<<62 {
		return errors.New("option --grow-image: the size is out of range")
	}
	size = (size + block - 1) &^ (block - 1)
	fi, err := os.Stat(path)
	if err != nil {
		return pathError(err)
	}
	if !fi.Mode().IsRegular() || uint64(fi.Size()) >= size {
		return nil
	}
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("cannot grow the image: %w", pathError(err))
	}
	defer f.Close()
	if err := f.Truncate(int64(size)); err != nil {
		return fmt.Errorf("cannot grow the image: %w", pathError(err))
	}
	return f.Sync()
}

// addDrives adds the --extra-drive= disks.
func (p *plan) addDrives() error {
	for _, d := range p.s.extraDrives {
		im, err := image.Open(d.Path)
		if err != nil {
			return fmt.Errorf("option --extra-drive: %w", pathError(err))
		}
		if im.Directory {
			return fmt.Errorf("option --extra-drive: %s is a directory", d.Path)
		}
		typ := d.Type
		if typ == "" {
			typ = p.s.diskType
		}
		bus := diskBus(typ)
		p.cfg.Disks = append(p.cfg.Disks, vmm.Disk{Path: d.Path, Format: diskFormat(d.Format), Bus: bus, ReadOnly: bus == vmm.DiskCDROM,
			Discard: p.s.discard, Ephemeral: p.s.ephemeral, Serial: serial(d.Path, bus), Removable: true})
	}
	return nil
}

// addNetwork adds the network card.
func (p *plan) addNetwork() error {
	s := p.s
	if !s.networkTAP && !s.networkUser {
		return nil
	}
	nic := vmm.NIC{}
	if v := os.Getenv("SYSTEMD_VMSPAWN_NETWORK_MAC"); v != "" {
		mac, err := identity.ParseMAC(v)
		if err != nil {
			return fmt.Errorf("$SYSTEMD_VMSPAWN_NETWORK_MAC: %w", err)
		}
		nic.MAC = mac
	} else {
		id, err := identity.HostID("")
		if err != nil {
			id = sha256Half(p.name) // a host without an identity of its own
		}
		nic.MAC = identity.MAC(id, p.name)
	}
	for _, f := range s.ports {
		nic.Ports = append(nic.Ports, vmm.Port{UDP: f.UDP, Host: f.Host.Addr(), From: f.Host.Port(), Guest: f.Port})
	}
	if s.networkTAP {
		taps, err := p.taps()
		if err != nil {
			return err
		}
		nic.TAP, nic.Queues = taps[0], taps[1:]
	}
	p.cfg.NICs = append(p.cfg.NICs, nic)
	return nil
}

func sha256Half(s string) (id [16]byte) {
	h := sha256.Sum256([]byte(s))
	copy(id[:], h[:])
	return id
}
