package net

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/gvmspawn/gvmspawn/virtio"
	"github.com/gvmspawn/gvmspawn/virtio/virtq"
)

// TAP is a Link over one queue of a TAP device. The kernel takes the virtio
// header as it is, so that all offloads are its own.
type TAP struct {
	file *os.File
	fd   int
	wake int // eventfd of Interrupt

	features virtio.Features

	rx, tx []unix.Iovec // storage of one call each; Receive and Transmit have one caller
}

// maxIovecs is the kernel's limit of pieces in one call (UIO_MAXIOV).
const maxIovecs = 1024

// OpenTAP creates or attaches to the TAP interface name and returns pairs
// links, one a queue. It needs CAP_NET_ADMIN, or an interface that the user owns.
func OpenTAP(name string, pairs int) ([]Link, error) {
	var links []Link
	for range pairs {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err != nil {
			return nil, fmt.Errorf("open /dev/net/tun: %w", err)
		}
		ifr, err := unix.NewIfreq(name)
		if err != nil {
			return nil, fmt.Errorf("TAP interface name %q: %w", name, err)
		}
		flags := uint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
		if pairs > 1 {
			flags |= unix.IFF_MULTI_QUEUE
		}
		ifr.SetUint16(flags)
		if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
			_ = unix.Close(fd)
			return nil, fmt.Errorf("create TAP interface %s: %w", name, err)
		}
		l, err := NewTAP(os.NewFile(uintptr(fd), name))
		if err != nil {
			return nil, err
		}
		links = append(links, l)
	}
	return links, nil
}

// NewTAP takes over one queue of a TAP device that was set up with IFF_TAP,
// IFF_NO_PI and IFF_VNET_HDR.
func NewTAP(f *os.File) (*TAP, error) {
	fd := int(f.Fd())
	if err := unix.SetNonblock(fd, true); err != nil {
		return nil, fmt.Errorf("TAP: %w", err)
	}
	if err := unix.IoctlSetPointerInt(fd, unix.TUNSETVNETHDRSZ, HeaderLen); err != nil {
		return nil, fmt.Errorf("TAP: set the header size (is IFF_VNET_HDR on?): %w", err)
	}
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("TAP: %w", err)
	}
	return &TAP{file: f, fd: fd, wake: wake, features: probe(fd), rx: make([]unix.Iovec, maxIovecs), tx: make([]unix.Iovec, maxIovecs)}, nil
}

// offloads are the features of a driver that the kernel must know of before it
// sends it such packets, and what the kernel takes of the driver then.
var offloads = []struct {
	guest, host virtio.Features
	tun         int // of TUNSETOFFLOAD, all of which must be asked for together
	needs       int // what else must be asked for
}{
	{virtio.Bits(FGuestCsum), virtio.Bits(FCsum), unix.TUN_F_CSUM, 0},
	{virtio.Bits(FGuestTSO4), virtio.Bits(FHostTSO4), unix.TUN_F_TSO4, unix.TUN_F_CSUM},
	{virtio.Bits(FGuestTSO6), virtio.Bits(FHostTSO6), unix.TUN_F_TSO6, unix.TUN_F_CSUM},
	{virtio.Bits(FGuestECN), virtio.Bits(FHostECN), unix.TUN_F_TSO_ECN, unix.TUN_F_TSO4 | unix.TUN_F_TSO6},
	{virtio.Bits(FGuestUFO), virtio.Bits(FHostUFO), unix.TUN_F_UFO, unix.TUN_F_CSUM},
	// USO came with Linux 6.2.
	{virtio.Bits(FGuestUSO4, FGuestUSO6), virtio.Bits(FHostUSO), unix.TUN_F_USO4 | unix.TUN_F_USO6, unix.TUN_F_CSUM},
}

// probe asks the kernel for the offloads that it has: it refuses bits that it does
// not know.
func probe(fd int) virtio.Features {
	var f virtio.Features
	have := 0
	for _, o := range offloads {
		if unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, have|o.tun) == nil {
			have |= o.tun
			f |= o.guest | o.host
		}
	}
	_ = unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, 0)
	return f
}

// Features are the offloads of the kernel's TAP driver.
func (t *TAP) Features() virtio.Features { return t.features }

