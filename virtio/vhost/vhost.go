// Package vhost lets the host's kernel serve virtqueues: /dev/vhost-vsock and
// /dev/vhost-net (linux/vhost.h). The kernel reads and writes guest memory
// itself, is woken by the queue's doorbell and interrupts by an eventfd, so
// that packets do not pass through this process.
//
// Documents: virtio 1.2; Linux include/uapi/linux/vhost.h.
package vhost

import (
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/gvmspawn/gvmspawn/virtio"
	"github.com/gvmspawn/gvmspawn/virtio/virtq"
	"github.com/gvmspawn/gvmspawn/vmm/mem"
)

// ErrNoEventFD says that the engine's doorbells are no eventfds, so that the kernel
// cannot wait for them: the software CPU's.
var ErrNoEventFD = errors.New("vhost: the doorbells of this engine are no eventfds")

// Backend is an open vhost device. It serves one device at a time.
type Backend struct {
	file  *os.File
	mem   *mem.Memory
	owned bool
	calls []*call
	rings int // configured since the last stop

	mu     sync.Mutex     // guards the field below
	queues []*virtq.Queue // that the kernel serves
}

// newBackend takes the device over; file stays the caller's to close.
func newBackend(file *os.File, m *mem.Memory) *Backend {
	b := &Backend{file: file, mem: m}
	m.OnRecord(b.lend)
	return b
}

// lend tells where the kernel may write (see mem.Memory.OnRecord).
func (b *Backend) lend() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, q := range b.queues {
		if err := q.Lend(); err != nil {
			return err
		}
	}
	return nil
}

func (b *Backend) fd() int { return int(b.file.Fd()) }

// features are the feature bits that the kernel knows.
func (b *Backend) features() (virtio.Features, error) {
	var f uint64
	if err := ioctl(b.fd(), VHOST_GET_FEATURES, &f); err != nil {
		return 0, fmt.Errorf("VHOST_GET_FEATURES: %w", err)
	}
	return virtio.Features(f), nil
}

// table is the guest's memory as the kernel shall see it: RAM, plugged or not.
func table(m *mem.Memory) (*memoryTable, error) {
	t := &memoryTable{}
	for _, r := range m.Regions() {
		if r.Kind != mem.RAM && r.Kind != mem.Pluggable {
			continue
		}
		if int(t.nregions) == maxRegions {
			return nil, fmt.Errorf("vhost: more than %d regions of memory", maxRegions)
		}
		t.regions[t.nregions] = memoryRegion{guestPhysAddr: uint64(r.Base), memorySize: r.Size(), userspaceAddr: uint64(r.HostAddr())}
		t.nregions++
	}
	return t, nil
}

// prepare makes this process the owner and tells features and memory.
func (b *Backend) prepare(f virtio.Features) error {
	if !b.owned {
		// A device that was handed to us after use has an owner already: us.
		if _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(b.fd()), VHOST_SET_OWNER, 0); e != 0 && e != unix.EBUSY {
			return fmt.Errorf("VHOST_SET_OWNER: %w", e)
		}
		b.owned = true
	}
	known, err := b.features()
	if err != nil {
		return err
	}
	set := uint64(f & known)
	if err := ioctl(b.fd(), VHOST_SET_FEATURES, &set); err != nil {
		return fmt.Errorf("VHOST_SET_FEATURES %#x: %w", set, err)
	}
	t, err := table(b.mem)
	if err != nil {
		return err
	}
	if err := ioctl(b.fd(), VHOST_SET_MEM_TABLE, t); err != nil {
		return fmt.Errorf("VHOST_SET_MEM_TABLE: %w", err)
	}
	return nil
}

// addRing hands a queue to the kernel, as its ring index. interrupt is the eventfd
// that sends the queue's notification, or -1: then notify is called.
func (b *Backend) addRing(index uint32, q *virtq.Queue, interrupt int, notify func()) error {
	kick := q.BellFD()
	if kick < 0 {
		return ErrNoEventFD
	}
	desc, avail, used := q.Areas()
	size := uint64(q.Size())
	addr := vringAddr{index: index}
	for _, a := range []struct {
		to  *uint64
		gpa mem.GPA
		n   uint64
	}{{&addr.desc, desc, 16 * size}, {&addr.avail, avail, 6 + 2*size}, {&addr.used, used, 6 + 8*size}} {
		var err error
		if *a.to, err = hostAddress(b.mem, a.gpa, a.n); err != nil {
			return fmt.Errorf("ring %d: %w", index, err)
		}
	}
	if interrupt < 0 {
		c, err := newCall(notify)
		if err != nil {
			return err
		}
		b.calls = append(b.calls, c)
		interrupt = c.fd
	}
	b.rings = max(b.rings, int(index)+1)
	b.mu.Lock()
	b.queues = append(b.queues, q)
	b.mu.Unlock()
	return errors.Join(
		b.ring("VHOST_SET_VRING_NUM", VHOST_SET_VRING_NUM, &vringState{index, uint32(size)}),
		b.ring("VHOST_SET_VRING_BASE", VHOST_SET_VRING_BASE, &vringState{index, 0}),
		ringIoctl(b, "VHOST_SET_VRING_ADDR", VHOST_SET_VRING_ADDR, &addr),
		ringIoctl(b, "VHOST_SET_VRING_CALL", VHOST_SET_VRING_CALL, &vringFile{index, int32(interrupt)}),
		ringIoctl(b, "VHOST_SET_VRING_KICK", VHOST_SET_VRING_KICK, &vringFile{index, int32(kick)}))
}

func (b *Backend) ring(name string, request uintptr, s *vringState) error {
	return ringIoctl(b, name, request, s)
}

func ringIoctl[T any](b *Backend, name string, request uintptr, arg *T) error {
	if err := ioctl(b.fd(), request, arg); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// forget takes all eventfds from the kernel. It serves no ring any more.
func (b *Backend) forget() {
	for i := range uint32(b.rings) {
		// They fail only for a ring that does not exist.
		_ = ioctl(b.fd(), VHOST_SET_VRING_KICK, &vringFile{i, noFD})
		_ = ioctl(b.fd(), VHOST_SET_VRING_CALL, &vringFile{i, noFD})
	}
	b.rings = 0
	b.mu.Lock()
	b.queues = nil
	b.mu.Unlock()
	for _, c := range b.calls {
		c.close()
	}
	b.calls = nil
}

// call is an eventfd whose events are passed on by a goroutine, for transports that
// have none to give.
type call struct {
	file *os.File
	fd   int
	done chan struct{}
}

func newCall(notify func()) (*call, error) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("vhost: eventfd: %w", err)
	}
	c := &call{file: os.NewFile(uintptr(fd), "vhost call"), fd: fd, done: make(chan struct{})}
	go func() {
		defer close(c.done)
		var b [8]byte
		for {
			if _, err := c.file.Read(b[:]); err != nil {
				return
			}
			notify()
		}
	}()
	return c, nil
}

func (c *call) close() {
	_ = c.file.Close()
	<-c.done
}
