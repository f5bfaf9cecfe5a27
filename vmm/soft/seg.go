package soft

import (
	"github.com/gvmspawn/gvmspawn/vmm/soft/decode"
	"github.com/gvmspawn/gvmspawn/vmm/vcpu"
)

// Bits of vcpu.Segment.Attr.
const (
	attrType     = 0xf
	attrAccessed = 1 << 0
	attrRW       = 1 << 1 // writable data, readable code
	attrDC       = 1 << 2 // expand-down data, conforming code
	attrCode     = 1 << 3
	attrS        = 1 << 4
	attrP        = 1 << 7
	attrL        = 1 << 13
	attrDB       = 1 << 14
	attrG        = 1 << 15
	attrUnusable = 1 << 16
)

func dpl(attr uint32) uint32 { return attr >> 5 & 3 }

func (c *CPU) protected() bool { return c.s.CR0&cr0PE != 0 }
func (c *CPU) long() bool      { return c.s.EFER&eferLMA != 0 }
func (c *CPU) long64() bool    { return c.mode == decode.Mode64 }

// setMode derives the decoder's mode from CS and EFER.
func (c *CPU) setMode() {
	s := c.s
	a := s.Seg[vcpu.CS].Attr
	switch {
	case s.EFER&eferLMA != 0 && a&attrL != 0:
		c.mode = decode.Mode64
	case a&attrDB != 0:
		c.mode = decode.Mode32
	default:
		c.mode = decode.Mode16
	}
	for i := range 6 {
		c.s.R[regSeg+i] = s.Seg[i].Base
	}
	c.setTLBMode()
}

// setCPL changes the privilege level.
func (c *CPU) setCPL(cpl uint32) {
	c.s.CPL = cpl
	c.setTLBMode()
}

// stackMask is the mask of the stack pointer's width.
func (c *CPU) stackMask() uint64 {
	if c.mode == decode.Mode64 {
		return ^uint64(0)
	}
	if c.s.Seg[vcpu.SS].Attr&attrDB != 0 {
		return 0xffffffff
	}
	return 0xffff
}

// linear turns seg:off into a linear address, with the checks of SDM vol. 3A §5.3 to §5.5.
func (c *CPU) linear(seg uint8, off uint64, size uint8, write bool) (uint64, bool) {
	s := c.s
	if c.mode == decode.Mode64 {
		if seg >= vcpu.FS {
			off += s.Seg[seg].Base
		}
		return off, true
	}
	sg := &s.Seg[seg]
	off &= 0xffffffff
	la := (sg.Base + off) & 0xffffffff
	a := sg.Attr
	if a&attrUnusable != 0 {
		return 0, c.segFault(seg)
	}
	last := off + uint64(max(size, 1)) - 1
	if c.protected() && s.Flags&flagVM == 0 {
		if write && (a&attrCode != 0 || a&attrRW == 0) || !write && a&(attrCode|attrRW) == attrCode {
			return 0, c.segFault(seg)
		}
	}
	if a&(attrCode|attrDC) == attrDC && a&attrS != 0 { // expand-down
		top := uint64(0xffff)
		if a&attrDB != 0 {
			top = 0xffffffff
		}
		if off <= uint64(sg.Limit) || last > top {
			return 0, c.segFault(seg)
		}
	} else if last > uint64(sg.Limit) {
		return 0, c.segFault(seg)
	}
	return la, true
}

func (c *CPU) segFault(seg uint8) bool {
	if seg == vcpu.SS {
		return c.faultErr(vecSS, 0)
	}
	return c.faultErr(vecGP, 0)
}

// push writes one stack element; RSP is committed only when that worked.
func (c *CPU) push(v uint64, size uint8) bool {
	s := c.s
	m := c.stackMask()
	sp := (s.R[vcpu.RSP] - uint64(size)) & m
	la, ok := c.linear(vcpu.SS, sp, size, true)
	if !ok {
		return false
	}
	c.stackAccess = true
	ok = c.store(la, v, size)
	c.stackAccess = false
	if !ok {
		return false
	}
	s.R[vcpu.RSP] = s.R[vcpu.RSP]&^m | sp
	return true
}

// top reads the stack element at byte offset off from the top.
func (c *CPU) top(off uint64, size uint8) (uint64, bool) {
	sp := (c.s.R[vcpu.RSP] + off) & c.stackMask()
	la, ok := c.linear(vcpu.SS, sp, size, false)
	if !ok {
		return 0, false
	}
	c.stackAccess = true
	v, ok := c.load(la, size)
	c.stackAccess = false
	return v, ok
}

