package soft

import (
	"golang.org/x/sys/cpu"

	"github.com/gvmspawn/gvmspawn/vmm/soft/decode"
)

// tclass is how an instruction is translated.
type tclass uint8

const (
	tcInterp tclass = iota // by the interpreter
	tcSame                 // the same opcode, operands redirected
	tcVex                  // the same with a VEX prefix
	tcLea
	tcNop
	tcPush
	tcPop
	tcJcc
	tcJmp
	tcCall
	tcRet
	tcJmpr
	tcCallr
	tcLeave
	tcMoffs
	tcDiv
	tcCli
	tcSti
	tcCld
	tcPushf
	tcRep
	tcBitMem
	tcSwapgs
	tcAC
	tcSegBase
	tcMovSys
	tcX87
	tcEnd // the block's end without a branch
)

// flagUse is what an instruction does to the arithmetic flags, as masks of RFLAGS.
type flagUse struct {
	reads  uint16
	writes uint16 // always, with whatever value
	// touches: host code changes the host's flags, and leaves those that are
	// not in writes alone or changes them only sometimes.
	touches bool
}

const allFlags = uint16(flagsArith)

var (
	noFlags    = flagUse{}
	anyFlags   = flagUse{reads: allFlags, touches: true}
	writesAll  = flagUse{writes: allFlags, touches: true}
	writesSome = flagUse{touches: true} // depending on a count
)

// writing is an instruction that reads and overwrites the given flags only.
func writing(reads, writes uint16) flagUse { return flagUse{reads, writes, true} }

// before is the flags that are needed before an instruction when those in after
// are needed behind it.
func (f flagUse) before(after uint16) uint16 { return f.reads | after&^f.writes }

// conditionFlags is what each pair of conditions reads (SDM vol. 1 app. B).
var conditionFlags = [8]uint16{flagOF, flagCF, flagZF, flagCF | flagZF, flagSF, flagPF, flagSF | flagOF, flagSF | flagOF | flagZF}

// tinst is one instruction under translation.
type tinst struct {
	in    decode.Inst
	code  []byte
	pos   int
	class tclass
	flags flagUse
	live  uint16 // the flags that are needed before it
	need  uint16 // the flags that must be the host's when its own code runs
	regG  bool   // ModRM.reg is a general register
	rmG   bool   // ModRM.rm is a general register
	mem   bool   // accesses its memory operand
	write bool   // writes it
	align bool   // and demands natural alignment
	high  bool   // uses AH, CH, DH or BH
	opReg bool   // the register is in the opcode
	sse   bool
	vec   uint8 // vecXMM, vecYMM: what it needs
	x87   bool  // needs the x87 state
	size  uint8
	// goesOn: a conditional branch behind which the path goes on, with its target if
	// taken; exit is the flags that the other side needs.
	goesOn, taken bool
	exit          uint16
	span          int    // number of the last instruction of the span that begins here; 0 for none
	group         uint8  // of the span that its access belongs to, from 1; 0 for none
	leads         bool   // it is the group's first
	kept          bool   // and others come between
	extent        extent // of the group, if it leads
	at            int64  // where the access is from what the base was when its group began
}

// assumptions are the parts of the CPU's mode that translations depend on
// beside their block's key.
type assumptions uint8

const (
	asSSE      assumptions = 1 << iota // vector instructions run, with all exceptions masked
	asSMAP                             // CR4.SMAP
	asFSGSBASE                         // CR4.FSGSBASE
	asBMI1                             // TZCNT is not BSF
	asLZCNT                            // LZCNT is not BSR
	asAVX                              // and VEX-encoded ones run, too
)

// assume returns what holds now.
func (c *CPU) assume() (as assumptions) {
	s := c.s
	if s.CR0&(cr0EM|cr0TS) == 0 && s.CR4&cr4OSFXSR != 0 && s.MXCSR&0x1f80 == 0x1f80 {
		as = asSSE
		if c.vm.features.v3 && s.CR4&cr4OSXSAVE != 0 && s.XCR0&(xcr0SSE|xcr0AVX) == xcr0SSE|xcr0AVX {
			as |= asAVX
		}
	}
	if s.CR4&cr4SMAP != 0 {
		as |= asSMAP
	}
	if s.CR4&cr4FSGSBASE != 0 {
		as |= asFSGSBASE
	}
	if c.vm.features.bmi1 {
		as |= asBMI1
	}
	if c.vm.features.lzcnt {
		as |= asLZCNT
	}
	return as
}

