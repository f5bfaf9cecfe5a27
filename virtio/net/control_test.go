package net

import (
	"bytes"
	"encoding/binary"
	stdnet "net"
	"sync/atomic"
	"testing"

	"github.com/gvmspawn/gvmspawn/virtio"
	"github.com/gvmspawn/gvmspawn/virtio/virtiotest"
	"github.com/gvmspawn/gvmspawn/virtio/virtq"
	"github.com/gvmspawn/gvmspawn/virtio/virtq/virtqtest"
)

// wire is a link whose packets to the guest come from a channel.
type wire struct {
	counter
	frames  chan []byte
	gsoType atomic.Int32 // of the packets
}

func (w *wire) Receive(pieces []virtq.Buffer, size int) (int, error) {
	select {
	case <-w.interrupt:
		return 0, ErrClosed
	case f := <-w.frames:
		n := copy(pieces[0].Bytes[HeaderLen:], f)
		clear(pieces[0].Bytes[:HeaderLen])
		pieces[0].Bytes[HdrGSOType] = byte(w.gsoType.Load())
		return HeaderLen + n, nil
	}
}

var (
	ourMAC    = stdnet.HardwareAddr{2, 0, 0, 0, 0, 1}
	broadcast = bytes.Repeat([]byte{0xff}, 6)
)

// frameTo is a frame to an address, in a VLAN if that is not 0; mark is in it.
func frameTo(to []byte, vlan uint16, mark byte) []byte {
	f := append(append([]byte{}, to...), 2, 0, 0, 0, 0, 99)
	if vlan != 0 {
		f = binary.BigEndian.AppendUint16(append(f, 0x81, 0), vlan)
	}
	return append(append(f, 8, 0), bytes.Repeat([]byte{mark}, 46)...)
}

// wired is a machine with one queue pair and the packets for it.
func wired(t testing.TB, without virtio.Features) (*Device, *virtiotest.Machine, *wire) {
	t.Helper()
	w := &wire{counter: counter{interrupt: make(chan struct{}, 1)}, frames: make(chan []byte)}
	d, err := New(Config{MAC: ourMAC, MTU: 1400, Speed: 10000, Links: []Link{w}})
	if err != nil {
		t.Fatal(err)
	}
	return d, virtiotest.New(t, d, virtiotest.Options{Features: d.Features() &^ without}), w
}

