package kvm

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// PauseClock notes the guest's time. Every CPU is paused.
func (vm *VM) PauseClock() error {
	vm.clockMu.Lock()
	defer vm.clockMu.Unlock()
	if vm.paused {
		return nil
	}
	vm.clock = kvmClockData{}
	if _, err := ioctlPtr(vm.fd, KVM_GET_CLOCK, &vm.clock); err != nil {
		return fmt.Errorf("stop the guest's clock (KVM_GET_CLOCK): %w", err)
	}
	vm.paused = true
	return nil
}

// ResumeClock sets kvmclock and, where the host's TSC is its base, the CPUs'
// TSCs back to where they were at PauseClock, all by the same number
// (devices/vcpu.rst §4.1), and tells the guest's soft-lockup watchdog that it was stopped.
func (vm *VM) ResumeClock() error {
	vm.clockMu.Lock()
	defer vm.clockMu.Unlock()
	if !vm.paused {
		return nil
	}
	vm.paused = false
	var now kvmClockData
	if _, err := ioctlPtr(vm.fd, KVM_GET_CLOCK, &now); err != nil {
		return fmt.Errorf("resume the guest's clock (KVM_GET_CLOCK): %w", err)
	}
	if vm.clock.flags&now.flags&KVM_CLOCK_HOST_TSC != 0 {
		if err := vm.shiftTSC(now.hostTSC - vm.clock.hostTSC); err != nil {
			return err
		}
	}
	set := kvmClockData{clock: vm.clock.clock}
	if _, err := ioctlPtr(vm.fd, KVM_SET_CLOCK, &set); err != nil {
		return fmt.Errorf("resume the guest's clock (KVM_SET_CLOCK): %w", err)
	}
	for _, c := range vm.cpus {
		// EINVAL: this CPU's kernel does not use kvmclock.
		if _, err := ioctl(c.fd, KVM_KVMCLOCK_CTRL, 0); err != nil && err != unix.EINVAL {
			return fmt.Errorf("tell CPU %d that it was stopped (KVM_KVMCLOCK_CTRL): %w", c.id, err)
		}
	}
	return nil
}

// shiftTSC turns the TSC of every CPU back by a number of cycles.
//
// Preconditions: clockMu is held.
func (vm *VM) shiftTSC(cycles uint64) error {
	vm.attr.attr = kvmDeviceAttr{group: KVM_VCPU_TSC_CTRL, attr: KVM_VCPU_TSC_OFFSET}
	for _, c := range vm.cpus {
		if err := deviceAttr(c.fd, KVM_GET_DEVICE_ATTR, &vm.attr); err != nil {
			return fmt.Errorf("read the TSC offset of CPU %d: %w", c.id, err)
		}
		vm.attr.value -= cycles
		if err := deviceAttr(c.fd, KVM_SET_DEVICE_ATTR, &vm.attr); err != nil {
			return fmt.Errorf("set the TSC offset of CPU %d: %w", c.id, err)
		}
	}
	return nil
}
