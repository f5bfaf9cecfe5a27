package net

import (
	"encoding/binary"
	stdnet "net"
	"sync/atomic"
	"testing"

	"github.com/gvmspawn/gvmspawn/virtio"
	"github.com/gvmspawn/gvmspawn/virtio/virtiotest"
	"github.com/gvmspawn/gvmspawn/virtio/virtq"
)

// counter is a link that counts the guest's packets and has none for it.
type counter struct {
	packets, bytes atomic.Int64
	interrupt      chan struct{}
}

func newCounter() *counter { return &counter{interrupt: make(chan struct{}, 1)} }

func (c *counter) Features() virtio.Features         { return virtio.Bits(FCsum, FGuestCsum, FHostTSO4) }
func (c *counter) SetFeatures(virtio.Features) error { return nil }
func (c *counter) Transmit(_ []virtq.Buffer, size int) error {
	c.packets.Add(1)
	c.bytes.Add(int64(size))
	return nil
}
func (c *counter) Receive([]virtq.Buffer, int) (int, error) {
	<-c.interrupt
	return 0, ErrClosed
}
func (c *counter) Interrupt() {
	select {
	case c.interrupt <- struct{}{}:
	default:
	}
}

// machine is a device of two queue pairs.
func machine(t testing.TB) (*Device, *virtiotest.Machine, *counter) {
	t.Helper()
	a, b := newCounter(), newCounter()
	d, err := New(Config{MAC: stdnet.HardwareAddr{2, 0, 0, 0, 0, 1}, Links: []Link{a, b}})
	if err != nil {
		t.Fatal(err)
	}
	return d, virtiotest.New(t, d, virtiotest.Options{}), a
}

// Row 21: packets that are shorter than their header, or as long, empty, or longer than
// any packet are dropped and given back; the queue goes on.
func TestHostileTransmit(t *testing.T) {
	d, m, link := machine(t)
	tx := m.Queue[1]
	for _, n := range []int{1, HeaderLen - 1, HeaderLen} {
		tx.Do([][]byte{make([]byte, n)}, nil)
	}
	tx.Do([][]byte{make([]byte, HeaderLen), make([]byte, 60000), make([]byte, 60000)}, nil)
	tx.Do([][]byte{make([]byte, MaxPacket+1)}, nil)
	tx.Do(nil, []int{100}) // nothing to send, and room that nobody asked for
	if n := d.Dropped(); n != 6 || link.packets.Load() != 0 {
		t.Errorf("%d packets dropped, %d sent", n, link.packets.Load())
	}
	tx.Do([][]byte{make([]byte, HeaderLen+1)}, nil)
	tx.Do([][]byte{make([]byte, MaxPacket)}, nil)
	if n := link.packets.Load(); n != 2 || link.bytes.Load() != HeaderLen+1+MaxPacket {
		t.Errorf("%d packets of %d bytes sent", n, link.bytes.Load())
	}
	if m.NeedsReset() {
		t.Error("the device gave up")
	}
}