// drop moves the stack pointer up by n.
func (c *CPU) drop(n uint64) {
	m := c.stackMask()
	sp := &c.s.R[vcpu.RSP]
	*sp = *sp&^m | (*sp+n)&m
}

// setSP writes the stack pointer in its width.
func (c *CPU) setSP(v uint64) {
	m := c.stackMask()
	sp := &c.s.R[vcpu.RSP]
	*sp = *sp&^m | v&m
	if m == 0xffffffff {
		*sp &= m
	}
}

// descriptor is one entry of a descriptor table (SDM vol. 3A §3.4.5).
type descriptor struct {
	lo, hi uint64
	la     uint64 // where it was read
}

func (d descriptor) attr() uint32 { return uint32(d.lo>>40) & 0xf0ff }
func (d descriptor) base() uint64 { return d.lo>>16&0xffffff | d.lo>>56<<24 }

func (d descriptor) limit() uint32 {
	l := uint32(d.lo&0xffff | d.lo>>32&0xf0000)
	if d.attr()&attrG != 0 {
		l = l<<12 | 0xfff
	}
	return l
}

func (d descriptor) segment(sel uint16) vcpu.Segment {
	return vcpu.Segment{Selector: sel, Base: d.base(), Limit: d.limit(), Attr: d.attr()}
}

// descriptor reads the descriptor of sel; a selector beyond its table raises
// vec with the selector as error code.
func (c *CPU) descriptor(sel uint16, vec uint8) (d descriptor, ok bool) {
	s := c.s
	base, limit := s.GDT.Base, uint32(s.GDT.Limit)
	if sel&4 != 0 {
		l := &s.Seg[segLDTR]
		if l.Attr&attrUnusable != 0 || l.Attr&attrP == 0 {
			return d, c.faultErr(vec, uint32(sel&^3))
		}
		base, limit = l.Base, l.Limit
	}
	if uint32(sel|7) > limit {
		return d, c.faultErr(vec, uint32(sel&^3))
	}
	d.la = base + uint64(sel&^7)
	d.lo, ok = c.loadSys(d.la, 8)
	return d, ok
}

// descriptor16 reads a 16-byte system descriptor of long mode.
func (c *CPU) descriptor16(sel uint16, vec uint8) (d descriptor, ok bool) {
	if d, ok = c.descriptor(sel, vec); !ok || !c.long() {
		return d, ok
	}
	d.hi, ok = c.loadSys(d.la+8, 8)
	return d, ok
}

// setAccessed sets the accessed bit in memory.
func (c *CPU) setAccessed(d *descriptor) bool {
	if d.lo>>40&attrAccessed != 0 {
		return true
	}
	d.lo |= attrAccessed << 40
	return c.storeSys(d.la+5, d.lo>>40, 1)
}

// realSegment loads a segment register in real or virtual-8086 mode.
func (c *CPU) realSegment(seg uint8, sel uint16) {
	sg := &c.s.Seg[seg]
	sg.Selector, sg.Base = sel, uint64(sel)<<4
	if c.s.Flags&flagVM != 0 {
		sg.Limit, sg.Attr = 0xffff, attrP|attrS|3|3<<5
	} else if seg == vcpu.CS {
		sg.Attr = attrP | attrS | 3
	} else {
		sg.Attr = sg.Attr&^(attrUnusable|0xff) | attrP | attrS | 3
	}
	c.s.R[regSeg+int(seg)] = sg.Base
}

// loadSegment is MOV, POP or a far load into ES, SS, DS, FS or GS (SDM vol. 2B, MOV).
func (c *CPU) loadSegment(seg uint8, sel uint16) bool {
	s := c.s
	if !c.protected() || s.Flags&flagVM != 0 {
		c.realSegment(seg, sel)
		return true
	}
	rpl := uint32(sel & 3)
	if sel&^3 == 0 {
		if seg == vcpu.SS && (!c.long64() || s.CPL == 3 || rpl != s.CPL) {
			return c.faultErr(vecGP, 0)
		}
		// A null selector keeps the base in 64-bit mode on Intel; FS and GS
		// are cleared, as on Intel.
		s.Seg[seg] = vcpu.Segment{Selector: sel, Attr: attrUnusable | s.CPL<<5}
		s.R[regSeg+int(seg)] = 0
		return true
	}
	d, ok := c.descriptor(sel, vecGP)
	if !ok {
		return false
	}
	a := d.attr()
	err := uint32(sel &^ 3)
	np := uint8(vecNP)
	if seg == vcpu.SS {
		np = vecSS
		if rpl != s.CPL || dpl(a) != s.CPL || a&(attrS|attrCode|attrRW) != attrS|attrRW {
			return c.faultErr(vecGP, err)
		}
	} else {
		readable := a&attrS != 0 && (a&attrCode == 0 || a&attrRW != 0)
		conforming := a&(attrCode|attrDC) == attrCode|attrDC
		if !readable || !conforming && (rpl > dpl(a) || s.CPL > dpl(a)) {
			return c.faultErr(vecGP, err)
		}
	}
	if a&attrP == 0 {
		return c.faultErr(np, err)
	}
	if !c.setAccessed(&d) {
		return false
	}
	s.Seg[seg] = d.segment(sel)
	s.R[regSeg+int(seg)] = s.Seg[seg].Base
	return true
}

