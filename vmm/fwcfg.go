package vmm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/gvmspawn/gvmspawn/boot/linux"
	"github.com/gvmspawn/gvmspawn/devices/fwcfg"
	"github.com/gvmspawn/gvmspawn/devices/pci"
	"github.com/gvmspawn/gvmspawn/firmware/acpi"
	"github.com/gvmspawn/gvmspawn/firmware/smbios"
	"github.com/gvmspawn/gvmspawn/vmm/layout"
	"github.com/gvmspawn/gvmspawn/vmm/mem"
)

// fillFWCfg tells the firmware what the machine is made of.
func (m *Machine) fillFWCfg(d *fwcfg.Device) error {
	d.AddInt(fwcfg.RAMSize, 8, m.cfg.RAM)
	d.AddInt(fwcfg.NoGraphic, 2, 1)
	d.AddInt(fwcfg.BootCPUs, 2, uint64(m.cfg.CPUs))
	d.AddInt(fwcfg.MaximumCPUs, 2, uint64(m.cfg.CPUs))
	d.AddInt(fwcfg.BootMenu, 2, 0)
	d.Add(fwcfg.SystemUUID, m.cfg.UUID[:])
	err := errors.Join(
		d.AddFile("etc/e820", m.e820()),
		d.AddFile("etc/system-states", systemStates),
		m.addTables(d),
		m.offerSMIFeatures(d),
		m.addSMBIOS(d))
	if len(m.bootOrder) > 0 && !m.cfg.Firmware.AnyOrder {
		err = errors.Join(err, d.AddFile("bootorder", []byte(strings.Join(m.bootOrder, "\n")+"\x00")))
	}
	if m.cfg.Firmware.BIOS {
		// There is no screen: the BIOS's services write to the serial port.
		err = errors.Join(err, d.AddFile("etc/sercon-port", binary.LittleEndian.AppendUint64(nil, layout.PortCOM1)))
	}
	if end := m.memoryEnd(); end != m.mem.RAMEnd() {
		// Memory that may be plugged: firmware puts PCI above it.
		err = errors.Join(err, d.AddFile("etc/reserved-memory-end", binary.LittleEndian.AppendUint64(nil, uint64(end))))
	}
	for _, it := range m.cfg.Firmware.Items {
		err = errors.Join(err, d.AddFile(it.Name, it.Content))
	}
	if err != nil || m.cfg.Boot.Kernel == "" {
		return err
	}
	return m.giveKernel(d)
}

// systemStates says which sleep states exist: S5 alone (QEMU, hw/i386/fw_cfg.c).
var systemStates = []byte{1 << 7, 0, 0, 1, 2, 1 << 7}

// e820 is the RAM: base, length, type of each piece.
func (m *Machine) e820() []byte {
	var b []byte
	for _, r := range m.mem.Regions() {
		if r.Kind == mem.RAM || r.Kind == mem.SMRAM { // which firmware takes from the end itself
			b = binary.LittleEndian.AppendUint64(b, uint64(r.Base))
			b = binary.LittleEndian.AppendUint64(b, r.Size())
			b = binary.LittleEndian.AppendUint32(b, uint32(linux.E820RAM))
		}
	}
	return b
}

// addSMBIOS hands over the tables, whose place firmware chooses.
func (m *Machine) addSMBIOS(d *fwcfg.Device) error {
	table, err := m.shareCredentials()
	if err != nil {
		return err
	}
	for _, i := range m.inFWCfg {
		c := &m.cfg.Credentials[i]
		err = errors.Join(err, d.AddFile(credentialDirectory+c.ID, c.Data))
	}
	return errors.Join(err,
		d.AddFile("etc/smbios/smbios-anchor", smbios.EntryPoint(0, uint32(len(table)))),
		d.AddFile("etc/smbios/smbios-tables", table))
}

// What the ACPI tables may grow by when firmware has placed the PCI devices, and
// is reserved for that in their files.
const acpiSlack = 4096