// §5.1.6.5.1 to 3: the modes, the MAC tables and the VLANs decide what the guest gets.
func TestFilter(t *testing.T) {
	_, m, w := wired(t, 0)
	ctrl, rx := m.Queue[2], m.Queue[0]
	do := func(cmd ...byte) {
		t.Helper()
		if ack := ctrl.Do([][]byte{cmd}, []int{1}).In[0][0]; ack != ctrlOK {
			t.Fatalf("command % x: %d", cmd, ack)
		}
	}
	mark, address := byte(0), ourMAC
	// gets sends a frame, and then one that certainly passes.
	gets := func(name string, frame []byte, want bool) {
		t.Helper()
		mark += 2
		for i := range frame[len(frame)-40:] {
			frame[len(frame)-40+i] = mark
		}
		for range 2 {
			rx.Add(nil, []int{70000})
		}
		rx.Kick()
		w.frames <- frame
		w.frames <- frameTo(address, 0, mark+1)
		u := rx.Wait()
		got := u.In[0][u.Written-1] == mark
		if got != want {
			t.Errorf("%s: received %v, want %v", name, got, want)
		}
		if got {
			rx.Wait()
		}
	}
	other, multi, multi2 := []byte{2, 0, 0, 0, 0, 7}, []byte{1, 0, 0x5e, 0, 0, 1}, []byte{1, 0, 0x5e, 0, 0, 2}
	gets("before any command", frameTo(other, 0, 0), true)
	do(ctrlRX, ctrlRXPromisc, 0)
	gets("ours", frameTo(ourMAC, 0, 0), true)
	gets("another's", frameTo(other, 0, 0), false)
	gets("broadcast", frameTo(broadcast, 0, 0), true)
	gets("multicast", frameTo(multi, 0, 0), false)
	do(append(append([]byte{ctrlMAC, ctrlMACTable, 1, 0, 0, 0}, other...), append([]byte{1, 0, 0, 0}, multi...)...)...)
	gets("another's in the table", frameTo(other, 0, 0), true)
	gets("multicast in the table", frameTo(multi, 0, 0), true)
	gets("multicast outside", frameTo(multi2, 0, 0), false)
	do(ctrlRX, ctrlRXAllMulti, 1)
	gets("all multicast", frameTo(multi2, 0, 0), true)
	do(ctrlRX, ctrlRXNoMulti, 1)
	gets("no multicast", frameTo(multi, 0, 0), false)
	do(ctrlRX, ctrlRXNoBroadcast, 1)
	gets("no broadcast", frameTo(broadcast, 0, 0), false)
	do(ctrlRX, ctrlRXAllUni, 1)
	gets("all unicast", frameTo([]byte{2, 0, 0, 0, 0, 8}, 0, 0), true)
	do(ctrlRX, ctrlRXAllUni, 0)
	gets("VLAN 5", frameTo(ourMAC, 5, 0), false)
	do(ctrlVLAN, ctrlVLANAdd, 5, 0)
	gets("VLAN 5, let through", frameTo(ourMAC, 5, 0), true)
	gets("VLAN 5 with a priority", frameTo(ourMAC, 5|7<<13, 0), true)
	gets("VLAN 6", frameTo(ourMAC, 6, 0), false)
	do(ctrlVLAN, ctrlVLANDel, 5, 0)
	gets("VLAN 5, no longer", frameTo(ourMAC, 5, 0), false)
	do(ctrlMAC, ctrlMACAddr, 2, 0, 0, 0, 0, 8)
	address = []byte{2, 0, 0, 0, 0, 8}
	gets("new address", frameTo([]byte{2, 0, 0, 0, 0, 8}, 0, 0), true)
}

// §5.1.6.5.2: the tables are empty after a reset; a table larger than ours lets
// all of its kind through. §5.1.4: a VLAN command is an error if the feature was
// not negotiated.
func TestFilterBounds(t *testing.T) {
	d, m, _ := wired(t, virtio.Bits(FCtrlVLAN))
	ctrl := m.Queue[2]
	head := [headLen]byte{2, 0, 0, 0, 0, 7}
	for _, c := range []struct {
		cmd  []byte
		ack  byte
		want bool
	}{
		{[]byte{ctrlRX, ctrlRXPromisc, 0}, ctrlOK, false},
		{append(append([]byte{ctrlMAC, ctrlMACTable, maxTable + 1, 0, 0, 0}, make([]byte, 6*(maxTable+1))...), 0, 0, 0, 0), ctrlOK, true},
		{[]byte{ctrlMAC, ctrlMACTable, 0, 0, 0, 0, 0, 0, 0, 0}, ctrlOK, false},
		{append(append([]byte{ctrlMAC, ctrlMACTable, 0xd0, 7, 0, 0}, make([]byte, 12000)...), 0, 0, 0, 0), ctrlOK, true},
		{append(append([]byte{ctrlMAC, ctrlMACTable, 0xd0, 7, 0, 0}, make([]byte, 12000)...), 0, 0, 0), ctrlErr, true},
		{[]byte{ctrlVLAN, ctrlVLANAdd, 5, 0}, ctrlErr, true},
	} {
		if ack := ctrl.Do([][]byte{c.cmd}, []int{1}).In[0][0]; ack != c.ack {
			t.Errorf("% x: %d", c.cmd[:6], ack)
		}
		if got := d.rules.Load().accept(&head); got != c.want {
			t.Errorf("after % x: accepted %v", c.cmd[:6], got)
		}
	}
	m.Reset()
	if err := m.Activate(); err != nil {
		t.Fatal(err)
	}
	if r := d.rules.Load(); r.unicast.overflow || r.unicast.n != 0 || !r.modes[ctrlRXPromisc] {
		t.Error("the rules outlived the reset")
	}
}

