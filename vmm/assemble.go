package vmm

import (
	"errors"
	"fmt"
	"io"
	"math"

	"golang.org/x/sys/unix"

	"github.com/gvmspawn/gvmspawn/boot/linux"
	"github.com/gvmspawn/gvmspawn/devices/pci"
	"github.com/gvmspawn/gvmspawn/devices/tpm"
	"github.com/gvmspawn/gvmspawn/firmware/acpi"
	"github.com/gvmspawn/gvmspawn/firmware/smbios"
	"github.com/gvmspawn/gvmspawn/vmm/kvm"
	"github.com/gvmspawn/gvmspawn/vmm/layout"
	"github.com/gvmspawn/gvmspawn/vmm/mem"
	"github.com/gvmspawn/gvmspawn/vmm/vcpu"
)

// assemble builds the machine in the order that KVM wants: memory with all
// windows first, then the engine, then what needs its wires.
func (m *Machine) assemble() error {
	if err := m.cfg.check(); err != nil {
		return err
	}
	img, err := m.openKernel()
	if err != nil {
		return err
	}
	if err := m.addMemory(); err != nil {
		return err
	}
	if err := m.addEngine(); err != nil {
		return err
	}
	if err := m.addChips(); err != nil {
		return err
	}
	if err := m.addTPM(); err != nil {
		return err
	}
	if err := m.addHealth(); err != nil {
		return err
	}
	host, err := m.addPCI()
	if err != nil {
		return err
	}
	if err := m.addDevices(host); err != nil {
		return err
	}
	if err := m.addHotplug(host); err != nil {
		return err
	}
	if m.cfg.Firmware != nil {
		return m.loadFirmware()
	}
	return m.load(img)
}

// openKernel opens the kernel to start: nil for a machine with firmware, which
// reads the file itself.
func (m *Machine) openKernel() (*linux.Image, error) {
	if m.cfg.Firmware != nil {
		return nil, nil
	}
	img, err := linux.Open(m.cfg.Boot.Kernel)
	if err != nil {
		return nil, err
	}
	m.onClose(img.Close)
	return img, nil
}

// check reports a setting that no machine can have.
func (c *Config) check() error {
	switch {
	case c.CPUs < 1 || c.CPUs > MaxCPUs:
		return fmt.Errorf("%d CPUs are not possible: choose 1 to %d", c.CPUs, MaxCPUs)
	case !c.topology().Valid():
		return fmt.Errorf("%d CPUs cannot be divided into %d sockets with %d threads a core", c.CPUs, max(c.Sockets, 1), max(c.Threads, 1))
	case c.RAM < MinRAM:
		return fmt.Errorf("%d KiB of RAM are too little: a guest needs at least %d MiB", c.RAM>>10, MinRAM>>20)
	case c.RAM%layout.MiB != 0:
		return fmt.Errorf("%d bytes of RAM are not a multiple of 1 MiB", c.RAM)
	case max(c.RAM, c.RAMMax) > MaxRAM:
		return fmt.Errorf("%d MiB of RAM are too much: at most %d MiB are possible", max(c.RAM, c.RAMMax)>>20, uint64(MaxRAM)>>20)
	case c.RAMMax != 0 && (c.RAMMax < c.RAM || c.RAMMax%layout.MiB != 0):
		return fmt.Errorf("%d bytes cannot be the most memory of a machine that begins with %d", c.RAMMax, c.RAM)
	case c.RAM > hostMemory():
		return fmt.Errorf("%d MiB of RAM are more than this host's memory and swap (%d MiB): give the machine less (--ram=)", c.RAM>>20, hostMemory()>>20)
	case c.Transport == TransportMMIO && c.Firmware != nil:
		return errors.New("firmware needs PCI: give --virtio-transport=pci, or --firmware=none")
	case c.Firmware != nil && c.Firmware.BIOS && c.Boot.Kernel != "":
		return errors.New("a BIOS starts the boot loader of a disk, not a kernel of the host: give --firmware=uefi, or none")
	case c.Deterministic && c.CPUs != 1:
		return errors.New("a deterministic machine has one CPU")
	case c.Deterministic && c.Accel == AccelKVM:
		return errors.New("KVM cannot run a machine deterministically")
	case c.Deterministic && c.TPM != nil:
		return errors.New("a deterministic machine has no TPM: its keys are random")
	}
	if c.Firmware != nil && c.Firmware.SMM {
		return c.checkSMM()
	}
	return nil
}

func (c *Config) topology() vcpu.Topology {
	return vcpu.Topology{CPUs: c.CPUs, Sockets: c.Sockets, Threads: c.Threads}
}

// hostMemory is how much memory and swap the host has, in bytes.
func hostMemory() uint64 {
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return math.MaxUint64
	}
	return (info.Totalram + info.Totalswap) * uint64(info.Unit)
}