// classify decides how t is translated.
func (t *tinst) classify(cpl uint32, as assumptions) {
	in := &t.in
	if in.Mode != decode.Mode64 && !t.plain32() {
		t.refuse()
		return
	}
	if in.VEX {
		t.vexClass(as)
		return
	}
	switch {
	case in.Op == decode.X87, in.Op == decode.FWAIT:
		t.x87Class()
		return
	case (in.Op == decode.LDMXCSR || in.Op == decode.STMXCSR) && as&asSSE != 0 && in.Mode == decode.Mode64:
		t.mxcsrClass()
		return
	}
	switch { // processors without these instructions ignore the prefix
	case in.Op == decode.TZCNT && as&asBMI1 == 0:
		in.Op, in.Prefix = decode.BSF, 0
	case in.Op == decode.LZCNT && as&asLZCNT == 0:
		in.Op, in.Prefix = decode.BSR, 0
	}
	t.class, t.flags = t.scalar(cpl)
	if in.Mode != decode.Mode64 {
		switch t.class {
		case tcSame, tcLea, tcNop, tcJcc, tcJmp, tcDiv:
		default:
			t.refuse()
			return
		}
	}
	if t.class == tcInterp {
		t.class, t.flags = t.system(cpl, as)
	}
	if t.class == tcMovSys || t.class == tcRep {
		return
	}
	if t.class == tcInterp && as&asSSE != 0 && t.vector() {
		t.class = tcSame
		t.sse, t.vec = true, vecXMM
		t.flags = noFlags
		if in.Attrs&(decode.AttrFlags|decode.AttrStr) != 0 {
			t.flags = writesAll
		}
	}
	if t.class == tcInterp {
		t.flags = anyFlags
		return
	}
	for i, a := range in.Args {
		switch a.Kind {
		case decode.KRegH:
			t.high = true
		case decode.KMem:
			t.mem = t.class != tcLea && t.class != tcNop
			t.size = max(t.size, a.Size)
			t.write = i == 0 && !readOnly(in.Op)
			t.align = a.Size == 16 && !a.Unaligned && t.sse
		case decode.KSeg, decode.KCR, decode.KDR, decode.KFar, decode.KMMX:
			t.refuse()
			return
		}
	}
	if in.Op == decode.CMPXCHG8B {
		t.size = 8
		if in.REX&8 != 0 {
			t.size, t.align = 16, true
		}
	}
	if t.mem && t.size == 0 {
		t.refuse()
		return
	}
	t.regG = regIsGPR(in)
	t.rmG = in.HasModRM && in.ModRM >= 0xc0 && rmIsGPR(in, t.sse)
	if in.Map == 0 && (in.Opcode&0xf8 == 0x90 || in.Opcode&0xf0 == 0xb0) || in.Op == decode.BSWAP {
		t.opReg = true
	}
	if t.high && t.needsREX() && !(in.Op == decode.MOV && in.Opcode == 0x88) {
		t.refuse()
	}
}

// plain32 reports whether t, of flat 32-bit code, can be translated as the same
// instruction in 64-bit mode, whose addresses are cut to 32 bits, is. The short
// forms of INC and DEC and the second ones of operations on bytes, which are not
// there, become the others.
func (t *tinst) plain32() bool {
	in := &t.in
	if in.Mode != decode.Mode32 || in.VEX {
		return false
	}
	for _, a := range in.Args {
		if a.Kind == decode.KMem && (in.AddrSize != 4 || in.Mem.Seg >= decode.FS || in.Mem.Seg == decode.CS) {
			return false
		}
	}
	switch in.Op {
	case decode.LEA:
		return in.AddrSize == 4
	case decode.JCC, decode.JMP:
		return in.OpSize == 4
	}
	switch {
	case in.Map != 0:
	case in.Opcode&0xf0 == 0x40:
		in.HasModRM, in.ModRMAt, in.ModRM, in.Opcode = true, in.OpcodeAt, 0xc0|in.Opcode&0xf, 0xff
	case in.Opcode == 0x82:
		in.Opcode = 0x80
	}
	return true
}

