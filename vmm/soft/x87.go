package soft

import (
	"encoding/binary"

	"github.com/gvmspawn/gvmspawn/vmm/soft/decode"
	"github.com/gvmspawn/gvmspawn/vmm/vcpu"
)

// Offsets in the FXSAVE image (SDM vol. 1 table 10-2).
const (
	fxFCW   = 0
	fxFSW   = 2
	fxFTW   = 4
	fxFOP   = 6
	fxFIP   = 8
	fxFDP   = 16
	fxMXCSR = 24
	fxMask  = 28
	fxST    = 32
	fxXMM   = 160

	fswES = 1 << 7
	fswB  = 1 << 15
)

func (c *CPU) fcw() uint16     { return binary.LittleEndian.Uint16(c.s.FX[fxFCW:]) }
func (c *CPU) fsw() uint16     { return binary.LittleEndian.Uint16(c.s.FX[fxFSW:]) }
func (c *CPU) setFCW(v uint16) { binary.LittleEndian.PutUint16(c.s.FX[fxFCW:], v) }
func (c *CPU) setFSW(v uint16) { binary.LittleEndian.PutUint16(c.s.FX[fxFSW:], v) }

// resetFPU is FNINIT plus what RESET does to the rest.
func (c *CPU) resetFPU() {
	c.s.FX = [512]byte{}
	c.setFCW(0x37f)
	binary.LittleEndian.PutUint32(c.s.FX[fxMXCSR:], 0x1f80)
}

// summarise sets ES and B from the exception flags and masks.
func (c *CPU) summarise() {
	w := c.fsw() &^ (fswES | fswB)
	if w&0x3f&^c.fcw() != 0 {
		w |= fswES | fswB
	}
	c.setFSW(w)
}

// x87Pending raises #MF for an unmasked exception of an earlier instruction.
func (c *CPU) x87Pending() bool {
	if c.fsw()&fswES != 0 {
		return c.fault(vecMF)
	}
	return true
}

// mm reads an MMX register, which is a physical register.
func (c *CPU) mm(r uint8) uint64 {
	st := int(r) - int(c.fsw()>>11&7)
	return binary.LittleEndian.Uint64(c.s.FX[fxST+16*(st&7):])
}

// setMM writes an MMX register; bits 64 to 79 become ones.
func (c *CPU) setMM(r uint8, v uint64) {
	at := fxST + 16*int(r&7)
	binary.LittleEndian.PutUint64(c.s.FX[at:], v)
	binary.LittleEndian.PutUint16(c.s.FX[at+8:], 0xffff)
}

// touchMMX is what every MMX instruction but EMMS does: TOP = 0, all tags
// valid (SDM vol. 1 §9.5.1).
func (c *CPU) touchMMX() {
	c.clearTop()
	c.s.FX[fxFTW] = 0xff
}

// clearTop makes TOP 0. The image holds registers by their place in the stack,
// so they move then.
func (c *CPU) clearTop() {
	w := c.fsw()
	if top := int(w >> 11 & 7); top != 0 {
		var regs [128]byte
		copy(regs[:], c.s.FX[fxST:fxST+128])
		for i := range 8 { // ST(i) is physical register top+i
			copy(c.s.FX[fxST+16*((top+i)&7):][:16], regs[16*i:])
		}
		c.setFSW(w &^ (7 << 11))
	}
}

// genEmms is EMMS, which makes TOP 0, too (SDM vol. 3A table 14-1).
func genEmms(c *CPU, in *decode.Inst) int {
	if !c.mmxUsable() {
		return stFault
	}
	c.clearTop()
	c.s.FX[fxFTW] = 0
	return stNext
}

func (c *CPU) x87Usable() bool {
	if c.s.CR0&(cr0EM|cr0TS) != 0 {
		return c.fault(vecNM)
	}
	return true
}

func genFwait(c *CPU, in *decode.Inst) int {
	if c.s.CR0&(cr0MP|cr0TS) == cr0MP|cr0TS {
		return c.raise(vecNM)
	}
	if !c.x87Pending() {
		return stFault
	}
	return stNext
}

