package soft

import (
	"slices"

	"github.com/gvmspawn/gvmspawn/vmm/soft/decode"
)

// emitter makes one translation: hot code into h, rare paths into k.
type emitter struct {
	j     *translator
	t     *draft
	h, k  *asm
	apart *asm // the instructions of groups, one by one
	// grouped: hT1 is the host address of what lies from behind the base register.
	grouped bool
	from    int64
	// host and mem say where the guest's flags are at this point.
	host, mem bool
	// inT1 and inT2 are the guest registers whose values hT1 and hT2 have, or noReg.
	inT1, inT2 uint8
	n          int // number of the instruction
	slow       uint64
	fails      [1 << 6]int // of a span's lookups: branches to the same instruction apart
}

// Conditions of jcc.
const (
	ccB  = 2
	ccAE = 3
	ccE  = 4
	ccNE = 5
	ccBE = 6
	ccA  = 7
)

const (
	tagRead  = 0
	tagWrite = 8
	tagExec  = 16
	tagHost  = 24
)

// block emits all of j.list, and the far entries if far says so.
func (e *emitter) block(far bool) {
	j, t, h, k := e.j, e.t, e.h, e.k
	list := j.list
	live := list[0].live != 0
	t.base = h.at
	var site, over int
	if far {
		site = e.farCheck()
		if live {
			over = h.jmpForward()
		}
	}
	t.entryH = h.pc()
	if live {
		j.saveFlags(h)
	}
	t.entry = h.pc()
	if far {
		if live {
			h.bind(over, t.entry)
		}
		e.farSlow(site)
		t.farH = k.pc()
		j.saveFlags(k)
		k.jmp(t.far)
	}
	event := k.pc()
	j.exitCode(k, xEvent, 0, t.index)
	h.aluai(7, j.state(offExit), 0)
	h.jcc(ccNE, event)
	if t.b.cross != 0 {
		e.secondPage()
	}
	insts := 0
	for i := range list {
		t.vec = max(t.vec, list[i].vec)
		t.x87 = t.x87 || list[i].x87
		if list[i].class == tcInterp {
			t.interp |= 1 << i
		}
		insts += int(boolBit(list[i].class != tcEnd))
	}
	t.insts = uint32(insts)
	if j.counting {
		h.ra(true, 0x8b, hT2, j.state(offCount))
		h.ra(true, 0x3b, hT2, j.state(offDeadline))
		h.jcc(ccAE, event)
		h.put(0x48, 0x83, 0x04, 0x25) // add qword [count], imm8
		h.u32(uint32(j.state(offCount)))
		h.put(byte(insts))
	}
	t.near = h.pc()
	if t.vec != vecNone {
		h.aluai(7, j.ctx(jxVec), int32(t.vec))
		load := k.pc()
		h.jcc(ccB, load)
		if t.vec == vecYMM {
			k.call(j.loadYMM)
		} else {
			k.call(j.loadXMM)
		}
		k.jmp(h.pc())
	}
	if t.x87 {
		e.needX87()
	}
	e.nearEntries()
	e.forget()
	t.resume = slices.Grow(t.resume, len(list)+1)[:len(list)+1]
	for i := 0; i < len(list); i++ {
		t.resume[i] = e.resumeAt()
		e.n, e.slow = i, 0
		if last := list[i].span; last != 0 {
			e.span(i)
			i = last
		} else {
			e.inst(&list[i])
		}
	}
	t.resume[len(list)] = uint32(h.pc() - t.base)
	switch last := &list[len(list)-1]; {
	case last.class == tcCall:
		e.exitTo(e.target(last))
	case !ends(last.class):
		e.exitTo(e.next(last))
	}
}