// refuse leaves t to the interpreter.
func (t *tinst) refuse() {
	*t = tinst{in: t.in, code: t.code, pos: t.pos, flags: anyFlags}
}

// needsREX reports whether re-emitting t takes a REX prefix, which AH and its
// kin cannot have.
func (t *tinst) needsREX() bool {
	if t.mem {
		return true
	}
	for _, a := range t.in.Args {
		if a.Kind == decode.KReg && hostReg(a.Reg) >= 8 {
			return true
		}
	}
	return t.class == tcLea
}

// hostReg is the host register of guest register r, or hT2 for one that lives
// in memory.
func hostReg(r uint8) uint8 {
	switch r {
	case 4:
		return hSP
	case 11, 13, 15:
		return hT2
	}
	return r
}

func evicted(r uint8) bool { return r == 11 || r == 13 || r == 15 }

// readOnly are the operations that do not write operand 0.
func readOnly(op decode.Op) bool {
	switch op {
	case decode.CMP, decode.TEST, decode.BT, decode.PUSH, decode.MUL, decode.IMUL, decode.DIV, decode.IDIV,
		decode.CALLR, decode.JMPR:
		return true
	}
	return false
}

// scalar is the class of an instruction on general registers.
func (t *tinst) scalar(cpl uint32) (c tclass, f flagUse) {
	in := &t.in
	switch in.Op {
	case decode.ADD, decode.OR, decode.AND, decode.SUB, decode.XOR, decode.CMP, decode.TEST, decode.NEG,
		decode.XADD, decode.CMPXCHG, decode.MUL, decode.IMUL, decode.IMUL2, decode.IMUL3, decode.BSF, decode.BSR:
		return tcSame, writesAll
	case decode.POPCNT:
		return same(cpu.X86.HasPOPCNT), writesAll
	case decode.CRC32:
		return same(cpu.X86.HasSSE42), noFlags
	case decode.ADC, decode.SBB:
		return tcSame, writing(flagCF, allFlags)
	case decode.INC, decode.DEC:
		return tcSame, writing(0, allFlags&^flagCF)
	case decode.CLC, decode.STC:
		return tcSame, writing(0, flagCF)
	case decode.CMC, decode.ADCX:
		return tcSame, writing(flagCF, flagCF)
	case decode.ADOX:
		return tcSame, writing(flagOF, flagOF)
	case decode.SAHF:
		return tcSame, writing(0, allFlags&^flagOF)
	case decode.LAHF:
		return tcSame, flagUse{reads: allFlags &^ flagOF}
	case decode.CMPXCHG8B:
		return tcSame, writing(0, flagZF)
	case decode.ROL, decode.ROR, decode.RCL, decode.RCR:
		var f flagUse
		if in.Op == decode.RCL || in.Op == decode.RCR {
			f.reads = flagCF
		}
		f.touches = true
		if t.shifts() { // OF is undefined but for a count of 1
			f.writes = flagCF | flagOF
		}
		return tcSame, f
	case decode.SHL, decode.SHR, decode.SAR, decode.SHLD, decode.SHRD:
		if in.OpSize == 2 && (in.Op == decode.SHLD || in.Op == decode.SHRD) {
			break // counts above 16 have results of each vendor's own
		}
		if t.shifts() {
			return tcSame, writesAll
		}
		return tcSame, writesSome
	case decode.BT, decode.BTS, decode.BTR, decode.BTC:
		if in.Args[0].Kind == decode.KMem && in.Args[1].Kind != decode.KImm {
			if in.OpSize == 2 {
				break
			}
			return tcBitMem, writing(0, flagCF) // its address depends on the bit number
		}
		return tcSame, writing(0, flagCF)
	case decode.SETCC, decode.CMOVCC:
		return tcSame, flagUse{reads: conditionFlags[in.Cond()>>1]}
	case decode.NOT, decode.MOVZX, decode.MOVSX, decode.MOVSXD, decode.XCHG, decode.BSWAP, decode.CBW, decode.CWD,
		decode.MOVNTI, decode.LFENCE, decode.MFENCE, decode.SFENCE:
		return tcSame, noFlags
	case decode.PAUSE:
		if in.REX&1 != 0 {
			return tcNop, noFlags // AMD's CPUs take it for XCHG with R8
		}
		return tcSame, noFlags
	case decode.MOVBE:
		return same(hostMOVBE), noFlags
	case decode.MOV:
		if in.Map == 0 && in.Opcode >= 0xa0 && in.Opcode <= 0xa3 {
			return tcMoffs, noFlags
		}
		switch in.Args[1].Kind {
		case decode.KSeg, decode.KCR, decode.KDR:
			return tcInterp, anyFlags
		}
		return tcSame, noFlags
	case decode.LEA:
		return tcLea, noFlags
	case decode.NOP:
		return tcNop, noFlags
	case decode.DIV, decode.IDIV:
		if in.Args[0].Size < 2 {
			break
		}
		return tcDiv, writesAll
	}
	return t.flow(cpl)
}

