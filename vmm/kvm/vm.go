package kvm

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/gvmspawn/gvmspawn/vmm/layout"
	"github.com/gvmspawn/gvmspawn/vmm/mem"
	"github.com/gvmspawn/gvmspawn/vmm/vcpu"
)

// ErrClosed is returned by whatever is used after its Close.
var ErrClosed = errors.New("kvm: used after Close")

// Config is what New makes a VM from.
type Config struct {
	// Memory is the guest's memory, complete and final. It must outlive the VM.
	Memory *mem.Memory
	// CPUs is the number of virtual CPUs, 1 to layout.MaxVCPUs.
	CPUs int
	// Sockets and Threads divide them up as vcpu.Topology says.
	Sockets, Threads int
	// IO takes the guest's port and memory-mapped accesses.
	IO vcpu.IO
	// File, if not nil, is an open /dev/kvm, which New neither keeps nor closes.
	File *os.File
	// NoPIT leaves the 8254 timer out. Linux with kvmclock and a TSC deadline
	// timer does not miss it.
	NoPIT bool
	// Split, if not nil, makes the I/O APIC the caller's; the local APICs stay
	// KVM's, and there is neither PIC nor PIT. See the package comment.
	Split func(SplitWires) IOAPIC
	// Firmware leaves the CPUs' MSRs as after a reset, for firmware to set.
	Firmware bool
	// PhysBits, if not 0, is the largest width of physical addresses that
	// CPUID tells.
	PhysBits int
	// SMM, if not nil, gives the CPUs System Management Mode, in which it takes
	// their accesses. Its lack is an *UnusableError.
	SMM vcpu.IO
	// AllowEmulated skips the check that the CPUs run 64-bit code natively.
	AllowEmulated bool
}

// VM is a virtual machine on /dev/kvm. It implements vcpu.VM.
type VM struct {
	fd   int
	pid  int
	mem  *mem.Memory
	io   vcpu.IO
	smm  vcpu.IO // nil: no System Management Mode
	cpus []*VCPU

	topology vcpu.Topology
	cpuid    []kvmCPUIDEntry2 // for all CPUs; topology is patched in for each
	shared   int              // size of the pages shared with a CPU, in bytes
	pit      bool
	split    *split // nil: all of it is KVM's
	physBits int
	reset    bool // CPUs keep the MSRs of a reset

	// mu guards the wires below. A wire's own lock is never taken under it.
	mu        sync.Mutex
	closed    bool
	pins      map[uint32]*pin
	msis      map[*msi]struct{}
	doorbells map[*doorbell]struct{}

	// slotMu guards hidden, and is held while SMRAM comes and goes.
	slotMu sync.Mutex
	hidden bool // SMRAM is for CPUs in System Management Mode

	// routeMu guards the routing table; it may be taken under a wire's lock.
	routeMu sync.Mutex
	routes  map[uint32]kvmMSI // by GSI; messages of irqfds
	usedGSI map[uint32]bool   // GSIs of irqfds, routed or not
	maxGSI  uint32            // exclusive

	// clockMu guards the state of a paused clock.
	clockMu sync.Mutex
	paused  bool
	clock   kvmClockData
	attr    attrCall
}

// needed are the capabilities that a VM cannot do without, all of them there
// since Linux 4.14 on every x86 host.
var needed = []struct {
	name string
	cap  uintptr
}{
	{"KVM_CAP_IRQCHIP", KVM_CAP_IRQCHIP},
	{"KVM_CAP_USER_MEMORY", KVM_CAP_USER_MEMORY},
	{"KVM_CAP_EXT_CPUID", KVM_CAP_EXT_CPUID},
	{"KVM_CAP_IRQ_ROUTING", KVM_CAP_IRQ_ROUTING},
	{"KVM_CAP_IRQFD", KVM_CAP_IRQFD},
	{"KVM_CAP_PIT2", KVM_CAP_PIT2},
	{"KVM_CAP_IOEVENTFD", KVM_CAP_IOEVENTFD},
	{"KVM_CAP_ADJUST_CLOCK", KVM_CAP_ADJUST_CLOCK},
	{"KVM_CAP_SIGNAL_MSI", KVM_CAP_SIGNAL_MSI},
	{"KVM_CAP_READONLY_MEM", KVM_CAP_READONLY_MEM},
	{"KVM_CAP_IOEVENTFD_ANY_LENGTH", KVM_CAP_IOEVENTFD_ANY_LENGTH},
	{"KVM_CAP_IMMEDIATE_EXIT", KVM_CAP_IMMEDIATE_EXIT},
}

