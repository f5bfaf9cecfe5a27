package initrd

import (
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Root is the root file system that the first program mounts.
type Root struct {
	// Source is what to mount: a virtio-fs tag, or the path of a block device
	// below /dev.
	Source string
	// Types are the file system types to try, in this order.
	Types []string
	// Options are strings of mount options, to be tried in this order with
	// each type, for example "dax=always" and then "". None means "".
	Options []string
	// MMIO says that virtio devices are memory-mapped, not on PCI.
	MMIO bool
	// ReadOnly mounts it read-only.
	ReadOnly bool
	// Device says that Source is a device that may take a moment to appear.
	Device bool
	// Block, if set, is the block device to mount, and Source is only what
	// messages call it.
	Block *BlockDevice
	// Drivers are the modules that lead to the device.
	Drivers []Module

	flags int // further mount(2) flags, for tests
}

// BlockDevice tells a block device by where it is plugged in, which stays the
// same, and not by its name: Linux looks for SCSI and NVMe disks in parallel, and
// chance decides which of two is called sda.
type BlockDevice struct {
	// Place is the device that the disk belongs to, as a path below
	// /sys/devices: "pci0000:00/0000:00:05.0".
	Place string
	// Partition is a partition's number, 0 for the whole disk.
	Partition int
	// Start and Size, in bytes, are a part of the disk that is no partition to
	// Linux, which knows none of CD-ROMs. A loop device makes it one, read-only.
	// With a Size of 0 there is none.
	Start, Size int64
}

// Waiting times for the root. A virtio device is there as soon as its driver
// is loaded; others, such as USB disks, are found later.
const (
	devicePause   = 10 * time.Millisecond
	deviceRetries = 1000
	mountPause    = 10 * time.Millisecond
	mountRetries  = 20
)

// Paths inside the initial RAM disk.
const (
	newRoot   = "/root"
	moduleDir = "/m/"
	initPath  = "/init"
)

// Priority of our messages in the kernel log: critical, so that they are seen
// with "quiet", too (Linux Documentation/ABI/testing/dev-kmsg).
const critical = "<2>gvmspawn: "

// fallbackInits is where Linux looks for an init (init/main.c, kernel_init).
var fallbackInits = []string{"/sbin/init", "/etc/init", "/bin/init", "/bin/sh"}

// bootModule is a module in the archive, in the order of loading.
type bootModule struct {
	name     string // as modules.dep spells it, without directory and ".ko"
	params   string
	required bool
}

// path is where the archive has module number i.
func (m bootModule) path() string { return moduleDir + m.name }

// firstProgram assembles /init: it loads the modules, mounts the root, hands
// the credentials over, moves into it, and executes the first of inits that is there. If explicit is set,
// the user asked for an init, and failure to execute it is said as such.
func firstProgram(mods []bootModule, root Root, creds []Credential, inits []string, explicit bool) []byte {
	p := NewProgram()
	openLog(p)
	for _, m := range mods {
		loadModule(p, m)
	}
	openConsole(p)
	mountRoot(p, root)
	handOver(p, newRoot, creds)
	for _, c := range creds {
		p.Syscall(unix.SYS_UNLINK, p.String(credentialsDir+c.ID))
	}
	enterRoot(p)
	execInit(p, inits, explicit)
	return p.ELF()
}

// fail ends the program with a message; the kernel then panics.
func fail(p *Program, text string) func() {
	return func() {
		p.Report(critical + text)
		p.Exit(1)
	}
}

// openLog mounts /dev and sends messages to the kernel log.
func openLog(p *Program) {
	p.Syscall(unix.SYS_MOUNT, p.String("devtmpfs"), p.String("/dev"), p.String("devtmpfs"),
		Int(unix.MS_NOSUID|unix.MS_STRICTATIME), p.String("mode=0755"))
	p.Syscall(unix.SYS_OPEN, p.String("/dev/kmsg"), Int(unix.O_WRONLY|unix.O_CLOEXEC))
	p.Then(p.LogTo, nil)
}

// loadModule loads one module and frees its file. A module that is there
// already (EEXIST), perhaps built in, is as good.
func loadModule(p *Program, m bootModule) {
	what := "cannot load kernel module " + m.name
	bad := func() { p.Report(critical + what) }
	if m.required {
		bad = fail(p, what)
	}
	path := p.String(m.path())
	p.Syscall(unix.SYS_OPEN, path, Int(unix.O_RDONLY|unix.O_CLOEXEC))
	p.Then(func() {
		p.Keep()
		p.Syscall(unix.SYS_FINIT_MODULE, p.Kept(), p.String(m.params), Int(0))
		p.OnError(bad, unix.EEXIST)
		p.Syscall(unix.SYS_CLOSE, p.Kept())
		p.Syscall(unix.SYS_UNLINK, path)
	}, bad)
}

// openConsole makes /dev/console the standard descriptors. The kernel did so
// before the console's driver was loaded, perhaps in vain: then 0 to 2 may be
// the log's or the console's own descriptor, which must outlive the execve.
func openConsole(p *Program) {
	p.Syscall(unix.SYS_OPEN, p.String("/dev/console"), Int(unix.O_RDWR|unix.O_CLOEXEC))
	p.Then(func() {
		p.Keep()
		for fd := range 3 {
			p.Syscall(unix.SYS_DUP2, p.Kept(), Int(fd))
			p.Syscall(unix.SYS_FCNTL, Int(fd), Int(unix.F_SETFD), Int(0))
		}
	}, nil)
}

// mountRoot waits for the root's device and mounts it.
func mountRoot(p *Program, r Root) {
	src := p.String(r.Source)
	switch {
	case r.Block != nil:
		src = findDevice(p, r)
	case r.Device:
		p.Retry(deviceRetries, unix.NsecToTimespec(int64(devicePause)), func(done func()) {
			p.Syscall(unix.SYS_ACCESS, src, Int(0))
			p.Then(done, nil)
		})
	}
	flags := r.flags
	if r.ReadOnly {
		flags |= unix.MS_RDONLY
	}
	options := r.Options
	if len(options) == 0 {
		options = []string{""}
	}
	p.Retry(mountRetries, unix.NsecToTimespec(int64(mountPause)), func(done func()) {
		for _, t := range r.Types {
			for _, o := range options {
				p.Syscall(unix.SYS_MOUNT, src, p.String(newRoot), p.String(t), Int(flags), p.String(o))
				p.Then(done, nil)
			}
		}
	})
	p.OnError(fail(p, "cannot mount root "+r.Source+" ("+strings.Join(r.Types, ", ")+")"))
}

// enterRoot makes the mounted file system the root, with /dev in it.
// The initial RAM disk cannot be unmounted, so what it holds is unlinked.
func enterRoot(p *Program) {
	p.Syscall(unix.SYS_MOUNT, p.String("/dev"), p.String(newRoot+"/dev"), Int(0), Int(unix.MS_MOVE), Int(0))
	p.Syscall(unix.SYS_UNLINK, p.String(initPath))
	what := "cannot move into the root file system"
	p.Syscall(unix.SYS_CHDIR, p.String(newRoot))
	p.OnError(fail(p, what))
	p.Syscall(unix.SYS_MOUNT, p.String("."), p.String("/"), Int(0), Int(unix.MS_MOVE), Int(0))
	p.OnError(fail(p, what))
	p.Syscall(unix.SYS_CHROOT, p.String("."))
	p.OnError(fail(p, what))
	p.Syscall(unix.SYS_CHDIR, p.String("/"))
}

// execInit executes the root's init as the kernel would (init/main.c).
func execInit(p *Program, inits []string, explicit bool) {
	if explicit {
		p.Exec(inits[0])
		p.OnError(fail(p, "cannot execute the requested init "+inits[0]))
		return
	}
	for _, path := range inits {
		p.Exec(path)
		p.OnError(func() { p.Report(critical + "cannot execute " + path) }, unix.ENOENT)
	}
	p.OnError(fail(p, "the root file system has no init ("+strings.Join(inits, ", ")+")"))
}
