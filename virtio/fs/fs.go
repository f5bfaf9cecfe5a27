// Package fs is the virtio file system device: it shares a host directory, or
// one file, with the guest, in this process. Documents: virtio 1.2 §5.11, and
// the FUSE protocol 7.41 (Linux include/uapi/linux/fuse.h).
//
// # What a guest may reach
//
// Every file the guest knows is an inode of our table: an O_PATH descriptor
// with a number that the guest calls node ID. Everything starts at the share's
// root and goes on one name at a time: a name has no slash, is neither "." nor
// "..", and is resolved below its parent's descriptor without following a
// symbolic link (openat2 with RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS and
// RESOLVE_NO_MAGICLINKS). The host never follows a link, however the tree
// changes underneath: the guest's kernel resolves links itself, from what
// READLINK says. Contents are reached by opening /proc/self/fd/N of a
// descriptor known to be a regular file or a directory, so no FIFO, device or
// socket is ever opened.
//
// Requests are copied once and the copy is checked; file data moves straight
// between guest memory and the file. Node IDs and handles are never reused.
//
// # Who the host sees
//
// The guest's kernel checks permissions (virtio-fs mounts have
// default_permissions), the device does what it is told. With the capabilities
// of root, new files get the caller's owner at the moment of creation: the
// thread takes the caller's file system uid and gid around the one system
// call, so set-group-ID directories, default ACLs and quotas work as on the
// host and no file ever exists under the wrong owner. An [IDMap] shifts them.
// Without those capabilities ownership is squashed: our own uid and gid are
// the guest's 0, and everything the guest makes is ours.
package fs

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gvmspawn/gvmspawn/virtio"
	"github.com/gvmspawn/gvmspawn/virtio/virtq"
)

// CachePolicy says what the guest may keep without asking.
type CachePolicy uint8

const (
	// CacheAuto keeps file pages across opens as long as the host's file is
	// unchanged, and names and attributes for [Config.Timeout].
	CacheAuto CachePolicy = iota
	// CacheAlways keeps everything: for a tree that nobody else changes.
	CacheAlways
	// CacheNever keeps nothing: every read and lookup asks the host.
	CacheNever
)

// String returns the policy's name.
func (p CachePolicy) String() string {
	if p > CacheNever {
		return "invalid"
	}
	return [...]string{"auto", "always", "never"}[p]
}

// IDMap maps the guest's uids and gids 0 to Range-1 to the host's from Shift
// on. The zero map leaves them as they are. Host ids outside it show as 65534,
// and what they own can be used by the guest only as others may.
type IDMap struct{ Shift, Range uint32 }

// Owner is a user of the host and its group, who are Guest, both, in the guest.
// Other host ids show as 65534. Without the capabilities of root it has to be
// our own user.
type Owner struct{ HostUID, HostGID, Guest uint32 }

// Config describes a share.
type Config struct {
	// Tag is the name the guest mounts, 1 to 36 bytes without NUL.
	Tag string
	// Path is the directory to share, or one file: then the guest sees a
	// read-only directory that holds just that file under FileName, by
	// default its own name. The path is followed once, here.
	Path     string
	FileName string
	// Root is an open directory instead of Path. New duplicates it.
	Root *os.File

	// ReadOnly refuses every change with EROFS, here on the host.
	ReadOnly bool
	// Queues is the number of request queues, 1 by default, 64 at most.
	Queues int
	// InOrder answers the requests of a queue one after the other, whatever
	// time they take, but for those that wait for a lock: deterministic
	// machines need it.
	InOrder bool
	// InlineRead is the size in bytes of the longest READ that the CPU which
	// notifies serves itself, 0 for any: read-ahead is better copied beside it,
	// where the host has another CPU for that.
	InlineRead uint32
	// IDMap maps owners; it needs the capabilities of root.
	IDMap IDMap
	// Owner, instead of an IDMap, is the one user whose files the share has.
	Owner *Owner

	// Cache is the cache policy. Timeout is how long CacheAuto lets the
	// guest keep names and attributes, 1 s by default.
	Cache   CachePolicy
	Timeout time.Duration
	// Writeback lets the guest collect writes. It then trusts its own idea
	// of sizes and times: nothing else should change the files.
	Writeback bool
	// Locks makes flock and POSIX locks visible between host and guest, at
	// the price of one more request for every close. Without it they work
	// among the guest's processes.
	Locks bool
	// ACL makes the guest obey and edit the host's POSIX ACLs.
	ACL bool
	// DeviceNodes lets the guest create device nodes in the tree. They are
	// inert for the device, but not for a host user who can reach them.
	DeviceNodes bool

	// DAXSize is the size of the DAX window in bytes, a power of two from
	// 2 MiB, or 0 for none. The machine sets it with [Device.SetWindow].
	DAXSize uint64
	// DAXMinFile is the size from which files use the window where the
	// guest asks per file (dax=inode, its default): 64 KiB by default.
	DAXMinFile uint64

	// Log gets warnings; nil drops them. Guests cannot flood it.
	Log *slog.Logger
}