// SetFeatures sets which offloaded packets the guest can receive. What the driver
// negotiated without that on which it rests (§5.1.3.1) it does not get.
func (t *TAP) SetFeatures(f virtio.Features) error {
	tun := 0
	for _, o := range offloads {
		if f&o.guest == o.guest && (o.needs == 0 || tun&o.needs != 0) {
			tun |= o.tun
		}
	}
	if err := unix.IoctlSetInt(t.fd, unix.TUNSETOFFLOAD, tun); err != nil {
		return fmt.Errorf("TAP: set offloads: %w", err)
	}
	return nil
}

// MTU is that of the interface, or 0 if this process does not see it: it may be in
// another network namespace.
func (t *TAP) MTU() uint16 {
	ifr, err := unix.NewIfreq("")
	if err != nil || unix.IoctlIfreq(t.fd, unix.TUNGETIFF, ifr) != nil {
		return 0
	}
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0
	}
	defer func() { _ = unix.Close(s) }()
	if ifr, err = unix.NewIfreq(ifr.Name()); err != nil || unix.IoctlIfreq(s, unix.SIOCGIFMTU, ifr) != nil {
		return 0
	}
	return uint16(min(ifr.Uint32(), 65535))
}

// SetEnabled attaches or detaches this queue of a TAP device with several: the kernel
// spreads packets over those that are attached.
func (t *TAP) SetEnabled(on bool) error {
	ifr, err := unix.NewIfreq(t.file.Name())
	if err != nil {
		return fmt.Errorf("TAP interface name %q: %w", t.file.Name(), err)
	}
	ifr.SetUint16(unix.IFF_DETACH_QUEUE)
	if on {
		ifr.SetUint16(unix.IFF_ATTACH_QUEUE)
	}
	// EINVAL: it is so already.
	if err := unix.IoctlIfreq(t.fd, unix.TUNSETQUEUE, ifr); err != nil && err != unix.EINVAL {
		return fmt.Errorf("TAP: change the number of queues: %w", err)
	}
	return nil
}

// FD is the TAP device's descriptor, for vhost.
func (t *TAP) FD() int { return t.fd }

// Transmit writes the packet; the kernel checks the header.
func (t *TAP) Transmit(pieces []virtq.Buffer, _ int) error {
	iov, err := fill(t.tx, pieces)
	if err != nil {
		return err
	}
	_, err = rwv(unix.SYS_WRITEV, t.fd, iov)
	return err
}

// Receive reads one packet, waiting for it in poll(2) with the wake-up.
func (t *TAP) Receive(pieces []virtq.Buffer, size int) (int, error) {
	iov, err := fill(t.rx, pieces)
	if err != nil {
		return 0, err
	}
	for {
		n, err := rwv(unix.SYS_READV, t.fd, iov)
		if err == nil {
			return min(n, size), nil
		}
		if !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR) {
			return 0, fmt.Errorf("read TAP: %w", err)
		}
		if t.wait() {
			return 0, ErrClosed
		}
	}
}

// wait blocks until a packet or an Interrupt is there; it reports the latter.
func (t *TAP) wait() bool {
	fds := [2]unix.PollFd{{Fd: int32(t.fd), Events: unix.POLLIN}, {Fd: int32(t.wake), Events: unix.POLLIN}}
	if _, err := unix.Poll(fds[:], -1); err != nil {
		return false
	}
	if fds[1].Revents == 0 {
		return false
	}
	var b [8]byte
	_, _ = unix.Read(t.wake, b[:])
	return true
}

// Interrupt ends a Receive.
func (t *TAP) Interrupt() {
	_, _ = unix.Write(t.wake, []byte{1, 0, 0, 0, 0, 0, 0, 0})
}

// Close gives the TAP device back.
func (t *TAP) Close() error {
	_ = unix.Close(t.wake)
	return t.file.Close()
}

var errPieces = errors.New("packet in too many pieces")

// fill describes the pieces to the kernel, in the storage of iov.
func fill(iov []unix.Iovec, pieces []virtq.Buffer) ([]unix.Iovec, error) {
	n := 0
	for _, p := range pieces {
		if len(p.Bytes) == 0 {
			continue
		}
		if n == len(iov) {
			return nil, errPieces
		}
		iov[n].Base = &p.Bytes[0]
		iov[n].SetLen(len(p.Bytes))
		n++
	}
	if n == 0 {
		return nil, errPacket
	}
	return iov[:n], nil
}
