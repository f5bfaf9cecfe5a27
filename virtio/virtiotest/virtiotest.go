// Package virtiotest runs a virtio device in a test, without a transport: it
// negotiates features, activates the device, and gives the test a fake driver
// for each queue.
//
//	m := virtiotest.New(t, dev, virtiotest.Options{})
//	got := m.Queue[0].Do([][]byte{header}, []int{512, 1})
package virtiotest

import (
	"sync/atomic"
	"testing"

	"github.com/gvmspawn/gvmspawn/virtio"
	"github.com/gvmspawn/gvmspawn/virtio/virtq"
	"github.com/gvmspawn/gvmspawn/virtio/virtq/virtqtest"
)

// Options says what the fake driver negotiates.
type Options struct {
	// Memory holds rings and buffers; nil means 64 MiB of its own.
	Memory *virtqtest.Memory
	// Features are accepted; zero means all that the device offers.
	Features virtio.Features
	// EventIdx and Indirect are accepted too.
	EventIdx, Indirect bool
	// Packed makes the rings packed ones.
	Packed bool
	// Size is the size of each queue; zero, or too many, means the device's maximum.
	Size uint16
	// Skip lists queues that the driver leaves disabled.
	Skip []int
}

// Machine is a device with its fake drivers.
type Machine struct {
	Device virtio.Device
	Mem    *virtqtest.Memory
	Queue  []*virtqtest.Driver // nil for a disabled queue
	// Features are those negotiated.
	Features virtio.Features

	t             testing.TB
	o             Options
	active        bool
	reset         bool // Queue are of before a reset
	configChanges chan struct{}
	changed       atomic.Int64
	needsReset    atomic.Bool
}

// New activates the device. It is reset when the test ends.
func New(t testing.TB, dev virtio.Device, o Options) *Machine {
	t.Helper()
	if o.Memory == nil {
		o.Memory = virtqtest.NewMemory(t, 64<<20)
	}
	m := &Machine{Device: dev, Mem: o.Memory, t: t, o: o, configChanges: make(chan struct{}, 1)}
	t.Cleanup(m.Reset)
	if err := m.Activate(); err != nil {
		t.Fatalf("activate: %v", err)
	}
	return m
}

// Activate makes fresh rings and activates the device, as a driver does after
// a reset. It returns the device's error.
func (m *Machine) Activate() error {
	m.t.Helper()
	f := m.o.Features
	if f == 0 {
		f = m.Device.Features()
	}
	f |= virtio.Bits(virtio.FVersion1)
	if m.o.EventIdx {
		f |= virtio.Bits(virtio.FRingEventIdx)
	}
	if m.o.Indirect {
		f |= virtio.Bits(virtio.FRingIndirectDesc)
	}
	if m.o.Packed {
		f |= virtio.Bits(virtio.FRingPacked)
	}
	m.Features = f
	m.needsReset.Store(false)
	a := &virtio.Activation{Features: f, ConfigChanged: m.configChanged, NeedsReset: func() { m.needsReset.Store(true) }}
	for _, d := range m.Queue {
		if d != nil && m.reset {
			d.Release()
		}
	}
	m.Queue, m.reset = nil, false
	for i, size := range m.Device.QueueSizes() {
		d := m.driver(i, size)
		m.Queue = append(m.Queue, d)
		if d == nil {
			a.Queues = append(a.Queues, nil)
		} else {
			a.Queues = append(a.Queues, d.Queue)
		}
	}
	m.active = true
	return m.Device.Activate(a)
}

func (m *Machine) driver(i int, size uint16) *virtqtest.Driver {
	for _, s := range m.o.Skip {
		if s == i {
			return nil
		}
	}
	if m.o.Size != 0 {
		size = min(size, m.o.Size)
	}
	return virtqtest.New(m.t, size, virtqtest.Options{
		Memory: m.Mem, EventIdx: m.o.EventIdx, Indirect: m.o.Indirect, Packed: m.o.Packed,
		Hook: func(c *virtq.Config) {
			broken := c.Broken
			c.Broken = func(err error) {
				broken(err)
				m.needsReset.Store(true)
			}
		},
	})
}

// Reset closes the queues and resets the device, as a transport does.
func (m *Machine) Reset() {
	if !m.active {
		return
	}
	m.active = false
	for _, d := range m.Queue {
		if d != nil {
			d.Queue.Close()
		}
	}
	m.Device.Reset()
	m.reset = true
}

func (m *Machine) configChanged() {
	m.changed.Add(1)
	select {
	case m.configChanges <- struct{}{}:
	default:
	}
}

// ConfigChanged receives after configuration change notifications; several
// may count as one.
func (m *Machine) ConfigChanged() <-chan struct{} { return m.configChanges }

// ConfigChanges is how many configuration change notifications there were.
func (m *Machine) ConfigChanges() int64 { return m.changed.Load() }

// NeedsReset reports whether the device asked for a reset, or broke a queue.
func (m *Machine) NeedsReset() bool { return m.needsReset.Load() }

// Config reads n bytes of configuration space at off.
func (m *Machine) Config(off uint64, n int) []byte {
	p := make([]byte, n)
	m.Device.ReadConfig(off, p)
	return p
}