// setCS commits a checked code segment with privilege level cpl.
func (c *CPU) setCS(sel uint16, d *descriptor, cpl uint32) bool {
	if !c.setAccessed(d) {
		return false
	}
	c.s.Seg[vcpu.CS] = d.segment(sel&^3 | uint16(cpl))
	c.s.CPL = cpl
	c.setMode()
	return true
}

// ipMask is the width of the instruction pointer for an operand size.
func ipMask(size uint8) uint64 { return ^uint64(0) >> (64 - 8*uint(size)) }

// farJump is JMP ptr16:n and JMP m16:n (SDM vol. 2A, JMP).
func (c *CPU) farJump(sel uint16, off uint64, size uint8) int {
	s := c.s
	if !c.protected() || s.Flags&flagVM != 0 {
		c.realSegment(vcpu.CS, sel)
		s.RIP = off & ipMask(size) & 0xffffffff
		c.setMode()
		return stExit
	}
	d, ok := c.farCode(sel)
	if !ok {
		return stFault
	}
	if d.attr()&attrS == 0 {
		return c.farGate(sel, d, size, false)
	}
	if !c.checkFarCode(sel, d) || !c.checkIP(&d, off) {
		return stFault
	}
	if !c.setCS(sel, &d, s.CPL) {
		return stFault
	}
	s.RIP = off
	return stExit
}

func (c *CPU) farCode(sel uint16) (d descriptor, ok bool) {
	if sel&^3 == 0 {
		return d, c.faultErr(vecGP, 0)
	}
	return c.descriptor(sel, vecGP)
}

// checkFarCode checks a code segment as the target of a far jump or call.
func (c *CPU) checkFarCode(sel uint16, d descriptor) bool {
	a, cpl, err := d.attr(), c.s.CPL, uint32(sel&^3)
	if a&(attrS|attrCode) != attrS|attrCode || c.long() && a&attrL != 0 && a&attrDB != 0 {
		return c.faultErr(vecGP, err)
	}
	if a&attrDC != 0 {
		if dpl(a) > cpl {
			return c.faultErr(vecGP, err)
		}
	} else if uint32(sel&3) > cpl || dpl(a) != cpl {
		return c.faultErr(vecGP, err)
	}
	if a&attrP == 0 {
		return c.faultErr(vecNP, err)
	}
	return true
}

// checkIP checks a new instruction pointer against the new code segment.
func (c *CPU) checkIP(d *descriptor, off uint64) bool {
	if c.long() && d.attr()&attrL != 0 {
		if !canonical(off) {
			return c.faultErr(vecGP, 0)
		}
		return true
	}
	if off > uint64(d.limit()) {
		return c.faultErr(vecGP, 0)
	}
	return true
}

// farGate is a far jump or call through a call gate without a change of
// privilege level (SDM vol. 3A §5.8). Task gates, task switches and calls to
// inner levels by gate raise #GP: no system of today uses them.
func (c *CPU) farGate(sel uint16, d descriptor, size uint8, call bool) int {
	c.faultErr(vecGP, uint32(sel&^3))
	return stFault
}

// farCall is CALL ptr16:n and CALL m16:n.
func (c *CPU) farCall(sel uint16, off uint64, size uint8, next uint64) int {
	s := c.s
	real := !c.protected() || s.Flags&flagVM != 0
	var d descriptor
	if !real {
		var ok bool
		if d, ok = c.farCode(sel); !ok {
			return stFault
		}
		if d.attr()&attrS == 0 {
			return c.farGate(sel, d, size, true)
		}
		if !c.checkFarCode(sel, d) || !c.checkIP(&d, off) {
			return stFault
		}
	}
	sp := s.R[vcpu.RSP]
	if !c.push(uint64(s.Seg[vcpu.CS].Selector), size) || !c.push(next, size) {
		s.R[vcpu.RSP] = sp
		return stFault
	}
	if real {
		c.realSegment(vcpu.CS, sel)
		c.setMode()
		s.RIP = off & ipMask(size)
		return stExit
	}
	if !c.setCS(sel, &d, s.CPL) {
		s.R[vcpu.RSP] = sp
		return stFault
	}
	s.RIP = off
	return stExit
}