// addTables hands over the ACPI tables. They are made when firmware reads
// them, because they tell where it has put PCI.
func (m *Machine) addTables(d *fwcfg.Device) error {
	l, err := acpi.BuildLoadable(m.acpi())
	if err != nil {
		return err
	}
	pad := func(n int) int { return (n + acpiSlack + layout.PageSize - 1) &^ (layout.PageSize - 1) }
	part := func(f func(acpi.Loadable) []byte) func() []byte {
		return func() []byte {
			l, err := acpi.BuildLoadable(m.acpi())
			if err != nil {
				m.log.Error("no ACPI tables", "error", err)
			}
			return f(l)
		}
	}
	return errors.Join(
		d.AddFile(acpi.GenerationFile, m.generationPage()),
		d.AddBuilt(acpi.TablesFile, pad(len(l.Tables)), part(func(l acpi.Loadable) []byte { return l.Tables })),
		d.AddBuilt(acpi.LoaderFile, len(l.Script), part(func(l acpi.Loadable) []byte { return l.Script })),
		d.AddFile(acpi.RSDPFile, l.RSDP))
}

// placedPCI is where firmware has put PCI: everything around ECAM below 4 GiB;
// above, what holds all BARs, or what a machine without firmware has.
func (m *Machine) placedPCI() *acpi.PCI {
	const buses, size = 256, 256 * layout.MiB
	p := &acpi.PCI{ECAM: m.pci.ECAMBase(), Buses: buses}
	if p.ECAM == 0 {
		p.ECAM = layout.ECAM // as long as firmware has not come to it
	}
	// Firmware uses either side of ECAM; the larger one is the window.
	below := acpi.Window{Start: layout.FirmwareLowRAMEnd, End: p.ECAM}
	above := acpi.Window{Start: p.ECAM + size, End: layout.FirmwarePCIEnd}
	low, high := m.pci.BARs()
	p.Low = []acpi.Window{above}
	if holdsAny(below, low) || above.Start >= above.End {
		p.Low = []acpi.Window{below}
		if holdsAny(above, low) {
			p.Low = append(p.Low, above)
		}
	}
	start := layout.PCIMMIO64Start(uint64(m.memoryEnd()))
	p.High = acpi.Window{Start: start, End: start + layout.PCIMMIO64Size}
	for i, w := range high {
		if i == 0 {
			p.High = acpi.Window{Start: w.Start, End: w.End}
		}
		p.High.Start, p.High.End = min(p.High.Start, w.Start), max(p.High.End, w.End)
	}
	p.High.Start &^= layout.GiB - 1
	p.High.End = (p.High.End + layout.GiB - 1) &^ (layout.GiB - 1)
	return p
}

func holdsAny(w acpi.Window, list []pci.Window) bool {
	for _, b := range list {
		if b.Start >= w.Start && b.End <= w.End {
			return true
		}
	}
	return false
}

// bootPaths are the Open Firmware paths of disks by their bus, as OVMF knows them
// (OvmfPkg/Library/QemuBootOrderLib). That of an NVMe disk names the IDs of QEMU's
// controller, whatever the controller's are.
var bootPaths = map[DiskBus]string{
	DiskVirtioBlk:  "/pci@i0cf8/scsi@%s/disk@0,0",
	DiskVirtioSCSI: "/pci@i0cf8/scsi@%s/channel@0/disk@0,0",
	DiskCDROM:      "/pci@i0cf8/scsi@%s/channel@0/disk@0,0",
	DiskNVMe:       "/pci@i0cf8/pci8086,5845@%s/namespace@1,0",
}

// bootPathNIC is that of a network interface.
const bootPathNIC = "/pci@i0cf8/ethernet@%s/ethernet-phy@0"

// bootFrom adds a device to those that firmware tries to boot from: disks, then
// the network, in their order.
func (m *Machine) bootFrom(path string, a pci.Address) {
	m.bootOrder = append(m.bootOrder, fmt.Sprintf(path, unitAddress(a)))
}

// unitAddress is a PCI function's address in an Open Firmware path.
func unitAddress(a pci.Address) string {
	if a.Function == 0 {
		return fmt.Sprintf("%x", a.Slot)
	}
	return fmt.Sprintf("%x,%x", a.Slot, a.Function)
}