// check fills in defaults and reports what is wrong.
func (c *Config) check() error {
	if c.Queues == 0 {
		c.Queues = 1
	}
	if c.Timeout == 0 {
		c.Timeout = time.Second
	}
	if c.DAXMinFile == 0 {
		c.DAXMinFile = 64 << 10
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	switch {
	case c.Tag == "" || len(c.Tag) > tagLen || strings.IndexByte(c.Tag, 0) >= 0:
		return fmt.Errorf("tag %q must have 1 to %d bytes", c.Tag, tagLen)
	case c.Queues < 1 || c.Queues > maxQueues:
		return fmt.Errorf("%d request queues: 1 to %d are possible", c.Queues, maxQueues)
	case c.Cache > CacheNever:
		return fmt.Errorf("unknown cache policy %d", c.Cache)
	case c.DAXSize != 0 && (c.DAXSize < daxRange || c.DAXSize&(c.DAXSize-1) != 0):
		return fmt.Errorf("DAX window of %d bytes: it must be a power of two from 2 MiB", c.DAXSize)
	case c.IDMap.Range != 0 && uint64(c.IDMap.Shift)+uint64(c.IDMap.Range) > 1<<32-1:
		return fmt.Errorf("ids %d to %d: the range ends beyond the last valid id",
			c.IDMap.Shift, uint64(c.IDMap.Shift)+uint64(c.IDMap.Range)-1)
	case c.Owner != nil && c.IDMap.Range != 0:
		return errors.New("an id map and an owner exclude each other")
	case c.Timeout < 0:
		return fmt.Errorf("negative timeout %v", c.Timeout)
	}
	return nil
}

// Device is a virtio-fs device. It implements virtio.Device and
// virtio.SharedMemoryDevice. Lock order: run state, then lock owners, then
// inode table or handle table, then one inode.
type Device struct {
	cfg    Config
	config [configSize]byte
	host   hostAccess

	root    *inode
	nodes   inodeTable
	handles handleTable
	locks   lockTable
	dax     daxWindow

	features atomic.Uint64 // negotiated INIT flags; bit 63 is set once INIT was served
	quiet    limiter
	// local: nothing that the guest reaches waits for a network or another
	// process, as far as we know.
	local atomic.Bool

	mu  sync.Mutex // guards run
	run *run
}

var (
	_ virtio.SharedMemoryDevice = (*Device)(nil)
	_ virtio.InlineDevice       = (*Device)(nil)
)

// inited marks a session in Device.features. It is no FUSE flag of our version.
const inited = 1 << 63

// New opens the share.
func New(cfg Config) (*Device, error) {
	if err := cfg.check(); err != nil {
		return nil, fmt.Errorf("virtio-fs: %w", err)
	}
	d := &Device{cfg: cfg}
	copy(d.config[:], cfg.Tag)
	d.config[tagLen] = byte(cfg.Queues)
	if err := d.host.open(&d.cfg); err != nil {
		return nil, fmt.Errorf("virtio-fs %q: %w", cfg.Tag, err)
	}
	root, err := d.openRoot()
	if err != nil {
		d.host.close()
		return nil, fmt.Errorf("virtio-fs %q: %w", cfg.Tag, err)
	}
	d.root = root
	d.findLocal()
	d.nodes.init(root)
	d.handles.init()
	d.locks.init()
	return d, nil
}

// Squashed reports whether the share runs without the capabilities of root, so
// that all new files belong to the VMM's user and chown mostly fails. A
// command should say so once, and name --private-users.
func (d *Device) Squashed() bool { return !d.host.privileged }

// Close releases the host's files. The device must have been reset.
func (d *Device) Close() error {
	d.mu.Lock()
	active := d.run != nil
	d.mu.Unlock()
	if active {
		return errors.New("virtio-fs: closed while active")
	}
	d.endSession()
	d.root.put()
	d.host.close()
	return d.dax.close()
}

// Type returns virtio.TypeFS.
func (d *Device) Type() virtio.Type { return virtio.TypeFS }

// Features returns none: §5.11.3 has only VIRTIO_FS_F_NOTIFICATION, which no driver uses.
func (d *Device) Features() virtio.Features { return 0 }

// QueueSizes returns the sizes of hiprio and the request queues.
func (d *Device) QueueSizes() []uint16 {
	s := make([]uint16, 1+d.cfg.Queues)
	for i := range s {
		s[i] = requestSize
	}
	s[hiprioQueue] = hiprioSize
	return s
}

// ReadConfig reads tag and num_request_queues.
func (d *Device) ReadConfig(off uint64, p []byte) {
	clear(p)
	if off < configSize {
		copy(p, d.config[off:])
	}
}

// WriteConfig ignores the write: all fields are read-only (§5.11.4).
func (d *Device) WriteConfig(uint64, []byte) {}

// SharedMemory returns the DAX window (shmid 0, §5.11.6.4), if there is one.
func (d *Device) SharedMemory() []virtio.SharedMemory {
	if d.cfg.DAXSize == 0 {
		return nil
	}
	return []virtio.SharedMemory{{ID: 0, Size: d.cfg.DAXSize}}
}

// ServesInline reports whether the CPU that notifies of requests does quick ones
// itself.
func (d *Device) ServesInline(int) bool { return !d.cfg.InOrder && d.local.Load() }

// Activate starts the workers.
func (d *Device) Activate(a *virtio.Activation) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.run != nil {
		return errors.New("virtio-fs: activated twice")
	}
	// §5.11.5 wants hiprio and one request queue at least. OVMF's driver has nothing to
	// say on hiprio and leaves it out.
	if len(a.Queues) < 2 || a.Queues[1] == nil {
		return errors.New("virtio-fs: the driver left the first request queue disabled")
	}
	d.run = startRun(d, a.Queues)
	return nil
}