// Row 21: the control queue answers every command, and broken ones with an error.
func TestHostileControl(t *testing.T) {
	d, m, _ := machine(t)
	ctrl := m.Queue[4]
	le := binary.LittleEndian
	table := func(entries uint32, have int) []byte {
		return append(le.AppendUint32(nil, entries), make([]byte, have)...)
	}
	for _, c := range []struct {
		name string
		cmd  []byte
		ack  byte
	}{
		{"class alone", []byte{ctrlRX}, ctrlErr},
		{"unknown class", []byte{99, 0, 0}, ctrlErr},
		{"unknown command", []byte{ctrlMAC, 77, 0}, ctrlErr},
		{"VLAN", []byte{ctrlVLAN, ctrlVLANAdd, 1, 0}, ctrlOK},
		{"VLAN of 13 bits", []byte{ctrlVLAN, ctrlVLANAdd, 0, 0x10}, ctrlErr},
		{"VLAN in one byte", []byte{ctrlVLAN, ctrlVLANDel, 1}, ctrlErr},
		{"unknown VLAN command", []byte{ctrlVLAN, 2, 1, 0}, ctrlErr},
		{"promiscuous", []byte{ctrlRX, 0, 1}, ctrlOK},
		{"promiscuous without a value", []byte{ctrlRX, 0}, ctrlErr},
		{"unknown mode", []byte{ctrlRX, ctrlRXMax + 1, 1}, ctrlErr},
		{"no tables", []byte{ctrlMAC, ctrlMACTable}, ctrlErr},
		{"empty tables", append([]byte{ctrlMAC, ctrlMACTable}, append(table(0, 0), table(0, 0)...)...), ctrlOK},
		{"short table", append([]byte{ctrlMAC, ctrlMACTable}, append(table(2, 11), table(0, 0)...)...), ctrlErr},
		{"huge count", append([]byte{ctrlMAC, ctrlMACTable}, table(1<<32-1, 12)...), ctrlErr},
		{"one table", append([]byte{ctrlMAC, ctrlMACTable}, table(1, 6)...), ctrlErr},
		{"too long", append([]byte{ctrlMAC, ctrlMACTable}, append(table(0, 0), append(table(0, 0), 1)...)...), ctrlErr},
		{"large tables", append([]byte{ctrlMAC, ctrlMACTable}, append(table(2000, 12000), table(0, 0)...)...), ctrlOK},
		{"multicast address", []byte{ctrlMAC, ctrlMACAddr, 1, 0, 0, 0, 0, 1}, ctrlErr},
		{"short address", []byte{ctrlMAC, ctrlMACAddr, 2, 0, 0}, ctrlErr},
		{"address", []byte{ctrlMAC, ctrlMACAddr, 2, 0, 0, 0, 0, 9}, ctrlOK},
		{"no pairs", []byte{ctrlMQ, ctrlMQPairs, 0, 0}, ctrlErr},
		{"too many pairs", []byte{ctrlMQ, ctrlMQPairs, 3, 0}, ctrlErr},
		{"most pairs", []byte{ctrlMQ, ctrlMQPairs, 255, 255}, ctrlErr},
		{"two pairs", []byte{ctrlMQ, ctrlMQPairs, 2, 0}, ctrlOK},
		{"pairs in three bytes", []byte{ctrlMQ, ctrlMQPairs, 2, 0, 0}, ctrlErr},
		{"announced", []byte{ctrlAnnounce, ctrlAnnAck}, ctrlOK},
	} {
		if got := ctrl.Do([][]byte{c.cmd}, []int{1}).In[0][0]; got != c.ack {
			t.Errorf("%s: %d, want %d", c.name, got, c.ack)
		}
	}
	if got := m.Config(cfgMAC, 6); got[5] != 9 {
		t.Errorf("address %x", got)
	}
	if u := ctrl.Do([][]byte{{ctrlRX, 0, 1}}, nil); u.Written != 0 {
		t.Errorf("wrote %d bytes into no room", u.Written)
	}
	if d.pairs.Load() != 2 {
		t.Errorf("%d pairs", d.pairs.Load())
	}
}

// FuzzQueues sends arbitrary chains to the transmit and the control queue.
func FuzzQueues(f *testing.F) {
	f.Add([]byte{ctrlMAC, ctrlMACTable, 1, 0, 0, 0, 2, 0, 0, 0, 0, 1, 0, 0, 0, 0}, uint16(1))
	f.Add(make([]byte, 80), uint16(0))
	f.Fuzz(func(t *testing.T, out []byte, room uint16) {
		_, m, _ := machine(t)
		var bufs [][]byte
		var lens []int
		if len(out) > 0 {
			bufs = append(bufs, out)
		}
		if room > 0 {
			lens = append(lens, int(room))
		}
		if len(bufs)+len(lens) == 0 {
			return
		}
		m.Queue[1].Do(bufs, lens)
		m.Queue[4].Do(bufs, lens)
	})
}
