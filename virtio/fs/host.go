package fs

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// overflowID is how ids outside the map look to the guest (the kernel's overflowuid).
const overflowID = 65534

// fdReserve is how many descriptors are left to the rest of the process.
const fdReserve = 512

// fdsInUse counts the descriptors that guests made all devices of this process
// hold: inodes, open files, lock owners.
var fdsInUse atomic.Int64

// hostAccess is what the device needs of the host besides the tree: who we
// are, and ways to reach our own descriptors.
type hostAccess struct {
	proc  int   // O_PATH of /proc/self/fd
	sync  int   // the tree's file system, for SYNCFS, or -1
	fdMax int64 // limit for fdsInUse

	privileged bool // we may act for any user
	uid, gid   uint32
	ids        IDMap
	ranges     [2]idRange // by idKind
	umask      uint32
	caps       capSets
	masked     maskedThread

	// A share of one file: its directory, its name with NUL, as the host
	// and as the guest knows it.
	dir       int
	fileName  []byte
	guestName []byte
}

// open collects it. The capabilities of root are those that owning files for
// others takes.
func (h *hostAccess) open(cfg *Config) error {
	h.proc, h.sync, h.dir = -1, -1, -1
	h.uid, h.gid = uint32(os.Geteuid()), uint32(os.Getegid())
	if err := h.caps.read(cfg.DeviceNodes); err != nil {
		return err
	}
	h.privileged = h.caps.forOthers()
	if err := h.setIDs(cfg); err != nil {
		return err
	}
	var err error
	if h.umask, err = readUmask(); err != nil {
		return err
	}
	h.proc, err = unix.Open("/proc/self/fd", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open /proc/self/fd: %w", err)
	}
	var st unix.Statfs_t
	if err := unix.Fstatfs(h.proc, &st); err != nil || st.Type != unix.PROC_SUPER_MAGIC {
		h.close()
		return errors.New("/proc is not mounted: the proc file system is needed")
	}
	h.fdMax = raiseFileLimit()
	return nil
}

func (h *hostAccess) close() {
	h.masked.stop()
	for _, fd := range []*int{&h.proc, &h.sync, &h.dir} {
		sysClose(*fd)
		*fd = -1
	}
}

// readUmask reads our umask without changing it for a moment.
func readUmask() (uint32, error) {
	b, err := os.ReadFile("/proc/thread-self/status")
	if err != nil {
		return 0, fmt.Errorf("read the umask: %w", err)
	}
	_, b, ok := bytes.Cut(b, []byte("\nUmask:\t"))
	b, _, _ = bytes.Cut(b, []byte("\n"))
	m, err := strconv.ParseUint(string(b), 8, 32)
	if !ok || err != nil {
		return 0, errors.New("read the umask: no Umask line in /proc/thread-self/status")
	}
	return uint32(m), nil
}

// enoughFiles is how many open files we ask for. More would only slow down
// children that close all descriptors one by one.
const enoughFiles = 1 << 20

// raiseFileLimit raises the limit of open files, which Go has raised as far as
// it may already, to enoughFiles if we are root. It returns how many of them
// guests can have.
func raiseFileLimit() int64 {
	var lim unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &lim); err != nil {
		return fdReserve
	}
	if lim.Cur < enoughFiles {
		want := unix.Rlimit{Cur: enoughFiles, Max: max(lim.Max, enoughFiles)}
		if unix.Setrlimit(unix.RLIMIT_NOFILE, &want) == nil {
			lim = want
		}
	}
	n := int64(min(lim.Cur, 1<<40))
	return max(n-fdReserve, n/2)
}

// takeFD reserves a descriptor for the guest. Preconditions of failure: none is
// reserved then, and the guest sees ENFILE.
func (d *Device) takeFD() unix.Errno {
	if fdsInUse.Add(1) > d.host.fdMax {
		fdsInUse.Add(-1)
		d.warn("the guest uses all open files that the host allows", "limit", uint64(d.host.fdMax))
		return unix.ENFILE
	}
	return 0
}