// lowRAM is how much of the RAM lies below the 32-bit hole, in bytes.
func (c *Config) lowRAM() uint64 {
	if c.Firmware != nil {
		return min(c.RAM, layout.FirmwareLowRAMEnd)
	}
	return min(c.RAM, layout.LowRAMEnd)
}

// addMemory reserves RAM below and above the 32-bit hole, and the DAX windows.
func (m *Machine) addMemory() error {
	m.mem = mem.New()
	m.onClose(m.mem.Close)
	m.onClose(m.reclaim.close)
	low := m.cfg.lowRAM()
	ram := low
	if m.smm() {
		ram -= layout.SMRAMSize
		if _, err := m.mem.Add("SMRAM", mem.GPA(ram), layout.SMRAMSize, mem.SMRAM); err != nil {
			return err
		}
	}
	if _, err := m.mem.Add("RAM", 0, ram, mem.RAM); err != nil {
		return err
	}
	if high := m.cfg.RAM - low; high > 0 {
		if _, err := m.mem.Add("high RAM", layout.HighRAMStart, high, mem.RAM); err != nil {
			return err
		}
	}
	if err := m.addPluggable(); err != nil {
		return err
	}
	if err := m.addPmemWindows(); err != nil {
		return err
	}
	next := layout.PCIMMIO64Start(uint64(m.memoryEnd()))
	for i := range m.cfg.Shares {
		s := &m.cfg.Shares[i]
		if s.DAX == 0 || s.Ephemeral || m.cfg.Firmware != nil {
			// fs.Ephemeral says why. Firmware moves BARs, and memory cannot follow.
			continue
		}
		next = (next + s.DAX - 1) / s.DAX * s.DAX
		w, err := m.mem.Add("DAX window of share "+s.Tag, mem.GPA(next), s.DAX, mem.Window)
		if err != nil {
			return err
		}
		m.windows[s.Tag] = w
		next += s.DAX
	}
	return m.addFlash()
}

// addEngine takes KVM or the software CPU.
func (m *Machine) addEngine() error {
	if m.cfg.Accel != AccelSoft && !m.cfg.Deterministic {
		vm, err := kvm.New(kvm.Config{Memory: m.mem, CPUs: m.cfg.CPUs, Sockets: m.cfg.Sockets, Threads: m.cfg.Threads, IO: &m.bus, File: m.cfg.KVM,
			Firmware: m.cfg.Firmware != nil, PhysBits: m.physBits(), SMM: m.managed()})
		if err == nil {
			m.setEngine(vm)
			return nil
		}
		var unusable *kvm.UnusableError
		if m.cfg.Accel == AccelKVM || !errors.As(err, &unusable) {
			return err
		}
		m.why = unusable.Error()
	}
	vm, err := m.newSoft()
	if err != nil {
		if m.why != "" {
			return fmt.Errorf("%s; %w", m.why, err)
		}
		return err
	}
	m.setEngine(vm)
	return nil
}

func (m *Machine) setEngine(vm vcpu.VM) {
	m.vm = vm
	m.onClose(vm.Close)
	m.runner = newRunner(vm, m.cfg.CPUs)
	m.runner.repair, m.runner.hostClock = m.repairWindow, m.hostClock
}

// addPCI makes bus 0 with its windows, or nothing in a machine without PCI.
func (m *Machine) addPCI() (*pci.Host, error) {
	if m.cfg.Transport == TransportMMIO {
		return nil, m.bus.Port.Map("reset control", layout.PortReset, 1, m.resetPort())
	}
	high := layout.PCIMMIO64Start(uint64(m.memoryEnd()))
	cfg := pci.Config{
		Low:   pci.Window{Start: layout.PCIMMIO32Start, End: layout.PCIMMIO32End},
		High:  pci.Window{Start: high, End: high + layout.PCIMMIO64Size},
		Ports: pci.Window{Start: layout.PortPCIStart, End: layout.PortEnd}, PortSpace: &m.bus.Port,
		ECAM:  layout.ECAM,
		Reset: m.resetPort(),
	}
	if m.cfg.Firmware != nil {
		cfg.Low = pci.Window{Start: layout.FirmwareLowRAMEnd, End: layout.FirmwarePCIEnd}
		cfg.High = pci.Window{Start: max(uint64(m.memoryEnd()), layout.HighRAMStart), End: layout.AddressEnd}
		cfg.ECAM = 0
		m.guardSMRAM(&cfg)
	}
	host, err := pci.NewHost(&m.bus.MMIO, cfg)
	if err != nil {
		return nil, err
	}
	m.pci = host
	err = errors.Join(
		m.bus.Port.Map("PCI configuration address", layout.PortPCIAddr, 4, host.AddressPort()),
		m.bus.Port.Map("PCI configuration data", layout.PortPCIData, 4, host.DataPort()))
	if m.cfg.Firmware != nil {
		err = errors.Join(err, m.addSouthBridge(host))
	} else {
		err = errors.Join(err, m.bus.MMIO.Map("PCI ECAM", layout.ECAM, layout.ECAMSize, host.ECAM()))
	}
	return host, err
}

