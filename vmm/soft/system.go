package soft

import (
	"golang.org/x/sys/unix"

	"github.com/gvmspawn/gvmspawn/vmm/soft/decode"
	"github.com/gvmspawn/gvmspawn/vmm/vcpu"
)

// ioAllowed checks IOPL and the I/O permission bitmap (SDM vol. 1 §19.5.2).
func (c *CPU) ioAllowed(port uint16, size uint8) bool {
	s := c.s
	if !c.protected() || s.Flags&flagVM == 0 && uint64(s.CPL) <= s.Flags>>12&3 {
		return true
	}
	tr := &s.Seg[segTR]
	if tr.Attr&attrP == 0 || tr.Limit < 103 {
		return c.faultErr(vecGP, 0)
	}
	base, ok := c.loadSys(tr.Base+102, 2)
	if !ok {
		return false
	}
	at := base + uint64(port>>3)
	if at+1 > uint64(tr.Limit) {
		return c.faultErr(vecGP, 0)
	}
	v, ok := c.loadSys(tr.Base+at, 2)
	if !ok {
		return false
	}
	if v>>(port&7)&(1<<size-1) != 0 {
		return c.faultErr(vecGP, 0)
	}
	return true
}

func (c *CPU) portIn(port uint16, size uint8) uint64 {
	c.ioBreak(port, size)
	v := zeroExtend(uint64(c.io().PortIn(port, int(size))), size)
	c.traceIO("in", uint64(port), v, size)
	return v
}

func (c *CPU) portOut(port uint16, v uint64, size uint8) {
	c.ioBreak(port, size)
	c.traceIO("out", uint64(port), v, size)
	c.io().PortOut(port, int(size), uint32(zeroExtend(v, size)))
}

func genIn(c *CPU, in *decode.Inst) int {
	port, _ := c.get(in, 1)
	size := in.Args[0].Size
	if !c.ioAllowed(uint16(port), size) {
		return stFault
	}
	c.setReg(in.Args[0], c.portIn(uint16(port), size))
	return stNext
}

func genOut(c *CPU, in *decode.Inst) int {
	port, _ := c.get(in, 0)
	size := in.Args[1].Size
	if !c.ioAllowed(uint16(port), size) {
		return stFault
	}
	c.portOut(uint16(port), c.reg(in.Args[1]), size)
	if c.smiDue() {
		c.s.RIP = c.next // an SMI that a chip raised comes before the next instruction
		return stExit
	}
	return stNext
}

// privileged raises #GP(0) outside ring 0.
func (c *CPU) privileged() bool {
	if c.s.CPL != 0 && c.protected() {
		return c.faultErr(vecGP, 0)
	}
	return true
}

// done ends the block after an instruction that changed the CPU's mode.
func (c *CPU) done() int {
	c.s.RIP = c.next
	return stExit
}

// genPause is PAUSE.
func genPause(c *CPU, in *decode.Inst) int {
	c.pause()
	return stNext
}

// pausesPerYield is how many PAUSEs pass before the host's CPU is offered to
// other threads.
const pausesPerYield = 16

// pause is a turn of a guest's waiting loop. What it waits for is most likely
// done by another CPU's thread, which may not be running: the host may have
// fewer cores than the guest.
func (c *CPU) pause() {
	if c.pauses++; c.pauses%pausesPerYield == 0 && len(c.vm.cpus) > 1 {
		_, _, _ = unix.RawSyscall(unix.SYS_SCHED_YIELD, 0, 0, 0)
	}
}

func genHlt(c *CPU, in *decode.Inst) int {
	if !c.privileged() {
		return stFault
	}
	c.halted = true
	return c.done()
}

func genIF(c *CPU, in *decode.Inst) int {
	s := c.s
	if c.protected() && uint64(s.CPL) > s.Flags>>12&3 {
		return c.raiseErr(vecGP, 0)
	}
	if in.Op == decode.CLI {
		s.Flags &^= flagIF
		return stNext
	}
	if s.Flags&flagIF != 0 {
		return stNext
	}
	s.Flags |= flagIF
	c.shadow = true
	return c.done()
}

func (c *CPU) movFromSystem(in *decode.Inst) int {
	s := c.s
	if !c.privileged() {
		return stFault
	}
	var v uint64
	n := in.Args[1].Reg
	if in.Args[1].Kind == decode.KDR {
		var ok bool
		if v, ok = c.readDR(n); !ok {
			return stFault
		}
	} else {
		switch n {
		case 0:
			v = s.CR0
		case 2:
			v = s.CR2
		case 3:
			v = s.CR3
		case 4:
			v = s.CR4
		case 8:
			v = c.readCR8()
		default:
			return c.raise(vecUD)
		}
	}
	c.setReg(in.Args[0], v)
	return stNext
}

