package vhost

import (
	"fmt"
	"os"

	"github.com/gvmspawn/gvmspawn/virtio"
	"github.com/gvmspawn/gvmspawn/virtio/virtq"
	"github.com/gvmspawn/gvmspawn/vmm/mem"
)

// Rings of /dev/vhost-net.
const (
	netRX = 0
	netTX = 1
)

// Net lets the host's kernel carry packets between a pair of queues of a network
// device (virtio 1.2 §5.1) and a queue of a TAP device. The TAP has a header of the
// device's size.
type Net struct {
	b   *Backend
	tap int
}

// NewNet returns the carrier behind file, an open /dev/vhost-net that stays open longer.
func NewNet(file *os.File, m *mem.Memory, tap int) (*Net, error) {
	n := &Net{b: newBackend(file, m), tap: tap}
	_, err := n.b.features()
	return n, err
}

// Start hands the queues to the kernel. fds are eventfds that send their used buffer
// notifications, or -1: then notify is called with 0 for rx or 1 for tx.
func (n *Net) Start(f virtio.Features, rx, tx *virtq.Queue, fds [2]int, notify func(int)) error {
	err := n.b.prepare(f)
	for i, q := range []*virtq.Queue{rx, tx} {
		if err == nil {
			err = n.b.addRing(uint32(i), q, fds[i], func() { notify(i) })
		}
	}
	for i := uint32(netRX); i <= netTX && err == nil; i++ {
		err = ringIoctl(n.b, "VHOST_NET_SET_BACKEND", VHOST_NET_SET_BACKEND, &vringFile{i, int32(n.tap)})
	}
	if err != nil {
		n.Stop()
		return fmt.Errorf("vhost-net: %w", err)
	}
	return nil
}

// Stop takes the queues back; the kernel waits for what it has under way.
func (n *Net) Stop() {
	for i := uint32(netRX); i <= netTX; i++ {
		// It fails for a ring that was not started.
		_ = ioctl(n.b.fd(), VHOST_NET_SET_BACKEND, &vringFile{i, noFD})
	}
	n.b.forget()
}