// shifts reports whether a shift or rotation by a constant changes its operand,
// and so the flags.
func (t *tinst) shifts() bool {
	in := &t.in
	m := uint64(31)
	if in.Args[0].Size == 8 { // REX.W makes no difference to a byte
		m = 63
	}
	return (in.Args[1].Kind == decode.KImm || in.Args[2].Kind == decode.KImm) && in.Imm&m != 0
}

// hostMOVBE reports whether the host has MOVBE.
var hostMOVBE = cpu.X86.HasMOVBE

func same(ok bool) tclass {
	if ok {
		return tcSame
	}
	return tcInterp
}

// flow is scalar for the stack, branches and flags.
func (t *tinst) flow(cpl uint32) (c tclass, f flagUse) {
	in := &t.in
	switch in.Op {
	case decode.PUSH, decode.POP:
		if in.OpSize != 8 || in.Args[0].Kind == decode.KSeg || in.Op == decode.POP && in.Args[0].Kind != decode.KReg {
			break
		}
		if in.Op == decode.PUSH {
			return tcPush, noFlags
		}
		return tcPop, noFlags
	case decode.LEAVE:
		if in.OpSize == 8 {
			return tcLeave, noFlags
		}
	case decode.JCC:
		return tcJcc, flagUse{reads: conditionFlags[in.Cond()>>1]}
	case decode.JMP:
		return tcJmp, noFlags
	case decode.CALL:
		return tcCall, noFlags
	case decode.RET:
		return tcRet, noFlags
	case decode.JMPR:
		return tcJmpr, noFlags
	case decode.CALLR:
		return tcCallr, noFlags
	case decode.CLI:
		if cpl == 0 {
			return tcCli, noFlags
		}
	case decode.STI:
		if cpl == 0 {
			return tcSti, noFlags
		}
	case decode.CLD:
		return tcCld, noFlags
	case decode.PUSHF:
		if in.OpSize == 8 {
			return tcPushf, flagUse{reads: allFlags}
		}
	}
	return tcInterp, anyFlags
}

// system is scalar for string and system instructions.
func (t *tinst) system(cpl uint32, as assumptions) (c tclass, f flagUse) {
	in := &t.in
	if in.Mode != decode.Mode64 {
		return tcInterp, anyFlags
	}
	switch in.Op {
	case decode.TZCNT:
		return same(cpu.X86.HasBMI1 && as&asBMI1 != 0), writing(0, flagCF|flagZF)
	case decode.LZCNT:
		return same(cpu.X86.HasBMI1 && as&asLZCNT != 0), writing(0, flagCF|flagZF)
	case decode.MOVSB, decode.MOVSV, decode.STOSB, decode.STOSV:
		if (in.Rep || in.Repne) && in.AddrSize == 8 && in.SegOverride == decode.RegNone {
			return tcRep, noFlags
		}
	case decode.SWAPGS:
		if cpl == 0 {
			return tcSwapgs, noFlags
		}
	case decode.CLAC, decode.STAC:
		if cpl == 0 && as&asSMAP != 0 {
			return tcAC, noFlags
		}
	case decode.RDFSBASE, decode.RDGSBASE, decode.WRFSBASE, decode.WRGSBASE:
		if as&asFSGSBASE != 0 {
			return tcSegBase, noFlags
		}
	case decode.MOV:
		d, a := in.Args[0], in.Args[1]
		if d.Kind != decode.KReg || d.Size < 4 {
			break
		}
		if a.Kind == decode.KSeg && a.Reg <= decode.GS ||
			a.Kind == decode.KCR && cpl == 0 && (a.Reg == 0 || a.Reg == 2 || a.Reg == 3 || a.Reg == 4) {
			return tcMovSys, noFlags
		}
	}
	return tcInterp, anyFlags
}

