package kvm

import (
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/gvmspawn/gvmspawn/vmm/mem"
	"github.com/gvmspawn/gvmspawn/vmm/vcpu"
)

// Address spaces of guest memory (KVM API §4.35): CPUs in System Management
// Mode have one of their own.
const (
	spaceNormal = 0
	spaceSMM    = 1
	spaceShift  = 16 // of its number in kvm_userspace_memory_region.slot
)

// checkSMM reports whether KVM has System Management Mode with an address space
// of its own.
func checkSMM(dev int) error {
	if has, err := ioctl(dev, KVM_CHECK_EXTENSION, KVM_CAP_X86_SMM); err != nil || has == 0 {
		return &UnusableError{NoSMM, err}
	}
	if n, err := ioctl(dev, KVM_CHECK_EXTENSION, KVM_CAP_MULTI_ADDRESS_SPACE); err != nil || n <= spaceSMM {
		return &UnusableError{NoSMM, err}
	}
	return nil
}

// inSMM reports whether the CPU made its last exit in System Management Mode.
func (c *VCPU) inSMM() bool { return c.run.flags&KVM_RUN_X86_SMM != 0 }

// target is who is told of the access that the CPU made.
func (c *VCPU) target() vcpu.IO {
	if c.vm.smm != nil && c.inSMM() {
		return c.vm.smm
	}
	return c.io
}

// SMI implements vcpu.SMM. KVM takes an SMI only from the thread that runs the CPU,
// and drops a message with that delivery mode (KVM_SIGNAL_MSI), so each CPU is
// brought out of KVM_RUN, but for the one whose access this is.
func (vm *VM) SMI() {
	self := int32(unix.Gettid())
	for _, c := range vm.cpus {
		c.smi.Store(true)
		if c.tid.Load() != self {
			c.Kick()
		}
	}
}

// takeSMI gives KVM the SMI that is due.
func (c *VCPU) takeSMI() error {
	if !c.smi.Swap(false) {
		return nil
	}
	if _, err := ioctl(c.fd, KVM_SMI, 0); err != nil {
		return fmt.Errorf("send an SMI to CPU %d (KVM_SMI): %w", c.id, err)
	}
	return nil
}

// HideSMRAM implements vcpu.SMM: hidden memory is in one address space only. It
// may be called on a CPU's thread while others run.
func (vm *VM) HideSMRAM(hide bool) error {
	i := slices.IndexFunc(vm.mem.Regions(), func(r *mem.Region) bool { return r.Kind == mem.SMRAM })
	if i < 0 || vm.smm == nil {
		return errors.New("kvm: there is no memory to hide")
	}
	vm.slotMu.Lock()
	defer vm.slotMu.Unlock()
	if vm.hidden == hide {
		return nil
	}
	if err := vm.setSlot(spaceNormal, i, vm.mem.Regions()[i], !hide); err != nil {
		return fmt.Errorf("hide the memory of System Management Mode (%v): %w", hide, err)
	}
	vm.hidden = hide
	return nil
}
