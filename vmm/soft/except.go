package soft

import (
	"sync/atomic"

	"github.com/gvmspawn/gvmspawn/vmm/vcpu"
)

// exception is a pending exception.
type exception struct {
	vec    uint8
	hasErr bool
	soft   bool // INT n, INT3, INTO: a trap whose gate's DPL is checked
	err    uint32
	cr2    uint64
}

// raise makes an instruction fault.
func (c *CPU) raise(vec uint8) int {
	c.fault(vec)
	return stFault
}

func (c *CPU) raiseErr(vec uint8, err uint32) int {
	c.faultErr(vec, err)
	return stFault
}

// class is how vec combines with another exception (SDM vol. 3A table 6-5):
// 0 benign, 1 contributory, 2 page fault.
func class(vec uint8) int {
	switch vec {
	case vecDE, vecTS, vecNP, vecSS, vecGP:
		return 1
	case vecPF:
		return 2
	}
	return 0
}

// deliver calls the handler of c.exc, going over to #DF as needed. It returns
// false on a triple fault.
func (c *CPU) deliver() bool {
	first := c.exc
	for {
		e := c.exc
		if e.vec == vecPF {
			c.s.CR2 = e.cr2
		}
		if c.interrupt(e) {
			return true
		}
		second := c.exc
		if first.vec == vecDF {
			return false
		}
		a, b := class(first.vec), class(second.vec)
		if a == 1 && b == 1 || a == 2 && b != 0 {
			second = exception{vec: vecDF, hasErr: true}
		}
		first, c.exc = second, second
	}
}

// isFault reports whether the handler's return address is the instruction
// itself with RF set (SDM vol. 3B §17.3.1.1).
func (e exception) isFault() bool {
	switch e.vec {
	case vecDB, vecBP, vecOF, vecDF:
		return false
	}
	return !e.soft && e.vec < 32 && e.vec != 2
}

// interrupt enters the handler of e with the current RIP as return address
// (SDM vol. 3A §6.12, §6.14). On failure nothing has changed and c.exc tells why.
func (c *CPU) interrupt(e exception) bool {
	s := c.s
	if !c.protected() {
		return c.interruptReal(e)
	}
	ext := uint32(1)
	if e.soft {
		ext = 0
	}
	code := uint32(e.vec)<<3 | 2 | ext
	n := uint64(8)
	if c.long() {
		n = 16
	}
	at := uint64(e.vec) * n
	if at+n-1 > uint64(s.IDT.Limit) {
		return c.faultErr(vecGP, code)
	}
	lo, ok := c.loadSys(c.wrap(s.IDT.Base+at), 8)
	if !ok {
		return false
	}
	var hi uint64
	if c.long() {
		if hi, ok = c.loadSys(s.IDT.Base+at+8, 8); !ok {
			return false
		}
	}
	typ := lo >> 40 & 0x1f
	valid := typ == 14 || typ == 15 || !c.long() && (typ == 6 || typ == 7)
	if !valid || e.soft && uint32(lo>>45&3) < s.CPL {
		return c.faultErr(vecGP, code)
	}
	if lo>>47&1 == 0 {
		return c.faultErr(vecNP, code)
	}
	off := lo&0xffff | lo>>48<<16 | hi&0xffffffff<<32
	if typ < 8 {
		off &= 0xffff
	}
	return c.enter(e, uint16(lo>>16), off, lo>>32&7, typ)
}

// enter goes to the handler at sel:off through a gate of type typ.
func (c *CPU) enter(e exception, sel uint16, off, ist, typ uint64) bool {
	s := c.s
	ext := uint32(1)
	if e.soft {
		ext = 0
	}
	if sel&^3 == 0 {
		return c.faultErr(vecGP, ext)
	}
	d, ok := c.descriptor(sel, vecGP)
	if !ok {
		c.exc.err |= ext
		return false
	}
	a := d.attr()
	if a&(attrS|attrCode) != attrS|attrCode || dpl(a) > s.CPL || c.long() && a&(attrL|attrDB) != attrL {
		return c.faultErr(vecGP, uint32(sel&^3)|ext)
	}
	if a&attrP == 0 {
		return c.faultErr(vecNP, uint32(sel&^3)|ext)
	}
	cpl := s.CPL
	if a&attrDC == 0 {
		cpl = dpl(a)
	}
	if c.long() {
		ok = c.enter64(e, sel, &d, off, ist, cpl)
	} else {
		ok = c.enter32(e, sel, &d, off, cpl, typ)
	}
	if !ok {
		return false
	}
	s.Flags &^= flagTF | flagNT | flagRF | flagVM
	if typ&1 == 0 {
		s.Flags &^= flagIF
	}
	c.setTLBMode()
	return true
}

