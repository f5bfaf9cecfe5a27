package kvm

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/gvmspawn/gvmspawn/vmm/mem"
	"github.com/gvmspawn/gvmspawn/vmm/vcpu"
)

// port serves KVM_EXIT_IO, one call of IO an element. It returns false for
// what no kernel would send.
func (c *VCPU) port() bool {
	e := c.run.io()
	size, n := int(e.size), uint64(e.size)*uint64(e.count)
	if off := e.dataOffset; size != 1 && size != 2 && size != 4 || off > uint64(len(c.shared)) || n > uint64(len(c.shared))-off {
		return false
	}
	io, data := c.target(), c.shared[e.dataOffset:e.dataOffset+n]
	for ; len(data) > 0; data = data[size:] {
		if e.direction == KVM_EXIT_IO_OUT {
			io.PortOut(e.port, size, uint32(load(data, size)))
		} else {
			store(data, size, uint64(io.PortIn(e.port, size)))
		}
	}
	return true
}

// mmio serves KVM_EXIT_MMIO. KVM splits what crosses a page, so the length can
// be any number up to 8; 3, 5, 6 and 7 are split into aligned pieces.
func (c *VCPU) mmio() {
	e := c.run.mmio()
	io, addr, data := c.target(), e.physAddr, e.data[:min(e.len, 8)]
	for len(data) > 0 {
		size := len(data)
		if size&(size-1) != 0 {
			size = 1 << min(bits.Len(uint(size))-1, bits.TrailingZeros64(addr))
		}
		if e.isWrite != 0 {
			io.MMIOWrite(addr, size, load(data, size))
		} else {
			store(data, size, io.MMIORead(addr, size))
		}
		addr, data = addr+uint64(size), data[size:]
	}
}

// load reads size (1, 2, 4 or 8) bytes.
func load(b []byte, size int) uint64 {
	switch size {
	case 1:
		return uint64(b[0])
	case 2:
		return uint64(binary.LittleEndian.Uint16(b))
	case 4:
		return uint64(binary.LittleEndian.Uint32(b))
	}
	return binary.LittleEndian.Uint64(b)
}

// store writes size (1, 2, 4 or 8) bytes.
func store(b []byte, size int, v uint64) {
	switch size {
	case 1:
		b[0] = byte(v)
	case 2:
		binary.LittleEndian.PutUint16(b, uint16(v))
	case 4:
		binary.LittleEndian.PutUint32(b, uint32(v))
	default:
		binary.LittleEndian.PutUint64(b, v)
	}
}

// runError says what a failing KVM_RUN means. EFAULT is the guest's memory,
// with the address in kvm_run since Linux 6.8.
func (c *VCPU) runError(errno unix.Errno) (vcpu.Exit, error) {
	known := c.run.exitReason == KVM_EXIT_MEMORY_FAULT
	switch {
	case known:
		return c.otherExit(), nil
	case errno == unix.EFAULT || errno == unix.EHWPOISON:
		return vcpu.Exit{Reason: vcpu.ExitFault, Detail: "the host cannot provide a page of guest memory" + c.where()}, nil
	}
	return vcpu.Exit{}, fmt.Errorf("run CPU %d (KVM_RUN): %w", c.id, errno)
}

// otherExit is every exit but port and memory accesses.
func (c *VCPU) otherExit() vcpu.Exit {
	switch c.run.exitReason {
	case KVM_EXIT_HLT:
		return vcpu.Exit{Reason: vcpu.ExitHalt}
	case KVM_EXIT_SHUTDOWN:
		return vcpu.Exit{Reason: vcpu.ExitShutdown}
	case KVM_EXIT_DEBUG:
		return c.debugExit()
	case KVM_EXIT_SYSTEM_EVENT:
		return c.systemEvent()
	case KVM_EXIT_INTERNAL_ERROR:
		return c.internalError()
	case KVM_EXIT_FAIL_ENTRY:
		e := c.run.failEntry()
		return vcpu.Exit{Reason: vcpu.ExitInternal,
			Detail: fmt.Sprintf("the host's CPU refuses to enter the guest, reason %#x", e.hardwareReason) + c.where()}
	case KVM_EXIT_MEMORY_FAULT:
		e := c.run.memoryFault()
		c.run.exitReason = KVM_EXIT_UNKNOWN // so that it cannot be taken for that of a later error
		return vcpu.Exit{Reason: vcpu.ExitFault, Address: e.gpa,
			Detail: "the host cannot provide a page of guest memory" + c.where()}
	}
	return c.unknownExit()
}

