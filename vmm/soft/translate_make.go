package soft

import (
	"github.com/gvmspawn/gvmspawn/vmm/soft/decode"
	"github.com/gvmspawn/gvmspawn/vmm/vcpu"
)

// This file makes translations, and the code that all of them share.

// common emits the parts that all translations share.
func (j *translator) common() {
	a := &asm{at: j.mem.rx}
	pinned := []uint8{1, 2, 3, 5, 6, 7, 8, 9, 10, 12, 14}
	// leave: called from an exit, whose number follows the call.
	j.leave = a.pc()
	a.ra(false, 0x8f, 0, j.ctx(jxExitPC)) // pop
	a.ra(true, 0x89, 0, j.reg(0))
	for _, r := range pinned {
		a.ra(true, 0x89, r, j.reg(r))
	}
	a.ra(true, 0x89, hSP, j.reg(4))
	j.saveX87(a)
	a.aluai(7, j.ctx(jxVec), vecXMM)
	none, lower := a.jccForward(ccB), a.jccForward(ccE)
	if j.c.vm.features.v3 {
		j.moveYMM(a, 0x7f)
		a.put(0xc5, 0xf8, 0x77) // vzeroupper
		saved := a.jmpForward()
		a.bind(lower, a.pc())
		j.moveXMM(a, 0x11)
		a.bind(saved, a.pc())
	} else {
		a.bind(lower, a.pc())
		j.moveXMM(a, 0x11)
	}
	a.put(0x0f, 0xae, 3<<3|4, 0x25) // stmxcsr
	a.u32(uint32(j.state(offMXCSR)))
	a.put(0x0f, 0xae, 2<<3|4, 0x25) // ldmxcsr
	a.u32(uint32(j.ctx(jxHostCS)))
	j.setVec(a, vecNone)
	a.bind(none, a.pc())
	a.put(0xc3)
	// loadXMM: a subroutine for vecNone.
	j.loadXMM = a.pc()
	a.put(0x0f, 0xae, 3<<3|4, 0x25)
	a.u32(uint32(j.ctx(jxHostCS)))
	a.put(0x0f, 0xae, 2<<3|4, 0x25)
	a.u32(uint32(j.state(offMXCSR)))
	j.moveXMM(a, 0x10)
	j.setVec(a, vecXMM)
	a.put(0xc3)
	// loadYMM: the same for less than vecYMM.
	j.loadYMM = a.pc()
	a.aluai(7, j.ctx(jxVec), vecNone)
	lower = a.jccForward(ccNE)
	a.call(j.loadXMM)
	a.bind(lower, a.pc())
	for i := range uint8(16) { // vinsertf128 ymm, ymm, [upper half], 1
		a.put(0xc4, 0xe3&^(i>>3<<7), (^i&15)<<3|5, 0x18, i&7<<3|4, 0x25)
		a.u32(uint32(j.state(offXMM) + uint64(i)*32 + 16))
		a.put(1)
	}
	j.setVec(a, vecYMM)
	a.put(0xc3)
	j.commonX87(a)
	// enter: called by jitCall; goes to jitContext.Resume with the flags loaded.
	j.enter = a.pc()
	a.aluai(7, j.ctx(jxWant), vecXMM)
	none, lower = a.jccForward(ccB), a.jccForward(ccE)
	if j.c.vm.features.v3 {
		a.call(j.loadYMM)
		loaded := a.jmpForward()
		a.bind(lower, a.pc())
		a.call(j.loadXMM)
		a.bind(loaded, a.pc())
	} else {
		a.bind(lower, a.pc())
		a.call(j.loadXMM)
	}
	a.bind(none, a.pc())
	a.aluai(7, j.ctx(jxWantX87), 0)
	none = a.jccForward(ccE)
	a.call(j.loadX87)
	a.bind(none, a.pc())
	for _, r := range pinned {
		a.ra(true, 0x8b, r, j.reg(r))
	}
	a.ra(true, 0x8b, hSP, j.reg(4))
	if j.gs { // reading it costs less than writing it
		a.gsbase(1, 0)
		a.ra(true, 0x3b, 0, j.state(offTLB)) // cmp
		same := a.jccForward(ccE)
		a.ra(true, 0x8b, 0, j.state(offTLB))
		a.gsbase(3, 0)
		a.bind(same, a.pc())
	}
	j.loadFlags(a)
	a.ra(true, 0x8b, 0, j.reg(0))
	a.put(0xff, 0x24, 0x25) // jmp [resume]
	a.u32(uint32(j.ctx(jxResume)))
	copy(j.mem.rw, a.b)
	j.first = (len(a.b) + 63) &^ 63
	j.hot = j.first
}