func (c *CPU) movToSystem(in *decode.Inst) int {
	if !c.privileged() {
		return stFault
	}
	v := c.reg(in.Args[1])
	n := in.Args[0].Reg
	ok := true
	if in.Args[0].Kind == decode.KDR {
		ok = c.writeDR(n, v)
	} else {
		switch n {
		case 0:
			ok = c.writeCR0(v)
		case 2:
			c.s.CR2 = v
		case 3:
			ok = c.writeCR3(v)
		case 4:
			ok = c.writeCR4(v)
		case 8:
			ok = c.writeCR8(v)
		default:
			ok = c.fault(vecUD)
		}
	}
	if !ok {
		return stFault
	}
	return c.done()
}

const (
	cr0Valid = cr0PE | cr0MP | cr0EM | cr0TS | cr0ET | cr0NE | cr0WP | cr0AM | cr0NW | cr0CD | cr0PG
	cr4Basic = cr4VME | cr4PVI | cr4TSD | cr4DE | cr4PSE | cr4PAE | cr4MCE | cr4PGE | cr4PCE | cr4OSFXSR | cr4OSXMMEXCPT
)

// writeCR0 is MOV to CR0 (SDM vol. 2B, MOV—Move to/from Control Registers).
func (c *CPU) writeCR0(v uint64) bool {
	s := c.s
	if v>>32 != 0 || v&(cr0PG|cr0PE) == cr0PG || v&(cr0NW|cr0CD) == cr0NW {
		return c.faultErr(vecGP, 0)
	}
	v = v&cr0Valid | cr0ET
	old := s.CR0
	if v&cr0PG != 0 && old&cr0PG == 0 && s.EFER&eferLME != 0 {
		if s.CR4&cr4PAE == 0 || s.Seg[vcpu.CS].Attr&attrL != 0 {
			return c.faultErr(vecGP, 0)
		}
		s.EFER |= eferLMA
	}
	if v&cr0PG == 0 && old&cr0PG != 0 {
		if c.long64() || s.CR4&cr4PCIDE != 0 {
			return c.faultErr(vecGP, 0)
		}
		s.EFER &^= eferLMA
	}
	s.CR0 = v
	if (old^v)&(cr0PG|cr0PE|cr0WP) != 0 {
		c.flushTLB()
	}
	c.setMode()
	return true
}

func (c *CPU) writeCR3(v uint64) bool {
	s := c.s
	keep := false
	if s.CR4&cr4PCIDE != 0 {
		keep = v>>63 != 0
		v &^= 1 << 63
	}
	if c.long() && v&^(physMask) != 0 {
		return c.faultErr(vecGP, 0)
	}
	s.CR3 = v
	if c.vm.tracing&TraceMMU != 0 {
		c.vm.trace("cpu %d cr3 %#x keep %v", c.id, v, keep)
	}
	c.switchCR3(keep)
	return true
}

func (c *CPU) switchCR3(keep bool) {
	pcid := uint64(0)
	if c.s.CR4&cr4PCIDE != 0 {
		pcid = c.s.CR3 & 0xfff
	}
	c.useSlot(pcid, keep)
}

func (c *CPU) writeCR4(v uint64) bool {
	s := c.s
	old := s.CR4
	if v&^c.vm.features.cr4 != 0 {
		return c.faultErr(vecGP, 0)
	}
	if c.long() && v&cr4PAE == 0 || v&cr4PCIDE != 0 && old&cr4PCIDE == 0 && (!c.long() || s.CR3&0xfff != 0) {
		return c.faultErr(vecGP, 0)
	}
	s.CR4 = v
	if (old^v)&(cr4PAE|cr4PSE|cr4PGE|cr4PCIDE|cr4SMEP|cr4SMAP) != 0 {
		c.flushTLB()
	}
	c.setMode()
	return true
}

func genClts(c *CPU, in *decode.Inst) int {
	if !c.privileged() {
		return stFault
	}
	c.s.CR0 &^= cr0TS
	return c.done()
}

