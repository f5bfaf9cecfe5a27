package vmm

import (
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
)

// Accel chooses the CPU engine.
type Accel uint8

const (
	// AccelAuto takes KVM where it can run the kernel, else the software CPU.
	AccelAuto Accel = iota
	// AccelKVM takes KVM or fails.
	AccelKVM
	// AccelSoft takes the software CPU.
	AccelSoft
)

// Transport is how virtio devices are attached.
type Transport uint8

const (
	// TransportPCI puts them on PCI bus 0.
	TransportPCI Transport = iota
	// TransportMMIO makes a machine without PCI, with virtio devices as
	// memory-mapped registers: for kernels of microVMs. It has room for 14.
	TransportMMIO
)

// Limits of a Config.
const (
	MaxCPUs = 64
	MinRAM  = 16 << 20
	MaxRAM  = 1 << 40
)

// Config is everything a machine is made of. The zero value of a field means
// that the machine has no such part.
type Config struct {
	// Name identifies the machine in messages.
	Name string
	// CPUs is the number of virtual CPUs, 1 to MaxCPUs.
	CPUs int
	// Sockets is the number of packages and Threads that of a core's threads,
	// into which the CPUs are divided; 0 means 1 of each, and cores take the rest.
	Sockets, Threads int
	// RAM is the guest's memory in bytes, a multiple of 1 MiB, at least MinRAM.
	RAM uint64
	// RAMMax is the most memory that [Machine.SetMemory] can give the guest, a
	// multiple of 1 MiB, by a virtio memory device; 0 means RAM.
	RAMMax uint64
	// Accel chooses the engine; KVM, if not nil, is an open /dev/kvm for it.
	Accel Accel
	KVM   *os.File

	Boot Boot
	// Firmware, if not nil, is what the machine starts with.
	Firmware *Firmware

	// Transport is how virtio devices are attached.
	Transport Transport
	// PackedRings offers virtio devices' drivers packed virtqueues (virtio 1.2 §2.8),
	// which Linux then takes.
	PackedRings bool

	// UUID is the SMBIOS system UUID in RFC 4122 order; all zeroes for none.
	UUID [16]byte
	// Generation is the generation identifier (VMGENID) in RFC 4122 order; all
	// zeroes for none.
	Generation [16]byte
	// OEMStrings are SMBIOS type 11 strings.
	OEMStrings []string
	// Credentials go to systemd in the guest as SMBIOS type 11 strings, or by
	// the initrd if they are too much for those.
	Credentials []Credential

	Console Console
	Shares  []Share
	Disks   []Disk
	NICs    []NIC
	Vsock   *Vsock

	TPM *TPM

	// Deterministic makes two runs of the same machine execute the same
	// instructions: software CPU, one CPU, time from executed instructions,
	// entropy from Seed.
	Deterministic bool
	Seed          uint64

	// Debugger, if not nil, lets GDB drive the machine.
	Debugger *Debugger

	// DiskRemoved, if set, is told of each disk that has left the machine.
	DiskRemoved func(id string)

	// Log gets what the machine has to say; nil discards it.
	Log *slog.Logger
}

// Firmware starts the machine at the reset vector of a flash image.
// Boot.Kernel may then be empty; kernel, initrds and command line, if given,
// are handed over by fw_cfg.
type Firmware struct {
	// Code is the path of the raw code image. It is mapped read-only so that
	// it ends at 4 GiB.
	Code string
	// Vars is the path of the raw variable store, an existing regular file
	// that is opened for reading and writing; empty for a machine without one.
	Vars string
	// SMM says that the firmware needs System Management Mode, from which
	// alone the flash can then be written.
	SMM bool
	// BIOS says that Code is a PC BIOS (SeaBIOS), which begins in real mode below
	// 1 MiB, boots disks by their first sector, and takes no kernel.
	BIOS bool
	// AnyOrder lets firmware boot from whatever it finds: disks, shares with a
	// boot loader, networks. Otherwise it tries Disks and then NICs, in their
	// order, and nothing else.
	AnyOrder bool
	// Items are further files of the firmware configuration device: "opt/" names.
	Items []FirmwareItem
	// Log gets what the firmware writes to the debug port 0x402; nil discards it.
	Log io.Writer
}

// FirmwareItem is a file of the firmware configuration device.
type FirmwareItem struct {
	Name    string // 1 to 55 bytes, that of no other item
	Content []byte
}

// Boot is a kernel started without firmware, or handed to it.
type Boot struct {
	// Kernel is the path of a bzImage, a vmlinux or a unified kernel image.
	Kernel string
	// Initrds are paths, concatenated in order.
	Initrds []string
	// CommandLine is the complete kernel command line.
	CommandLine string
	// KASLR lets the kernel choose its address, at the price of its own,
	// slower decompressor.
	KASLR bool

	// Root, if set, is what the synthesised initrd mounts when the kernel
	// lacks the drivers for it. It is used only without Initrds.
	Root *Root
}

// Root says where the guest's root file system is.
type Root struct {
	// Share is the tag of a Share, or empty.
	Share string
	// Device is a block device as the guest names it ("/dev/vda1"), or empty.
	// Linux finds SCSI and NVMe disks in parallel: with several of them, DiskID is
	// what tells them apart.
	Device string
	// DiskID is the ID of one of the Disks, or empty.
	DiskID string
	// Partition of that disk, from 1; 0 is the whole disk.
	Partition int
	// Start and Size in bytes are that partition's; they matter for a CD-ROM,
	// on which Linux looks for none.
	Start, Size int64
	// FSType is the file system type of Device or the disk; empty tries ext4, btrfs, xfs, …
	FSType string
	// Options are mount options besides ro and rw.
	Options string
	// ReadOnly mounts it read-only.
	ReadOnly bool
	// ModuleTree is a directory that holds lib/modules of the guest (the
	// shared directory itself), searched before the host's, or empty.
	ModuleTree string
}