// moveXMM emits MOVUPS between the vector registers and State: opcode 0x10
// loads, 0x11 stores.
func (j *translator) moveXMM(a *asm, opcode uint8) {
	for i := range uint8(16) {
		a.rex(false, i, 0, 0)
		a.put(0x0f, opcode, i&7<<3|4, 0x25)
		a.u32(uint32(j.state(offXMM) + uint64(i)*32))
	}
}

// moveYMM emits VMOVDQU of all 256 bits: opcode 0x6f loads, 0x7f stores.
func (j *translator) moveYMM(a *asm, opcode uint8) {
	for i := range uint8(16) {
		a.put(0xc5, 0xfe&^(i>>3<<7), opcode, i&7<<3|4, 0x25)
		a.u32(uint32(j.state(offXMM) + uint64(i)*32))
	}
}

// setVec emits that v is in the host's vector registers.
func (j *translator) setVec(a *asm, v uint32) {
	a.put(0xc7, 4, 0x25)
	a.u32(uint32(j.ctx(jxVec)))
	a.u32(v)
}

// loadFlags moves the saved flags into the host's; it clobbers RAX.
func (j *translator) loadFlags(a *asm) {
	a.put(0x0f, 0xb7, 4, 0x25) // movzx eax, word [flags]
	a.u32(uint32(j.ctx(jxFlags)))
	a.put(0x04, 0x7f, 0x9e) // add al, 0x7f overflows with 1; sahf
}

// restoreFlags is loadFlags between instructions; it clobbers hT2.
func (j *translator) restoreFlags(a *asm) {
	a.mov(hT2, hAX)
	j.loadFlags(a)
	a.mov(hAX, hT2)
}

// saveFlags stores the host's flags; it clobbers hT2. PUSHF takes AMD's CPUs
// longer than all of this.
func (j *translator) saveFlags(a *asm) {
	a.mov(hT2, hAX)
	a.put(0x9f, 0x0f, 0x90, 0xc0, 0x66) // lahf; seto al
	a.ra(false, 0x89, hAX, j.ctx(jxFlags))
	a.mov(hAX, hT2)
}

// packFlags puts arithmetic flags into the form of jitContext.Flags.
func packFlags(f uint64) uint64 { return f>>11&1 | f&(flagsArith&^flagOF)<<8 }

// unpackFlags is the reverse.
func unpackFlags(f uint64) uint64 { return f&1<<11 | f>>8&(flagsArith&^flagOF) }

// exitCode calls leave with the exit's number.
func (j *translator) exitCode(a *asm, kind, n, index int) {
	a.call(j.leave)
	a.u32(uint32(index<<8 | n<<2 | kind))
}

// translate makes host code of b at la, with far entries if far says so. It returns
// nil if b cannot be translated.
func (j *translator) translate(b *block, la uint64, far bool) *translation {
	c := j.c
	if len(j.mem.rw)-j.apart < 1<<16 || j.apartAt-j.cold < 1<<16 || j.coldFrom-j.hot < 1<<16 || j.trs.left() == 0 || j.fars.left() == 0 || j.links.left() < 1<<6 {
		j.reset()
	}
	if !j.analyse(b) {
		b.runs = 0
		return nil
	}
	j.dropOldest(b)
	d := &j.draft
	*d = draft{b: b, la: la, anywhere: c.s.CPL == 3, index: int(j.trs.next), resume: d.resume[:0]}
	j.h = asm{b: j.h.b[:0], at: j.mem.rx + uint64(j.hot)}
	j.k = asm{b: j.k.b[:0], at: j.mem.rx + uint64(j.cold)}
	j.g = asm{b: j.g.b[:0], at: j.mem.rx + uint64(j.apart)}
	e := emitter{j: j, t: d, h: &j.h, k: &j.k, apart: &j.g}
	j.out = j.out[:0]
	e.block(far)
	hot, cold, apart := j.hot, j.cold, j.apart
	j.hot += copy(j.mem.rw[j.hot:], j.h.b)
	j.hot = (j.hot + 15) &^ 15
	if j.hot > hugeCode && !j.huge {
		j.huge = true
		j.mem.hugePages(j.coldFrom, j.hot)
	}
	j.cold += copy(j.mem.rw[j.cold:], j.k.b)
	j.apart += copy(j.mem.rw[j.apart:], j.g.b)
	t := j.keep(d, hot, cold, apart)
	if t == nil {
		j.hot, j.cold, j.apart = hot, cold, apart
		b.runs = 0
	}
	return t
}