// New makes a VM. An *UnusableError means that no VM can be had on this host.
func New(cfg Config) (*VM, error) {
	if cfg.CPUs < 1 || cfg.CPUs > layout.MaxVCPUs {
		return nil, fmt.Errorf("%d CPUs: a machine has 1 to %d", cfg.CPUs, layout.MaxVCPUs)
	}
	topology := vcpu.Topology{CPUs: cfg.CPUs, Sockets: cfg.Sockets, Threads: cfg.Threads}
	if !topology.Valid() {
		return nil, fmt.Errorf("%d CPUs cannot be divided into %d sockets with %d threads a core", cfg.CPUs, cfg.Sockets, cfg.Threads)
	}
	dev := cfg.File
	if dev == nil {
		f, err := openDevice("/dev/kvm")
		if err != nil {
			return nil, err
		}
		defer f.Close()
		dev = f
	}
	vm := &VM{
		fd: -1, pid: unix.Getpid(), mem: cfg.Memory, io: cfg.IO, smm: cfg.SMM, pit: !cfg.NoPIT, topology: topology,
		reset: cfg.Firmware, physBits: cfg.PhysBits,
		pins: map[uint32]*pin{}, msis: map[*msi]struct{}{}, doorbells: map[*doorbell]struct{}{}, routes: map[uint32]kvmMSI{}, usedGSI: map[uint32]bool{},
	}
	if cfg.Split != nil {
		vm.split = &split{vm: vm, make: cfg.Split}
	}
	err := vm.assemble(dev, cfg.CPUs)
	if err == nil && !cfg.AllowEmulated {
		err = vm.cpus[0].checkNative()
	}
	if err != nil {
		return nil, errors.Join(err, vm.Close())
	}
	return vm, nil
}

// assemble makes everything in the order of the package comment.
func (vm *VM) assemble(dev *os.File, cpus int) error {
	raw, err := dev.SyscallConn()
	if err != nil {
		return err
	}
	cerr := raw.Control(func(fd uintptr) { err = vm.create(int(fd), cpus) })
	if err = errors.Join(err, cerr); err != nil {
		return err
	}
	if err := vm.addMemory(); err != nil {
		return err
	}
	if err := vm.addInterrupts(); err != nil {
		return err
	}
	// Without a PMU in CPUID KVM need not switch performance counters.
	// Kernels before 5.18 do not have it, which is as well.
	off := kvmEnableCap{cap: KVM_CAP_PMU_CAPABILITY, args: [4]uint64{KVM_PMU_CAP_DISABLE}}
	_, _ = ioctlPtr(vm.fd, KVM_ENABLE_CAP, &off)
	for i := range cpus {
		c, err := vm.newVCPU(i)
		if err != nil {
			return err
		}
		vm.cpus = append(vm.cpus, c)
	}
	return vm.cpus[0].prepare()
}

// create does what needs the device: checks, CPUID, the VM itself.
func (vm *VM) create(dev, cpus int) error {
	version, err := ioctl(dev, KVM_GET_API_VERSION, 0)
	if err != nil {
		return &UnusableError{WrongVersion, err}
	}
	if version != kvmAPIVersion {
		return &UnusableError{WrongVersion, fmt.Errorf("its API has version %d instead of %d", version, kvmAPIVersion)}
	}
	for _, n := range needed {
		if r, err := ioctl(dev, KVM_CHECK_EXTENSION, n.cap); err != nil || r == 0 {
			return errTooOld(n.name)
		}
	}
	if vm.smm != nil {
		if err := checkSMM(dev); err != nil {
			return err
		}
	}
	if most, err := ioctl(dev, KVM_CHECK_EXTENSION, KVM_CAP_MAX_VCPUS); err == nil && most != 0 && cpus > most {
		return fmt.Errorf("%d CPUs: KVM on this host allows %d", cpus, most)
	}
	if vm.shared, err = ioctl(dev, KVM_GET_VCPU_MMAP_SIZE, 0); err != nil || vm.shared < minShared {
		return &UnusableError{WrongVersion, err}
	}
	gsis, _ := ioctl(dev, KVM_CHECK_EXTENSION, KVM_CAP_IRQ_ROUTING)
	vm.maxGSI = uint32(max(gsis, layout.GSIPins))
	deadline, _ := ioctl(dev, KVM_CHECK_EXTENSION, KVM_CAP_TSC_DEADLINE_TIMER)
	if vm.cpuid, err = supportedCPUID(dev, deadline != 0, vm.hasWindow()); err != nil {
		return err
	}
	if e := cpuidList(vm.cpuid).find(leafAddressSize, 0); e != nil && vm.physBits != 0 {
		e.eax = e.eax&^0xff | min(e.eax&0xff, uint32(vm.physBits))
	}
	if vm.fd, err = ioctl(dev, KVM_CREATE_VM, 0); err != nil {
		vm.fd = -1
		return createError(err)
	}
	return nil
}