// vector reports whether a vector instruction can run with its operands redirected.
func (t *tinst) vector() bool {
	in := &t.in
	for _, a := range in.Args {
		if a.Kind == decode.KMMX {
			return false
		}
	}
	switch in.Op {
	case decode.MOVUPS, decode.MOVUPD, decode.MOVSS, decode.MOVSD, decode.MOVLPS, decode.MOVLPD,
		decode.MOVHLPS, decode.MOVHPS, decode.MOVHPD, decode.MOVLHPS, decode.MOVAPS, decode.MOVAPD,
		decode.MOVNTPS, decode.MOVNTPD, decode.MOVDQA, decode.MOVDQU, decode.MOVNTDQ, decode.LDDQU,
		decode.MOVD, decode.MOVQ, decode.PMOVMSKB, decode.PEXTRW, decode.PINSRW:
		return true
	case decode.CVTPI2PS, decode.CVTPI2PD: // of memory, they change the x87 state on some processors
		return false
	case decode.PEXTRB, decode.PEXTRD, decode.EXTRACTPS, decode.PINSRB, decode.PINSRD, decode.MOVNTDQA:
		return cpu.X86.HasSSE41
	}
	if in.Native == 0 {
		return false
	}
	switch {
	case in.Map == 1:
		return !(in.Opcode == 0x7c || in.Opcode == 0x7d || in.Opcode == 0xd0) || cpu.X86.HasSSE3
	case in.Opcode >= 0xc8: // SHA, AES
		return true
	case in.Map == 3 && in.Opcode == 0x44: // PCLMULQDQ
		return true
	case in.Map == 2 && in.Opcode < 0x80, in.Map == 3 && in.Opcode < 0x44 || in.Map == 3 && in.Opcode&0xfc == 0x60:
		return cpu.X86.HasSSE42
	}
	return false
}

// regIsGPR reports whether ModRM.reg names a general register.
func regIsGPR(in *decode.Inst) bool {
	if !in.HasModRM {
		return false
	}
	switch in.Map {
	case 0:
		switch op := in.Opcode; {
		case op < 0x40:
			return true
		case op == 0x63, op == 0x69, op == 0x6b, op >= 0x84 && op <= 0x8b, op == 0x8d:
			return true
		}
		return false
	case 1:
		switch op := in.Opcode; {
		case op&0xf0 == 0x40, op == 0x2c, op == 0x2d, op == 0x50, op == 0xd7, op == 0xc5:
			return true
		case op == 0xa3, op == 0xa4, op == 0xa5, op == 0xab, op == 0xac, op == 0xad, op == 0xaf:
			return true
		case op == 0xb0, op == 0xb1, op == 0xb3, op >= 0xb6 && op <= 0xb8, op >= 0xbb && op <= 0xc1, op == 0xc3:
			return true
		}
		return false
	case 2:
		return in.Opcode >= 0xf0
	}
	return false
}

// rmIsGPR reports whether ModRM.rm names a general register when it names one.
func rmIsGPR(in *decode.Inst, sse bool) bool {
	switch in.Op {
	case decode.LFENCE, decode.MFENCE, decode.SFENCE:
		return false
	}
	if !sse {
		return true
	}
	switch in.Map {
	case 1:
		switch in.Opcode {
		case 0x2a, 0x6e, 0xc4:
			return true
		case 0x7e:
			return in.Op == decode.MOVD
		}
	case 3:
		return in.Opcode >= 0x14 && in.Opcode <= 0x17 || in.Opcode == 0x20 || in.Opcode == 0x22
	}
	return false
}
