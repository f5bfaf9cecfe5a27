package kvm

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/gvmspawn/gvmspawn/vmm/layout"
	"github.com/gvmspawn/gvmspawn/vmm/mem"
)

// Probe reports whether this host's KVM can run a stock kernel: nil, or an
// *UnusableError. file is an open /dev/kvm, or nil. New makes the same checks
// on the VM itself, so who wants a VM anyway need not call Probe first.
func Probe(file *os.File) error {
	m := mem.New()
	if _, err := m.Add("probe", 0, probePages*layout.PageSize, mem.RAM); err != nil {
		return err
	}
	vm, err := New(Config{Memory: m, CPUs: 1, File: file})
	if err != nil {
		return errors.Join(err, m.Close())
	}
	return errors.Join(vm.Close(), m.Close())
}

// The probe's pages: three levels of page tables, then code and data.
const (
	probePages  = 4
	probeCode   = 3 * layout.PageSize
	probeData   = probeCode + 0x800
	probePort   = 0x80
	probeRounds = 100 // KVM_RUN calls that may be interrupted
)

// probeProgram is
//
//	lock cmpxchg16b [rdi]
//	out probePort, al
var probeProgram = []byte{0xf0, 0x48, 0x0f, 0xc7, 0x0f, 0xe6, probePort}

// checkNative runs a few instructions of 64-bit code on a CPU that has not run
// yet. KVM without hardware support (kvm_pvm) runs a guest in its instruction
// emulator, which fails at lock cmpxchg16b as it would in any kernel; an
// engine that runs the instructions natively comes to the port access. CPU and
// memory are as they were afterwards.
func (c *VCPU) checkNative() error {
	m := c.vm.mem
	if len(m.Regions()) == 0 {
		return errors.New("kvm: the machine has no memory")
	}
	base := m.Regions()[0].Base
	page, err := m.Slice(base, probePages*layout.PageSize)
	if err != nil {
		return fmt.Errorf("kvm: the lowest memory at %#x is no RAM or too small", base)
	}
	saved := bytes.Clone(page)
	defer copy(page, saved)

	var regs, oldRegs kvmRegs
	var s, oldS kvmSregs
	if err := c.getRegs(&oldRegs, &oldS); err != nil {
		return err
	}
	regs, s = probeState(page, uint64(base), oldS)
	if err := c.setRegs(&regs, &s); err != nil {
		return &UnusableError{Broken, err}
	}
	if err := c.runProbe(); err != nil {
		return err
	}
	if binary.LittleEndian.Uint64(page[probeData:]) != regs.rbx {
		return &UnusableError{Broken, errors.New("cmpxchg16b did nothing")}
	}
	return c.setRegs(&oldRegs, &oldS)
}

// probeState fills the pages and returns the registers: 64-bit mode, with the
// first 2 MiB of addresses mapped to the memory around base.
func probeState(page []byte, base uint64, s kvmSregs) (kvmRegs, kvmSregs) {
	const present, huge = 1<<0 | 1<<1, 1 << 7
	const big = 2 * layout.MiB
	clear(page)
	binary.LittleEndian.PutUint64(page[0:], base+layout.PageSize|present)
	binary.LittleEndian.PutUint64(page[layout.PageSize:], base+2*layout.PageSize|present)
	binary.LittleEndian.PutUint64(page[2*layout.PageSize:], base&^(big-1)|present|huge)
	copy(page[probeCode:], probeProgram)

	at := base % big
	s.cs = kvmSegment{limit: ^uint32(0), selector: 8, typ: 0xb, present: 1, s: 1, l: 1, g: 1}
	s.ss = kvmSegment{limit: ^uint32(0), selector: 16, typ: 3, present: 1, s: 1, db: 1, g: 1}
	s.ds, s.es, s.fs, s.gs = s.ss, s.ss, s.ss, s.ss
	s.tr = kvmSegment{limit: 0x67, selector: 24, typ: 0xb, present: 1}
	s.gdt, s.idt = kvmDTable{}, kvmDTable{}
	s.cr0, s.cr3, s.cr4 = 1<<0|1<<4|1<<5|1<<31, base, 1<<5 // PE, ET, NE, PG; PAE
	s.efer = 1<<8 | 1<<10                                  // LME, LMA
	return kvmRegs{rip: at + probeCode, rsp: at + probeData, rdi: at + probeData, rbx: 0x1234_5678_9abc, rflags: 1 << 1}, s
}

// runProbe runs the CPU to its port access and completes that.
func (c *VCPU) runProbe() error {
	errno := unix.EINTR
	for range probeRounds {
		if errno = ioctlRun(c.fd); errno != unix.EINTR && errno != unix.EAGAIN {
			break
		}
	}
	switch {
	case errno != 0:
		return &UnusableError{Broken, errno}
	case c.run.exitReason == KVM_EXIT_INTERNAL_ERROR && c.run.internal().suberror == KVM_INTERNAL_ERROR_EMULATION:
		return &UnusableError{Emulating, nil}
	case c.run.exitReason != KVM_EXIT_IO || c.run.io().port != probePort:
		return &UnusableError{Broken, errors.New(c.otherExit().Detail)}
	}
	// With immediate_exit KVM_RUN completes the access and does nothing else.
	c.Kick()
	_ = ioctlRun(c.fd)
	c.takeKick()
	return nil
}
