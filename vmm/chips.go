package vmm

import (
	"context"
	"io"

	"github.com/gvmspawn/gvmspawn/devices/cmos"
	"github.com/gvmspawn/gvmspawn/devices/i8042"
	"github.com/gvmspawn/gvmspawn/devices/power"
	"github.com/gvmspawn/gvmspawn/devices/serial"
	"github.com/gvmspawn/gvmspawn/vmm/bus"
	"github.com/gvmspawn/gvmspawn/vmm/layout"
)

// serialQueue is how much output of the serial port may wait for the host, in bytes.
const serialQueue = 64 << 10

// chip is a register block with its place.
type chip struct {
	name string
	base uint64
	size uint64
	dev  bus.Device
}

// addChips maps the chips of a PC that are no PCI devices.
func (m *Machine) addChips() error {
	reset, off := m.guestReset, func() { m.runner.finish(EndPowerOff, nil) }
	events := power.NewEvents(m.vm.NewLine(layout.GSIGED))
	m.raise = events.Raise
	m.button = func() { events.Raise(power.PowerButton) }
	keyboard := i8042.New(reset)
	if m.cfg.Firmware != nil {
		keyboard.PlugKeyboard()
	}
	rtc := cmos.New(cmos.Config{
		Line: m.vm.NewLine(layout.GSIRTC), Clock: m.clock(), Now: m.now(),
		RAMBelow4G: m.cfg.lowRAM(), RAMAbove4G: m.cfg.RAM - m.cfg.lowRAM(), CPUs: m.cfg.CPUs,
	})
	for _, c := range []chip{
		{"power control", layout.PortPM, power.ControlSize, &power.Control{PowerOff: off, Reset: reset}},
		{"keyboard controller data", layout.PortI8042Data, 1, keyboard.Data()},
		{"keyboard controller command", layout.PortI8042Cmd, 1, keyboard.Command()},
		{"system control port A", layout.PortSystemCtlA, 1, &power.PortA{Func: reset}},
		{"real-time clock", layout.PortCMOS, 2, rtc},
		{"serial port", layout.PortCOM1, 8, m.addSerial()},
	} {
		if err := m.bus.Port.Map(c.name, c.base, c.size, c.dev); err != nil {
			return err
		}
	}
	return m.bus.MMIO.Map("event device", layout.GED, power.EventsSize, events)
}

// guestReset is the guest's wish for a reset.
func (m *Machine) guestReset() { m.runner.finish(EndReboot, nil) }

// resetPort is port 0xcf9, which the PCI host bridge maps.
func (m *Machine) resetPort() bus.Device { return &power.ResetRegister{Func: m.guestReset} }

// addSerial makes the serial port. It is the console if the configuration says
// so; otherwise its output still goes there, because what uses it has
// something to say.
func (m *Machine) addSerial() *serial.UART {
	var uart *serial.UART
	queue := serial.NewQueue(serialQueue, func() { uart.Flush() })
	room := make(chan struct{}, 1)
	uart = serial.New(m.vm.NewLine(layout.GSICOM1), queue, func() {
		select {
		case room <- struct{}{}:
		default:
		}
	})
	drained := make(chan struct{})
	go func() {
		defer close(drained)
		_, _ = io.Copy(m.serialWriter(), queue)
	}()
	m.serialOut.end, m.serialOut.drained = func() { _ = queue.Close() }, drained
	m.onClose(func() error {
		m.serialOut.end()
		<-drained
		m.fallback.close()
		return nil
	})
	if m.cfg.Console.Transport == ConsoleSerial || m.cfg.Console.SerialToo {
		m.feed = func(ctx context.Context, p []byte) error {
			for {
				p = p[uart.Receive(p):]
				if len(p) == 0 {
					return nil
				}
				select {
				case <-room:
				case <-ctx.Done():
					return ctx.Err()
				}
			}
		}
	}
	return uart
}

// serialWriter is where the serial port's output goes.
func (m *Machine) serialWriter() io.Writer {
	if m.cfg.Console.SerialToo && m.cfg.Console.Transport == ConsoleVirtio {
		return &m.fallback
	}
	return &m.tap
}
