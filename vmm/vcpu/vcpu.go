// Package vcpu says what a CPU engine is: virtual CPUs that run guest code,
// the interrupt controller between them and the chips, and doorbells. Two
// engines implement it, KVM (vmm/kvm) and the software CPU (vmm/soft).
//
// An engine is made by its package's New, which is given the guest memory,
// complete and final, and the number of CPUs. From then on the machine knows
// it as a VM only.
//
// # Port and memory-mapped I/O
//
// These accesses do not end Run: the engine calls the [IO] that it was given,
// on the CPU's thread, one call an access. A string instruction with a repeat
// prefix is one call an element; an access wider than 8 bytes, or one that
// crosses a page, is split. KVM's exits map to such calls directly, and a
// software CPU needs no way to resume in the middle of an instruction.
// Everything else that needs the machine's attention ends Run with an [Exit].
package vcpu

import (
	"fmt"

	"github.com/gvmspawn/gvmspawn/vmm/bus"
)

// IO is the machine as a CPU sees it. *bus.Bus implements it.
type IO interface {
	PortIn(port uint16, size int) uint32       // size 1, 2 or 4
	PortOut(port uint16, size int, v uint32)   // size 1, 2 or 4
	MMIORead(addr uint64, size int) uint64     // size 1, 2, 4 or 8
	MMIOWrite(addr uint64, size int, v uint64) // size 1, 2, 4 or 8
}

// VM is a machine's CPUs and its interrupt controller. All methods may be
// called from any goroutine.
type VM interface {
	bus.Wires

	// Name is "kvm" or "soft".
	Name() string
	// VCPU returns CPU i, 0 ≤ i < number of CPUs. CPU 0 is the boot CPU; its
	// registers are set by the boot code. The others wait for INIT and SIPI.
	VCPU(i int) VCPU
	// PauseClock stops the guest's clocks (kvmclock, TSC where possible) while
	// every CPU is paused, ResumeClock lets them go on from there, so that
	// the guest's watchdogs do not see the gap.
	PauseClock() error
	ResumeClock() error
	// Close frees the engine. Every Run has returned before.
	Close() error
}

// Trimmer is a VM that keeps what it could make again.
type Trimmer interface {
	// Trim returns such memory to the host, soon. It may be called while CPUs run.
	Trim()
}

// VCPU is one virtual CPU. Run, Registers and SetRegisters belong to the
// thread that runs it (runtime.LockOSThread), or to others while it does not
// run; Kick and NMI may be called by anyone at any time.
type VCPU interface {
	// Run executes guest code until something needs the machine's attention.
	// While the CPU is halted or waits for SIPI, Run blocks without using the
	// host's CPU. The error is a failure of the engine, not of the guest.
	Run() (Exit, error)
	// Kick makes the present Run, or else the next one, return ExitKick soon.
	// A kick is never lost; several may count as one.
	Kick()
	// NMI delivers a non-maskable interrupt.
	NMI() error

	Registers(*Registers) error
	SetRegisters(*Registers) error
}

// Reason says why Run returned.
type Reason uint8

const (
	// ExitKick: Kick was called.
	ExitKick Reason = iota
	// ExitHalt: halted with interrupts off; nothing but NMI or reset can wake
	// it. Engines report it only where they can tell; the machine may wait.
	ExitHalt
	// ExitShutdown: triple fault (Intel SDM vol. 3A §6.15, interrupt 8).
	ExitShutdown
	// ExitReset: the guest asked the engine to reset the machine.
	ExitReset
	// ExitPowerOff: the guest asked the engine to power the machine off.
	ExitPowerOff
	// ExitInternal: the engine cannot go on with this guest (KVM's emulation
	// failure, an unknown exit). Detail says what.
	ExitInternal
	// ExitFault: the CPU touched memory that the host cannot provide: a
	// Window over a truncated file, or host memory ran out. Address says where.
	ExitFault
	// ExitDebug: a breakpoint or single step of the debugger.
	ExitDebug
)

// String returns the reason's name.
func (r Reason) String() string {
	names := [...]string{"kick", "halt", "shutdown (triple fault)", "reset", "power-off", "internal error", "memory fault", "debug"}
	if int(r) < len(names) {
		return names[r]
	}
	return fmt.Sprintf("reason %d", uint8(r))
}

// Exit is why Run returned. It is a value: returning it allocates nothing
// except for Detail, which only final exits have.
type Exit struct {
	Reason  Reason
	Stop    Stop   // of ExitDebug
	Address uint64 // guest physical of ExitFault, 0 if unknown; linear of ExitDebug
	Detail  string // for people, on ExitInternal and ExitFault
}

// Segment is a segment register with its hidden part (Intel SDM vol. 3A §3.4.3).
type Segment struct {
	Selector uint16
	Base     uint64
	Limit    uint32 // in bytes, granularity applied
	// Attr is the descriptor's attributes in the layout of the access-rights
	// bytes: bits 0-3 type, 4 S, 5-6 DPL, 7 P, 12 AVL, 13 L, 14 D/B, 15 G,
	// 16 unusable (Intel SDM vol. 3C §25.4.1).
	Attr uint32
}

// Table is GDTR or IDTR.
type Table struct {
	Base  uint64
	Limit uint16
}

// Register numbers of Registers.GPR, in the encoding of ModRM and REX.
const (
	RAX = iota
	RCX
	RDX
	RBX
	RSP
	RBP
	RSI
	RDI
	R8
	R9
	R10
	R11
	R12
	R13
	R14
	R15
)

// Segment numbers of Registers.Seg, in the encoding of ModRM.reg.
const (
	ES = iota
	CS
	SS
	DS
	FS
	GS
)

// Registers is a CPU's architectural state apart from the FPU and MSRs.
type Registers struct {
	GPR    [16]uint64
	RIP    uint64
	RFLAGS uint64

	Seg      [6]Segment
	TR, LDTR Segment
	GDT, IDT Table

	CR0, CR2, CR3, CR4, CR8 uint64
	EFER                    uint64
}