// nearEntries emits the entries of forward branches and the state in which the
// block begins.
func (e *emitter) nearEntries() {
	j, t, h, k := e.j, e.t, e.h, e.k
	e.host, e.mem = false, true
	direct := j.forward && t.vec == vecNone && !t.x87 && t.b.cross == 0 && needsHost(j.list)
	if direct {
		j.restoreFlags(h)
		e.host, e.mem = true, false
		t.nearH = h.pc()
	}
	switch {
	case t.b.cross != 0:
		t.near, t.nearH = t.entry, t.entryH
	case direct:
	case j.list[0].live == 0:
		t.nearH = t.near
	default:
		t.nearH = k.pc()
		j.saveFlags(k)
		k.jmp(t.near)
	}
}

// needsHost reports whether the instructions need the host's flags before they
// clobber them.
func needsHost(list []tinst) bool {
	for i := range list {
		switch t := &list[i]; {
		case t.class != tcSame && t.class != tcVex && t.class != tcLea && t.class != tcNop && t.class != tcJcc || t.mem:
			return false
		case t.need != 0:
			return true
		case t.flags.touches:
			return false
		}
	}
	return false
}

// ends reports whether c leaves the block.
func ends(c tclass) bool {
	switch c {
	case tcEnd, tcJcc, tcJmp, tcCall, tcRet, tcJmpr, tcCallr:
		return true
	}
	return false
}

// makeFar makes t's far entries. It returns false if all translations had to go
// for that.
func (j *translator) makeFar(t *translation) bool {
	if t.stamp != 0 {
		return true
	}
	if j.apartAt-j.cold < 1<<12 || j.fars.left() == 0 {
		j.reset()
		return false
	}
	d := &j.draft
	*d = draft{b: j.c.blocks.at(t.block), index: int(j.trs.index(t)), la: t.la, anywhere: t.is(trAnywhere),
		entry: j.address(t, t.entry), resume: d.resume[:0]}
	j.k = asm{b: j.k.b[:0], at: j.mem.rx + uint64(j.cold)}
	a := &j.k
	e := emitter{j: j, t: d, h: a, k: a}
	d.farH = a.pc()
	j.saveFlags(a)
	site := e.farCheck()
	a.jmp(d.entry)
	e.farSlow(site)
	j.cold += copy(j.mem.rw[j.cold:], a.b)
	t.stamp = d.stamp
	j.keepFar(d)
	return true
}

// farCheck emits the entry for other pages and indirect branches, which goes on
// behind it: the page must still be mapped to the memory that the code was made
// from. That it is so under the present key, the stamp says; see farSlow.
func (e *emitter) farCheck() (site int) {
	j, t, h := e.j, e.t, e.h
	t.stamp = j.fars.next
	j.fars.take()
	j.x.Stamps[t.stamp] = 0
	t.far = h.pc()
	if t.anywhere { // hT1 is the page's address
		h.ra(true, 0x89, hT1, j.ctx(jxPage))
		h.ra(true, 0x33, hT1, j.ctx(jxKey)) // xor
		h.ra(true, 0x3b, hT1, j.stampAt(t)) // cmp
	} else {
		h.ra(true, 0x8b, hT2, j.ctx(jxKey))
		h.ra(true, 0x3b, hT2, j.stampAt(t))
	}
	return h.jccForward(ccNE)
}

// farSlow emits where the branch at site goes, for another stamp: the translation
// buffer is asked.
func (e *emitter) farSlow(site int) {
	j, t, k := e.j, e.t, e.k
	t.farMiss = k.pc()
	j.exitCode(k, xFetch, 0, t.index)
	t.farSite = e.h.at + uint64(site)
	e.h.bind(site, k.pc())
	stamp := uint8(hT2)
	var at tlbPlace
	if t.anywhere {
		stamp = hT1
		k.ra(true, 0x8b, hT1, j.ctx(jxPage))
		at = e.tlbEntry(k)
		e.inTLB(k, 0x39, hT1, at, tagExec) // cmp
	} else {
		at = e.knownEntry(k, t.la)
		e.cmpTLB(k, at, tagExec, t.la&^0xfff)
	}
	k.jcc(ccNE, t.farMiss)
	e.cmpTLB(k, at, tagHost, t.b.host&^0xfff)
	k.jcc(ccNE, t.farMiss)
	k.ra(true, 0x8b, stamp, j.ctx(jxKey))
	if t.anywhere {
		k.ra(true, 0x33, stamp, j.ctx(jxPage))
	}
	k.ra(true, 0x89, stamp, j.stampAt(t))
	k.jmp(t.entry)
}

