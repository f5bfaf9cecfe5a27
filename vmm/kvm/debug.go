package kvm

import (
	"fmt"

	"github.com/gvmspawn/gvmspawn/vmm/vcpu"
)

// Debug registers (Intel SDM vol. 3B §17.2).
const (
	debugRegisters = 4
	dr6B           = 1<<debugRegisters - 1
	dr7Fixed       = 1 << 10
	dr7LE          = 1<<8 | 1<<9 // exact breakpoints

	dr7RWShift  = 16
	dr7LenShift = 18
	dr7Write    = 1
	dr7Access   = 3
)

// Vectors of exceptions in kvm_debug_exit_arch.
const (
	vectorDB = 1
	vectorBP = 3
)

// dr7Len is the LEN field for a length in bytes.
var dr7Len = map[uint8]uint64{1: 0, 2: 1, 4: 3, 8: 2}

// AnyAddress is false: there are four debug registers.
func (c *VCPU) AnyAddress() bool { return false }

// SetDebug implements vcpu.Debugger by KVM_SET_GUEST_DEBUG.
func (c *VCPU) SetDebug(d *vcpu.Debug) error {
	if err := c.prepare(); err != nil {
		return err
	}
	var g kvmGuestDebug
	if d != nil {
		if len(d.Points) > debugRegisters {
			return vcpu.ErrTooManyPoints
		}
		g = guestDebug(d)
	}
	c.debug = d
	_, err := ioctlPtr(c.fd, KVM_SET_GUEST_DEBUG, &g)
	if err != nil && g.control&KVM_GUESTDBG_BLOCKIRQ != 0 {
		g.control &^= KVM_GUESTDBG_BLOCKIRQ
		_, err = ioctlPtr(c.fd, KVM_SET_GUEST_DEBUG, &g)
	}
	if err != nil {
		return fmt.Errorf("debug CPU %d (KVM_SET_GUEST_DEBUG): %w", c.id, err)
	}
	return nil
}

// guestDebug is d for the kernel.
func guestDebug(d *vcpu.Debug) kvmGuestDebug {
	g := kvmGuestDebug{control: KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_SW_BP}
	if d.Step {
		g.control |= KVM_GUESTDBG_SINGLESTEP | KVM_GUESTDBG_BLOCKIRQ
	}
	if d.Trap {
		g.control |= KVM_GUESTDBG_INJECT_BP
	}
	if len(d.Points) == 0 {
		return g
	}
	g.control |= KVM_GUESTDBG_USE_HW_BP
	dr7 := uint64(dr7Fixed | dr7LE)
	for i, p := range d.Points {
		g.debugreg[i] = p.Address
		dr7 |= 2 << (2 * i) // G
		switch p.Kind {
		case vcpu.BreakWrite:
			dr7 |= (dr7Write<<dr7RWShift | dr7Len[p.Len]<<dr7LenShift) << (4 * i)
		case vcpu.BreakAccess:
			dr7 |= (dr7Access<<dr7RWShift | dr7Len[p.Len]<<dr7LenShift) << (4 * i)
		}
	}
	g.debugreg[7] = dr7
	return g
}

// debugExit is KVM_EXIT_DEBUG.
func (c *VCPU) debugExit() vcpu.Exit {
	e := c.run.debug()
	exit := vcpu.Exit{Reason: vcpu.ExitDebug, Stop: vcpu.StopStep, Address: e.pc}
	if e.exception == vectorBP {
		exit.Stop = vcpu.StopTrap
		return exit
	}
	for i := range debugRegisters {
		if e.dr6>>i&1 == 0 || c.debug == nil || i >= len(c.debug.Points) {
			continue
		}
		p := c.debug.Points[i]
		exit.Stop, exit.Address = vcpu.StopWatch, p.Address
		if p.Kind == vcpu.BreakExec {
			exit.Stop = vcpu.StopBreak
		}
		return exit
	}
	return exit
}

// Offsets in FXSAVE64's image (Intel SDM vol. 1 table 10-2).
const (
	fxMXCSR = 24
	fxST    = 32
	fxXMM   = 160
)

// FPU implements vcpu.Debugger.
func (c *VCPU) FPU(f *vcpu.FPU) error {
	var k kvmFPU
	if _, err := ioctlPtr(c.fd, KVM_GET_FPU, &k); err != nil {
		return fmt.Errorf("read the FPU of CPU %d: %w", c.id, err)
	}
	store(f[0:], 2, uint64(k.fcw))
	store(f[2:], 2, uint64(k.fsw))
	f[4] = k.ftwx
	store(f[6:], 2, uint64(k.lastOpcode))
	store(f[8:], 8, k.lastIP)
	store(f[16:], 8, k.lastDP)
	store(f[fxMXCSR:], 4, uint64(k.mxcsr))
	for i := range k.fpr {
		copy(f[fxST+16*i:], k.fpr[i][:])
	}
	for i := range k.xmm {
		copy(f[fxXMM+16*i:], k.xmm[i][:])
	}
	return nil
}

// SetFPU implements vcpu.Debugger.
func (c *VCPU) SetFPU(f *vcpu.FPU) error {
	k := kvmFPU{
		fcw: uint16(load(f[0:], 2)), fsw: uint16(load(f[2:], 2)), ftwx: f[4], lastOpcode: uint16(load(f[6:], 2)),
		lastIP: load(f[8:], 8), lastDP: load(f[16:], 8), mxcsr: uint32(load(f[fxMXCSR:], 4)),
	}
	for i := range k.fpr {
		copy(k.fpr[i][:], f[fxST+16*i:])
	}
	for i := range k.xmm {
		copy(k.xmm[i][:], f[fxXMM+16*i:])
	}
	if _, err := ioctlPtr(c.fd, KVM_SET_FPU, &k); err != nil {
		return fmt.Errorf("set the FPU of CPU %d: %w", c.id, err)
	}
	return nil
}
