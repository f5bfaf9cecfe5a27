// Package bustest has the wires of a machine without the machine: they record
// what a chip does with them.
package bustest

import (
	"sync"
	"sync/atomic"

	"github.com/gvmspawn/gvmspawn/vmm/bus"
)

// Wires implements bus.Wires and remembers what it made.
type Wires struct {
	mu    sync.Mutex
	lines map[uint32]*Line
	msis  []*MSI
	bells []*Doorbell
}

// NewLine returns the line of a GSI, the same one each time.
func (w *Wires) NewLine(gsi uint32) bus.Line { return w.Line(gsi) }

// Line is the line of a GSI.
func (w *Wires) Line(gsi uint32) *Line {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.lines == nil {
		w.lines = make(map[uint32]*Line)
	}
	if w.lines[gsi] == nil {
		w.lines[gsi] = new(Line)
	}
	return w.lines[gsi]
}

// NewMSI returns a new message source.
func (w *Wires) NewMSI() (bus.MSI, error) {
	m := new(MSI)
	w.mu.Lock()
	w.msis = append(w.msis, m)
	w.mu.Unlock()
	return m, nil
}

// MSI is the i-th message source that was made.
func (w *Wires) MSI(i int) *MSI {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.msis[i]
}

// NewDoorbell returns a new bell.
func (w *Wires) NewDoorbell() (bus.Doorbell, error) {
	d := &Doorbell{ring: make(chan struct{}, 1), done: make(chan struct{})}
	w.mu.Lock()
	w.bells = append(w.bells, d)
	w.mu.Unlock()
	return d, nil
}

// Doorbells lists the bells that were made and are not closed.
func (w *Wires) Doorbells() []*Doorbell {
	w.mu.Lock()
	defer w.mu.Unlock()
	var open []*Doorbell
	for _, d := range w.bells {
		if !d.Closed() {
			open = append(open, d)
		}
	}
	w.bells = append([]*Doorbell(nil), open...)
	return open
}

// Line is an interrupt line.
type Line struct {
	level atomic.Bool
	edges atomic.Int64
}

// Set drives the line.
func (l *Line) Set(level bool) {
	if l.level.Swap(level) != level && level {
		l.edges.Add(1)
	}
}

// Level is the present level, Edges the number of rising edges.
func (l *Line) Level() bool  { return l.level.Load() }
func (l *Line) Edges() int64 { return l.edges.Load() }

// MSI is a message source.
type MSI struct {
	mu     sync.Mutex
	addr   uint64
	data   uint32
	routed bool
	closed bool
	routes int
	sent   int
}

// Route records the message.
func (m *MSI) Route(addr uint64, data uint32) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.addr, m.data, m.routed = addr, data, true
	m.routes++
	return nil
}

// Trigger counts the message, if there is a route.
func (m *MSI) Trigger() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.routed && !m.closed {
		m.sent++
	}
}

// FD is -1.
func (m *MSI) FD() int { return -1 }

// Close ends it.
func (m *MSI) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed = true
	return nil
}

// Message is the last route; Routes is how often it was set; Sent is how many
// messages were sent; Closed reports whether Close was called.
func (m *MSI) Message() (addr uint64, data uint32) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.addr, m.data
}

// Routes is how often a route was set.
func (m *MSI) Routes() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.routes
}

// Sent is how many messages were sent.
func (m *MSI) Sent() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.sent
}

// Closed reports whether Close was called.
func (m *MSI) Closed() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.closed
}

// Doorbell is a bell that knows where it is bound.
type Doorbell struct {
	ring  chan struct{}
	done  chan struct{}
	once  sync.Once
	rings atomic.Int64

	mu    sync.Mutex
	addr  uint64
	bound bool
}

// Bind records the address.
func (d *Doorbell) Bind(addr uint64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.addr, d.bound = addr, true
	return nil
}

// Unbind forgets it.
func (d *Doorbell) Unbind() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.bound = false
	return nil
}

// Bound is the address that the bell is bound to.
func (d *Doorbell) Bound() (addr uint64, ok bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.addr, d.bound
}

// Ring wakes one present or future Wait.
func (d *Doorbell) Ring() {
	d.rings.Add(1)
	select {
	case d.ring <- struct{}{}:
	default:
	}
}

// Rings is how often Ring was called.
func (d *Doorbell) Rings() int64 { return d.rings.Load() }

// Wait blocks until the bell rang since the last Wait; false once closed.
func (d *Doorbell) Wait() bool {
	select {
	case <-d.done:
		return false
	default:
	}
	select {
	case <-d.done:
		return false
	case <-d.ring:
		return true
	}
}

// FD is -1.
func (d *Doorbell) FD() int { return -1 }

// Close makes every Wait return false.
func (d *Doorbell) Close() error {
	d.once.Do(func() { close(d.done) })
	return nil
}

// Closed reports whether Close was called.
func (d *Doorbell) Closed() bool {
	select {
	case <-d.done:
		return true
	default:
		return false
	}
}