// stampAt is the address of t's stamp.
func (j *translator) stampAt(t *draft) uint64 { return j.ctx(jxStamps) + uint64(t.stamp)*8 }

// secondPage emits the check that the page behind the block's is mapped to the
// memory of its last bytes.
func (e *emitter) secondPage() {
	h, k := e.h, e.k
	miss := k.pc()
	e.j.exitCode(k, xFetch, 0, e.t.index)
	e.inPage(h, hT1, 4096)
	at := e.tlbEntry(h)
	e.inTLB(h, 0x39, hT1, at, tagExec) // cmp
	h.jcc(ccNE, miss)
	e.cmpTLB(h, at, tagHost, e.j.c.crossings.at(e.t.b.cross).host)
	h.jcc(ccNE, miss)
}

// cmpTLB compares a field of an entry with v.
func (e *emitter) cmpTLB(a *asm, at tlbPlace, field int32, v uint64) {
	if int64(v) == int64(int32(v)) {
		e.inTLB(a, 0x81, 7, at, field)
		a.u32(uint32(v))
		return
	}
	a.imm(hT1, v)
	e.inTLB(a, 0x39, hT1, at, field)
}

// slowPath is the address of the rare code that runs the present instruction
// in the interpreter.
func (e *emitter) slowPath() uint64 {
	if e.slow == 0 {
		e.slow = e.k.pc()
		e.j.exitCode(e.k, xInterp, e.n, e.t.index)
	}
	return e.slow
}

// spill saves the flags if they are only in the host's and something needs them.
func (e *emitter) spill(t *tinst) {
	if e.host && !e.mem && t.live != 0 {
		e.j.saveFlags(e.h)
		e.mem = true
		e.inT2 = noReg
	}
}

// clobber notes that the host's flags are lost.
func (e *emitter) clobber() { e.host = false }

// flags brings the flags into the host's if t depends on them.
func (e *emitter) flags(t *tinst) {
	if t.need != 0 && !e.host {
		e.j.restoreFlags(e.h)
		e.host = true
		e.inT2 = noReg
	}
}

// wrote notes that t changed the host's flags.
func (e *emitter) wrote(t *tinst) {
	if t.flags.touches {
		e.host, e.mem = true, false
	}
}

// inst emits one instruction.
func (e *emitter) inst(t *tinst) {
	if t.class != tcSame && t.class != tcLea && t.class != tcNop && t.class != tcX87 && !t.goesOn {
		e.forget()
		defer e.forget()
	}
	switch t.class {
	case tcInterp:
		e.spill(t)
		e.j.exitCode(e.h, xInterp, e.n, e.t.index)
		e.host, e.mem = true, true
	case tcSame:
		e.same(t)
	case tcVex:
		e.vex(t)
	case tcLea:
		e.leaInst(t)
	case tcNop:
	case tcPush:
		e.push(t)
	case tcPop:
		e.pop(t)
	case tcJcc:
		e.flags(t)
		e.branch(t)
	case tcJmp:
		e.exitTo(e.target(t))
	case tcCall:
		e.callInst(t)
	case tcRet:
		e.ret(t)
	case tcJmpr, tcCallr:
		e.indirect(t)
	case tcLeave:
		e.leaveInst(t)
	case tcMoffs:
		e.moffs(t)
	case tcDiv:
		e.div(t)
	case tcCli, tcSti, tcCld:
		e.flagBits(t)
	case tcPushf:
		e.pushf(t)
	case tcRep:
		e.rep(t)
	case tcBitMem:
		e.bitMem(t)
	case tcSwapgs:
		e.swapgs()
	case tcAC:
		e.accessControl(t)
	case tcSegBase:
		e.segBase(t)
	case tcMovSys:
		e.movSys(t)
	case tcX87:
		e.x87(t)
	case tcEnd:
		e.exitTo(e.t.la&0xfff + uint64(t.pos))
	}
}