// genSmsw is SMSW and LMSW.
func genSmsw(c *CPU, in *decode.Inst) int {
	s := c.s
	if in.Op == decode.SMSW {
		if !c.umip() || !c.set(in, 0, s.CR0) {
			return stFault
		}
		return stNext
	}
	if !c.privileged() {
		return stFault
	}
	v, ok := c.get(in, 0)
	if !ok || !c.writeCR0(s.CR0&^0xe|s.CR0&1|v&0xf) {
		return stFault
	}
	return c.done()
}

// umip raises #GP for SGDT and its kin outside ring 0 under CR4.UMIP.
func (c *CPU) umip() bool {
	if c.s.CR4&cr4UMIP != 0 && c.s.CPL != 0 {
		return c.faultErr(vecGP, 0)
	}
	return true
}

// genTable is SGDT, SIDT, LGDT and LIDT.
func genTable(c *CPU, in *decode.Inst) int {
	s := c.s
	t := &s.GDT
	if in.Op == decode.SIDT || in.Op == decode.LIDT {
		t = &s.IDT
	}
	n := uint8(4)
	if c.long64() {
		n = 8
	}
	ea := c.ea(in)
	if in.Op == decode.SGDT || in.Op == decode.SIDT {
		if !c.umip() {
			return stFault
		}
		if c.aligning { // to 4 bytes
			if la, _ := c.linear(in.Mem.Seg, ea, n+2, true); la&3 != 0 {
				return c.raiseErr(vecAC, 0)
			}
			c.aligning = false
			defer c.setTLBMode()
		}
		if !c.storeSeg(in.Mem.Seg, ea, uint64(t.Limit), 2) || !c.storeSeg(in.Mem.Seg, ea+2, t.Base, n) {
			return stFault
		}
		return stNext
	}
	if !c.privileged() {
		return stFault
	}
	limit, ok := c.loadSeg(in.Mem.Seg, ea, 2)
	if !ok {
		return stFault
	}
	base, ok := c.loadSeg(in.Mem.Seg, ea+2, n)
	if !ok {
		return stFault
	}
	if c.long64() && !canonical(base) {
		return c.raiseErr(vecGP, 0)
	}
	if in.OpSize == 2 {
		base &= 0xffffff
	}
	t.Base, t.Limit = base, uint16(limit)
	return stNext
}

// genSldt is SLDT and STR.
func genSldt(c *CPU, in *decode.Inst) int {
	if !c.protected() {
		return c.raise(vecUD)
	}
	seg := segLDTR
	if in.Op == decode.STR {
		seg = segTR
	}
	if !c.umip() || !c.set(in, 0, uint64(c.s.Seg[seg].Selector)) {
		return stFault
	}
	return stNext
}

// genLldt is LLDT and LTR (SDM vol. 2A).
func genLldt(c *CPU, in *decode.Inst) int {
	s := c.s
	if !c.protected() {
		return c.raise(vecUD)
	}
	if !c.privileged() {
		return stFault
	}
	v, ok := c.get(in, 0)
	if !ok {
		return stFault
	}
	sel := uint16(v)
	if sel&^3 == 0 {
		if in.Op == decode.LTR {
			return c.raiseErr(vecGP, 0)
		}
		s.Seg[segLDTR] = vcpu.Segment{Selector: sel, Attr: attrUnusable}
		return stNext
	}
	if sel&4 != 0 {
		return c.raiseErr(vecGP, uint32(sel&^3))
	}
	d, ok := c.descriptor16(sel, vecGP)
	if !ok {
		return stFault
	}
	a := d.attr()
	typ := a & 0x1f
	seg := segLDTR
	good := typ == 2
	if in.Op == decode.LTR {
		seg = segTR
		good = typ == 9 || typ == 1 && !c.long()
	}
	if !good {
		return c.raiseErr(vecGP, uint32(sel&^3))
	}
	if a&attrP == 0 {
		return c.raiseErr(vecNP, uint32(sel&^3))
	}
	if in.Op == decode.LTR { // mark busy
		if !c.storeSys(d.la+5, d.lo>>40|2, 1) {
			return stFault
		}
		d.lo |= 2 << 40
	}
	s.Seg[seg] = d.segment(sel)
	s.Seg[seg].Base |= d.hi << 32
	return stNext
}

