package vmm

import (
	"context"
	"os"
	"time"

	"github.com/gvmspawn/gvmspawn/devices/pci"
	"github.com/gvmspawn/gvmspawn/virtio"
	"github.com/gvmspawn/gvmspawn/virtio/balloon"
	"github.com/gvmspawn/gvmspawn/virtio/console"
	vnet "github.com/gvmspawn/gvmspawn/virtio/net"
	"github.com/gvmspawn/gvmspawn/virtio/rng"
	"github.com/gvmspawn/gvmspawn/virtio/vhost"
	"github.com/gvmspawn/gvmspawn/virtio/virtiopci"
	"github.com/gvmspawn/gvmspawn/vmm/mem"
)

// flushTime is how long the end of a machine waits for its console to be
// written out.
const flushTime = 2 * time.Second

// addDevices puts the virtio devices on the bus.
func (m *Machine) addDevices(host *pci.Host) error {
	for _, add := range []func(*pci.Host) error{
		m.addConsole, m.addShares, m.addDisks, m.addPmemDevices, m.addNICs, m.addVsock, m.addRNG, m.addBalloon, m.addMemoryDevice,
	} {
		if err := add(host); err != nil {
			return err
		}
	}
	return nil
}

// ringFeatures are the features of the rings that are not always offered. The host's
// kernel knows split rings alone.
func (m *Machine) ringFeatures(dev virtio.Device) virtio.Features {
	_, byKernel := dev.(*vhost.Vsock)
	if n, ok := dev.(*vnet.Device); ok {
		byKernel = n.Carried()
	}
	if !m.cfg.PackedRings || byKernel {
		return 0
	}
	return virtio.Bits(virtio.FRingPacked)
}

// plug attaches a virtio device, with the memory behind its shared memory
// regions. It is reset before the engine goes.
func (m *Machine) plug(host *pci.Host, name string, dev virtio.Device, windows ...*mem.Region) error {
	_, err := m.plugAt(host, name, dev, windows...)
	return err
}

// plugAt is plug, and returns the device's place in the guest's sysfs.
func (m *Machine) plugAt(host *pci.Host, name string, dev virtio.Device, windows ...*mem.Region) (place string, err error) {
	if host == nil {
		err := m.plugMMIO(name, dev, windows...)
		return m.mmioPlace(), err
	}
	a, err := m.plugPCI(host, name, dev, windows...)
	return pciPlace(a), err
}

// plugPCI is plug in a machine with PCI; it returns the device's address.
func (m *Machine) plugPCI(host *pci.Host, name string, dev virtio.Device, windows ...*mem.Region) (pci.Address, error) {
	f, err := m.virtioPCI(name, dev, windows...)
	if err != nil {
		return pci.Address{}, err
	}
	if m.cfg.Deterministic {
		f.Core().SetPatience(deterministicPatience)
	}
	m.onClose(func() error { f.Close(); return nil })
	return host.Add(f.Function)
}

// pciPlace is where Linux has a PCI function, below /sys/devices.
func pciPlace(a pci.Address) string { return "pci0000:00/" + a.String() }

// virtioPCI makes a virtio device a PCI function.
func (m *Machine) virtioPCI(name string, dev virtio.Device, windows ...*mem.Region) (*virtiopci.Function, error) {
	shared := map[uint8]mem.GPA{}
	for i, w := range windows {
		shared[uint8(i)] = w.Base
	}
	return virtiopci.New(name, dev, m.mem, m.vm, virtiopci.Options{Features: m.ringFeatures(dev), SharedMemory: shared, Log: m.deviceStopped(name)})
}

func (m *Machine) addConsole(host *pci.Host) error {
	m.tap.out = m.cfg.Console.Out
	if m.cfg.Console.Transport != ConsoleVirtio {
		return nil
	}
	dev, err := console.New(console.Config{
		Cols: m.cfg.Console.Columns, Rows: m.cfg.Console.Rows, Ports: []console.PortConfig{{Output: m.fallback.spoken()}},
	})
	if err != nil {
		return err
	}
	m.onClose(dev.Close)
	m.term = dev
	m.feed = m.fallback.feed(dev.Port(0).Feed, m.feed)
	return m.plug(host, "virtio-console", dev)
}

// flushConsole waits, for a bounded time, until the guest's last output is out.
func (m *Machine) flushConsole() {
	ctx, cancel := context.WithTimeout(context.Background(), flushTime)
	defer cancel()
	if m.serialOut.end != nil {
		m.serialOut.end()
		select {
		case <-m.serialOut.drained:
		case <-ctx.Done():
		}
	}
	if m.term != nil {
		_ = m.term.Port(0).Flush(ctx)
	}
}

func (m *Machine) addRNG(host *pci.Host) error {
	dev, err := rng.New(rng.Config{Source: m.random()})
	if err != nil {
		return err
	}
	return m.plug(host, "virtio-rng", dev)
}

// addBalloon offers free page reporting, by which the guest gives memory back by
// itself, and hinting, for ReclaimMemory. GVMSPAWN_BALLOON=hinting in the environment offers
// no reporting, so that guests are as those before Linux 5.7.
func (m *Machine) addBalloon(host *pci.Host) error {
	reporting := os.Getenv("GVMSPAWN_BALLOON") != "hinting"
	m.balloon = balloon.New(balloon.Config{Memory: m.mem, Reporting: reporting, Stats: true, Hint: m.hinted})
	return m.plug(host, "virtio-balloon", m.balloon)
}