// next is the address behind t, from the start of the page.
func (e *emitter) next(t *tinst) uint64 { return e.t.la&0xfff + uint64(t.pos) + uint64(t.in.Len) }

func (e *emitter) target(t *tinst) uint64 { return e.next(t) + t.in.Imm }

// inPage leaves the address that is rel behind the start of the page in dst.
// It keeps the flags.
func (e *emitter) inPage(a *asm, dst uint8, rel uint64) {
	if !e.t.anywhere {
		a.imm(dst, e.t.la&^0xfff+rel)
		return
	}
	a.ra(true, 0x8b, dst, e.j.ctx(jxPage))
	switch {
	case rel == 0:
	case int64(rel) == int64(int32(rel)):
		a.lea(true, dst, dst, noReg, 0, int32(rel))
	default: // a branch or operand 2 GiB away; by halves
		half := int32(int64(rel) / 2)
		a.lea(true, dst, dst, noReg, 0, half)
		a.lea(true, dst, dst, noReg, 0, int32(int64(rel)-int64(half)))
	}
}

// exitTo emits the end of a path that goes to the block at rel.
func (e *emitter) exitTo(rel uint64) {
	stub := e.linkStub(rel, e.host && !e.mem && e.j.behind != 0)
	e.leavePage(e.h, rel)
	e.h.jmp(stub)
	e.linked(e.h)
}

// linked notes that the branch that was emitted last is that of the last link.
func (e *emitter) linked(a *asm) { e.j.out[len(e.j.out)-1].site = a.pc() - 4 }

// leavePage gives far entries of code that runs anywhere their page.
func (e *emitter) leavePage(a *asm, rel uint64) {
	if e.t.anywhere && rel>>12 != 0 {
		e.inPage(a, hT1, rel&^0xfff)
	}
}

// linkStub makes a link and emits the rare code of its branch while it is not linked.
func (e *emitter) linkStub(rel uint64, inHost bool) uint64 {
	at := e.k.pc()
	if inHost {
		e.j.saveFlags(e.k)
	}
	e.j.exitCode(e.k, xLink, len(e.j.out), e.t.index)
	e.j.out = append(e.j.out, draftLink{rel: rel, stub: at, inHost: inHost})
	return at
}

// branch emits a conditional branch. The path may go on with either side.
func (e *emitter) branch(t *tinst) {
	rel, cc, needed := e.target(t), t.in.Cond(), e.j.behind
	if t.goesOn {
		needed = t.exit
	}
	if t.taken {
		rel, cc = e.next(t), cc^1
	}
	stub := e.linkStub(rel, !e.mem && needed != 0)
	if e.t.anywhere && rel>>12 != 0 {
		e.h.jcc(cc, e.k.pc())
		e.leavePage(e.k, rel)
		e.k.jmp(stub)
		e.linked(e.k)
	} else {
		e.h.jcc(cc, stub)
		e.linked(e.h)
	}
	if !t.goesOn {
		e.exitTo(e.next(t))
	}
}

