package net

import (
	"bytes"
	"encoding/binary"
	stdnet "net"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gvmspawn/gvmspawn/virtio"
	"github.com/gvmspawn/gvmspawn/virtio/virtiotest"
	"github.com/gvmspawn/gvmspawn/virtio/virtq"
	"github.com/gvmspawn/gvmspawn/virtio/virtq/virtqtest"
)

// tapQueues makes a TAP device of several queues, or skips the test.
func tapQueues(t *testing.T, n int) []Link {
	t.Helper()
	links, err := OpenTAP("gvmt%d", n)
	if err != nil {
		t.Skipf("no TAP device here: %v", err)
	}
	for _, l := range links {
		t.Cleanup(func() { _ = l.(*TAP).Close() })
	}
	return links
}

// §5.1.6.5.6: with VIRTIO_NET_F_MQ the device uses one pair until the driver asks for
// more; 0 pairs and more than there are get an error; a detached queue of the TAP gets
// no packets.
func TestMultiQueue(t *testing.T) {
	links := tapQueues(t, 3)
	d, err := New(Config{MAC: stdnet.HardwareAddr{2, 0, 0, 0, 0, 1}, Links: links})
	if err != nil {
		t.Fatal(err)
	}
	if !d.Features().Has(FMQ) {
		t.Fatal("no VIRTIO_NET_F_MQ")
	}
	m := virtiotest.New(t, d, virtiotest.Options{})
	if got := binary.LittleEndian.Uint16(m.Config(cfgMaxPairs, 2)); got != 3 {
		t.Errorf("max_virtqueue_pairs %d", got)
	}
	attached := func() (n int) {
		for _, l := range links {
			if !detached(t, l.(*TAP)) {
				n++
			}
		}
		return n
	}
	if n := attached(); n != 1 {
		t.Errorf("%d queues attached at first", n)
	}
	ctrl := m.Queue[6]
	for _, c := range []struct {
		pairs uint16
		ack   byte
		want  int
	}{{3, ctrlOK, 3}, {0, ctrlErr, 3}, {4, ctrlErr, 3}, {65535, ctrlErr, 3}, {2, ctrlOK, 2}, {2, ctrlOK, 2}} {
		cmd := binary.LittleEndian.AppendUint16([]byte{ctrlMQ, ctrlMQPairs}, c.pairs)
		if ack := ctrl.Do([][]byte{cmd}, []int{1}).In[0][0]; ack != c.ack || attached() != c.want {
			t.Errorf("%d pairs: ack %d, %d attached", c.pairs, ack, attached())
		}
	}
	m.Reset()
	if err := m.Activate(); err != nil {
		t.Fatal(err)
	}
	if n := attached(); n != 1 {
		t.Errorf("%d queues attached after a reset", n)
	}
}

// detached asks the kernel (TUNGETIFF) whether the queue is.
func detached(t *testing.T, tap *TAP) bool {
	t.Helper()
	ifr, err := unix.NewIfreq("")
	if err == nil {
		err = unix.IoctlIfreq(tap.fd, unix.TUNGETIFF, ifr)
	}
	if err != nil {
		t.Fatal(err)
	}
	return ifr.Uint16()&unix.IFF_DETACH_QUEUE != 0
}

// carrier records what a vhost carrier is asked for.
type carrier struct {
	started, stopped int
	notify           func(int)
	err              error
}

func (c *carrier) Start(_ virtio.Features, rx, tx *virtq.Queue, _ [2]int, notify func(int)) error {
	c.started++
	c.notify = notify
	return c.err
}
func (c *carrier) Stop() { c.stopped++ }

// nowhere is a link that must not be used.
type nowhere struct{ t *testing.T }

func (nowhere) Features() virtio.Features         { return 0 }
func (nowhere) SetFeatures(virtio.Features) error { return nil }
func (n nowhere) Transmit([]virtq.Buffer, int) error {
	n.t.Error("the carrier's packet was sent by this process")
	return nil
}
func (n nowhere) Receive([]virtq.Buffer, int) (int, error) {
	n.t.Error("this process receives")
	return 0, ErrClosed
}
func (nowhere) Interrupt() {}

// With a carrier this process serves the control queue alone, and a carrier that fails
// makes the device need a reset.
func TestCarrier(t *testing.T) {
	c := &carrier{}
	d, err := New(Config{MAC: stdnet.HardwareAddr{2, 0, 0, 0, 0, 1}, Links: []Link{nowhere{t}}, Carriers: []Carrier{c}})
	if err != nil {
		t.Fatal(err)
	}
	a := activation(t, d)
	if err := d.Activate(a); err != nil || c.started != 1 {
		t.Fatalf("%d starts, %v", c.started, err)
	}
	// Without a cable it carries nothing.
	if err := d.SetLink(false); err != nil || c.stopped != 1 {
		t.Errorf("%d stops, %v", c.stopped, err)
	}
	if err := d.SetLink(true); err != nil || c.started != 2 {
		t.Errorf("%d starts, %v", c.started, err)
	}
	closeQueues(a)
	d.Reset()
	if c.stopped != 2 {
		t.Errorf("%d stops", c.stopped)
	}
	c.err = os.ErrPermission
	a = activation(t, d)
	if err := d.Activate(a); err == nil {
		t.Error("a carrier that cannot start is no error")
	}
	closeQueues(a)
	d.Reset()
}

// closeQueues does what a transport does before a reset.
func closeQueues(a *virtio.Activation) {
	for _, q := range a.Queues {
		q.Close()
	}
}

