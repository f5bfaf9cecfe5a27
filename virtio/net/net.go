// Package net is the virtio network device (virtio 1.2 §5.1) with two hosts
// behind it: a TAP device ([OpenTAP]), and user-mode networking.
package net

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	stdnet "net"
	"sync"
	"sync/atomic"

	"github.com/gvmspawn/gvmspawn/virtio"
	"github.com/gvmspawn/gvmspawn/virtio/virtq"
)

// ErrClosed is returned by a Link whose Interrupt was called.
var ErrClosed = errors.New("network link interrupted")

// Link is the host side of an interface. A packet is a struct virtio_net_hdr
// of HeaderLen bytes and an Ethernet frame, in pieces of guest memory.
type Link interface {
	// Features are the offloads (FCsum, FHostTSO4, FGuestUSO6 and their like) that it
	// can take part in.
	Features() virtio.Features
	// SetFeatures tells which offloads the driver negotiated. It is called
	// before packets flow.
	SetFeatures(virtio.Features) error
	// Transmit sends the guest's packet. The pieces are the guest's and may
	// change at any time; they are valid only during the call. A packet that
	// makes no sense is dropped.
	Transmit(pieces []virtq.Buffer, size int) error
	// Receive waits for a packet to the guest and copies it, header first, to
	// the pieces, which together have room for size bytes. A larger packet is
	// dropped. It returns the packet's length, or ErrClosed after Interrupt.
	Receive(pieces []virtq.Buffer, size int) (int, error)
	// Interrupt makes the present or next Receive return ErrClosed, once.
	Interrupt()
}

// Switch is a Link of several queues that can be told not to deliver to this one:
// to a queue pair that the driver does not use.
type Switch interface {
	SetEnabled(on bool) error
}

// Sized is a Link of an interface of the host that has an MTU, in bytes. 0 means
// that it cannot be known.
type Sized interface {
	MTU() uint16
}

// Carrier moves packets between a queue pair and its link (vhost).
type Carrier interface {
	// Start begins. fds are eventfds that send the used buffer notifications of rx
	// and tx, or -1: then notify is called with 0 or 1.
	Start(f virtio.Features, rx, tx *virtq.Queue, fds [2]int, notify func(int)) error
	// Stop ends; nothing touches the queues afterwards.
	Stop()
}

// Config describes a network device.
type Config struct {
	// MAC is the guest's address, 6 bytes.
	MAC stdnet.HardwareAddr
	// MTU is offered to the guest, in bytes; 0 for that of a Sized link, else leaves it
	// to the guest.
	MTU uint16
	// Speed is what the guest is told, in Mbit/s; 0 tells nothing.
	Speed uint32
	// Links is one Link a queue pair.
	Links []Link
	// Carriers, if not nil, is one Carrier a queue pair, instead of this process.
	Carriers []Carrier
	// QueueSize is the length of the data queues; 0 for 256.
	QueueSize uint16
	// Log gets what the host side has to say; nil discards it.
	Log *slog.Logger
}

// Device is a virtio network device.
type Device struct {
	cfg      Config
	features virtio.Features
	mtu      func() uint16 // the same at every call, 0 for none

	mu       sync.Mutex // guards the configuration space below
	mac      [6]byte
	announce bool
	act      *virtio.Activation // nil while not active

	rules   atomic.Pointer[rules] // which packets the guest gets
	up      atomic.Bool           // the cable is in; changed with mu held
	pairs   atomic.Int32          // queue pairs that the driver uses
	workers sync.WaitGroup
	stop    atomic.Bool
	dropped atomic.Uint64 // packets lost to errors of the guest or the host
}

