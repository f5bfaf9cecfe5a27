package soft

import (
	"golang.org/x/sys/cpu"

	"github.com/gvmspawn/gvmspawn/vmm/soft/decode"
	"github.com/gvmspawn/gvmspawn/vmm/vcpu"
)

// VEX instructions run on the host: each form that the guest uses gets a thunk,
// the same instruction on fixed registers and a RET. ModRM.reg is register 1
// (RAX), VEX.vvvv register 2 (RCX), ModRM.rm register 3 (RBX) or memory at RDI,
// an immediate's register 4.

// vexArgs is the operand block of callVex.
type vexArgs struct {
	reg, vvvv, rm, is4 [4]uint64
	mem                [4]uint64
	rax, rcx, rbx, rdx uint64
	flags              uint64
	mxcsr, mxcsrUp     uint32
}

//go:noescape
func callVex(a *vexArgs, entry uint64)

const (
	thunkSize   = 16
	thunkMemory = 1 << 18
	// thunkRoom is how many thunks one block can ask for.
	thunkRoom = maxOps + 16
)

// thunks is a CPU's memory of thunks.
type thunks struct {
	code codeMemory
	next int
	at   map[uint64]uint64
}

// HostHasV3 reports whether the host can run x86-64-v3.
func HostHasV3() bool {
	x := &cpu.X86
	return x.HasAVX2 && x.HasFMA && x.HasF16C && x.HasBMI1 && x.HasBMI2 && x.HasLZCNT && x.HasMOVBE && x.HasOSXSAVE
}

// hostCPUID executes CPUID.
func hostCPUID(leaf, sub uint32) (eax, ebx, ecx, edx uint32)

// hostHasSHA reports whether the host has the SHA extensions (SDM vol. 2A, CPUID
// leaf 7).
func hostHasSHA() bool {
	if last, _, _, _ := hostCPUID(0, 0); last < 7 {
		return false
	}
	_, ebx, _, _ := hostCPUID(7, 0)
	return ebx>>29&1 != 0
}

// full reports whether there may be too few thunks for another block.
func (t *thunks) full() bool { return t.next+thunkRoom*thunkSize > len(t.code.rw) && t.at != nil }

func (t *thunks) reset() {
	if t.at != nil {
		t.next = 0
		clear(t.at)
	}
}

// thunk returns the address of the thunk of a VEX instruction, 0 if there is
// no executable memory.
func (c *CPU) thunk(in *decode.Inst) uint64 {
	t := &c.thunks
	if t.at == nil {
		code, err := newCodeMemory(thunkMemory)
		if err != nil {
			return 0
		}
		t.code, t.at = code, map[uint64]uint64{}
	}
	f := in.Form
	mod := in.ModRM >> 6 / 3 // 1: a register
	key := uint64(in.Map) | uint64(in.Opcode)<<8 | uint64(in.Prefix)<<16 | uint64(in.REX&8)<<24 | uint64(in.VexL)<<32 | uint64(mod)<<33
	if f.Imm {
		key |= in.Imm << 40
	}
	if f.Reg == 0 {
		key |= uint64(in.RegField()) << 48
	}
	if at, ok := t.at[key]; ok {
		return at
	}
	if t.next+thunkSize > len(t.code.rw) {
		return 0
	}
	b := append(t.code.rw[t.next:t.next:t.next+thunkSize], vexBytes(in, mod)...)
	_ = append(b, 0xc3)
	at := t.code.rx + uint64(t.next)
	t.next += thunkSize
	t.at[key] = at
	return at
}

// vexBytes is the instruction on the thunk's registers.
func vexBytes(in *decode.Inst, mod uint8) []byte {
	f := in.Form
	vvvv := uint8(0)
	switch f.Vvvv {
	case 'v':
		vvvv = 2
	case 'g':
		vvvv = vcpu.RCX
	}
	reg := in.RegField()
	switch f.Reg {
	case 'v':
		reg = 1
	case 'g':
		reg = vcpu.RAX
	}
	modrm := reg<<3 | 7 // [rdi]
	if mod != 0 {
		modrm = 0xc0 | reg<<3 | 3
	}
	b := []byte{0xc4, 0xe0 | in.Map, in.REX&8<<4 | (^vvvv&15)<<3 | in.VexL<<2 | vexPP(in), in.Opcode, modrm}
	switch {
	case f.Is4:
		b = append(b, 4<<4|byte(in.Imm)&15)
	case f.Imm:
		b = append(b, byte(in.Imm))
	}
	return b
}