// activation is what a transport without eventfds gives.
func activation(t *testing.T, d *Device) *virtio.Activation {
	t.Helper()
	a := &virtio.Activation{Features: d.Features(), ConfigChanged: func() {}, NeedsReset: func() {},
		InterruptFD: func(int) int { return -1 }, Interrupt: func(int) {}}
	m := virtqtest.NewMemory(t, 1<<20)
	for _, size := range d.QueueSizes() {
		a.Queues = append(a.Queues, virtqtest.New(t, size, virtqtest.Options{Memory: m}).Queue)
	}
	return a
}

// §5.1.3: the offloads are those that the kernel takes. Any of them can be negotiated
// without the others; what rests on one that is missing (§5.1.3.1) is left out.
func TestTAPOffloads(t *testing.T) {
	tap := tapQueues(t, 1)[0].(*TAP)
	f := tap.Features()
	for _, want := range []uint{FCsum, FGuestCsum, FHostTSO4, FGuestTSO4, FHostTSO6, FGuestTSO6, FHostECN, FGuestECN, FHostUFO, FGuestUFO} {
		if !f.Has(want) {
			t.Errorf("feature %d is not offered", want)
		}
	}
	// Linux has these since 6.2, both or none.
	uso := virtio.Bits(FHostUSO, FGuestUSO4, FGuestUSO6)
	if f&uso != 0 && f&uso != uso {
		t.Errorf("USO: %#x", f&uso)
	}
	for bits := range 1 << len(offloads) {
		some := virtio.Features(0)
		for i, o := range offloads {
			if bits>>i&1 != 0 {
				some |= f & (o.guest | o.host)
			}
		}
		if err := tap.SetFeatures(some); err != nil {
			t.Errorf("features %#x: %v", some, err)
		}
	}
	if err := tap.SetFeatures(f &^ virtio.Bits(FGuestUSO4)); err != nil {
		t.Errorf("USO of one protocol: %v", err)
	}
}

// §5.1.3.1, §2.2.2: "a device MUST NOT offer a feature which requires another feature
// which was not offered".
func TestFeatureDependencies(t *testing.T) {
	links := tapQueues(t, 2)
	d, err := New(Config{MAC: ourMAC, Links: links})
	if err != nil {
		t.Fatal(err)
	}
	f := d.Features()
	for _, c := range []struct {
		feature uint
		needs   virtio.Features // one of them
	}{
		{FGuestTSO4, virtio.Bits(FGuestCsum)}, {FGuestTSO6, virtio.Bits(FGuestCsum)}, {FGuestECN, virtio.Bits(FGuestTSO4, FGuestTSO6)},
		{FGuestUFO, virtio.Bits(FGuestCsum)}, {FGuestUSO4, virtio.Bits(FGuestCsum)}, {FGuestUSO6, virtio.Bits(FGuestCsum)},
		{FHostTSO4, virtio.Bits(FCsum)}, {FHostTSO6, virtio.Bits(FCsum)}, {FHostECN, virtio.Bits(FHostTSO4, FHostTSO6)},
		{FHostUFO, virtio.Bits(FCsum)}, {FHostUSO, virtio.Bits(FCsum)},
		{FCtrlRX, virtio.Bits(FCtrlVQ)}, {FCtrlRXExtra, virtio.Bits(FCtrlRX)}, {FCtrlVLAN, virtio.Bits(FCtrlVQ)},
		{FGuestAnnounce, virtio.Bits(FCtrlVQ)}, {FMQ, virtio.Bits(FCtrlVQ)}, {FCtrlMACAddr, virtio.Bits(FCtrlVQ)},
	} {
		if f.Has(c.feature) && f&c.needs == 0 {
			t.Errorf("feature %d is offered without %#x", c.feature, c.needs)
		}
	}
}

// §5.1.4.1: the MTU offered is the interface's.
func TestTAPMTU(t *testing.T) {
	tap := tapQueues(t, 1)[0].(*TAP)
	if n := tap.MTU(); n != 1500 {
		t.Errorf("MTU %d at first", n)
	}
	ifr, err := unix.NewIfreq("")
	if err == nil {
		err = unix.IoctlIfreq(tap.fd, unix.TUNGETIFF, ifr)
	}
	if err != nil {
		t.Fatal(err)
	}
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(s)
	if ifr, err = unix.NewIfreq(ifr.Name()); err == nil {
		ifr.SetUint32(9000)
		err = unix.IoctlIfreq(s, unix.SIOCSIFMTU, ifr)
	}
	if err != nil {
		t.Fatal(err)
	}
	d, err := New(Config{MAC: ourMAC, Links: []Link{tap}})
	if err != nil {
		t.Fatal(err)
	}
	var mtu [2]byte
	if d.ReadConfig(cfgMTU, mtu[:]); !d.Features().Has(FMTU) || binary.LittleEndian.Uint16(mtu[:]) != 9000 {
		t.Errorf("features %v, MTU %d", d.Features(), binary.LittleEndian.Uint16(mtu[:]))
	}
}

// TestTAPFrames: a frame of the guest reaches the interface and one of the host the
// guest, through the queue that is attached.
func TestTAPFrames(t *testing.T) {
	links := tapQueues(t, 1)
	frame := append(make([]byte, HeaderLen), bytes.Repeat([]byte{0xff}, 60)...)
	if err := links[0].Transmit([]virtq.Buffer{{Bytes: frame}}, len(frame)); err != nil && err != unix.EIO { // EIO: the interface is down
		t.Error(err)
	}
	done := make(chan error, 1)
	go func() {
		_, err := links[0].Receive([]virtq.Buffer{{Bytes: make([]byte, 2048)}}, 2048)
		done <- err
	}()
	time.Sleep(10 * time.Millisecond)
	links[0].Interrupt()
	if err := <-done; err != ErrClosed {
		t.Errorf("after Interrupt: %v", err)
	}
}