// farReturn is RETF (SDM vol. 2B, RET).
func (c *CPU) farReturn(size uint8, extra uint64) int {
	s := c.s
	ip, ok1 := c.top(0, size)
	cs, ok2 := uint64(0), false
	if ok1 {
		cs, ok2 = c.top(uint64(size), size)
	}
	if !ok1 || !ok2 {
		return stFault
	}
	n := 2*uint64(size) + extra
	if !c.protected() || s.Flags&flagVM != 0 {
		c.drop(n)
		c.realSegment(vcpu.CS, uint16(cs))
		c.setMode()
		s.RIP = ip
		return stExit
	}
	d, ok := c.returnCode(uint16(cs), ip)
	if !ok {
		return stFault
	}
	cpl := uint32(cs & 3)
	if cpl == s.CPL {
		if !c.setCS(uint16(cs), &d, cpl) {
			return stFault
		}
		c.drop(n)
		s.RIP = ip
		return stExit
	}
	sp, ok1 := c.top(n, size)
	ss, ok2 := c.top(n+uint64(size), size)
	if !ok1 || !ok2 {
		return stFault
	}
	if !c.outer(uint16(cs), &d, uint16(ss), sp+extra) {
		return stFault
	}
	s.RIP = ip
	return stExit
}

// returnCode checks a code segment as the target of RETF or IRET.
func (c *CPU) returnCode(sel uint16, ip uint64) (d descriptor, ok bool) {
	if d, ok = c.farCode(sel); !ok {
		return d, false
	}
	a, rpl, err := d.attr(), uint32(sel&3), uint32(sel&^3)
	if rpl < c.s.CPL || a&(attrS|attrCode) != attrS|attrCode || a&attrDC != 0 && dpl(a) > rpl || a&attrDC == 0 && dpl(a) != rpl {
		return d, c.faultErr(vecGP, err)
	}
	if a&attrP == 0 {
		return d, c.faultErr(vecNP, err)
	}
	return d, c.checkIP(&d, ip)
}

// outer returns to an outer level or, for IRET in 64-bit mode, loads SS:RSP.
func (c *CPU) outer(cs uint16, d *descriptor, ss uint16, sp uint64) bool {
	s := c.s
	cpl := uint32(cs & 3)
	var sg vcpu.Segment
	if ss&^3 == 0 {
		if !(c.long() && d.attr()&attrL != 0) || cpl == 3 || uint32(ss&3) != cpl {
			return c.faultErr(vecGP, 0)
		}
		sg = vcpu.Segment{Selector: ss, Attr: attrUnusable | cpl<<5}
	} else {
		sd, ok := c.descriptor(ss, vecGP)
		if !ok {
			return false
		}
		a, err := sd.attr(), uint32(ss&^3)
		if uint32(ss&3) != cpl || dpl(a) != cpl || a&(attrS|attrCode|attrRW) != attrS|attrRW {
			return c.faultErr(vecGP, err)
		}
		if a&attrP == 0 {
			return c.faultErr(vecSS, err)
		}
		if !c.setAccessed(&sd) {
			return false
		}
		sg = sd.segment(ss)
	}
	changed := cpl != s.CPL
	s.Seg[vcpu.SS] = sg
	if !c.setCS(cs, d, cpl) {
		return false
	}
	c.setSP(sp)
	if c.mode == decode.Mode64 {
		s.R[vcpu.RSP] = sp
	}
	if changed {
		c.dropInner(cpl)
	}
	return true
}

// dropInner nulls data segments that the new level may not use.
func (c *CPU) dropInner(cpl uint32) {
	for _, i := range [...]int{vcpu.ES, vcpu.DS, vcpu.FS, vcpu.GS} {
		sg := &c.s.Seg[i]
		conforming := sg.Attr&(attrCode|attrDC) == attrCode|attrDC
		if sg.Attr&attrUnusable == 0 && !conforming && dpl(sg.Attr) < cpl {
			base := sg.Base
			*sg = vcpu.Segment{Attr: attrUnusable}
			if c.long() && i >= vcpu.FS {
				sg.Base = base
			}
			c.s.R[regSeg+i] = sg.Base
		}
	}
}