// Reset stops the workers, interrupting those that wait for locks, and forgets
// all that the guest knew.
func (d *Device) Reset() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.run == nil {
		return
	}
	d.locks.interruptAll()
	d.run.wait()
	d.run = nil
	d.endSession()
}

// endSession drops the guest's handles, locks, inodes and mappings: at INIT,
// DESTROY and reset. Requests still running keep what they use.
func (d *Device) endSession() {
	d.features.Store(0)
	d.dax.clear()
	d.handles.clear()
	d.locks.clear()
	d.nodes.clear()
}

// flag reports whether an INIT flag was negotiated.
func (d *Device) flag(f uint64) bool { return d.features.Load()&f != 0 }

// run is one activation: the workers of all queues.
type run struct {
	wg     sync.WaitGroup
	queues []*queue
}

func startRun(d *Device, vqs []*virtq.Queue) *run {
	r := &run{}
	for i, vq := range vqs {
		if vq == nil {
			continue
		}
		limit := int32(requestWorkers)
		if i == hiprioQueue {
			limit = hiprioWorkers
		}
		q := newQueue(d, r, vq, limit)
		r.queues = append(r.queues, q)
		if d.ServesInline(i) {
			vq.Inline(q.inline)
		}
		q.spawn()
	}
	return r
}

func (r *run) wait() { r.wg.Wait() }