// ConsoleTransport is the kind of device behind the console.
type ConsoleTransport uint8

const (
	// ConsoleVirtio is hvc0.
	ConsoleVirtio ConsoleTransport = iota
	// ConsoleSerial is ttyS0.
	ConsoleSerial
	// ConsoleNone is no console device at all.
	ConsoleNone
)

// Console is the host side of the guest's console.
type Console struct {
	Transport ConsoleTransport
	// Out takes the guest's output. Write may block: the guest then waits.
	Out io.Writer
	// In, if not nil, is the guest's input.
	In *Input
	// SerialToo says that the kernel has the serial port as a second console
	// beside a virtio console. It is shown while the latter is silent.
	SerialToo bool
	// Columns and Rows are the initial size, 0 for unknown.
	Columns, Rows uint16
}

// Share is a host directory, or a single file, that the guest mounts by
// virtio-fs.
type Share struct {
	// Tag is the virtio-fs tag, 1 to 36 bytes.
	Tag string
	// Path is the directory or file on the host.
	Path string
	// ReadOnly is enforced on the host.
	ReadOnly bool
	// IDShift and IDRange map guest user and group 0..IDRange-1 to host
	// IDShift..; IDRange 0 maps nothing.
	IDShift, IDRange uint32
	// Owner, instead of IDShift and IDRange, is the one user whose files they are.
	Owner *ShareOwner
	// DAX is the size of the window of the host's page cache in bytes, a power of
	// two of at least 2 MiB, 0 for none.
	DAX uint64
	// Ephemeral keeps all changes to the directory Path in memory and drops
	// them at the end. It needs root, and goes without a DAX window.
	Ephemeral bool
}

// ShareOwner is a user of the host and its group, who are Guest, both, in the
// guest.
type ShareOwner struct{ HostUID, HostGID, Guest uint32 }

// DiskBus is how a disk is attached.
type DiskBus uint8

const (
	// DiskVirtioBlk is /dev/vda and following.
	DiskVirtioBlk DiskBus = iota
	// DiskVirtioSCSI is /dev/sda and following.
	DiskVirtioSCSI
	// DiskNVMe is /dev/nvme0n1, /dev/nvme1n1 and following.
	DiskNVMe
	// DiskCDROM is /dev/sr0 and following, read-only.
	DiskCDROM
	// DiskPmem is /dev/pmem0 and following: a raw image that the guest maps.
	DiskPmem
)

// DiskFormat is an image format. It is never guessed.
type DiskFormat uint8

const (
	// FormatRaw is a plain file or block device.
	FormatRaw DiskFormat = iota
	// FormatQcow2 is QEMU's copy-on-write format, version 2 or 3.
	FormatQcow2
)

// DiskCache says how the host caches a disk.
type DiskCache uint8

const (
	// CacheWriteback uses the host's page cache; flushes make data durable.
	CacheWriteback DiskCache = iota
	// CacheNone does direct I/O, with raw images; others are as with
	// CacheWriteback.
	CacheNone
	// CacheUnsafe ignores flushes: a crash of the host loses what it likes.
	CacheUnsafe
)

// Disk is a disk image or block device.
type Disk struct {
	Path     string
	Format   DiskFormat
	Bus      DiskBus
	ReadOnly bool
	// Discard lets the guest punch holes into the image.
	Discard bool
	Cache   DiskCache
	// Ephemeral keeps all writes away from Path and drops them at the end.
	Ephemeral bool
	// Serial is the disk's serial number, at most 20 bytes, 30 for SCSI.
	Serial string
	// ID tells the disk from the machine's others; RemoveDisk names it.
	ID string
	// Removable says that the disk may leave the machine while it runs.
	Removable bool
	// File, if set, is the open image; Path is then its name for people.
	File *os.File
	// AnyBacking lets a qcow2 image name backing files anywhere on the host, not only
	// in its own directory.
	AnyBacking bool
}

// NIC is a network interface.
type NIC struct {
	// MAC is the guest's address.
	MAC net.HardwareAddr
	// TAP is an open TAP device, or nil for user-mode networking.
	TAP *os.File
	// Queues are further queues of the same TAP device (IFF_MULTI_QUEUE).
	Queues []*os.File
	// Ports are published in user mode.
	Ports []Port
	// HostLoopback lets the guest reach the host's loopback at the gateway's
	// address in user mode.
	HostLoopback bool
}

// Port publishes a guest port on the host.
type Port struct {
	UDP   bool
	Host  netip.Addr // invalid for 127.0.0.1
	From  uint16     // port on the host
	Guest uint16     // port of the guest
}

// Vsock is the host side of the guest's virtio-vsock.
type Vsock struct {
	// CID is the guest's context ID, 3 or more.
	CID uint32
	// Accept maps ports of the host (CID 2) to who serves connections of the guest.
	// The handler runs in a goroutine of its own and closes the connection.
	Accept map[uint32]func(net.Conn)
	// VHost, if not nil, is used with KVM instead of the device of this program;
	// Accept is not, then.
	VHost *VHostVsock
	// Mux, if not empty, is the path of a socket at which a host program
	// writes "CONNECT PORT\n" to reach a port of the guest. Without VHost, a connection
	// of the guest's to a port N of the host that Accept does not have goes to the
	// socket Mux_N, if there is one and its name fits into an address.
	Mux string
}