// same emits t's own opcode with its operands redirected. A register that lives
// in memory is a memory operand where the instruction can have one, and is
// else loaded and stored.
func (e *emitter) same(t *tinst) {
	in, h, j := &t.in, e.h, e.j
	if e.probeOnly(t) {
		return
	}
	if t.mem {
		e.access(t)
	}
	e.flags(t)
	if t.high {
		e.forget()
	}
	if t.high && t.mem { // MOV from AH and its kin to memory
		h.mov(hT2, in.ModRM>>3&3)
		h.rex(false, 0, 0, hT2)
		h.put(0xc1, 0xc0|5<<3|hT2&7, 8) // shr
		h.rm(false, 0x88, hT2, hT1, 0)
		return
	}
	if t.high { // registers below 8 without REX; RSP was refused
		e.emit(t, in.ModRM>>3&7, in.ModRM&7, in.Opcode&7, 0)
		e.wrote(t)
		return
	}
	reg, rm, opReg := in.Reg(), in.RM(), in.OpcodeReg()
	opcode := in.Opcode
	if t.flips(reg, rm) && e.copyOf(reg) == noReg {
		if in.Opcode&^1 != 0x84 {
			in.Opcode |= 2
		}
		reg, rm = rm, reg
	}
	gReg, gRM, gOp := uint8(noReg), uint8(noReg), uint8(noReg) // registers of the guest
	if t.regG {
		gReg = reg
	}
	if t.rmG {
		gRM = rm
	}
	if e.grouped && gRM != noReg && evicted(gReg) && e.copyOf(gReg) == noReg { // hT1 is taken
		e.forget()
	}
	slot := uint64(0)
	switch {
	case t.mem:
		rm = hT1
	case t.inSlot(reg, rm) && e.copyOf(rm) == noReg && (e.grouped || !t.writes(rm) || !e.soon(rm)):
		slot, gRM = j.reg(rm), noReg
	}
	if t.regG {
		reg = e.operand(t, gReg, gRM)
	}
	if gRM != noReg {
		rm = e.operand(t, gRM, gReg)
	}
	if t.opReg {
		gOp = opReg
		opReg = e.operand(t, gOp, noReg)
	}
	e.emit(t, reg, rm, opReg, slot)
	in.Opcode = opcode
	for i, r := range [...]uint8{gReg, gRM, gOp} {
		if evicted(r) && t.writes(r) && (i == 0 || r != gReg) {
			h.ra(true, 0x89, e.copyOf(r), j.reg(r))
		}
	}
	e.wrote(t)
}

// offset is the displacement of t's memory operand from hT1.
func (e *emitter) offset(t *tinst) int32 {
	if e.grouped {
		return int32(t.at - e.from)
	}
	return 0
}

// writes reports whether t writes guest register r, one of its operands.
func (t *tinst) writes(r uint8) bool {
	switch t.in.Op {
	case decode.XCHG, decode.XADD, decode.CMPXCHG:
		return true
	}
	a := t.in.Args[0]
	return a.Kind == decode.KReg && a.Reg == r && !readOnly(t.in.Op)
}

// replaces reports whether t overwrites all of r without reading it.
func (t *tinst) replaces(r uint8) bool {
	in := &t.in
	if a := in.Args[0]; a.Kind != decode.KReg || a.Reg != r || a.Size < 4 {
		return false
	}
	for _, a := range in.Args[1:] {
		if a.Kind == decode.KReg && a.Reg == r || a.Kind == decode.KRegH {
			return false
		}
	}
	switch in.Op {
	case decode.MOV, decode.MOVZX, decode.MOVSX, decode.MOVSXD, decode.POPCNT, decode.TZCNT, decode.LZCNT, decode.IMUL3,
		decode.MOVD, decode.MOVQ, decode.PMOVMSKB, decode.MOVMSKPS, decode.MOVMSKPD, decode.MOVBE:
		return true
	}
	return false
}

// flips reports whether t is an operation of rm, a host register, with reg, which
// lives in memory, that has a twin with the operands the other way round: ALU
// operations, TEST and MOV.
func (t *tinst) flips(reg, rm uint8) bool {
	in := &t.in
	if t.mem || in.Map != 0 || !t.regG || !t.rmG || !evicted(reg) || evicted(rm) {
		return false
	}
	return in.Opcode < 0x40 && in.Opcode&6 == 0 || in.Opcode&^1 == 0x84 || in.Opcode&^1 == 0x88
}