// analyse decodes b into j.list with what the emitter must know.
func (j *translator) analyse(b *block) bool {
	c := j.c
	ops := c.opsOf(b)
	if ops == nil {
		return false
	}
	code := hostBytes(b.host, int(b.bytes))
	if b.cross != 0 { // one instruction on two pages
		n := copy(j.cross[:], hostBytes(b.host, int(4096-b.host&0xfff)))
		n += copy(j.cross[n:b.bytes], hostBytes(c.crossings.at(b.cross).host, int(b.bytes)))
		code = j.cross[:n]
	}
	j.list, j.looked = j.list[:0], 0
	for i := range ops {
		o := &ops[i]
		var t tinst
		if o.len == 0 && i == len(ops)-1 && int(o.pos) == len(code) {
			t.class, t.pos = tcEnd, int(o.pos)
			j.list = append(j.list, t)
			break
		}
		t.pos = int(o.pos)
		if decode.Decode(&t.in, code[t.pos:min(len(code), t.pos+int(o.len))], b.decodeMode()) != nil || t.in.Len != o.len || generic[t.in.Op] == nil || c.vm.features.lacks(&t.in) {
			t.class, t.flags = tcInterp, anyFlags
		} else {
			t.code = code[t.pos : t.pos+int(o.len)]
			t.classify(c.s.CPL, j.as)
			if t.in.Op == decode.PAUSE && len(c.vm.cpus) > 1 {
				t.refuse() // which offers the host's CPU to others
			}
			if t.in.Op == decode.STI && j.counting {
				t.refuse() // it ends the interpreter's block, and so moves its time
			}
		}
		j.list = append(j.list, t)
	}
	j.extend(b)
	j.behind = j.neededBehind(b)
	live := j.behind
	for i := len(j.list) - 1; i >= 0; i-- {
		t := &j.list[i]
		if t.goesOn {
			t.exit = j.neededAt(b, j.offset(b, t.aside()))
			live |= t.exit
		}
		t.need = t.flags.reads
		if t.flags.touches {
			t.need = t.flags.before(live)
		}
		live = t.flags.before(live)
		t.live = live
	}
	j.findSpans()
	for i := range j.list {
		if j.list[i].class != tcInterp && j.list[i].class != tcEnd {
			return true
		}
	}
	return false
}

// neededBehind returns the flags that code behind j.list may read. It looks at
// what follows in the page, which b's translations then depend on. That is not
// done where someone else may look at the flags between two blocks.
func (j *translator) neededBehind(b *block) uint16 {
	c := j.c
	last := &j.list[len(j.list)-1]
	if j.counting || c.cuts != nil || b.cross != 0 {
		return allFlags
	}
	next := j.offset(b, last.end())
	target := next + last.in.Imm
	switch {
	case last.class == tcJcc:
		return j.neededAt(b, next) | j.neededAt(b, target)
	case last.class == tcJmp, last.class == tcCall:
		return j.neededAt(b, target)
	case !ends(last.class) || last.class == tcEnd:
		return j.neededAt(b, next)
	}
	return allFlags
}

// neededAt returns the flags that the code at off in b's page may read before it
// overwrites them.
func (j *translator) neededAt(b *block, off uint64) uint16 {
	const most = 8 // instructions
	c := j.c
	page := hostBytes(b.host&^0xfff, 4096)
	var needed uint16
	open := allFlags
	for range most {
		t := &j.next
		*t = tinst{}
		if off >= 4096 || decode.Decode(&t.in, page[off:min(off+decode.MaxLen, 4096)], b.decodeMode()) != nil ||
			generic[t.in.Op] == nil || c.vm.features.lacks(&t.in) {
			break
		}
		n := uint64(t.in.Len)
		t.code = page[off : off+n]
		t.classify(c.s.CPL, j.as)
		needed |= t.flags.reads & open
		open &^= t.flags.writes
		m := chunks(off, n)
		j.looked |= m
		c.pageSlab.at(b.page).mask |= m
		off += n
		if open == 0 {
			break
		}
		if t.class == tcJmp {
			off += t.in.Imm
		} else if endsBlock(&t.in) {
			break
		}
	}
	return needed | open
}

// guestReg says where guest register r lives.
func guestReg(r uint8) (host uint8, inMemory bool) {
	if evicted(r) {
		return hT2, true
	}
	if r == vcpu.RSP {
		return hSP, false
	}
	return r, false
}