// x87Size is the memory operand's size by opcode and ModRM.reg; 0 is special
// or undefined.
var x87Size = [8][8]uint8{
	{4, 4, 4, 4, 4, 4, 4, 4},
	{4, 0, 4, 4, 0, 0, 0, 0},
	{4, 4, 4, 4, 4, 4, 4, 4},
	{4, 4, 4, 4, 0, 10, 0, 10},
	{8, 8, 8, 8, 8, 8, 8, 8},
	{8, 8, 8, 8, 0, 0, 0, 0},
	{2, 2, 2, 2, 2, 2, 2, 2},
	{2, 2, 2, 2, 10, 8, 10, 8},
}

// x87Store has bit reg set where the memory form stores.
var x87Store = [8]uint8{0, 0x0c, 0, 0x8e, 0, 0x0e, 0, 0xce}

// x87Valid has bit ModRM&63 set for the register forms that run on the host.
var x87Valid = [8]uint64{
	0: ^uint64(0),
	1: 0xffff<<0 | 1<<0x10 | 0x33<<0x20 | 0x7f<<0x28 | 0xffff<<0x30,
	2: 0xffffffff | 1<<0x29,
	3: 0xffffffff | 0xff<<0x28 | 0xff<<0x30,
	4: 0xffff | 0xffffffff<<0x20,
	5: 0xff | 0xffff<<0x10 | 0xffff<<0x20,
	6: 0xffff | 1<<0x19 | 0xffffffff<<0x20,
	7: 0xff<<0x28 | 0xff<<0x30,
}

// genX87 is any instruction of D8 to DF.
func genX87(c *CPU, in *decode.Inst) int {
	if !c.x87Usable() {
		return stFault
	}
	op, reg := in.Opcode-0xd8, in.RegField()
	if in.MemMod() {
		n := x87Size[op][reg]
		if n == 0 {
			return c.x87Control(in, op, reg)
		}
		if !c.x87Pending() {
			return stFault
		}
		return c.x87Mem(in, op, reg, n)
	}
	m := in.ModRM & 63
	switch {
	case op == 3 && m >= 0x20 && m <= 0x24, op == 7 && m == 0x20:
		return c.x87Control(in, op, m)
	case x87Valid[op]>>m&1 == 0:
		return c.raise(vecUD)
	}
	if !c.x87Pending() {
		return stFault
	}
	f := c.runX87(x87First + 64 + uint64(op)*64 + uint64(m))
	if op == 3 && m >= 0x28 || op == 7 { // FCOMI and its kin
		c.s.setArith(f & (flagCF | flagPF | flagZF))
	}
	return stNext
}

// runX87 executes one entry with all exceptions masked, so that the host never
// traps, and derives ES from the guest's masks afterwards. The addresses of the
// instruction and its operand would be the host's.
func (c *CPU) runX87(entry uint64) uint64 {
	s := c.s
	w := c.fcw()
	c.setFCW(w | 0x3f)
	c.setFSW(c.fsw() &^ (fswES | fswB))
	f := callX87(s.fxAddr(), s.scratchAddr(), nativeStart+entry*8, s.arith())
	c.setFCW(w)
	clear(s.FX[fxFOP:fxMXCSR])
	c.summarise()
	return f
}

func (c *CPU) x87Mem(in *decode.Inst, op, reg, n uint8) int {
	s := c.s
	ea := c.ea(in)
	entry := x87First + uint64(op)*8 + uint64(reg)
	if x87Store[op]>>reg&1 == 0 {
		if !c.readBytes(in.Mem.Seg, ea, s.Scratch[:n], 8) {
			return stFault
		}
		c.runX87(entry)
		return stNext
	}
	la, ok := c.linear(in.Mem.Seg, ea, n, true)
	if !ok || !c.probeWrite(la, n) {
		return stFault
	}
	c.runX87(entry)
	if !c.writeBytes(in.Mem.Seg, ea, s.Scratch[:n], 8) {
		return stFault
	}
	return stNext
}

// readBytes reads seg:off into b by pieces of unit bytes, which is how it has to be
// aligned, and smaller ones at the end.
func (c *CPU) readBytes(seg uint8, off uint64, b []byte, unit int) bool {
	for i := 0; i < len(b); {
		n := min(len(b)-i, unit)
		if n < 8 {
			n = n&4 + boolInt(n&4 == 0)*(n&2) + boolInt(n&6 == 0)*1
		}
		v, ok := c.loadSeg(seg, off+uint64(i), uint8(n))
		if !ok {
			return false
		}
		for j := range n {
			b[i+j] = byte(v >> (8 * j))
		}
		i += n
	}
	return true
}