// genVerr is VERR, VERW, LAR and LSL: they report by ZF instead of faulting.
func genVerr(c *CPU, in *decode.Inst) int {
	s := c.s
	if !c.protected() {
		return c.raise(vecUD)
	}
	i := 0
	if in.Op == decode.LAR || in.Op == decode.LSL {
		i = 1
	}
	v, ok := c.get(in, i)
	if !ok {
		return stFault
	}
	sel := uint16(v)
	d, ok := c.descriptor16(sel, vecGP)
	if !ok && c.exc.vec == vecPF {
		return stFault
	}
	if sel&^3 == 0 || !ok {
		s.setZF(false)
		return stNext
	}
	a := d.attr()
	conforming := a&(attrS|attrCode|attrDC) == attrS|attrCode|attrDC
	good := conforming || s.CPL <= dpl(a) && uint32(sel&3) <= dpl(a)
	typ := a & 0x1f
	switch in.Op {
	case decode.VERR:
		good = good && a&attrS != 0 && (a&attrCode == 0 || a&attrRW != 0)
	case decode.VERW:
		good = good && a&(attrS|attrCode|attrRW) == attrS|attrRW
	case decode.LAR:
		good = good && (typ >= 16 || typ == 2 || typ == 9 || typ == 11 || typ == 12 || !c.long() && (typ >= 1 && typ <= 5))
		if good {
			c.setReg(in.Args[0], d.lo>>32&0xffff00)
		}
	case decode.LSL:
		good = good && (typ >= 16 || typ == 2 || typ == 9 || typ == 11 || !c.long() && (typ == 1 || typ == 3))
		if good {
			c.setReg(in.Args[0], uint64(d.limit()))
		}
	}
	s.setZF(good)
	return stNext
}

func genArpl(c *CPU, in *decode.Inst) int {
	if !c.protected() {
		return c.raise(vecUD)
	}
	rpl := c.reg(in.Args[1]) & 3
	var less bool
	st := c.modify(in, false, func(a uint64) uint64 {
		if less = a&3 < rpl; less {
			return a&^3 | rpl
		}
		return a
	})
	if st == stNext {
		c.s.setZF(less)
	}
	return st
}

func genInvlpg(c *CPU, in *decode.Inst) int {
	if !c.privileged() {
		return stFault
	}
	la, _ := c.linear(in.Mem.Seg, c.ea(in), 1, false)
	c.flushPage(la)
	return c.done()
}

// genInvpcid is INVPCID (SDM vol. 2A).
func genInvpcid(c *CPU, in *decode.Inst) int {
	if !c.vm.features.invpcid {
		return c.raise(vecUD)
	}
	if !c.privileged() {
		return stFault
	}
	ea := c.ea(in)
	pcid, ok := c.loadSeg(in.Mem.Seg, ea, 8)
	if !ok {
		return stFault
	}
	la, ok := c.loadSeg(in.Mem.Seg, ea+8, 8)
	if !ok {
		return stFault
	}
	typ := c.reg(in.Args[0])
	if typ > 3 || typ < 2 && pcid>>12 != 0 || typ == 0 && !canonical(la) {
		return c.raiseErr(vecGP, 0)
	}
	switch typ {
	case 0:
		c.flushPage(la)
	case 1:
		c.flushPCID(pcid)
	case 2:
		c.flushTLB()
	case 3:
		c.flushLocal()
	}
	return c.done()
}

// genCacheOp is INVD and WBINVD: memory is coherent here.
func genCacheOp(c *CPU, in *decode.Inst) int {
	if !c.privileged() {
		return stFault
	}
	return stNext
}

// genFlushLine is CLFLUSH, CLFLUSHOPT and CLWB, which fault as the load of a
// byte does (SDM vol. 2A, CLFLUSH), but read nothing.
func genFlushLine(c *CPU, in *decode.Inst) int {
	la, ok := c.linear(in.Mem.Seg, c.ea(in), 1, false)
	if !ok || !c.checkLinear(la, 1) {
		return stFault
	}
	if la^c.s.entry(la).Read >= 4096 {
		if _, _, ok := c.translate(la, accRead, c.tlbMode); !ok {
			return stFault
		}
	}
	return stNext
}

func genCLAC(c *CPU, in *decode.Inst) int {
	if c.vm.features.cr4&cr4SMAP == 0 || c.s.CPL != 0 {
		return c.raise(vecUD)
	}
	if in.Op == decode.CLAC {
		c.s.Flags &^= flagAC
	} else {
		c.s.Flags |= flagAC
	}
	c.setTLBMode()
	return stNext
}