// inSlot reports whether rm, a register that lives in memory, can be t's memory
// operand. Writes of 32 bits cannot, which extend to 64.
func (t *tinst) inSlot(reg, rm uint8) bool {
	in := &t.in
	if !t.rmG || !evicted(rm) || t.regG && reg == rm {
		return false
	}
	switch in.Op {
	case decode.XCHG, decode.XADD, decode.CMPXCHG:
		return false
	case decode.BT, decode.BTS, decode.BTR, decode.BTC: // the bit's number would choose the word
		if in.Args[1].Kind != decode.KImm {
			return false
		}
	}
	return !t.writes(rm) || !t.sse && in.Args[0].Size != 4
}

// emit emits the instruction with other registers. With a memory operand rm is
// the register that holds its address. If slot is not 0, it is the absolute
// address of what rm stands for.
func (e *emitter) emit(t *tinst, reg, rm, opReg uint8, slot uint64) {
	in, h := &t.in, e.h
	if in.Lock {
		h.put(0xf0)
	}
	if in.OpSizePrefix {
		h.put(0x66)
	}
	if in.Prefix == 0xf2 || in.Prefix == 0xf3 {
		h.put(in.Prefix)
	}
	rex := in.REX & 8
	at := int(in.OpcodeAt) + 1
	opcode := in.Opcode
	if slot != 0 {
		rm = 0
	}
	if in.HasModRM {
		rex |= reg>>3&1<<2 | rm>>3&1
		at = int(in.ModRMAt) + 1
	}
	if t.opReg {
		rex |= opReg >> 3 & 1
		opcode = opcode&0xf8 | opReg&7
	}
	if rex != 0 || in.REX != 0 {
		h.put(0x40 | rex)
	}
	switch in.Map {
	case 1:
		h.put(0x0f)
	case 2:
		h.put(0x0f, 0x38)
	case 3:
		h.put(0x0f, 0x3a)
	}
	h.put(opcode)
	switch {
	case !in.HasModRM:
	case t.mem:
		h.modrm(reg, rm, e.offset(t))
		at += addressBytes(in)
	case slot != 0:
		h.put(reg&7<<3|4, 0x25)
		h.u32(uint32(slot))
	default:
		h.put(0xc0 | reg&7<<3 | rm&7)
	}
	h.put(t.code[at:]...)
}

// addressBytes is the length of SIB and displacement.
func addressBytes(in *decode.Inst) int {
	mod, rm := in.ModRM>>6, in.ModRM&7
	n := 0
	switch mod {
	case 1:
		n = 1
	case 2:
		n = 4
	}
	if rm == 4 {
		n++
	}
	if mod == 0 && (rm == 5 || rm == 4 && in.Mem.Base == decode.RegNone) {
		n += 4
	}
	return n
}

// store leaves hT2, or whatever lies in src, in guest register r.
func (e *emitter) setReg(r, src uint8) {
	if host, inMem := guestReg(r); inMem {
		e.h.ra(true, 0x89, src, e.j.reg(r))
	} else if host != src {
		e.h.mov(host, src)
	}
}

func (e *emitter) leaInst(t *tinst) {
	in, h := &t.in, e.h
	r := in.Reg()
	host, inMem := guestReg(r)
	switch {
	case in.OpSize == 2:
		e.effective(t, hT1)
		e.forget()
		if inMem {
			h.put(0x66)
			h.ra(false, 0x89, hT1, e.j.reg(r))
		} else {
			h.put(0x66)
			h.rr(false, 0x89, hT1, host)
		}
		return
	case in.OpSize == 8 && !inMem && host != hT1:
		e.effective(t, host)
		return
	}
	e.effective(t, hT1)
	if in.OpSize == 4 {
		h.rr(false, 0x89, hT1, hT1)
	}
	e.setReg(r, hT1)
	if inMem {
		e.holds(hT1, r)
	}
}
