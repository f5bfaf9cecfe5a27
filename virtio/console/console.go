// Package console is the virtio console device: hvc0, and further named byte
// streams when more than one port is configured.
// Document: virtio 1.2 §5.3.
//
// Output and input pass through one bounded buffer per port and direction. A
// host terminal that is slow fills the output buffer, and then the guest
// waits: nothing is lost and nothing grows. Both buffers outlive a reset.
package console

import (
	"encoding/binary"
	"fmt"
	"sync"

	"github.com/gvmspawn/gvmspawn/virtio"
	"github.com/gvmspawn/gvmspawn/virtio/virtq"
)

const (
	maxPorts  = 32
	queueSize = 128
)

// Config describes the device.
type Config struct {
	// Cols and Rows are the console's size in characters; 0 if not known.
	Cols, Rows uint16
	// Ports lists the ports, 1 to 32. Port 0 is hvc0. Only with more than
	// one port is VIRTIO_CONSOLE_F_MULTIPORT offered: with it Linux takes the
	// size from a control message, whose two fields older kernels swap.
	Ports []PortConfig
}

// Device is a virtio console. It implements virtio.Device.
type Device struct {
	ports   []*Port
	sizes   []uint16
	done    chan struct{}  // closed by Close
	workers sync.WaitGroup // queue workers, between Activate and Reset

	mu      sync.Mutex // guards all below; taken before Port.mu
	closed  bool
	act     *virtio.Activation
	size    [2]uint16 // cols, rows
	control control
}

// New returns the device and starts one goroutine per port that writes the
// guest's output to the host. Close ends them.
func New(cfg Config) (*Device, error) {
	if len(cfg.Ports) == 0 || len(cfg.Ports) > maxPorts {
		return nil, fmt.Errorf("virtio-console: %d ports, must be 1 to %d", len(cfg.Ports), maxPorts)
	}
	d := &Device{done: make(chan struct{}), size: [2]uint16{cfg.Cols, cfg.Rows}, sizes: []uint16{queueSize, queueSize}}
	for i, pc := range cfg.Ports {
		if len(pc.Name) > maxName {
			return nil, fmt.Errorf("virtio-console: port name %q is longer than %d bytes", pc.Name, maxName)
		}
		p := newPort(d, i, pc)
		d.ports = append(d.ports, p)
		go p.drain()
	}
	if d.multiport() {
		for range 2 * len(cfg.Ports) {
			d.sizes = append(d.sizes, queueSize)
		}
	}
	d.control.init(&d.mu, len(d.ports))
	return d, nil
}

func (d *Device) multiport() bool { return len(d.ports) > 1 }

// Port returns port i of Config.Ports.
func (d *Device) Port(i int) *Port { return d.ports[i] }

// Type is the console's device ID (§5.3.1).
func (d *Device) Type() virtio.Type { return virtio.TypeConsole }

// Features are the feature bits offered (§5.3.3).
func (d *Device) Features() virtio.Features {
	f := virtio.Bits(VIRTIO_CONSOLE_F_SIZE, VIRTIO_CONSOLE_F_EMERG_WRITE)
	if d.multiport() {
		f |= virtio.Bits(VIRTIO_CONSOLE_F_MULTIPORT)
	}
	return f
}

// QueueSizes are the sizes of the queues of §5.3.2.
func (d *Device) QueueSizes() []uint16 { return d.sizes }

// ReadConfig reads the configuration of §5.3.4.
func (d *Device) ReadConfig(off uint64, p []byte) {
	var b [configSize]byte
	d.mu.Lock()
	binary.LittleEndian.PutUint16(b[configCols:], d.size[0])
	binary.LittleEndian.PutUint16(b[configRows:], d.size[1])
	d.mu.Unlock()
	binary.LittleEndian.PutUint32(b[configMaxNrPorts:], uint32(len(d.ports)))
	virtio.ReadConfigBytes(p, b[:], off)
}

// WriteConfig takes emerg_wr: its low byte is output of port 0, even before
// the driver has set the device up (§5.3.4, VIRTIO_CONSOLE_F_EMERG_WRITE).
// When the output buffer is full the byte is dropped, since a CPU must not wait.
func (d *Device) WriteConfig(off uint64, p []byte) {
	if off == configEmergWr && len(p) > 0 {
		d.ports[0].emergency(p[0])
	}
}

// Resize tells the guest the console's new size in characters.
func (d *Device) Resize(cols, rows uint16) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.size == [2]uint16{cols, rows} {
		return
	}
	d.size = [2]uint16{cols, rows}
	if d.act == nil || !d.act.Features.Has(VIRTIO_CONSOLE_F_SIZE) {
		return
	}
	if d.act.Features.Has(VIRTIO_CONSOLE_F_MULTIPORT) {
		// §5.3.6.2: RESIZE only for a port that is ready.
		if d.control.ready[0] {
			d.control.want(0, wantResize)
		}
		return
	}
	d.act.ConfigChanged()
}

// Activate starts the workers of the enabled queues.
func (d *Device) Activate(a *virtio.Activation) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return ErrClosed
	}
	d.act = a
	multi := a.Features.Has(VIRTIO_CONSOLE_F_MULTIPORT)
	for i, p := range d.ports {
		// §5.3.5: without MULTIPORT only port 0's queues exist.
		if i > 0 && !multi {
			break
		}
		p.start(p.console())
		away(a, rxQueue(i))
		d.work(a, rxQueue(i), p.receive)
		d.work(a, rxQueue(i)+1, p.transmit)
	}
	if !multi && a.Features.Has(VIRTIO_CONSOLE_F_SIZE) && d.size != [2]uint16{} {
		// Linux reads the size when it is told of a change, and only then.
		a.ConfigChanged()
	}
	if multi {
		d.control.start()
		away(a, queueControlRx)
		d.work(a, queueControlRx, d.controlReceive)
		d.work(a, queueControlTx, func(q *virtq.Queue) { d.controlTransmit(q, a.Queues[queueControlRx]) })
	}
	return nil
}

// away says that the worker of queue i does not begin with a wait for it.
func away(a *virtio.Activation, i int) {
	if i < len(a.Queues) && a.Queues[i] != nil {
		a.Queues[i].Away()
	}
}

// work runs f on queue i in a goroutine, if the driver enabled it.
func (d *Device) work(a *virtio.Activation, i int, f func(*virtq.Queue)) {
	if i < len(a.Queues) && a.Queues[i] != nil {
		d.workers.Go(func() { f(a.Queues[i]) })
	}
}

// Reset stops the workers and waits for them. It does not wait for the host's
// terminal: output that the guest handed over stays in the buffer.
func (d *Device) Reset() {
	d.mu.Lock()
	d.act = nil
	d.control.stop()
	d.mu.Unlock()
	for _, p := range d.ports {
		p.stop()
	}
	d.workers.Wait()
}

// Close ends the device. Output that was not written yet is lost: see
// [Port.Flush]. It does not wait for an Output whose Write blocks; nothing is
// written after that Write.
func (d *Device) Close() error {
	d.mu.Lock()
	closed := d.closed
	d.closed = true
	d.mu.Unlock()
	if closed {
		return nil
	}
	d.Reset()
	close(d.done)
	for _, p := range d.ports {
		p.close()
	}
	return nil
}
