package soft

import (
	"github.com/gvmspawn/gvmspawn/vmm/soft/decode"
	"github.com/gvmspawn/gvmspawn/vmm/vcpu"
)

// stringOp is one running string instruction.
type stringOp struct {
	c         *CPU
	in        *decode.Inst
	size      uint8 // of an element
	seg       uint8 // of the source
	mask      uint64
	rep       bool
	delta     uint64
	untilZF   bool // REPE/REPNE compare: stop by ZF
	wantEqual bool
}

func (o *stringOp) reg(r int) uint64 { return o.c.s.R[r] & o.mask }

// setReg writes a pointer or counter in the address size.
func (o *stringOp) setReg(r int, v uint64) {
	p := &o.c.s.R[r]
	switch o.mask {
	case 0xffff:
		*p = *p&^0xffff | v&0xffff
	default:
		*p = v & o.mask
	}
}

func (o *stringOp) advance(r int, n uint64) { o.setReg(r, o.reg(r)+o.delta*n) }

func genString(c *CPU, in *decode.Inst) int {
	o := stringOp{c: c, in: in, size: in.OpSize, seg: vcpu.DS, mask: ipMask(in.AddrSize), rep: in.Rep || in.Repne}
	switch in.Op {
	case decode.MOVSB, decode.CMPSB, decode.STOSB, decode.LODSB, decode.SCASB:
		o.size = 1
	case decode.INSB, decode.OUTSB:
		o.size = 1
	case decode.INSV, decode.OUTSV:
		o.size = min(o.size, 4)
	}
	if in.SegOverride != decode.RegNone {
		o.seg = in.SegOverride
	}
	o.delta = uint64(o.size)
	if c.s.Flags&flagDF != 0 {
		o.delta = -o.delta
	}
	switch in.Op {
	case decode.CMPSB, decode.CMPSV, decode.SCASB, decode.SCASV:
		o.untilZF, o.wantEqual = o.rep, in.Rep
	case decode.INSB, decode.INSV, decode.OUTSB, decode.OUTSV:
		if !c.ioAllowed(uint16(c.s.R[vcpu.RDX]), o.size) {
			return stFault
		}
	}
	if !o.rep {
		if !o.one() {
			return stFault
		}
		return stNext
	}
	return o.repeat()
}

// repeat runs until the count is used up. It stops between elements for
// events, with the registers ready to go on (SDM vol. 2B, REP).
func (o *stringOp) repeat() int {
	for budget := 0; o.reg(vcpu.RCX) != 0; budget++ {
		if budget&63 == 63 && o.c.pending() {
			o.c.s.RIP = o.c.ip
			return stExit
		}
		n, ok := o.bulk()
		if !ok {
			return stFault
		}
		if n == 0 {
			if !o.one() {
				return stFault
			}
			n = 1
		}
		o.setReg(vcpu.RCX, o.reg(vcpu.RCX)-n)
		if o.untilZF && o.c.s.zf() != o.wantEqual {
			return stNext
		}
		if (o.c.s.Flags&flagTF != 0 || o.c.breakHits != 0) && o.reg(vcpu.RCX) != 0 {
			o.c.s.RIP = o.c.ip // a trap between two iterations (SDM vol. 3B §17.3.1.4)
			return stExit
		}
	}
	return stNext
}

