package kvm

import (
	"fmt"

	"github.com/gvmspawn/gvmspawn/vmm/vcpu"
)

// Bits of vcpu.Segment.Attr.
const (
	attrType     = 0xf
	attrS        = 4
	attrDPL      = 5
	attrP        = 7
	attrAVL      = 12
	attrL        = 13
	attrDB       = 14
	attrG        = 15
	attrUnusable = 16
)

func (s *kvmSegment) get(d *vcpu.Segment) {
	*d = vcpu.Segment{Selector: s.selector, Base: s.base, Limit: s.limit}
	d.Attr = uint32(s.typ&attrType) | uint32(s.s&1)<<attrS | uint32(s.dpl&3)<<attrDPL | uint32(s.present&1)<<attrP |
		uint32(s.avl&1)<<attrAVL | uint32(s.l&1)<<attrL | uint32(s.db&1)<<attrDB | uint32(s.g&1)<<attrG |
		uint32(s.unusable&1)<<attrUnusable
}

func (s *kvmSegment) set(d *vcpu.Segment) {
	bit := func(n uint) uint8 { return uint8(d.Attr >> n & 1) }
	*s = kvmSegment{
		base: d.Base, limit: d.Limit, selector: d.Selector,
		typ: uint8(d.Attr & attrType), s: bit(attrS), dpl: uint8(d.Attr >> attrDPL & 3), present: bit(attrP),
		avl: bit(attrAVL), l: bit(attrL), db: bit(attrDB), g: bit(attrG), unusable: bit(attrUnusable),
	}
}

// segments lists the segment registers in the order of vcpu.ES to vcpu.GS.
func (s *kvmSregs) segments() [6]*kvmSegment {
	return [6]*kvmSegment{vcpu.ES: &s.es, vcpu.CS: &s.cs, vcpu.SS: &s.ss, vcpu.DS: &s.ds, vcpu.FS: &s.fs, vcpu.GS: &s.gs}
}

// gpr lists the general registers in the order of vcpu.RAX to vcpu.R15.
func (r *kvmRegs) gpr() [16]*uint64 {
	return [16]*uint64{
		vcpu.RAX: &r.rax, vcpu.RCX: &r.rcx, vcpu.RDX: &r.rdx, vcpu.RBX: &r.rbx,
		vcpu.RSP: &r.rsp, vcpu.RBP: &r.rbp, vcpu.RSI: &r.rsi, vcpu.RDI: &r.rdi,
		vcpu.R8: &r.r8, vcpu.R9: &r.r9, vcpu.R10: &r.r10, vcpu.R11: &r.r11,
		vcpu.R12: &r.r12, vcpu.R13: &r.r13, vcpu.R14: &r.r14, vcpu.R15: &r.r15,
	}
}

// Registers reads the CPU's registers. It must not be running.
func (c *VCPU) Registers(d *vcpu.Registers) error {
	if err := c.prepare(); err != nil {
		return err
	}
	var regs kvmRegs
	var s kvmSregs
	if err := c.getRegs(&regs, &s); err != nil {
		return err
	}
	for i, p := range regs.gpr() {
		d.GPR[i] = *p
	}
	d.RIP, d.RFLAGS = regs.rip, regs.rflags
	for i, p := range s.segments() {
		p.get(&d.Seg[i])
	}
	s.tr.get(&d.TR)
	s.ldt.get(&d.LDTR)
	d.GDT = vcpu.Table{Base: s.gdt.base, Limit: s.gdt.limit}
	d.IDT = vcpu.Table{Base: s.idt.base, Limit: s.idt.limit}
	d.CR0, d.CR2, d.CR3, d.CR4, d.CR8, d.EFER = s.cr0, s.cr2, s.cr3, s.cr4, s.cr8, s.efer
	return nil
}

// SetRegisters sets the CPU's registers. It must not be running.
func (c *VCPU) SetRegisters(d *vcpu.Registers) error {
	if err := c.prepare(); err != nil {
		return err
	}
	var regs kvmRegs
	var s kvmSregs
	// The APIC's base and the pending interrupts in it stay as they are.
	if _, err := ioctlPtr(c.fd, KVM_GET_SREGS, &s); err != nil {
		return fmt.Errorf("read the registers of CPU %d: %w", c.id, err)
	}
	for i, p := range regs.gpr() {
		*p = d.GPR[i]
	}
	regs.rip, regs.rflags = d.RIP, d.RFLAGS
	for i, p := range s.segments() {
		p.set(&d.Seg[i])
	}
	s.tr.set(&d.TR)
	s.ldt.set(&d.LDTR)
	s.gdt = kvmDTable{base: d.GDT.Base, limit: d.GDT.Limit}
	s.idt = kvmDTable{base: d.IDT.Base, limit: d.IDT.Limit}
	s.cr0, s.cr2, s.cr3, s.cr4, s.cr8, s.efer = d.CR0, d.CR2, d.CR3, d.CR4, d.CR8, d.EFER
	return c.setRegs(&regs, &s)
}

func (c *VCPU) getRegs(regs *kvmRegs, s *kvmSregs) error {
	if _, err := ioctlPtr(c.fd, KVM_GET_REGS, regs); err != nil {
		return fmt.Errorf("read the registers of CPU %d: %w", c.id, err)
	}
	if _, err := ioctlPtr(c.fd, KVM_GET_SREGS, s); err != nil {
		return fmt.Errorf("read the system registers of CPU %d: %w", c.id, err)
	}
	return nil
}

func (c *VCPU) setRegs(regs *kvmRegs, s *kvmSregs) error {
	if _, err := ioctlPtr(c.fd, KVM_SET_SREGS, s); err != nil {
		return fmt.Errorf("set the system registers of CPU %d: %w", c.id, err)
	}
	if _, err := ioctlPtr(c.fd, KVM_SET_REGS, regs); err != nil {
		return fmt.Errorf("set the registers of CPU %d: %w", c.id, err)
	}
	return nil
}
