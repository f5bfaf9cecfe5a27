package soft

import (
	"github.com/gvmspawn/gvmspawn/vmm/soft/decode"
	"github.com/gvmspawn/gvmspawn/vmm/vcpu"
)

// target is the address of a relative branch.
func (c *CPU) target(in *decode.Inst) uint64 { return (c.next + in.Imm) & ipMask(in.OpSize) }

// checkTarget checks a branch target against the code segment.
func (c *CPU) checkTarget(ip uint64) bool {
	if c.mode == decode.Mode64 {
		if !canonical(ip) {
			return c.faultErr(vecGP, 0)
		}
	} else if ip > uint64(c.s.Seg[vcpu.CS].Limit) {
		return c.faultErr(vecGP, 0)
	}
	return true
}

func (c *CPU) branch(in *decode.Inst, taken bool) int {
	if !taken {
		c.s.RIP = c.next
		return stFall
	}
	ip := c.target(in)
	if !c.checkTarget(ip) {
		return stFault
	}
	c.s.RIP = ip
	return stTaken
}

func genJcc(c *CPU, in *decode.Inst) int { return c.branch(in, c.s.cond(in.Cond())) }
func genJmp(c *CPU, in *decode.Inst) int { return c.branch(in, true) }

// genLoop is LOOP, LOOPE, LOOPNE and JCXZ, whose counter has the address size.
func genLoop(c *CPU, in *decode.Inst) int {
	s := c.s
	a := decode.Arg{Kind: decode.KReg, Reg: vcpu.RCX, Size: in.AddrSize}
	n := c.reg(a)
	if in.Op == decode.JCXZ {
		return c.branch(in, n == 0)
	}
	n = zeroExtend(n-1, in.AddrSize)
	taken := n != 0
	switch in.Op {
	case decode.LOOPE:
		taken = taken && s.zf()
	case decode.LOOPNE:
		taken = taken && !s.zf()
	}
	st := c.branch(in, taken)
	if st != stFault {
		c.setReg(a, n)
	}
	return st
}

func genCall(c *CPU, in *decode.Inst) int {
	ip := c.target(in)
	if !c.checkTarget(ip) || !c.push(c.next, in.OpSize) {
		return stFault
	}
	c.s.RIP = ip
	return stTaken
}

// genIndirect is CALL and JMP through a register or memory.
func genIndirect(c *CPU, in *decode.Inst) int {
	ip, ok := c.get(in, 0)
	if !ok || !c.checkTarget(ip) {
		return stFault
	}
	if in.Op == decode.CALLR && !c.push(c.next, in.OpSize) {
		return stFault
	}
	c.s.RIP = ip
	return stIndirect
}

func genRet(c *CPU, in *decode.Inst) int {
	ip, ok := c.top(0, in.OpSize)
	if !ok || !c.checkTarget(ip) {
		return stFault
	}
	n := uint64(in.OpSize)
	if in.Args[0].Kind == decode.KImm {
		n += in.Imm
	}
	c.drop(n)
	c.s.RIP = ip
	return stIndirect
}

// farPointer reads a far pointer operand: selector and offset.
func (c *CPU) farPointer(in *decode.Inst) (sel uint16, off uint64, ok bool) {
	if in.Args[0].Kind == decode.KFar {
		return uint16(in.Imm2), in.Imm, true
	}
	return c.farMem(in)
}

func (c *CPU) farMem(in *decode.Inst) (sel uint16, off uint64, ok bool) {
	ea := c.ea(in)
	if off, ok = c.loadSeg(in.Mem.Seg, ea, in.OpSize); !ok {
		return 0, 0, false
	}
	v, ok := c.loadSeg(in.Mem.Seg, ea+uint64(in.OpSize), 2)
	return uint16(v), off, ok
}

func genFar(c *CPU, in *decode.Inst) int {
	sel, off, ok := c.farPointer(in)
	if !ok {
		return stFault
	}
	if in.Op == decode.CALLF {
		return c.farCall(sel, off, in.OpSize, c.next)
	}
	return c.farJump(sel, off, in.OpSize)
}

func genRetf(c *CPU, in *decode.Inst) int {
	var extra uint64
	if in.Args[0].Kind == decode.KImm {
		extra = in.Imm
	}
	return c.farReturn(in.OpSize, extra)
}

// genLoadFar is LES, LDS, LSS, LFS and LGS.
func genLoadFar(c *CPU, in *decode.Inst) int {
	in.Args[1].Size = in.OpSize
	sel, off, ok := c.farMem(in)
	if !ok {
		return stFault
	}
	seg := map[decode.Op]uint8{decode.LES: vcpu.ES, decode.LDS: vcpu.DS, decode.LSS: vcpu.SS, decode.LFS: vcpu.FS, decode.LGS: vcpu.GS}[in.Op]
	if !c.loadSegment(seg, sel) {
		return stFault
	}
	c.setReg(in.Args[0], off)
	return c.afterSegment(seg)
}

// softInt is INT n, INT3, INTO and INT1: the return address is the next instruction.
func (c *CPU) softInt(vec uint8, soft bool) int {
	s := c.s
	old := s.RIP
	s.RIP = c.next
	e := exception{vec: vec, soft: soft}
	if !c.interrupt(e) {
		s.RIP = old
		return stFault
	}
	return stExit
}

func genInt(c *CPU, in *decode.Inst) int {
	switch in.Op {
	case decode.INT3:
		return c.softInt(vecBP, true)
	case decode.INT1:
		return c.softInt(vecDB, false)
	case decode.INTO:
		if c.s.of() == 0 {
			return stNext
		}
		return c.softInt(vecOF, true)
	}
	return c.softInt(uint8(in.Imm), true)
}

func genIret(c *CPU, in *decode.Inst) int { return c.iret(in.OpSize) }
func genUD(c *CPU, in *decode.Inst) int   { return c.raise(vecUD) }