// saved is the RFLAGS image for the handler's frame.
func (c *CPU) saved(e exception) uint64 {
	f := c.s.rflags()
	if e.isFault() {
		f |= flagRF
	}
	return f
}

func (c *CPU) enter64(e exception, sel uint16, d *descriptor, off, ist uint64, cpl uint32) bool {
	s := c.s
	sp := s.R[vcpu.RSP]
	if ist != 0 || cpl != s.CPL {
		at := 4 + uint64(cpl)*8
		if ist != 0 {
			at = 0x1c + ist*8
		}
		if at+7 > uint64(s.Seg[segTR].Limit) {
			return c.faultErr(vecTS, uint32(s.Seg[segTR].Selector&^3))
		}
		var ok bool
		if sp, ok = c.loadSys(s.Seg[segTR].Base+at, 8); !ok {
			return false
		}
	}
	sp &^= 15
	frame := [...]uint64{uint64(s.Seg[vcpu.SS].Selector), s.R[vcpu.RSP], c.saved(e), uint64(s.Seg[vcpu.CS].Selector), s.RIP, uint64(e.err)}
	n := 5
	if e.hasErr {
		n = 6
	}
	mode := c.implicitMode()
	if s.CPL < 3 && s.Flags&flagAC != 0 { // the frame is no system data structure
		mode = tlbSup
	}
	c.stackAccess = true
	defer func() { c.stackAccess = false }()
	for _, v := range frame[:n] {
		sp -= 8
		if !c.storeSlow(sp, v, 8, mode) {
			return false
		}
	}
	if !canonical(off) {
		return c.faultErr(vecGP, 0)
	}
	if !c.setAccessed(d) {
		return false
	}
	if cpl != s.CPL {
		s.Seg[vcpu.SS] = vcpu.Segment{Selector: uint16(cpl), Attr: attrUnusable | cpl<<5}
	}
	s.Seg[vcpu.CS] = d.segment(sel&^3 | uint16(cpl))
	s.CPL = cpl
	s.R[vcpu.RSP] = sp
	s.RIP = off
	c.setMode()
	return true
}

func (c *CPU) enter32(e exception, sel uint16, d *descriptor, off uint64, cpl uint32, typ uint64) bool {
	s := c.s
	size := uint8(4)
	if typ < 8 {
		size = 2
	}
	if off > uint64(d.limit()) {
		return c.faultErr(vecGP, 1)
	}
	oldSS, oldSP, oldCS := s.Seg[vcpu.SS], s.R[vcpu.RSP], s.Seg[vcpu.CS].Selector
	flags, oldCPL := c.saved(e), s.CPL
	if cpl != s.CPL {
		ss, sp, ok := c.innerStack(cpl)
		if !ok {
			return false
		}
		s.Seg[vcpu.SS], s.R[vcpu.RSP] = ss, sp
		s.R[regSeg+vcpu.SS] = ss.Base
	}
	c.setCPL(cpl)
	vm := s.Flags & flagVM
	s.Flags &^= flagVM
	ok := true
	put := func(v uint64) { ok = ok && c.push(v, size) }
	if vm != 0 {
		for _, i := range [...]int{vcpu.GS, vcpu.FS, vcpu.DS, vcpu.ES} {
			put(uint64(s.Seg[i].Selector))
		}
	}
	if cpl != oldCPL {
		put(uint64(oldSS.Selector))
		put(oldSP)
	}
	put(flags)
	put(uint64(oldCS))
	put(s.RIP)
	if e.hasErr {
		put(uint64(e.err))
	}
	if !ok || !c.setAccessed(d) {
		s.Flags |= vm
		s.Seg[vcpu.SS], s.R[vcpu.RSP] = oldSS, oldSP
		s.R[regSeg+vcpu.SS] = oldSS.Base
		c.setCPL(oldCPL)
		return false
	}
	if vm != 0 {
		for _, i := range [...]int{vcpu.GS, vcpu.FS, vcpu.DS, vcpu.ES} {
			s.Seg[i] = vcpu.Segment{Attr: attrUnusable}
		}
	}
	s.Seg[vcpu.CS] = d.segment(sel&^3 | uint16(cpl))
	s.RIP = off
	c.setMode()
	return true
}