func (c *VCPU) systemEvent() vcpu.Exit {
	switch typ := c.run.systemEvent().typ; typ {
	case KVM_SYSTEM_EVENT_SHUTDOWN:
		return vcpu.Exit{Reason: vcpu.ExitPowerOff}
	case KVM_SYSTEM_EVENT_RESET:
		return vcpu.Exit{Reason: vcpu.ExitReset}
	case KVM_SYSTEM_EVENT_CRASH:
		return vcpu.Exit{Reason: vcpu.ExitInternal, Detail: "the guest reported its crash" + c.where()}
	default:
		return vcpu.Exit{Reason: vcpu.ExitInternal, Detail: fmt.Sprintf("unknown system event %d", typ) + c.where()}
	}
}

func (c *VCPU) unknownExit() vcpu.Exit {
	return vcpu.Exit{Reason: vcpu.ExitInternal, Detail: fmt.Sprintf("unknown exit %d from KVM", c.run.exitReason) + c.where()}
}

// suberrors names what KVM_EXIT_INTERNAL_ERROR reports.
var suberrors = map[uint32]string{
	KVM_INTERNAL_ERROR_EMULATION:              "KVM cannot emulate an instruction",
	KVM_INTERNAL_ERROR_SIMUL_EX:               "unexpected simultaneous exceptions",
	KVM_INTERNAL_ERROR_DELIVERY_EV:            "an exit while delivering an event",
	KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON: "an exit that KVM does not know",
}

func (c *VCPU) internalError() vcpu.Exit {
	e := c.run.internal()
	what := suberrors[e.suberror]
	if what == "" {
		what = fmt.Sprintf("KVM internal error %d", e.suberror)
	}
	if e.suberror != KVM_INTERNAL_ERROR_EMULATION {
		what += fmt.Sprintf(", data %#x", e.data[:min(e.ndata, uint32(len(e.data)))])
	}
	return vcpu.Exit{Reason: vcpu.ExitInternal, Detail: what + c.where()}
}

// where describes the instruction that the CPU is at, in a message's last words.
func (c *VCPU) where() string {
	var regs kvmRegs
	var sregs kvmSregs
	if _, err := ioctlPtr(c.fd, KVM_GET_REGS, &regs); err != nil {
		return ""
	}
	if _, err := ioctlPtr(c.fd, KVM_GET_SREGS, &sregs); err != nil {
		return fmt.Sprintf(" at RIP %#x", regs.rip)
	}
	var b strings.Builder
	fmt.Fprintf(&b, " at RIP %#x", regs.rip)
	if sregs.cs.base != 0 {
		fmt.Fprintf(&b, " (CS base %#x)", sregs.cs.base)
	}
	if code := c.instruction(sregs.cs.base + regs.rip); len(code) > 0 {
		fmt.Fprintf(&b, ", instruction bytes % x", code)
	}
	return b.String()
}

// instruction returns up to 15 bytes of code: those that KVM gave up on, or
// what is in guest memory at the linear address.
func (c *VCPU) instruction(linear uint64) []byte {
	if c.run.exitReason == KVM_EXIT_INTERNAL_ERROR {
		// ndata counts 64-bit words: flags, then size and bytes in two.
		e := c.run.emulation()
		if e.suberror == KVM_INTERNAL_ERROR_EMULATION && e.ndata >= 3 &&
			e.flags&KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES != 0 {
			return e.insnBytes[:min(int(e.insnSize), len(e.insnBytes))]
		}
	}
	tr := kvmTranslation{linearAddress: linear}
	if _, err := ioctlPtr(c.fd, KVM_TRANSLATE, &tr); err != nil || tr.valid == 0 {
		return nil
	}
	// To the end of the page: the next may be elsewhere.
	code := make([]byte, min(15, 4096-tr.physicalAddress%4096))
	if c.vm.mem.ReadAt(code, mem.GPA(tr.physicalAddress)) != nil {
		return nil
	}
	return code
}
