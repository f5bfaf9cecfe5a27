package soft

import (
	"encoding/binary"

	"github.com/gvmspawn/gvmspawn/vmm/soft/decode"
)

// XSAVE area (SDM vol. 1 §13.4, standard form): the legacy region, a header of
// 64 bytes, and the upper halves of YMM0 to YMM15.
const (
	xcr0X87 = 1 << 0
	xcr0SSE = 1 << 1
	xcr0AVX = 1 << 2

	xsaveHeader = 512
	xsaveYMM    = 576
	xsaveSize   = xsaveYMM + 256
)

// genXsave is XSAVE, XSAVEOPT and XRSTOR. All state counts as in use and
// modified.
func genXsave(c *CPU, in *decode.Inst) int {
	s := c.s
	if s.CR4&cr4OSXSAVE == 0 {
		return c.raise(vecUD)
	}
	if s.CR0&cr0TS != 0 {
		return c.raise(vecNM)
	}
	la, ok := c.mem(in, 1, in.Op != decode.XRSTOR)
	if !ok {
		return stFault
	}
	if la&63 != 0 {
		return c.raiseErr(vecGP, 0)
	}
	want := (s.R[0]&0xffffffff | s.R[2]<<32) & s.XCR0
	if in.Op == decode.XRSTOR {
		return c.xrstor(in, want)
	}
	return c.xsave(in, want)
}

// vectors is how many vector registers the mode has.
func (c *CPU) vectors() int {
	if c.mode != decode.Mode64 {
		return 8
	}
	return 16
}

func (c *CPU) xsave(in *decode.Inst, want uint64) int {
	s := c.s
	seg, ea := in.Mem.Seg, c.ea(in)
	var b [512]byte
	old, ok := c.loadSeg(seg, ea+xsaveHeader, 8)
	if !ok {
		return stFault
	}
	if want&xcr0X87 != 0 {
		copy(b[:fxXMM], s.FX[:fxXMM])
		if !c.writeBytes(seg, ea, b[:fxMXCSR], 8) || !c.writeBytes(seg, ea+32, b[32:fxXMM], 8) {
			return stFault
		}
	}
	if want&(xcr0SSE|xcr0AVX) != 0 && (!c.storeSeg(seg, ea+fxMXCSR, uint64(s.MXCSR), 4) || !c.storeSeg(seg, ea+fxMask, 0xffff, 4)) {
		return stFault
	}
	n := c.vectors()
	if want&xcr0SSE != 0 {
		for i := range n {
			copy(b[16*i:], s.xmmBytes(uint8(i), 16))
		}
		if !c.writeBytes(seg, ea+fxXMM, b[:16*n], 8) {
			return stFault
		}
	}
	if want&xcr0AVX != 0 {
		for i := range n {
			copy(b[16*i:16*i+16], s.xmmBytes(uint8(i), 32)[16:])
		}
		if !c.writeBytes(seg, ea+xsaveYMM, b[:16*n], 8) {
			return stFault
		}
	}
	if !c.storeSeg(seg, ea+xsaveHeader, old&^want|want, 8) {
		return stFault
	}
	return stNext
}

func (c *CPU) xrstor(in *decode.Inst, want uint64) int {
	s := c.s
	var b [xsaveSize]byte
	n := 512 + 64
	if want&xcr0AVX != 0 {
		n = xsaveSize
	}
	if !c.readBytes(in.Mem.Seg, c.ea(in), b[:n], 8) {
		return stFault
	}
	bv := binary.LittleEndian.Uint64(b[xsaveHeader:])
	mxcsr := binary.LittleEndian.Uint32(b[fxMXCSR:])
	bad := bv&^s.XCR0 != 0 || want&(xcr0SSE|xcr0AVX) != 0 && mxcsr>>16 != 0
	for _, x := range b[xsaveHeader+8 : xsaveHeader+24] {
		bad = bad || x != 0 // no compacted form
	}
	if bad {
		return c.raiseErr(vecGP, 0)
	}
	if want&xcr0X87 != 0 {
		c.resetFPU()
		if bv&xcr0X87 != 0 {
			copy(s.FX[:fxMXCSR], b[:fxMXCSR])
			copy(s.FX[32:fxXMM], b[32:fxXMM])
			c.setFCW(c.fcw() | 0x40)
			c.summarise()
		}
	}
	if want&(xcr0SSE|xcr0AVX) != 0 {
		s.MXCSR = mxcsr
	}
	for i := range c.vectors() {
		x := s.xmmBytes(uint8(i), 32)
		if want&xcr0SSE != 0 {
			c.restoreVector(x[:16], b[fxXMM+16*i:], bv&xcr0SSE != 0)
		}
		if want&xcr0AVX != 0 {
			c.restoreVector(x[16:], b[xsaveYMM+16*i:], bv&xcr0AVX != 0)
		}
	}
	return stNext
}

// restoreVector fills half a vector register from its saved or initial state.
func (c *CPU) restoreVector(dst, src []byte, saved bool) {
	if saved {
		copy(dst, src[:16])
	} else {
		clear(dst)
	}
}