func genSwapgs(c *CPU, in *decode.Inst) int {
	if c.mode != decode.Mode64 {
		return c.raise(vecUD)
	}
	if !c.privileged() {
		return stFault
	}
	s := c.s
	s.Seg[vcpu.GS].Base, c.kernelGS = c.kernelGS, s.Seg[vcpu.GS].Base
	s.R[regSeg+vcpu.GS] = s.Seg[vcpu.GS].Base
	return stNext
}

// genFSGSBase is RDFSBASE, RDGSBASE, WRFSBASE and WRGSBASE.
func genFSGSBase(c *CPU, in *decode.Inst) int {
	s := c.s
	if s.CR4&cr4FSGSBASE == 0 || c.mode != decode.Mode64 {
		return c.raise(vecUD)
	}
	seg := vcpu.FS
	if in.Op == decode.RDGSBASE || in.Op == decode.WRGSBASE {
		seg = vcpu.GS
	}
	if in.Op == decode.RDFSBASE || in.Op == decode.RDGSBASE {
		c.setReg(in.Args[0], s.Seg[seg].Base)
		return stNext
	}
	v := c.reg(in.Args[0])
	if !canonical(v) {
		return c.raiseErr(vecGP, 0)
	}
	s.Seg[seg].Base, s.R[regSeg+seg] = v, v
	return stNext
}

// genSyscall is SYSCALL (SDM vol. 2B).
func genSyscall(c *CPU, in *decode.Inst) int {
	s := c.s
	if c.mode != decode.Mode64 || s.EFER&eferSCE == 0 {
		return c.raise(vecUD)
	}
	s.R[vcpu.RCX] = c.next
	s.R[vcpu.R11] = s.rflags() &^ flagRF
	s.RIP = c.lstar
	c.setFlags(s.rflags()&^(c.fmask|flagRF), ^uint64(0)&^flagVM)
	c.flatSegments(uint16(c.star>>32)&^3, 0, true)
	return stExit
}

// flatSegments loads the flat CS and SS of the fast system calls.
func (c *CPU) flatSegments(cs uint16, cpl uint32, code64 bool) {
	s := c.s
	a := uint32(attrS | attrP | attrG | attrCode | attrRW | attrAccessed | cpl<<5)
	if code64 {
		a |= attrL
	} else {
		a |= attrDB
	}
	s.Seg[vcpu.CS] = vcpu.Segment{Selector: cs | uint16(cpl), Limit: 0xffffffff, Attr: a}
	s.Seg[vcpu.SS] = vcpu.Segment{Selector: (cs + 8) | uint16(cpl), Limit: 0xffffffff,
		Attr: attrS | attrP | attrG | attrDB | attrRW | attrAccessed | cpl<<5}
	s.CPL = cpl
	c.setMode()
}

// genSysret is SYSRET.
func genSysret(c *CPU, in *decode.Inst) int {
	s := c.s
	if c.mode != decode.Mode64 || s.EFER&eferSCE == 0 {
		return c.raise(vecUD)
	}
	if !c.privileged() {
		return stFault
	}
	ip := s.R[vcpu.RCX]
	if in.OpSize == 8 && !canonical(ip) {
		return c.raiseErr(vecGP, 0)
	}
	base := uint16(c.star >> 48)
	s.Flags = s.R[vcpu.R11] & (0x3c7fd7 &^ flagRF &^ flagVM) &^ flagsArith
	s.setArith(s.R[vcpu.R11])
	if in.OpSize == 8 {
		c.flatSegments(base+16, 3, true)
		s.Seg[vcpu.SS].Selector = base + 8 | 3
	} else {
		ip &= 0xffffffff
		c.flatSegments(base, 3, false)
	}
	s.RIP = ip
	// Unlike IRET, SYSRET that sets TF traps at once, as if SYSCALL had been done
	// just now (Linux arch/x86/entry, do_syscall_64).
	c.trapDue = s.Flags&flagTF != 0
	return stExit
}

// genSysenter is SYSENTER and SYSEXIT.
func genSysenter(c *CPU, in *decode.Inst) int {
	s := c.s
	sel := uint16(c.sysenterCS)
	if !c.protected() || sel&^3 == 0 {
		return c.raiseErr(vecGP, 0)
	}
	if in.Op == decode.SYSENTER {
		s.Flags &^= flagVM | flagIF
		s.R[vcpu.RSP], s.RIP = c.sysenterESP, c.sysenterEIP
		if !c.long() {
			s.R[vcpu.RSP] &= 0xffffffff
			s.RIP &= 0xffffffff
		}
		c.flatSegments(sel&^3, 0, c.long())
		return stExit
	}
	if s.CPL != 0 {
		return c.raiseErr(vecGP, 0)
	}
	sp, ip := s.R[vcpu.RCX], s.R[vcpu.RDX]
	if in.OpSize == 8 {
		if !canonical(sp) || !canonical(ip) {
			return c.raiseErr(vecGP, 0)
		}
		c.flatSegments(sel&^3+32, 3, true)
	} else {
		sp, ip = sp&0xffffffff, ip&0xffffffff
		c.flatSegments(sel&^3+16, 3, false)
	}
	s.R[vcpu.RSP], s.RIP = sp, ip
	return stExit
}