// hasWindow reports whether guest memory has windows over files.
func (vm *VM) hasWindow() bool {
	return slices.ContainsFunc(vm.mem.Regions(), func(r *mem.Region) bool { return r.Kind == mem.Window })
}

// addMemory makes a slot of every region, in each address space.
func (vm *VM) addMemory() error {
	for i, r := range vm.mem.Regions() {
		err := vm.setSlot(spaceNormal, i, r, true)
		if err == nil && vm.smm != nil {
			err = vm.setSlot(spaceSMM, i, r, true)
		}
		if err != nil {
			return fmt.Errorf("give guest memory %s at %#x-%#x to KVM: %w", r.Name, r.Base, r.End(), err)
		}
	}
	return nil
}

// setSlot gives a region to the guest in an address space, or takes it away.
func (vm *VM) setSlot(space uint32, i int, r *mem.Region, on bool) error {
	slot := kvmUserspaceMemoryRegion{
		slot:          space<<spaceShift | uint32(i),
		guestPhysAddr: uint64(r.Base),
		memorySize:    r.Size(),
		userspaceAddr: uint64(r.HostAddr()),
	}
	if r.Kind == mem.ROM || r.Kind == mem.Flash {
		slot.flags = KVM_MEM_READONLY
	}
	if !on {
		slot.memorySize = 0
	}
	_, err := ioctlPtr(vm.fd, KVM_SET_USER_MEMORY_REGION, &slot)
	return err
}

// ShowFlash lets the guest read a mem.Flash region directly, as at first, or
// makes every access to it leave the CPU. With System Management Mode this is for CPUs
// in it; the others go on reading. It may be called on a CPU's thread while
// others run.
func (vm *VM) ShowFlash(r *mem.Region, on bool) error {
	i := slices.Index(vm.mem.Regions(), r)
	if i < 0 || r.Kind != mem.Flash {
		return fmt.Errorf("guest memory %s is no flash", r.Name)
	}
	space := uint32(spaceNormal)
	if vm.smm != nil {
		space = spaceSMM
	}
	if err := vm.setSlot(space, i, r, on); err != nil {
		return fmt.Errorf("show guest memory %s (%v): %w", r.Name, on, err)
	}
	return nil
}

// addInterrupts makes the interrupt controllers and the timer. The two pages
// are for Intel CPUs that cannot run real mode natively (KVM API §4.35, §4.36).
func (vm *VM) addInterrupts() error {
	identity := uint64(layout.KVMIdentityMap)
	if _, err := ioctlPtr(vm.fd, KVM_SET_IDENTITY_MAP_ADDR, &identity); err != nil {
		return fmt.Errorf("KVM_SET_IDENTITY_MAP_ADDR: %w", err)
	}
	if _, err := ioctl(vm.fd, KVM_SET_TSS_ADDR, layout.KVMTSS); err != nil {
		return fmt.Errorf("KVM_SET_TSS_ADDR: %w", err)
	}
	if vm.split != nil {
		return vm.split.enable()
	}
	if _, err := ioctl(vm.fd, KVM_CREATE_IRQCHIP, 0); err != nil {
		return fmt.Errorf("create the interrupt controllers (KVM_CREATE_IRQCHIP): %w", err)
	}
	if !vm.pit {
		return nil
	}
	pit := kvmPITConfig{flags: KVM_PIT_SPEAKER_DUMMY}
	if _, err := ioctlPtr(vm.fd, KVM_CREATE_PIT2, &pit); err != nil {
		return fmt.Errorf("create the timer (KVM_CREATE_PIT2): %w", err)
	}
	return vm.writeRoutes()
}

// Name is "kvm".
func (vm *VM) Name() string { return "kvm" }

// VCPU returns CPU i.
func (vm *VM) VCPU(i int) vcpu.VCPU { return vm.cpus[i] }

// Close closes all wires that are still open, then the CPUs, then the VM. Every
// Run has returned before. It is idempotent.
func (vm *VM) Close() error {
	vm.mu.Lock()
	if vm.closed {
		vm.mu.Unlock()
		return nil
	}
	vm.closed = true
	var wires []interface{ Close() error }
	for p := range vm.pins {
		wires = append(wires, vm.pins[p])
	}
	for m := range vm.msis {
		wires = append(wires, m)
	}
	for d := range vm.doorbells {
		wires = append(wires, d)
	}
	vm.mu.Unlock()
	for _, c := range vm.cpus {
		wires = append(wires, c)
	}
	var errs []error
	for _, w := range wires {
		errs = append(errs, w.Close())
	}
	if vm.fd >= 0 {
		errs = append(errs, unix.Close(vm.fd))
	}
	return errors.Join(errs...)
}