// Nothing is allocated for a packet, in either direction.
func TestAllocs(t *testing.T) {
	_, m, w := wired(t, 0)
	gpa := m.Mem.Alloc(4096)
	if n := testing.AllocsPerRun(300, m.Queue[1].Again(virtqtest.Desc{Addr: gpa, Len: HeaderLen}, virtqtest.Desc{Addr: gpa + 100, Len: 1514})); n != 0 {
		t.Errorf("%v allocations to send", n)
	}
	in := m.Mem.Alloc(128 << 10)
	frame := frameTo(ourMAC, 0, 1)
	again := m.Queue[0].Again(virtqtest.Desc{Addr: in, Len: 128 << 10, Flags: virtqtest.DescWrite})
	go func() {
		for range 301 { // the first run does not count
			w.frames <- frame
		}
	}()
	if n := testing.AllocsPerRun(300, again); n != 0 {
		t.Errorf("%v allocations to receive", n)
	}
}

// The filter allocates nothing for a packet.
func TestFilterAllocs(t *testing.T) {
	d, _, _ := wired(t, 0)
	r := receiver{pieces: []virtq.Buffer{{Bytes: make([]byte, 14)}, {Bytes: frameTo(ourMAC, 5, 1)}}}
	var h [headLen]byte
	if n := testing.AllocsPerRun(100, func() {
		r.head(&h, 70)
		d.rules.Load().accept(&h)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// §5.1.4, §5.1.4.2: MTU, speed and duplex, the status of the link with its
// announcement, and that no packet passes without a cable.
func TestLink(t *testing.T) {
	d, m, w := wired(t, 0)
	if got := m.Config(cfgMTU, 7); !bytes.Equal(got, []byte{0x78, 5, 0x10, 0x27, 0, 0, duplexFull}) {
		t.Errorf("MTU, speed, duplex % x", got)
	}
	status := func() uint16 { return binary.LittleEndian.Uint16(m.Config(cfgStatus, 2)) }
	set := func(up bool, want uint16) {
		t.Helper()
		if err := d.SetLink(up); err != nil {
			t.Fatal(err)
		}
		<-m.ConfigChanged()
		if s := status(); s != want {
			t.Errorf("status %d, want %d", s, want)
		}
	}
	if s := status(); s != statusLinkUp {
		t.Errorf("status %d at first", s)
	}
	set(false, 0)
	m.Queue[1].Do([][]byte{make([]byte, HeaderLen+60)}, nil)
	for range 3 {
		m.Queue[0].Add(nil, []int{70000})
	}
	m.Queue[0].Kick()
	w.frames <- frameTo(broadcast, 0, 1)
	w.frames <- frameTo(broadcast, 0, 3) // taken when the first has been dropped; itself perhaps later
	if w.packets.Load() != 0 || d.Dropped() != 1 {
		t.Errorf("%d packets sent without a cable", w.packets.Load())
	}
	set(true, statusLinkUp|statusAnnounce)
	if err := d.SetLink(true); err != nil || m.ConfigChanges() != 2 {
		t.Errorf("%d changes, %v", m.ConfigChanges(), err)
	}
	// §5.1.6.5.4: the driver's acknowledgement takes the request back.
	if ack := m.Queue[2].Do([][]byte{{ctrlAnnounce, ctrlAnnAck}}, []int{1}).In[0][0]; ack != ctrlOK || status() != statusLinkUp {
		t.Errorf("ack %d, status %d", ack, status())
	}
	m.Queue[1].Do([][]byte{make([]byte, HeaderLen+60)}, nil)
	w.frames <- frameTo(broadcast, 0, 2)
	u := m.Queue[0].Wait()
	if u.In[0][u.Written-1] == 3 {
		u = m.Queue[0].Wait()
	}
	if w.packets.Load() != 1 || u.In[0][u.Written-1] != 2 {
		t.Errorf("%d packets sent, received % x", w.packets.Load(), u.In[0][u.Written-1])
	}
}

// §5.1.4.1, §5.1.2: what a device cannot be made of.
func TestNewErrors(t *testing.T) {
	good := Config{MAC: ourMAC, Links: []Link{newCounter()}}
	for name, change := range map[string]func(*Config){
		"MTU":           func(c *Config) { c.MTU = 67 },
		"multicast":     func(c *Config) { c.MAC = stdnet.HardwareAddr{1, 0, 0, 0, 0, 1} },
		"short address": func(c *Config) { c.MAC = ourMAC[:5] },
		"no link":       func(c *Config) { c.Links = nil },
	} {
		c := good
		change(&c)
		if _, err := New(c); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// §5.1.6.3.1, §5.1.6.4.1: num_buffers counts the buffers, of which all but the last
// are full; without MRG_RXBUF it is 1.
func TestNumBuffers(t *testing.T) {
	_, m, w := wired(t, 0)
	for range 100 {
		m.Queue[0].Add(nil, []int{1000})
	}
	m.Queue[0].Kick()
	w.frames <- frameTo(broadcast, 0, 1)
	if u := m.Queue[0].Wait(); binary.LittleEndian.Uint16(u.In[0][hdrNumBuffers:]) != 1 {
		t.Errorf("header % x", u.In[0][:HeaderLen])
	}
	d := virtqtest.New(t, 64, virtqtest.Options{})
	r := receiver{q: d.Queue, merge: true}
	for range 33 {
		d.Add(nil, []int{100})
	}
	if !r.collect() {
		t.Fatal("no buffers")
	}
	r.deliver(250)
	for i, want := range []uint32{100, 100, 50} {
		u := d.Wait()
		if u.Written != want || i == 0 && binary.LittleEndian.Uint16(u.In[0][hdrNumBuffers:]) != 3 {
			t.Errorf("buffer %d: %d bytes, header % x", i, u.Written, u.In[0][:HeaderLen])
		}
	}

	_, m, w = wired(t, virtio.Bits(FMrgRxbuf))
	m.Queue[0].Add(nil, []int{2000})
	m.Queue[0].Kick()
	w.frames <- frameTo(broadcast, 0, 1)
	if u := m.Queue[0].Wait(); binary.LittleEndian.Uint16(u.In[0][hdrNumBuffers:]) != 1 {
		t.Errorf("without MRG_RXBUF: header % x", u.In[0][:HeaderLen])
	}
}

// sized is a wire of an interface with an MTU.
type sized struct {
	*wire
	mtu atomic.Int32
}

func (s *sized) MTU() uint16 { return uint16(s.mtu.Load()) }

// §5.1.4.1: the MTU is the interface's of the time when the driver looks, and then
// does not change; a frame that exceeds it, with the Ethernet header, is not passed
// unless it is for the driver to cut into segments, nor is any dropped if the driver
// did not negotiate the MTU.
func TestMTU(t *testing.T) {
	link := &sized{wire: &wire{counter: counter{interrupt: make(chan struct{}, 1)}, frames: make(chan []byte)}}
	cfg := Config{MAC: ourMAC, Links: []Link{link}}
	d, err := New(cfg)
	if err != nil || d.Features().Has(FMTU) {
		t.Fatalf("an interface without MTU: %v, %v", err, d.Features())
	}
	link.mtu.Store(1500)
	if d, err = New(cfg); err != nil || !d.Features().Has(FMTU) {
		t.Fatalf("no MTU offered: %v", err)
	}
	link.mtu.Store(1400)
	for _, negotiated := range []bool{true, false} {
		f := d.Features()
		if !negotiated {
			f &^= virtio.Bits(FMTU)
		}
		m := virtiotest.New(t, d, virtiotest.Options{Features: f})
		if mtu := binary.LittleEndian.Uint16(m.Config(cfgMTU, 2)); mtu != 1400 {
			t.Errorf("MTU %d", mtu)
		}
		link.mtu.Store(9000)
		rx, dropped := m.Queue[0], d.Dropped()
		for range 20 {
			rx.Add(nil, []int{70000})
		}
		rx.Kick()
		for _, c := range []struct {
			name    string
			vlan    uint16
			size    int
			gsoType byte
			passes  bool
		}{
			{"as long as it can be", 0, 1414, GSONone, true},
			{"a byte more", 0, 1415, GSONone, !negotiated},
			{"as long with a VLAN", 5, 1418, GSONone, true},
			{"a byte more with a VLAN", 5, 1419, GSONone, !negotiated},
			{"ECN alone", 0, 9000, GSOECN, !negotiated},
			{"segments", 0, 9000, GSOTCPv4, true},
			{"segments with ECN", 0, 9000, GSOTCPv6 | GSOECN, true},
		} {
			frame := frameTo(broadcast, c.vlan, 1)
			frame = append(frame, make([]byte, c.size-len(frame))...)
			frame[len(frame)-1] = 0xa5
			link.gsoType.Store(int32(c.gsoType))
			link.frames <- frame
			link.frames <- frameTo(broadcast, 0, 2) // certainly passes, whatever its offload
			u := rx.Wait()
			if passes := u.In[0][u.Written-1] == 0xa5; passes != c.passes {
				t.Errorf("negotiated %v: %s: passed %v", negotiated, c.name, passes)
			} else if passes {
				rx.Wait()
			}
		}
		if n := d.Dropped() - dropped; negotiated != (n == 3) || !negotiated && n != 0 {
			t.Errorf("negotiated %v: %d frames dropped", negotiated, n)
		}
		m.Reset()
	}
}

// Resets with packets on their way in both directions, each time with other features:
// the device stops, and goes on with the next driver. Row 6.
func TestResets(t *testing.T) { resets(t, 200) }

// Ten thousand resets under load, the long suite's.
func TestLongResets(t *testing.T) { virtiotest.LongResets(t, resets) }

func resets(t *testing.T, n int) {
	t.Helper()
	w := &wire{counter: counter{interrupt: make(chan struct{}, 1)}, frames: make(chan []byte)}
	d, err := New(Config{MAC: ourMAC, Links: []Link{w}})
	if err != nil {
		t.Fatal(err)
	}
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			case w.frames <- frameTo(broadcast, 0, 1):
			}
		}
	}()
	defer func() { close(stop); <-done }()
	received := 0
	var machines [12]*virtiotest.Machine // of the drivers, which come again
	for i := range n {
		m := machines[i%len(machines)]
		if m == nil {
			without := virtio.Features(0)
			if i%2 == 1 {
				without = virtio.Bits(FMrgRxbuf, FCtrlVLAN)
			}
			m = virtiotest.New(t, d, virtiotest.Options{Features: d.Features() &^ without, EventIdx: i%3 == 0, Packed: i%4 == 0, Memory: virtqtest.NewMemory(t, 4<<20)})
			machines[i%len(machines)] = m
		} else if err := m.Activate(); err != nil {
			t.Fatal(err)
		}
		rx, tx, ctrl := m.Queue[0], m.Queue[1], m.Queue[2]
		for range 60 {
			rx.Add(nil, []int{2000})
		}
		rx.Kick()
		for range 10 {
			tx.Add([][]byte{make([]byte, HeaderLen+100)}, nil)
		}
		tx.Kick()
		if i%5 == 0 {
			ctrl.Do([][]byte{{ctrlRX, ctrlRXPromisc, 0}}, []int{1})
		}
		up := i%11 != 0
		if err := d.SetLink(up); err != nil {
			t.Fatal(err)
		}
		if i%7 == 0 && up {
			rx.Wait()
			received++
		}
		m.Reset()
	}
	if received == 0 || w.packets.Load() == 0 {
		t.Errorf("%d packets received, %d sent", received, w.packets.Load())
	}
}
