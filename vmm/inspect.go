package vmm

import (
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/gvmspawn/gvmspawn/vmm/bus"
	"github.com/gvmspawn/gvmspawn/vmm/layout"
	"github.com/gvmspawn/gvmspawn/vmm/vcpu"
)

// Inspections are what Inspect can show.
var Inspections = []string{"registers", "mem", "pci", "virtio", "irq"}

// Inspect writes a part of the machine's state for people. It stops the CPUs
// for a moment to read their registers.
func (m *Machine) Inspect(what string, w io.Writer) error {
	if !slices.Contains(Inspections, what) {
		return fmt.Errorf("unknown part %q of a machine", what)
	}
	if m.runner.over() {
		return ErrNotRunning
	}
	switch what {
	case "registers":
		return m.inspectRegisters(w)
	case "mem":
		m.inspectMemory(w)
	case "pci":
		if m.pci == nil {
			return errors.New("the machine has no PCI")
		}
		m.inspectPCI(w)
	case "virtio":
		m.inspectVirtio(w)
	case "irq":
		m.inspectInterrupts(w)
	}
	return nil
}

func (m *Machine) inspectRegisters(w io.Writer) error {
	if !m.runner.isPaused() {
		if err := m.Pause(); err != nil {
			return err
		}
		defer m.Resume() //nolint:errcheck // a machine that has ended
	}
	var r vcpu.Registers
	for i := range m.cfg.CPUs {
		if err := m.vm.VCPU(i).Registers(&r); err != nil {
			return fmt.Errorf("CPU %d: %w", i, err)
		}
		writeRegisters(w, i, &r)
	}
	return nil
}

func writeRegisters(w io.Writer, cpu int, r *vcpu.Registers) {
	names := [...]string{"RAX", "RCX", "RDX", "RBX", "RSP", "RBP", "RSI", "RDI", "R8 ", "R9 ", "R10", "R11", "R12", "R13", "R14", "R15"}
	fmt.Fprintf(w, "CPU %d\nRIP %016x  RFLAGS %08x\n", cpu, r.RIP, r.RFLAGS)
	for i, name := range names {
		end := "  "
		if i%4 == 3 {
			end = "\n"
		}
		fmt.Fprintf(w, "%s %016x%s", name, r.GPR[i], end)
	}
	for i, name := range [...]string{"ES", "CS", "SS", "DS", "FS", "GS"} {
		s := &r.Seg[i]
		fmt.Fprintf(w, "%s  %04x %016x %08x %05x\n", name, s.Selector, s.Base, s.Limit, s.Attr)
	}
	fmt.Fprintf(w, "TR  %04x %016x %08x %05x\n", r.TR.Selector, r.TR.Base, r.TR.Limit, r.TR.Attr)
	fmt.Fprintf(w, "GDT %016x %04x  IDT %016x %04x\n", r.GDT.Base, r.GDT.Limit, r.IDT.Base, r.IDT.Limit)
	fmt.Fprintf(w, "CR0 %08x  CR2 %016x  CR3 %016x  CR4 %08x  CR8 %x  EFER %x\n", r.CR0, r.CR2, r.CR3, r.CR4, r.CR8, r.EFER)
}

func (m *Machine) inspectMemory(w io.Writer) {
	for _, r := range m.mem.Regions() {
		fmt.Fprintf(w, "%012x-%012x %-6s %s\n", uint64(r.Base), uint64(r.End())-1, r.Kind, r.Name)
	}
	for _, s := range []struct {
		name  string
		space *bus.Space
	}{{"MMIO", &m.bus.MMIO}, {"port", &m.bus.Port}} {
		s.space.Each(func(base, end uint64, name string) {
			fmt.Fprintf(w, "%012x-%012x %-6s %s\n", base, end, s.name, name)
		})
	}
}

// Offsets and number of what inspectPCI shows (PCI Local Bus 3.0 §6.1).
const (
	pciBARs      = 6
	pciClassWord = 8
)

func (m *Machine) inspectPCI(w io.Writer) {
	for _, f := range m.pci.Functions() {
		id, class := uint32(f.ReadConfig(0, 4)), uint32(f.ReadConfig(pciClassWord, 4))>>8
		fmt.Fprintf(w, "%04x:%04x class %06x %s\n", id&0xffff, id>>16, class, f.Name())
		for i := range pciBARs {
			if a := f.BARAddress(i); a != 0 {
				fmt.Fprintf(w, "          BAR %d at %x\n", i, a)
			}
		}
	}
}

func (m *Machine) inspectVirtio(w io.Writer) {
	for _, f := range m.pci.Functions() {
		if f.Description != nil {
			f.Description(w)
		}
	}
}

// inspectInterrupts shows who interrupts how: lines of the IOAPIC, and
// messages.
func (m *Machine) inspectInterrupts(w io.Writer) {
	for _, l := range []struct {
		pin  int
		name string
	}{{layout.GSICOM1, "serial port"}, {layout.GSIRTC, "real-time clock"}, {layout.GSIGED, "event device"}} {
		fmt.Fprintf(w, "IOAPIC pin %d: %s\n", l.pin, l.name)
	}
	for _, f := range m.pci.Functions() {
		if x := f.MSIX(); x != nil {
			fmt.Fprintf(w, "%s: MSI-X, %d vectors, enabled %t\n", f.Name(), x.Vectors(), x.Enabled())
			x.Describe(w)
		}
	}
}
