package vmm

import (
	"fmt"
	"strings"

	"github.com/gvmspawn/gvmspawn/boot/linux"
	"github.com/gvmspawn/gvmspawn/firmware/acpi"
	"github.com/gvmspawn/gvmspawn/firmware/acpi/aml"
	"github.com/gvmspawn/gvmspawn/firmware/mptable"
	"github.com/gvmspawn/gvmspawn/virtio"
	"github.com/gvmspawn/gvmspawn/virtio/virtiommio"
	"github.com/gvmspawn/gvmspawn/vmm/layout"
	"github.com/gvmspawn/gvmspawn/vmm/mem"
)

// plugMMIO attaches a virtio device until the machine is closed.
func (m *Machine) plugMMIO(name string, dev virtio.Device, windows ...*mem.Region) error {
	d, err := m.newMMIO(name, dev, windows...)
	if err == nil {
		m.onClose(func() error { d.Close(); return nil })
	}
	return err
}

// newMMIO gives a virtio device registers and an interrupt of its own.
func (m *Machine) newMMIO(name string, dev virtio.Device, windows ...*mem.Region) (*virtiommio.Device, error) {
	shared := map[uint8]mem.GPA{}
	for i, w := range windows {
		shared[uint8(i)] = w.Base
	}
	i := len(m.mmio)
	if i == len(layout.GSIVirtioMMIO) {
		return nil, fmt.Errorf("a machine with virtio-mmio has room for %d devices: %s is one too many", i, name)
	}
	d := virtiommio.New(name, dev, m.mem, m.vm, layout.GSIVirtioMMIO[i], virtiommio.Options{Features: m.ringFeatures(dev), SharedMemory: shared, Log: m.deviceStopped(name)})
	m.mmio = append(m.mmio, d)
	return d, m.bus.MMIO.Map(name, mmioAddress(i), virtiommio.Size, d)
}

// deviceStopped logs why a device stopped.
func (m *Machine) deviceStopped(name string) func(error) {
	return func(err error) { m.log.Warn("virtio device stopped", "device", name, "error", err) }
}

func mmioAddress(i int) uint64 { return layout.VirtioMMIO + uint64(i)*layout.VirtioMMIOStride }

// mmioDevices declares the devices to a kernel with ACPI.
func (m *Machine) mmioDevices() []aml.Term {
	var terms []aml.Term
	for i := range m.mmio {
		terms = append(terms, acpi.VirtioMMIO(i, aml.Edge, layout.GSIVirtioMMIO[i]))
	}
	return terms
}

// mmioPlace is where a Linux with ACPI has the last device, below /sys/devices.
// One without takes a root by its name: it has its drivers built in.
func (m *Machine) mmioPlace() string { return fmt.Sprintf("platform/"+acpiID+":%02x", len(m.mmio)-1) }

// By these strings a kernel has a driver that finds devices by ACPI, and one that
// takes them from the command line.
const (
	acpiID    = "LNRO0005"
	parameter = "virtio_mmio.device"
)

// mmioArguments declares the devices to a kernel without ACPI, which reads them
// from its command line. One that reads both would find each device twice.
func (m *Machine) mmioArguments(k linux.Kernel) string {
	if len(m.mmio) == 0 {
		return "" // searching a kernel takes its time
	}
	byACPI, _ := k.HasString(acpiID)
	if takes, _ := k.HasString(parameter); !takes || byACPI {
		return ""
	}
	var b strings.Builder
	for i := range m.mmio {
		fmt.Fprintf(&b, parameter+"=4K@%#x:%d ", mmioAddress(i), layout.GSIVirtioMMIO[i])
	}
	return b.String()
}

// writeMPTable is for kernels without ACPI, which have no PCI either.
func (m *Machine) writeMPTable() error {
	if m.pci != nil {
		return nil
	}
	return mptable.Write(m.mem, m.cfg.topology().APICIDs())
}
