package soft

import "github.com/gvmspawn/gvmspawn/vmm/vcpu"

// Pseudo registers behind the 16 general ones in State.R: with them every
// effective address is one sum without branches.
const (
	regBlock = 16 // linear address (CS base added) of the running block
	regZero  = 17 // always 0
	// regSeg + n is the base of segment register n. In 64-bit mode only FS
	// and GS are used; the others are replaced by regZero.
	regSeg = 18
)

// Segment numbers of State.Seg behind the six of vcpu.
const (
	segLDTR = 6
	segTR   = 7
)

// State is the part of a CPU that interpreter and translated code share. It
// lies in mapped memory below 2 GiB where the host allows it, so that code can
// address its fields absolutely. It holds no Go pointer.
//
// Lazy flags: FRes is the last result, sign-extended to 64 bits; ZF is FRes ==
// 0. FAux holds CF in bit 63, CF xor OF in bit 62, AF in bit 3; bit 0 inverts
// SF (otherwise FRes' sign) and bits 8 to 15 are xored to the byte whose
// parity is PF (otherwise FRes' low byte).
type State struct {
	R    [32]uint64
	RIP  uint64
	FRes uint64
	FAux uint64
	// Flags is RFLAGS without CF, PF, AF, ZF, SF, OF.
	Flags uint64
	// TLB is the address of the current translation buffer ([TLBSize]TLBEntry).
	TLB uint64
	// Exit is a set of reasons to leave the loop at the next block head. It
	// is changed atomically, by any thread.
	Exit uint32
	// CPL is the current privilege level.
	CPL   uint32
	Count uint64 // instructions executed, without those of the running block

	MXCSR uint32
	_     uint32

	XMM [16][4]uint64 // 256 bits a register; at a multiple of 64
	// FX is the x87 and MMX state in the format of FXSAVE64 (SDM vol. 1
	// §10.5), at a multiple of 64.
	FX [512]byte
	// FXHead is the header behind FX with which XSAVE and XRSTOR move it (SDM vol. 1
	// §13.4.2).
	FXHead [64]byte
	// Scratch passes operands to and from host instructions.
	Scratch [1024]byte

	CR0, CR2, CR3, CR4, CR8, EFER, XCR0 uint64
	DR                                  [8]uint64
	Seg                                 [8]vcpu.Segment
	GDT, IDT                            vcpu.Table

	// Deadline is the Count from which on the loop must look at the virtual
	// clock's timers at the next block head: bus.Never unless the machine is
	// deterministic.
	Deadline uint64
}

// TLBBits is log2 of the number of entries of one translation buffer.
const TLBBits = 12

// TLBSize is the number of entries of one translation buffer.
const TLBSize = 1 << TLBBits

// TLBEntry is one page's translation. An access of n bytes at va hits when
// va ^ tag <= 4096-n: the exclusive or is the offset in the page if and only if
// the page matches, so one comparison covers mismatch and page crossing. A tag
// that must not hit differs in bits of the index.
type TLBEntry struct {
	Read, Write, Exec uint64
	// Host is the page's address in this process.
	Host uint64
}

// Bits of State.Exit.
const (
	exitKick  = 1 << iota // VCPU.Kick
	exitIntr              // the local APIC may have an interrupt
	exitNMI               // NMI pending
	exitINIT              // INIT pending
	exitSIPI              // start-up IPI pending
	exitFlush             // there are notices of other threads' stores
	exitTimer             // the local APIC's timer has expired
)

// RFLAGS bits (SDM vol. 1 §3.4.3).
const (
	flagCF   = 1 << 0
	flagPF   = 1 << 2
	flagAF   = 1 << 4
	flagZF   = 1 << 6
	flagSF   = 1 << 7
	flagTF   = 1 << 8
	flagIF   = 1 << 9
	flagDF   = 1 << 10
	flagOF   = 1 << 11
	flagIOPL = 3 << 12
	flagNT   = 1 << 14
	flagRF   = 1 << 16
	flagVM   = 1 << 17
	flagAC   = 1 << 18
	flagVIF  = 1 << 19
	flagVIP  = 1 << 20
	flagID   = 1 << 21

	flagsArith = flagCF | flagPF | flagAF | flagZF | flagSF | flagOF
)

// Control register bits (SDM vol. 3A §2.5).
const (
	cr0PE = 1 << 0
	cr0MP = 1 << 1
	cr0EM = 1 << 2
	cr0TS = 1 << 3
	cr0ET = 1 << 4
	cr0NE = 1 << 5
	cr0WP = 1 << 16
	cr0AM = 1 << 18
	cr0NW = 1 << 29
	cr0CD = 1 << 30
	cr0PG = 1 << 31

	cr4VME        = 1 << 0
	cr4PVI        = 1 << 1
	cr4TSD        = 1 << 2
	cr4DE         = 1 << 3
	cr4PSE        = 1 << 4
	cr4PAE        = 1 << 5
	cr4MCE        = 1 << 6
	cr4PGE        = 1 << 7
	cr4PCE        = 1 << 8
	cr4OSFXSR     = 1 << 9
	cr4OSXMMEXCPT = 1 << 10
	cr4UMIP       = 1 << 11
	cr4FSGSBASE   = 1 << 16
	cr4PCIDE      = 1 << 17
	cr4OSXSAVE    = 1 << 18
	cr4SMEP       = 1 << 20
	cr4SMAP       = 1 << 21

	eferSCE = 1 << 0
	eferLME = 1 << 8
	eferLMA = 1 << 10
	eferNXE = 1 << 11
)

// Vectors of exceptions (SDM vol. 3A §6.15).
const (
	vecDE = 0
	vecDB = 1
	vecBP = 3
	vecOF = 4
	vecBR = 5
	vecUD = 6
	vecNM = 7
	vecDF = 8
	vecTS = 10
	vecNP = 11
	vecSS = 12
	vecGP = 13
	vecPF = 14
	vecMF = 16
	vecAC = 17
	vecXM = 19
)

// What an instruction tells the loop.
const (
	stNext     = iota // go on with the next instruction
	stTaken           // State.RIP is set, by a taken direct branch
	stFall            // State.RIP is set to the next instruction, a direct successor
	stIndirect        // State.RIP is set, by an indirect branch
	stExit            // State.RIP is set, something about the CPU changed
	stFault           // an exception is pending in CPU.exc; nothing was committed
)