// bulk does as many elements as lie on the present pages of memory, or none.
func (o *stringOp) bulk() (n uint64, ok bool) {
	c := o.c
	var load, store bool
	switch o.in.Op {
	case decode.MOVSB, decode.MOVSV:
		load, store = true, true
	case decode.STOSB, decode.STOSV:
		store = true
	default:
		return 0, true
	}
	if c.mode != decode.Mode64 || o.delta>>63 != 0 || c.s.Flags&flagTF != 0 {
		return 0, true
	}
	n = o.reg(vcpu.RCX)
	var dst, src uint64
	if store {
		la, _ := c.linear(vcpu.ES, o.reg(vcpu.RDI), o.size, true)
		e := c.s.entry(la)
		off := la ^ e.Write
		if off > 4095 {
			return 0, true
		}
		dst = e.Host + off
		n = min(n, (4096-off)/uint64(o.size))
	}
	if load {
		la, _ := c.linear(o.seg, o.reg(vcpu.RSI), o.size, false)
		e := c.s.entry(la)
		off := la ^ e.Read
		if off > 4095 {
			return 0, true
		}
		src = e.Host + off
		n = min(n, (4096-off)/uint64(o.size))
	}
	bytes := n * uint64(o.size)
	if n < 2 || load && dst-src < bytes && dst != src { // forward overlap repeats the pattern
		return 0, true
	}
	if load {
		copy(hostBytes(dst, int(bytes)), hostBytes(src, int(bytes)))
		o.advance(vcpu.RSI, n)
	} else {
		fill(dst, int(n), c.s.R[0], o.size)
	}
	o.advance(vcpu.RDI, n)
	return n, true
}

// fill stores n elements of the low size bytes of v.
func fill(dst uint64, n int, v uint64, size uint8) {
	b := hostBytes(dst, n*int(size))
	if zeroExtend(v, size) == 0 {
		clear(b)
		return
	}
	stn(dst, v, size)
	for done := int(size); done < len(b); done *= 2 {
		copy(b[done:], b[:done])
	}
}

// one does a single element and moves the pointers.
func (o *stringOp) one() bool {
	c, s := o.c, o.c.s
	acc := decode.Arg{Kind: decode.KReg, Size: o.size}
	switch o.in.Op {
	case decode.MOVSB, decode.MOVSV:
		v, ok := c.loadSeg(o.seg, o.reg(vcpu.RSI), o.size)
		if !ok || !c.storeSeg(vcpu.ES, o.reg(vcpu.RDI), v, o.size) {
			return false
		}
		o.advance(vcpu.RSI, 1)
		o.advance(vcpu.RDI, 1)
	case decode.STOSB, decode.STOSV:
		if !c.storeSeg(vcpu.ES, o.reg(vcpu.RDI), s.R[0], o.size) {
			return false
		}
		o.advance(vcpu.RDI, 1)
	case decode.LODSB, decode.LODSV:
		v, ok := c.loadSeg(o.seg, o.reg(vcpu.RSI), o.size)
		if !ok {
			return false
		}
		c.setReg(acc, v)
		o.advance(vcpu.RSI, 1)
	case decode.CMPSB, decode.CMPSV:
		a, ok := c.loadSeg(o.seg, o.reg(vcpu.RSI), o.size)
		if !ok {
			return false
		}
		b, ok := c.loadSeg(vcpu.ES, o.reg(vcpu.RDI), o.size)
		if !ok {
			return false
		}
		s.flagsSub(a, b, a-b, o.size)
		o.advance(vcpu.RSI, 1)
		o.advance(vcpu.RDI, 1)
	case decode.SCASB, decode.SCASV:
		b, ok := c.loadSeg(vcpu.ES, o.reg(vcpu.RDI), o.size)
		if !ok {
			return false
		}
		a := c.reg(acc)
		s.flagsSub(a, b, a-b, o.size)
		o.advance(vcpu.RDI, 1)
	default:
		return o.portElement()
	}
	return true
}

// portElement is one element of INS or OUTS.
func (o *stringOp) portElement() bool {
	c, s := o.c, o.c.s
	port := uint16(s.R[vcpu.RDX])
	if o.in.Op == decode.OUTSB || o.in.Op == decode.OUTSV {
		v, ok := c.loadSeg(o.seg, o.reg(vcpu.RSI), o.size)
		if !ok {
			return false
		}
		c.portOut(port, v, o.size)
		o.advance(vcpu.RSI, 1)
		return true
	}
	la, ok := c.linear(vcpu.ES, o.reg(vcpu.RDI), o.size, true)
	if !ok || !c.probeWrite(la, o.size) { // before the port is read
		return false
	}
	if !c.store(la, c.portIn(port, o.size), o.size) {
		return false
	}
	o.advance(vcpu.RDI, 1)
	return true
}