// writeBytes writes b at seg:off like readBytes; nothing is written if any of it faults.
func (c *CPU) writeBytes(seg uint8, off uint64, b []byte, unit int) bool {
	for i := 0; i < len(b); i += 64 {
		la, ok := c.linear(seg, off+uint64(i), uint8(min(64, len(b)-i)), true)
		if !ok || !c.probeWrite(la, uint8(min(64, len(b)-i))) {
			return false
		}
	}
	for i := 0; i < len(b); {
		n := min(len(b)-i, unit)
		if n < 8 {
			n = n&4 + boolInt(n&4 == 0)*(n&2) + boolInt(n&6 == 0)*1
		}
		var v uint64
		for j := range n {
			v |= uint64(b[i+j]) << (8 * j)
		}
		if !c.storeSeg(seg, off+uint64(i), v, uint8(n)) {
			return false
		}
		i += n
	}
	return true
}

func boolInt(b bool) int { return int(boolBit(b)) }

// x87Control is the instructions that move control, status and environment.
func (c *CPU) x87Control(in *decode.Inst, op, reg uint8) int {
	switch {
	case !in.MemMod() && op == 3:
		switch reg {
		case 0x22: // FNCLEX
			c.setFSW(c.fsw() &^ 0x80ff)
		case 0x23: // FNINIT
			c.clearTop()
			c.setFCW(0x37f)
			c.setFSW(0)
			c.s.FX[fxFTW] = 0
			clear(c.s.FX[6:24])
		}
		return stNext // the others did something on the 8087 and 80287
	case !in.MemMod(): // FNSTSW AX
		c.s.R[vcpu.RAX] = c.s.R[vcpu.RAX]&^0xffff | uint64(c.fsw())
		return stNext
	case op == 1 && reg == 5: // FLDCW
		if !c.x87Pending() {
			return stFault
		}
		v, ok := c.loadSeg(in.Mem.Seg, c.ea(in), 2)
		if !ok {
			return stFault
		}
		c.setFCW(uint16(v) | 0x40)
		c.summarise()
		return stNext
	case op == 1 && reg == 7, op == 5 && reg == 7: // FNSTCW, FNSTSW
		v := c.fcw()
		if op == 5 {
			v = c.fsw()
		}
		if !c.storeSeg(in.Mem.Seg, c.ea(in), uint64(v), 2) {
			return stFault
		}
		return stNext
	case op == 1 && reg == 4, op == 5 && reg == 4:
		return c.loadEnv(in, op == 5)
	case op == 1 && reg == 6, op == 5 && reg == 6:
		return c.storeEnv(in, op == 5)
	}
	return c.raise(vecUD)
}

// fullTag is the 16-bit tag word of FSTENV made from registers and FXSAVE's tags.
func (c *CPU) fullTag() uint16 {
	var t uint16
	top := int(c.fsw() >> 11 & 7)
	for i := range 8 {
		tag := uint16(3)
		if c.s.FX[fxFTW]>>i&1 != 0 {
			r := c.s.FX[fxST+16*((i-top)&7):]
			m, e := binary.LittleEndian.Uint64(r), binary.LittleEndian.Uint16(r[8:])&0x7fff
			switch {
			case e == 0 && m == 0:
				tag = 1
			case e == 0 || e == 0x7fff || m>>63 == 0:
				tag = 2
			default:
				tag = 0
			}
		}
		t |= tag << (2 * i)
	}
	return t
}

// envSize is the size of an environment: 28 bytes, or 14 with 16-bit operands.
func envSize(in *decode.Inst) int {
	if in.OpSize == 2 {
		return 14
	}
	return 28
}