// New checks the configuration and returns the device.
func New(cfg Config) (*Device, error) {
	if len(cfg.MAC) != 6 || cfg.MAC[0]&1 != 0 {
		return nil, fmt.Errorf("network interface: %q is no unicast MAC address", cfg.MAC)
	}
	if cfg.MTU != 0 && cfg.MTU < minMTU { // §5.1.4.1
		return nil, fmt.Errorf("network interface: an MTU of %d is less than %d", cfg.MTU, minMTU)
	}
	if len(cfg.Links) == 0 {
		return nil, errors.New("network interface: no link")
	}
	if cfg.QueueSize == 0 {
		cfg.QueueSize = 256
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	d := &Device{cfg: cfg, mtu: func() uint16 { return cfg.MTU }}
	hasMTU := cfg.MTU != 0
	if l, ok := cfg.Links[0].(Sized); ok && !hasMTU && l.MTU() >= minMTU {
		hasMTU = true
		// §5.1.4.1: it does not change once it is set. It is set when the driver
		// looks: by then who configures the host's interface has done so.
		d.mtu = sync.OnceValue(func() uint16 { return max(l.MTU(), minMTU) })
	}
	f := virtio.Bits(FMAC, FStatus, FMrgRxbuf, FCtrlVQ, FCtrlRX, FCtrlRXExtra, FCtrlVLAN, FCtrlMACAddr, FGuestAnnounce)
	if hasMTU {
		f |= virtio.Bits(FMTU)
	}
	if cfg.Speed != 0 {
		f |= virtio.Bits(FSpeedDuplex)
	}
	if len(cfg.Links) > 1 {
		f |= virtio.Bits(FMQ)
	}
	d.features = f | cfg.Links[0].Features()
	copy(d.mac[:], cfg.MAC)
	d.up.Store(true)
	d.rules.Store(newRules(d.mac, false))
	return d, nil
}

// Carried reports whether carriers move the packets.
func (d *Device) Carried() bool { return d.cfg.Carriers != nil }

// Type is virtio.TypeNet.
func (d *Device) Type() virtio.Type { return virtio.TypeNet }

// Features are the device's own feature bits.
func (d *Device) Features() virtio.Features { return d.features }

// QueueSizes are receive and transmit queues in turn, then the control queue
// (§5.1.2).
func (d *Device) QueueSizes() []uint16 {
	var s []uint16
	for range d.cfg.Links {
		s = append(s, d.cfg.QueueSize, d.cfg.QueueSize)
	}
	return append(s, 64)
}

// ReadConfig reads the configuration space (§5.1.4).
func (d *Device) ReadConfig(off uint64, p []byte) {
	var c [cfgSize]byte
	d.mu.Lock()
	copy(c[cfgMAC:], d.mac[:])
	var status uint16
	if d.up.Load() {
		status |= statusLinkUp
	}
	if d.announce {
		status |= statusAnnounce
	}
	d.mu.Unlock()
	binary.LittleEndian.PutUint16(c[cfgStatus:], status)
	binary.LittleEndian.PutUint16(c[cfgMaxPairs:], uint16(len(d.cfg.Links)))
	if off <= cfgMTU+1 && off+uint64(len(p)) > cfgMTU {
		binary.LittleEndian.PutUint16(c[cfgMTU:], d.mtu())
	}
	binary.LittleEndian.PutUint32(c[cfgSpeed:], d.cfg.Speed)
	c[cfgDuplex] = duplexFull
	clear(p)
	if off < cfgSize {
		copy(p, c[off:])
	}
}

// WriteConfig ignores the write: with VERSION_1 no field is writable (§5.1.4).
func (d *Device) WriteConfig(uint64, []byte) {}

// SetLink plugs the cable in or out; plugging in asks the guest to announce
// itself. Without a cable no packet passes, in either direction.
func (d *Device) SetLink(up bool) error {
	d.mu.Lock()
	changed := d.up.Swap(up) != up
	act := d.act
	var err error
	if changed && act != nil {
		if up {
			d.announce = act.Features.Has(FGuestAnnounce)
			err = d.startCarriers(act)
		} else {
			d.stopCarriers()
		}
	}
	d.mu.Unlock()
	if changed && act != nil {
		act.ConfigChanged()
	}
	return err
}

// Dropped counts the packets that were lost to errors of the guest or the host.
func (d *Device) Dropped() uint64 { return d.dropped.Load() }

// Activate starts one worker a queue.
func (d *Device) Activate(act *virtio.Activation) error {
	for _, l := range d.cfg.Links {
		if err := l.SetFeatures(act.Features); err != nil {
			return err
		}
	}
	d.stop.Store(false)
	if err := d.usePairs(1); err != nil {
		return err
	}
	d.mu.Lock()
	d.act = act
	d.rules.Store(newRules(d.mac, act.Features.Has(FCtrlVLAN)))
	var err error
	if d.up.Load() {
		err = d.startCarriers(act)
	}
	d.mu.Unlock()
	if err != nil {
		return err
	}
	for i, l := range d.cfg.Links {
		if d.cfg.Carriers != nil {
			break
		}
		if q := act.Queues[2*i]; q != nil {
			d.workers.Go(func() { d.receive(q, l, act.Features) })
		}
		if q := act.Queues[2*i+1]; q != nil {
			d.workers.Go(func() { d.transmit(q, l) })
		}
	}
	// Without MQ the control queue is the third one (§5.1.2).
	ctrl := len(act.Queues) - 1
	if !act.Features.Has(FMQ) {
		ctrl = 2
	}
	if q := act.Queues[ctrl]; q != nil && act.Features.Has(FCtrlVQ) {
		d.workers.Go(func() { d.control(q) })
	}
	return nil
}

// usePairs says how many queue pairs the driver uses: packets come on these alone.
func (d *Device) usePairs(n int) error {
	d.pairs.Store(int32(n))
	for i, l := range d.cfg.Links {
		if s, ok := l.(Switch); ok && len(d.cfg.Links) > 1 {
			if err := s.SetEnabled(i < n); err != nil {
				return err
			}
		}
	}
	return nil
}

// startCarriers hands the queue pairs to their carriers, if there are any.
//
// Preconditions: d.mu is held.
func (d *Device) startCarriers(act *virtio.Activation) error {
	for i, c := range d.cfg.Carriers {
		rx, tx := act.Queues[2*i], act.Queues[2*i+1]
		if rx == nil || tx == nil || i > 0 && !act.Features.Has(FMQ) {
			continue
		}
		fds := [2]int{act.InterruptFD(2 * i), act.InterruptFD(2*i + 1)}
		if err := c.Start(act.Features, rx, tx, fds, func(n int) { act.Interrupt(2*i + n) }); err != nil {
			d.stopCarriers()
			return err
		}
	}
	return nil
}

func (d *Device) stopCarriers() {
	for _, c := range d.cfg.Carriers {
		c.Stop()
	}
}

// Reset stops the workers.
func (d *Device) Reset() {
	d.mu.Lock()
	active := d.act != nil
	if active {
		d.stopCarriers()
	}
	d.act = nil
	d.announce = false
	copy(d.mac[:], d.cfg.MAC)
	d.mu.Unlock()
	if !active {
		return
	}
	d.stop.Store(true)
	for _, l := range d.cfg.Links {
		l.Interrupt()
	}
	d.workers.Wait()
}

// transmit sends the guest's packets until the queue is closed.
func (d *Device) transmit(q *virtq.Queue, l Link) {
	var c virtq.Chain
	for q.Wait() {
		for n := 0; n < int(q.Size()) && q.Pop(&c); n++ {
			if err := d.send(l, &c); err != nil {
				d.dropped.Add(1)
			}
			q.Push(&c, 0)
		}
		q.Notify()
	}
}

// errNoLink is why nothing is sent without a cable.
var errNoLink = errors.New("the link is down")

// errPacket is a packet of the guest that is too short or too long.
var errPacket = errors.New("malformed packet")

func (d *Device) send(l Link, c *virtq.Chain) error {
	if c.ReadableLen <= HeaderLen || c.ReadableLen > MaxPacket {
		return errPacket
	}
	if !d.up.Load() {
		return errNoLink
	}
	return l.Transmit(c.Readable, int(c.ReadableLen))
}