// vexPP is the prefix in its form within VEX.
func vexPP(in *decode.Inst) uint8 {
	switch in.Prefix {
	case 0x66:
		return 1
	case 0xf3:
		return 2
	case 0xf2:
		return 3
	}
	return 0
}

// avxUsable raises what a VEX-encoded vector instruction raises while AVX is
// not enabled (SDM vol. 1 §14.3).
func (c *CPU) avxUsable() bool {
	s := c.s
	if s.CR4&cr4OSXSAVE == 0 || s.XCR0&6 != 6 || !c.protected() || s.Flags&flagVM != 0 {
		return c.fault(vecUD)
	}
	if s.CR0&cr0TS != 0 {
		return c.fault(vecNM)
	}
	return true
}

// genVex is every VEX instruction without a function of its own.
func genVex(c *CPU, in *decode.Inst) int {
	f, s, a := in.Form, c.s, c.s.vexArgs()
	if f.Reg == 'v' || f.Rm == 'v' || f.Vvvv == 'v' {
		if !c.avxUsable() {
			return stFault
		}
	} else if !c.protected() || s.Flags&flagVM != 0 {
		return c.raise(vecUD)
	}
	memory := in.MemMod()
	n := int(in.Args[0].Size)
	if memory && f.Aligned {
		if la, ok := c.mem(in, 1, false); ok && la&uint64(n-1) != 0 {
			return c.raiseErr(vecGP, 0)
		}
	}
	toMem := memory && (f.Dst == 'W' || f.Dst == 'E')
	if memory && !toMem {
		a.mem = [4]uint64{}
		if !c.loadWide(in, &a.mem, n) {
			return stFault
		}
	}
	a.rax, a.rcx, a.rbx, a.rdx = s.R[in.Reg()], s.R[in.Vvvv&15], s.R[in.RM()], s.R[vcpu.RDX]
	a.reg, a.vvvv, a.rm = s.XMM[in.Reg()], s.XMM[in.Vvvv&15], s.XMM[in.RM()]
	if f.Is4 {
		r := in.Imm >> 4 & 15
		if in.Mode != decode.Mode64 {
			r &= 7
		}
		a.is4 = s.XMM[r]
	}
	a.flags = s.arith() | 2
	a.mxcsr = s.MXCSR&^0x3f | 0x1f80
	callVex(a, in.Thunk)
	if up := a.mxcsrUp & 0x3f; up != 0 {
		s.MXCSR |= up
		if up&^(s.MXCSR>>7) != 0 {
			if s.CR4&cr4OSXMMEXCPT == 0 {
				return c.raise(vecUD)
			}
			return c.raise(vecXM)
		}
	}
	if toMem {
		if !c.storeWide(in, &a.mem, n) {
			return stFault
		}
		return stNext
	}
	c.vexResult(in)
	return stNext
}

// vexResult takes what callVex left in registers.
func (c *CPU) vexResult(in *decode.Inst) {
	f, s, a := in.Form, c.s, c.s.vexArgs()
	if f.Flags {
		s.setArith(a.flags)
	}
	size := uint8(4) << (in.REX >> 3 & 1)
	switch {
	case f.Compare:
	case f.Dst == 'V':
		s.XMM[in.Reg()] = a.reg
	case f.Dst == 'H':
		s.XMM[in.Vvvv&15] = a.vvvv
	case f.Dst == 'U' || f.Dst == 'W':
		s.XMM[in.RM()] = a.rm
	case f.Dst == 'B':
		s.R[in.Vvvv&15] = zeroExtend(a.rcx, size)
	case f.Dst == 'E':
		s.R[in.RM()] = a.rbx
	case f.Dst == 'G':
		if in.Map == 2 && in.Opcode == 0xf6 { // MULX: the high half wins
			s.R[in.Vvvv&15] = zeroExtend(a.rcx, size)
		}
		s.R[in.Reg()] = a.rax // the host has extended it
	}
}

// loadWide reads n bytes of the memory operand.
func (c *CPU) loadWide(in *decode.Inst, v *[4]uint64, n int) bool {
	ea := c.ea(in)
	for i := 0; i < n; i += 8 {
		k := uint8(min(n-i, 8))
		x, ok := c.loadSeg(in.Mem.Seg, ea+uint64(i), k)
		if !ok {
			return false
		}
		v[i/8] = x
	}
	return true
}