// storeEnv is FNSTENV and FNSAVE (SDM vol. 1 §8.1.10). Instruction and operand
// pointers are stored as zero.
func (c *CPU) storeEnv(in *decode.Inst, save bool) int {
	n := envSize(in)
	var b [108]byte
	step := n / 7
	binary.LittleEndian.PutUint16(b[0:], c.fcw())
	binary.LittleEndian.PutUint16(b[step:], c.fsw())
	binary.LittleEndian.PutUint16(b[2*step:], c.fullTag())
	if step == 4 {
		for _, i := range [...]int{2, 6, 10, 26} {
			b[i], b[i+1] = 0xff, 0xff
		}
	}
	total := n
	if save {
		for i := range 8 {
			copy(b[n+10*i:n+10*i+10], c.s.FX[fxST+16*i:])
		}
		total += 80
	}
	if !c.writeBytes(in.Mem.Seg, c.ea(in), b[:total], n/7) {
		return stFault
	}
	if save {
		c.setFCW(0x37f)
		c.setFSW(0)
		c.s.FX[fxFTW] = 0
	} else {
		c.setFCW(c.fcw() | 0x3f)
		c.summarise()
	}
	return stNext
}

// loadEnv is FLDENV and FRSTOR.
func (c *CPU) loadEnv(in *decode.Inst, restore bool) int {
	if !c.x87Pending() {
		return stFault
	}
	n := envSize(in)
	var b [108]byte
	total := n
	if restore {
		total += 80
	}
	if !c.readBytes(in.Mem.Seg, c.ea(in), b[:total], n/7) {
		return stFault
	}
	step := n / 7
	c.setFCW(binary.LittleEndian.Uint16(b[0:]) | 0x40)
	c.setFSW(binary.LittleEndian.Uint16(b[step:]))
	tags := binary.LittleEndian.Uint16(b[2*step:])
	c.s.FX[fxFTW] = 0
	for i := range 8 {
		if tags>>(2*i)&3 != 3 {
			c.s.FX[fxFTW] |= 1 << i
		}
	}
	if restore {
		for i := range 8 {
			copy(c.s.FX[fxST+16*i:fxST+16*i+10], b[n+10*i:])
		}
	}
	c.summarise()
	return stNext
}

// genFxsave is FXSAVE and FXRSTOR (SDM vol. 1 §10.5).
func genFxsave(c *CPU, in *decode.Inst) int {
	s := c.s
	if s.CR0&cr0EM != 0 {
		return c.raise(vecUD)
	}
	if s.CR0&cr0TS != 0 {
		return c.raise(vecNM)
	}
	la, ok := c.mem(in, 1, in.Op == decode.FXSAVE)
	if !ok {
		return stFault
	}
	if la&15 != 0 {
		return c.raiseErr(vecGP, 0)
	}
	var b [512]byte
	n := 16
	if c.mode != decode.Mode64 {
		n = 8
	}
	if in.Op == decode.FXSAVE {
		c.saveFX(&b, n)
		// Bytes 464 to 511 are the system's own and stay.
		if !c.writeBytes(in.Mem.Seg, c.ea(in), b[:416], 8) {
			return stFault
		}
		return stNext
	}
	if !c.readBytes(in.Mem.Seg, c.ea(in), b[:416], 8) {
		return stFault
	}
	m := binary.LittleEndian.Uint32(b[fxMXCSR:])
	if m>>16 != 0 {
		return c.raiseErr(vecGP, 0)
	}
	c.restoreFX(&b, n)
	return stNext
}

// saveFX makes the image of FXSAVE, with n XMM registers.
func (c *CPU) saveFX(b *[512]byte, n int) {
	s := c.s
	copy(b[:fxXMM], s.FX[:fxXMM])
	binary.LittleEndian.PutUint32(b[fxMXCSR:], s.MXCSR)
	binary.LittleEndian.PutUint32(b[fxMask:], 0xffff)
	for i := range n {
		copy(b[fxXMM+16*i:fxXMM+16*i+16], s.xmmBytes(uint8(i), 16))
	}
}

// restoreFX loads an image whose MXCSR is valid.
func (c *CPU) restoreFX(b *[512]byte, n int) {
	s := c.s
	copy(s.FX[:fxXMM], b[:fxXMM])
	s.MXCSR = binary.LittleEndian.Uint32(b[fxMXCSR:])
	binary.LittleEndian.PutUint32(s.FX[fxMXCSR:], 0x1f80)
	clear(s.FX[fxMask : fxMask+4])
	for i := range n {
		copy(s.xmmBytes(uint8(i), 16), b[fxXMM+16*i:fxXMM+16*i+16])
	}
	c.setFCW(c.fcw() | 0x40)
	c.summarise()
}