func genRdtsc(c *CPU, in *decode.Inst) int {
	s := c.s
	if s.CR4&cr4TSD != 0 && s.CPL != 0 {
		return c.raiseErr(vecGP, 0)
	}
	t := c.tsc()
	s.R[vcpu.RAX], s.R[vcpu.RDX] = t&0xffffffff, t>>32
	if in.Op == decode.RDTSCP {
		s.R[vcpu.RCX] = c.tscAux & 0xffffffff
	}
	return stNext
}

func genRdpid(c *CPU, in *decode.Inst) int {
	if !c.vm.features.rdpid {
		return c.raise(vecUD)
	}
	c.setReg(decode.Arg{Kind: decode.KReg, Reg: in.Args[0].Reg, Size: 8}, c.tscAux)
	return stNext
}

func genRdpmc(c *CPU, in *decode.Inst) int {
	return c.raiseErr(vecGP, 0) // no counters
}

// genRandom is RDRAND and RDSEED.
func genRandom(c *CPU, in *decode.Inst) int {
	if !c.vm.features.rdrand {
		return c.raise(vecUD)
	}
	c.setReg(in.Args[0], c.vm.random())
	c.s.setArith(flagCF)
	return stNext
}

func genCpuid(c *CPU, in *decode.Inst) int {
	s := c.s
	r := c.cpuid(uint32(s.R[vcpu.RAX]), uint32(s.R[vcpu.RCX]))
	s.R[vcpu.RAX], s.R[vcpu.RBX], s.R[vcpu.RCX], s.R[vcpu.RDX] = uint64(r[0]), uint64(r[1]), uint64(r[2]), uint64(r[3])
	return c.done() // serialising
}

func genMSR(c *CPU, in *decode.Inst) int {
	if !c.privileged() {
		return stFault
	}
	s := c.s
	n := uint32(s.R[vcpu.RCX])
	if in.Op == decode.RDMSR {
		v, ok := c.readMSR(n)
		if !ok {
			return c.raiseErr(vecGP, 0)
		}
		s.R[vcpu.RAX], s.R[vcpu.RDX] = v&0xffffffff, v>>32
		return stNext
	}
	if !c.writeMSR(n, s.R[vcpu.RAX]&0xffffffff|s.R[vcpu.RDX]<<32) {
		return c.raiseErr(vecGP, 0)
	}
	return c.done()
}

// genMonitor is MONITOR and MWAIT, which CPUID does not offer.
func genMonitor(c *CPU, in *decode.Inst) int { return c.raise(vecUD) }

// genVmcall is VMCALL and VMMCALL, the KVM hypercall: none is offered but the
// call must not fault (KVM returns -ENOSYS).
func genVmcall(c *CPU, in *decode.Inst) int {
	if s := c.s; s.CPL != 0 {
		s.R[0] = ^uint64(0) // -EPERM
	} else {
		s.R[0] = ^uint64(999) // -1000: KVM_ENOSYS
	}
	return stNext
}

func genXgetbv(c *CPU, in *decode.Inst) int {
	s := c.s
	if s.CR4&cr4OSXSAVE == 0 {
		return c.raise(vecUD)
	}
	if uint32(s.R[vcpu.RCX]) != 0 {
		return c.raiseErr(vecGP, 0)
	}
	if in.Op == decode.XGETBV {
		s.R[vcpu.RAX], s.R[vcpu.RDX] = s.XCR0&0xffffffff, s.XCR0>>32
		return stNext
	}
	if !c.privileged() {
		return stFault
	}
	v := s.R[vcpu.RAX]&0xffffffff | s.R[vcpu.RDX]<<32
	if v&1 == 0 || v&^c.vm.features.xcr0 != 0 || v&6 == 4 {
		return c.raiseErr(vecGP, 0)
	}
	s.XCR0 = v
	return c.done()
}
