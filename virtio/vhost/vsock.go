package vhost

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/gvmspawn/gvmspawn/virtio"
	"github.com/gvmspawn/gvmspawn/vmm/mem"
)

// ErrCIDInUse says that another machine of the host has the context ID.
var ErrCIDInUse = errors.New("vsock CID is in use on this host")

// SetGuestCID gives the guest behind an open /dev/vhost-vsock its context ID,
// which it keeps until the device is closed.
func SetGuestCID(file *os.File, cid uint32) error {
	n := uint64(cid)
	err := ioctl(int(file.Fd()), VHOST_VSOCK_SET_GUEST_CID, &n)
	switch {
	case errors.Is(err, unix.EADDRINUSE):
		return fmt.Errorf("%w: %d", ErrCIDInUse, cid)
	case err != nil:
		return fmt.Errorf("VHOST_VSOCK_SET_GUEST_CID %d: %w", cid, err)
	}
	return nil
}

// Queues of a vsock device (virtio 1.2 §5.10.2). The kernel serves the first two; there
// are no events that a machine which is never moved would tell of.
const (
	vsockRX    = 0
	vsockTX    = 1
	vsockEvent = 2

	vsockQueueSize = 128
	vsockConfig    = 8 // le64 guest_cid (§5.10.4)
)

// Vsock is a virtio socket device (virtio 1.2 §5.10) that the host's kernel serves:
// the guest's peers are AF_VSOCK sockets of the host. It implements virtio.Device.
type Vsock struct {
	b   *Backend
	cid uint32
	f   virtio.Features

	mu     sync.Mutex // guards the fields below
	active bool
}

// NewVsock returns the device behind file, an open /dev/vhost-vsock to which
// SetGuestCID gave the context ID. The file must stay open longer than the device.
func NewVsock(file *os.File, m *mem.Memory, cid uint32) (*Vsock, error) {
	v := &Vsock{b: newBackend(file, m), cid: cid}
	f, err := v.b.features()
	// §5.10.3: STREAM and SEQPACKET; bit 0 is not among the kernel's.
	v.f = f & virtio.Bits(0, 1)
	return v, err
}

// Type is the socket device's ID.
func (v *Vsock) Type() virtio.Type { return virtio.TypeVsock }

// Features are the device's own that the kernel has.
func (v *Vsock) Features() virtio.Features { return v.f }

// QueueSizes are those of rx, tx and event queue.
func (v *Vsock) QueueSizes() []uint16 {
	return []uint16{vsockQueueSize, vsockQueueSize, vsockQueueSize}
}

// ReadConfig reads the guest's CID.
func (v *Vsock) ReadConfig(off uint64, p []byte) {
	var b [vsockConfig]byte
	binary.LittleEndian.PutUint64(b[:], uint64(v.cid))
	virtio.ReadConfigBytes(p, b[:], off)
}

// WriteConfig ignores the write.
func (v *Vsock) WriteConfig(uint64, []byte) {}

// Activate hands rx and tx to the kernel.
func (v *Vsock) Activate(a *virtio.Activation) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if a.Queues[vsockRX] == nil || a.Queues[vsockTX] == nil {
		return errors.New("vhost-vsock: the driver left a queue out")
	}
	err := v.b.prepare(a.Features)
	for i := uint32(vsockRX); i <= vsockTX && err == nil; i++ {
		err = v.b.addRing(i, a.Queues[i], a.InterruptFD(int(i)), func() { a.Interrupt(int(i)) })
	}
	if err == nil {
		on := int32(1)
		err = ioctl(v.b.fd(), VHOST_VSOCK_SET_RUNNING, &on)
	}
	if err != nil {
		v.b.forget()
		return fmt.Errorf("vhost-vsock: %w", err)
	}
	v.active = true
	return nil
}

// Reset takes the queues back. The kernel holds each ring's lock while it works on
// it, so it touches none afterwards.
func (v *Vsock) Reset() {
	v.mu.Lock()
	defer v.mu.Unlock()
	if !v.active {
		return
	}
	v.active = false
	off := int32(0)
	_ = ioctl(v.b.fd(), VHOST_VSOCK_SET_RUNNING, &off)
	v.b.forget()
}