// innerStack reads SS:ESP of level cpl from a 32-bit or 16-bit TSS (SDM vol. 3A §7.2.1).
func (c *CPU) innerStack(cpl uint32) (ss vcpu.Segment, sp uint64, ok bool) {
	tr := &c.s.Seg[segTR]
	n := uint64(4)
	at := 4 + uint64(cpl)*8
	if tr.Attr&8 == 0 { // 16-bit TSS
		n, at = 2, 2+uint64(cpl)*4
	}
	terr := uint32(tr.Selector &^ 3)
	if at+n+1 > uint64(tr.Limit) {
		return ss, 0, c.faultErr(vecTS, terr)
	}
	if sp, ok = c.loadSys(tr.Base+at, uint8(n)); !ok {
		return ss, 0, false
	}
	v, ok := c.loadSys(tr.Base+at+n, 2)
	if !ok {
		return ss, 0, false
	}
	sel := uint16(v)
	if sel&^3 == 0 {
		return ss, 0, c.faultErr(vecTS, terr)
	}
	d, ok := c.descriptor(sel, vecTS)
	if !ok {
		return ss, 0, false
	}
	a := d.attr()
	if uint32(sel&3) != cpl || dpl(a) != cpl || a&(attrS|attrCode|attrRW) != attrS|attrRW {
		return ss, 0, c.faultErr(vecTS, uint32(sel&^3))
	}
	if a&attrP == 0 {
		return ss, 0, c.faultErr(vecSS, uint32(sel&^3))
	}
	return d.segment(sel), sp, c.setAccessed(&d)
}

// interruptReal is the real-mode interrupt table (SDM vol. 3B §20.1.4).
func (c *CPU) interruptReal(e exception) bool {
	s := c.s
	at := uint64(e.vec) * 4
	if at+3 > uint64(s.IDT.Limit) {
		return c.faultErr(vecGP, 0)
	}
	v, ok := c.loadSys(s.IDT.Base+at, 4)
	if !ok {
		return false
	}
	sp := s.R[vcpu.RSP]
	if !c.push(s.rflags(), 2) || !c.push(uint64(s.Seg[vcpu.CS].Selector), 2) || !c.push(s.RIP, 2) {
		s.R[vcpu.RSP] = sp
		return false
	}
	s.Flags &^= flagIF | flagTF | flagAC | flagRF
	c.realSegment(vcpu.CS, uint16(v>>16))
	s.RIP = v & 0xffff
	c.setMode()
	return true
}

// setFlags writes RFLAGS as POPF and IRET do, with the bits of mask changeable.
func (c *CPU) setFlags(f, mask uint64) {
	s := c.s
	tf := s.Flags & flagTF
	s.Flags = s.Flags&^(mask&^flagsArith) | f&mask&^flagsArith
	if tf &^= s.Flags; tf != 0 {
		c.breakHits |= dr6BS // a trap is still due to the instruction that clears TF
	}
	if mask&flagsArith != 0 {
		s.setArith(f)
	}
	c.setTLBMode()
}

// iret is IRET, IRETD and IRETQ (SDM vol. 2A).
func (c *CPU) iret(size uint8) int {
	s := c.s
	n := uint64(size)
	ip, ok := c.top(0, size)
	if !ok {
		return stFault
	}
	cs, ok := c.top(n, size)
	if !ok {
		return stFault
	}
	f, ok := c.top(2*n, size)
	if !ok {
		return stFault
	}
	if c.nmiBlocked {
		c.nmiBlocked = false
		atomic.OrUint32(&c.s.Exit, exitIntr) // another one may wait
	}
	mask := uint64(flagsArith | flagTF | flagDF | flagNT)
	if !c.protected() {
		mask |= flagIF | flagIOPL | flagRF | flagAC | flagID
		if size == 2 {
			mask &= 0xffff
		}
		c.drop(3 * n)
		c.realSegment(vcpu.CS, uint16(cs))
		c.setMode()
		s.RIP = ip
		c.setFlags(f, mask)
		return stExit
	}
	if s.Flags&(flagVM|flagNT) != 0 {
		return c.raiseErr(vecGP, 0) // no task returns, no virtual-8086 mode
	}
	if size > 2 {
		mask |= flagRF | flagAC | flagID
	}
	if s.CPL == 0 {
		mask |= flagIOPL | flagVIF | flagVIP
	}
	if uint64(s.CPL) <= s.Flags>>12&3 {
		mask |= flagIF
	}
	d, ok := c.returnCode(uint16(cs), ip)
	if !ok {
		return stFault
	}
	cpl := uint32(cs & 3)
	if c.long64() || cpl != s.CPL {
		sp, ok := c.top(3*n, size)
		if !ok {
			return stFault
		}
		ss, ok := c.top(4*n, size)
		if !ok || !c.outer(uint16(cs), &d, uint16(ss), sp) {
			return stFault
		}
	} else {
		if !c.setCS(uint16(cs), &d, cpl) {
			return stFault
		}
		c.drop(3 * n)
	}
	s.RIP = ip
	c.setFlags(f, mask)
	return stExit
}