// storeWide writes n bytes to the memory operand, or nothing.
func (c *CPU) storeWide(in *decode.Inst, v *[4]uint64, n int) bool {
	ea := c.ea(in)
	if n > 8 {
		la, ok := c.linear(in.Mem.Seg, ea, uint8(n), true)
		if !ok || !c.probeWrite(la, uint8(n)) {
			return false
		}
	}
	for i := 0; i < n; i += 8 {
		if !c.storeSeg(in.Mem.Seg, ea+uint64(i), v[i/8], uint8(min(n-i, 8))) {
			return false
		}
	}
	return true
}

// genVzero is VZEROUPPER and VZEROALL.
func genVzero(c *CPU, in *decode.Inst) int {
	if !c.avxUsable() {
		return stFault
	}
	n := 16
	if in.Mode != decode.Mode64 {
		n = 8
	}
	for i := range n {
		x := &c.s.XMM[i]
		x[2], x[3] = 0, 0
		if in.VexL != 0 {
			x[0], x[1] = 0, 0
		}
	}
	return stNext
}

// genMaskedMove is VMASKMOVPS, VMASKMOVPD, VPMASKMOVD and VPMASKMOVQ: elements
// that the mask leaves out are not accessed.
func genMaskedMove(c *CPU, in *decode.Inst) int {
	if !c.avxUsable() {
		return stFault
	}
	s := c.s
	n := uint64(in.Args[0].Size)
	total := uint64(16) << in.VexL
	mask, v := s.XMM[in.Vvvv&15], s.XMM[in.Reg()]
	ea := c.ea(in)
	var out [4]uint64
	for at := uint64(0); at < total; at += n {
		if mask[at/8]>>(at&7*8+n*8-1)&1 == 0 {
			continue
		}
		if in.Imm != 0 {
			la, ok := c.linear(in.Mem.Seg, ea+at, uint8(n), true)
			if !ok || !c.probeWrite(la, uint8(n)) {
				return stFault
			}
			continue
		}
		x, ok := c.loadSeg(in.Mem.Seg, ea+at, uint8(n))
		if !ok {
			return stFault
		}
		out[at/8] |= x << (at & 7 * 8)
	}
	if in.Imm == 0 {
		s.XMM[in.Reg()] = out
		return stNext
	}
	for at := uint64(0); at < total; at += n {
		if mask[at/8]>>(at&7*8+n*8-1)&1 != 0 && !c.storeSeg(in.Mem.Seg, ea+at, zeroExtend(v[at/8]>>(at&7*8), uint8(n)), uint8(n)) {
			return stFault
		}
	}
	return stNext
}

// genGather is the AVX2 gathers (SDM vol. 2C, VGATHERDPD and following). What
// was gathered before a fault stays, with its mask cleared.
func genGather(c *CPU, in *decode.Inst) int {
	if !c.avxUsable() {
		return stFault
	}
	s := c.s
	index := in.Mem.Index // a vector register here; 4 is one like the others
	if index == decode.RegNone {
		index = 4
	}
	index &= 15
	dst, mask := in.Reg(), in.Vvvv&15
	if dst == mask || dst == index || mask == index {
		return c.raise(vecUD)
	}
	n := uint64(in.Args[0].Size)
	in64 := in.Opcode&1 != 0 // 64-bit indices
	count := uint64(16) << in.VexL / n
	if in64 {
		count = min(count, uint64(2)<<in.VexL)
	}
	m := *in
	m.Mem.Index = decode.RegNone
	base := c.ea(&m)
	for i := range count {
		at := i * n
		sh := at & 7 * 8
		if s.XMM[mask][at/8]>>(sh+n*8-1)&1 != 0 {
			x := uint64(int64(int32(s.XMM[index][i/2] >> (i & 1 * 32))))
			if in64 {
				x = s.XMM[index][i]
			}
			v, ok := c.loadSeg(in.Mem.Seg, (base+x<<in.Mem.Scale)&ipMask(in.AddrSize), uint8(n))
			if !ok {
				return stFault
			}
			p := &s.XMM[dst][at/8]
			*p = *p&^(ipMask(uint8(n))<<sh) | v<<sh
		}
		s.XMM[mask][at/8] &^= ipMask(uint8(n)) << sh
	}
	for b := count * n / 8; b < 4; b++ {
		s.XMM[dst][b] = 0
	}
	s.XMM[mask] = [4]uint64{}
	return stNext
}