// giveKernel gives kernel, initrds and command line to the firmware.
func (m *Machine) giveKernel(d *fwcfg.Device) error {
	b := &m.cfg.Boot
	f, err := os.Open(b.Kernel)
	if err != nil {
		return fmt.Errorf("cannot open the kernel: %w", err)
	}
	m.onClose(f.Close)
	st, err := f.Stat()
	if err != nil || !st.Mode().IsRegular() {
		return fmt.Errorf("the kernel %s is not a regular file", b.Kernel)
	}
	setup := make([]byte, setupSize(f, st.Size()))
	if _, err := f.ReadAt(setup, 0); err != nil {
		return fmt.Errorf("cannot read the kernel %s: %w", b.Kernel, err)
	}
	if len(setup) > typeOfLoader {
		// Without one Linux ignores the initrd. This changes what a signature is of, so the
		// kernel is there as it is, too, where OVMF since 2025 looks first, as with QEMU 10.
		setup[typeOfLoader] = undefinedLoader
	}
	if err := d.AddFileSource("etc/boot/kernel", newFileSource(f, 0, st.Size())); err != nil {
		return err
	}
	d.AddInt(fwcfg.SetupSize, 4, uint64(len(setup)))
	d.Add(fwcfg.SetupData, setup)
	d.AddInt(fwcfg.KernelSize, 4, uint64(st.Size()-int64(len(setup))))
	d.AddSource(fwcfg.KernelData, newFileSource(f, int64(len(setup)), st.Size()-int64(len(setup))))
	if b.CommandLine != "" {
		d.AddInt(fwcfg.CommandSize, 4, uint64(len(b.CommandLine)+1))
		d.Add(fwcfg.CommandLine, append([]byte(b.CommandLine), 0))
	}
	return m.giveInitrds(d, f, st.Size())
}

// typeOfLoader is the offset of type_of_loader in the setup header, and
// undefinedLoader a loader without a number (Linux, Documentation/arch/x86/boot.rst).
const (
	typeOfLoader    = 0x210
	undefinedLoader = 0xff
)

// setupSize is the size of a bzImage's real-mode part, which firmware wants by
// itself (Linux, Documentation/arch/x86/boot.rst); 0 for other files.
func setupSize(f io.ReaderAt, size int64) int64 {
	var head [0x206]byte
	if n, _ := f.ReadAt(head[:], 0); n < len(head) || string(head[0x202:0x206]) != "HdrS" {
		return 0
	}
	sectors := int64(head[0x1f1])
	if sectors == 0 {
		sectors = 4
	}
	return min((sectors+1)*512, size)
}

// giveInitrds joins the initrds, or makes the one that a modular kernel needs.
func (m *Machine) giveInitrds(d *fwcfg.Device, kernel io.ReaderAt, size int64) error {
	initrds, closeInitrds, err := openInitrds(m.cfg.Boot.Initrds)
	if err != nil {
		return err
	}
	m.onClose(func() error { closeInitrds(); return nil })
	if m.cfg.Boot.Root != nil && len(initrds) == 0 {
		img, err := linux.New(m.cfg.Boot.Kernel, kernel, size)
		if err != nil {
			return err
		}
		// What is built in, modules.builtin says: the kernel stays packed here.
		if initrds, err = m.synthesise(img)(linux.Kernel{}); err != nil {
			return err
		}
	}
	if len(initrds) == 0 {
		return nil
	}
	s := &joined{parts: initrds}
	d.AddInt(fwcfg.InitrdSize, 4, uint64(s.Size()))
	d.AddSource(fwcfg.InitrdData, s)
	return nil
}

// joined is initrds one behind the other, each padded to four bytes, as the
// kernel wants them.
type joined struct{ parts []linux.Initrd }

func padded(n int64) int64 { return (n + 3) &^ 3 }

// Size implements fwcfg.Source.
func (j *joined) Size() int64 {
	n := int64(0)
	for _, p := range j.parts {
		n += padded(p.Size)
	}
	return n
}

// ReadAt implements io.ReaderAt.
func (j *joined) ReadAt(b []byte, off int64) (int, error) {
	done := 0
	for _, p := range j.parts {
		size := padded(p.Size)
		if off >= size {
			off -= size
			continue
		}
		n := int(min(int64(len(b)-done), size-off))
		part := b[done : done+n]
		clear(part)
		if data := p.Size - off; data > 0 {
			if _, err := p.Data.ReadAt(part[:min(int64(n), data)], off); err != nil && err != io.EOF {
				return done, err
			}
		}
		done, off = done+n, 0
		if done == len(b) {
			return done, nil
		}
	}
	return done, io.EOF
}
