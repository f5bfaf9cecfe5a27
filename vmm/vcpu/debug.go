package vcpu

import "errors"

// Debugger is what a CPU offers a debugger. Its methods belong to whom Run and
// Registers belong. Without a call of SetDebug it costs the guest nothing.
type Debugger interface {
	// SetDebug says what the next Run stops for, until the next call; nil is
	// nothing. The engine keeps d, which does not change any more. The error
	// is ErrTooManyPoints or the host's.
	SetDebug(d *Debug) error
	// AnyAddress reports whether a Debug may have any number of BreakExec
	// points. Otherwise the debugger writes INT3 to guest memory instead, and
	// Run ends with StopTrap at each that the guest meets, its own ones too.
	AnyAddress() bool
	// FPU reads x87, MMX and SSE state, SetFPU replaces it.
	FPU(*FPU) error
	SetFPU(*FPU) error
}

// Debug is what Run stops for.
type Debug struct {
	// Step stops behind one instruction, a REP string instruction as a whole
	// at most. Interrupts wait, unless the CPU is halted or the host cannot.
	Step bool
	// Points are break- and watchpoints by linear address.
	Points []Point
	// Trap delivers #BP for the INT3 at RIP first, which was the guest's own.
	Trap bool
}

// Point is one breakpoint or watchpoint.
type Point struct {
	Kind    PointKind
	Address uint64 // linear
	Len     uint8  // bytes, 1, 2, 4 or 8, of BreakWrite and BreakAccess
}

// PointKind is what a Point is met by.
type PointKind uint8

const (
	// BreakExec is met by an instruction that begins at Address; it is not executed.
	BreakExec PointKind = iota
	// BreakWrite is met by a store; Run ends behind the instruction.
	BreakWrite
	// BreakAccess is met by a load or store; Run ends behind the instruction.
	BreakAccess
)

// Stop is what ended Run with ExitDebug.
type Stop uint8

const (
	// StopStep: the instruction is done.
	StopStep Stop = iota
	// StopBreak: RIP is at a BreakExec point, whose address is Exit.Address.
	StopBreak
	// StopWatch: the instruction before RIP met the watchpoint at Exit.Address.
	StopWatch
	// StopTrap: there is an INT3 at RIP.
	StopTrap
)

// FPU is x87, MMX and SSE state in the format of FXSAVE64 (Intel SDM vol. 1
// §10.5.1).
type FPU [512]byte

// ErrTooManyPoints is returned by SetDebug for more points than the processor
// has debug registers.
var ErrTooManyPoints = errors.New("the processor has four debug registers")