// openRoot opens the share and makes its root inode.
func (d *Device) openRoot() (*inode, error) {
	root := &inode{id: rootID, fmt: unix.S_IFDIR, fd: -1}
	root.refs.Store(1)
	fd, err := d.openShared()
	if err != nil {
		return nil, err
	}
	var st unix.Statx_t
	if e := sysFstatx(fd, &st); e != 0 {
		sysClose(fd)
		return nil, fmt.Errorf("stat the share: %w", e)
	}
	switch uint32(st.Mode) & unix.S_IFMT {
	case unix.S_IFDIR:
		root.fd, root.key = fd, keyOf(&st)
		fdsInUse.Add(1)
		// Only SYNCFS needs it; a directory we cannot list is none of its concern.
		if s, e := sysOpenat(fd, dot[:], unix.O_RDONLY|unix.O_DIRECTORY, 0); e == 0 {
			d.host.sync = s
		}
		return root, nil
	case unix.S_IFREG:
		defer sysClose(fd)
		return root, d.openSingle()
	}
	sysClose(fd)
	return nil, fmt.Errorf("%s is neither a directory nor a regular file", d.cfg.Path)
}

func (d *Device) openShared() (int, error) {
	if d.cfg.Root != nil {
		fd, err := unix.FcntlInt(d.cfg.Root.Fd(), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return -1, fmt.Errorf("duplicate %s: %w", d.cfg.Root.Name(), err)
		}
		return fd, nil
	}
	if d.cfg.Path == "" {
		return -1, errors.New("no path to share")
	}
	fd, err := unix.Open(d.cfg.Path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open %s: %w", d.cfg.Path, err)
	}
	return fd, nil
}

// openSingle prepares a share of one file. Its directory is kept, not the
// file: editors replace files, and the guest shall see the new one.
func (d *Device) openSingle() error {
	if d.cfg.Root != nil {
		return fmt.Errorf("%s is no directory", d.cfg.Root.Name())
	}
	path, err := filepath.EvalSymlinks(d.cfg.Path)
	if err != nil {
		return err
	}
	name := d.cfg.FileName
	if name == "" {
		name = filepath.Base(d.cfg.Path)
	}
	if _, e := onlyName([]byte(name + "\x00")); e != 0 {
		return fmt.Errorf("%q cannot be a file name", name)
	}
	dir, err := unix.Open(filepath.Dir(path), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", filepath.Dir(path), err)
	}
	d.host.dir = dir
	d.host.fileName = []byte(filepath.Base(path) + "\x00")
	d.host.guestName = []byte(name + "\x00")
	return nil
}

// idKind tells user ids from group ids.
type idKind uint8

const (
	ofUser idKind = iota
	ofGroup
)

// idRange maps ids of one kind: count ids from guest on are the host's from
// host on. With count 0 all are the same, but for our own id, which is guest
// if we cannot own files for others.
type idRange struct{ own, host, guest, count uint32 }

// setIDs takes the maps from the configuration.
func (h *hostAccess) setIDs(cfg *Config) error {
	h.ids = cfg.IDMap
	h.ranges = [2]idRange{{h.uid, h.ids.Shift, 0, h.ids.Range}, {h.gid, h.ids.Shift, 0, h.ids.Range}}
	o := cfg.Owner
	switch {
	case h.ids.Range != 0 && !h.privileged:
		return errors.New("mapping user ids needs the capabilities of root")
	case o == nil:
		return nil
	case h.privileged:
		h.ids = IDMap{Shift: o.HostUID, Range: 1}
		h.ranges = [2]idRange{{h.uid, o.HostUID, o.Guest, 1}, {h.gid, o.HostGID, o.Guest, 1}}
	case o.HostUID != h.uid:
		return errors.New("sharing the files of another user needs the capabilities of root")
	default:
		h.ranges[ofUser].guest, h.ranges[ofGroup].guest = o.Guest, o.Guest
	}
	return nil
}

// guestID is how the guest sees a host id.
func (h *hostAccess) guestID(id uint32, k idKind) uint32 {
	r := &h.ranges[k]
	switch {
	case r.count != 0:
		if id-r.host < r.count {
			return id - r.host + r.guest
		}
		return overflowID
	case !h.privileged && id == r.own:
		return r.guest
	}
	return id
}

// hostID is the host id for the guest's, or false when there is none.
func (h *hostAccess) hostID(id uint32, k idKind) (uint32, bool) {
	r := &h.ranges[k]
	switch {
	case r.count != 0:
		return id - r.guest + r.host, id-r.guest < r.count
	case !h.privileged && id == r.guest:
		return r.own, true
	}
	return id, true
}