// restartStub is real-mode code at layout.BIOSEntry: it resets the machine by the
// reset control register. Linux on hardware-reduced ACPI without EFI restarts
// through the BIOS (arch/x86/kernel/reboot.c), and there is none.
var restartStub = []byte{
	0xba, layout.PortReset & 0xff, layout.PortReset >> 8, // mov dx, PortReset
	0xb0, 0x06, // mov al, SYS_RST | RST_CPU
	0xee,       // out dx, al
	0xf4,       // hlt
	0xeb, 0xfd, // jmp to the hlt
}

// load writes tables and kernel into guest memory and sets the boot CPU's
// registers.
func (m *Machine) load(img *linux.Image) error {
	if err := m.mem.WriteAt(m.generation(), layout.Generation); err != nil {
		return err
	}
	rsdp, err := acpi.Write(m.mem, m.acpi())
	if err != nil {
		return err
	}
	if err := m.writeMPTable(); err != nil {
		return err
	}
	if err := m.mem.WriteAt(restartStub, layout.BIOSEntry); err != nil {
		return err
	}
	if err := m.chooseCredentials(); err != nil {
		return err
	}
	top := mem.GPA(m.cfg.lowRAM())
	tables, err := smbios.Write(m.mem, top, m.smbios())
	if err != nil {
		return err
	}
	if tables.Size > smbios.LinuxTableMax {
		return fmt.Errorf("the SMBIOS strings need %d KiB, but Linux reads no more than %d KiB: give fewer or shorter ones (--smbios11=)",
			tables.Size>>10, smbios.LinuxTableMax>>10)
	}
	initrds, closeInitrds, err := openInitrds(m.cfg.Boot.Initrds)
	if err != nil {
		return err
	}
	defer closeInitrds()
	initrds, line, err := m.handoverInitrd(initrds)
	if err != nil {
		return err
	}
	regs, err := linux.Load(linux.Boot{
		Memory: m.mem, Image: img, Initrds: initrds, MoreInitrds: m.synthesise(img),
		CommandLine: line, MoreArguments: m.mmioArguments, RSDP: rsdp,
		Reserved: []linux.Range{{Base: tables.Base, Size: tables.Size, Type: linux.E820Reserved}},
		KASLR:    m.cfg.Boot.KASLR, Random: m.random(),
	})
	if err != nil {
		return err
	}
	return m.vm.VCPU(0).SetRegisters(&regs)
}

// acpi is what the ACPI tables say.
func (m *Machine) acpi() acpi.Config {
	c := acpi.Config{CPUs: m.cfg.CPUs, APICIDs: m.cfg.topology().APICIDs(), RAMEnd: m.memoryEnd(), NoPCI: m.pci == nil, Devices: m.mmioDevices()}
	if m.disks.plug != nil {
		c.HotplugSlots = m.disks.plug.Slots()
	}
	c.Devices = append(c.Devices, acpi.PanicDevice())
	c.Tables = append(c.Tables, watchdogTable())
	if m.cfg.Firmware != nil {
		c.FWCfg, c.PCI = true, m.placedPCI()
	}
	if m.cfg.Generation != [16]byte{} {
		c.Generation = layout.Generation
		if m.cfg.Firmware != nil {
			c.Generation = generationOffset
		}
	}
	if m.cfg.TPM != nil {
		c.Devices = append(c.Devices, acpi.TPM(layout.TPM, tpm.Size))
		c.Tables = append(c.Tables, m.cfg.TPM.table())
	}
	return c
}

// smbios is what the tables say.
func (m *Machine) smbios() smbios.Config {
	c := smbios.Config{
		UUID: m.cfg.UUID, Manufacturer: "gvmspawn", Product: "Virtual Machine", BIOSVersion: "1",
		OEMStrings: m.oemStrings(),
	}
	for _, r := range m.mem.Regions() {
		if r.Kind == mem.RAM {
			c.RAM = append(c.RAM, smbios.Range{Base: r.Base, Size: r.Size()})
		}
	}
	return c
}

// random is the source of the guest's seed: nil, the host's, unless the machine
// is deterministic.
func (m *Machine) random() io.Reader {
	if !m.cfg.Deterministic {
		return nil
	}
	return newSeeded(m.cfg.Seed)
}
