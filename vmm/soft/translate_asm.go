package soft

import "encoding/binary"

// Host registers of translated code. Guest registers live in the host
// registers of the same number but for RSP, and R11, R13 and R15, which live in memory:
// compilers of C and of Go take others before these.
const (
	hAX = 0
	hCX = 1
	hDX = 2
	hSP = 13 // the guest's RSP
	hT1 = 11 // scratch: addresses
	hT2 = 15 // scratch: TLB entries, evicted registers
)

// noReg is the absence of a register.
const noReg = 0xff

// asm appends machine code; at is the address of b[0].
type asm struct {
	b  []byte
	at uint64
}

func (a *asm) pc() uint64      { return a.at + uint64(len(a.b)) }
func (a *asm) put(b ...byte)   { a.b = append(a.b, b...) }
func (a *asm) u32(v uint32)    { a.b = binary.LittleEndian.AppendUint32(a.b, v) }
func (a *asm) u64(v uint64)    { a.b = binary.LittleEndian.AppendUint64(a.b, v) }
func (a *asm) rel32(to uint64) { a.u32(uint32(to - (a.pc() + 4))) }
func (a *asm) jmp(to uint64)   { a.put(0xe9); a.rel32(to) }
func (a *asm) call(to uint64)  { a.put(0xe8); a.rel32(to) }
func (a *asm) jcc(cc uint8, to uint64) {
	a.put(0x0f, 0x80|cc)
	a.rel32(to)
}

// jccForward emits a branch to a place not known yet and returns where its
// displacement lies; see bind.
func (a *asm) jccForward(cc uint8) int {
	a.put(0x0f, 0x80|cc, 0, 0, 0, 0)
	return len(a.b) - 4
}

// jmpForward is jccForward of a JMP.
func (a *asm) jmpForward() int {
	a.put(0xe9, 0, 0, 0, 0)
	return len(a.b) - 4
}

// bind makes the branch whose displacement lies at off go to to.
func (a *asm) bind(off int, to uint64) {
	binary.LittleEndian.PutUint32(a.b[off:], uint32(to-(a.at+uint64(off)+4)))
}

// rex emits a REX prefix if one is needed.
func (a *asm) rex(w bool, reg, index, base uint8) {
	var x uint8
	if w {
		x = 8
	}
	x |= reg>>3&1<<2 | index>>3&1<<1 | base>>3&1
	if x != 0 {
		a.put(0x40 | x)
	}
}

// rr emits op with ModRM.reg reg and ModRM.rm rm.
func (a *asm) rr(w bool, op, reg, rm uint8) {
	a.rex(w, reg, 0, rm)
	a.put(op, 0xc0|reg&7<<3|rm&7)
}

// ra emits op with the memory at the absolute address at, below 2 GiB.
func (a *asm) ra(w bool, op, reg uint8, at uint64) {
	a.rex(w, reg, 0, 0)
	a.put(op, reg&7<<3|4, 0x25)
	a.u32(uint32(at))
}

// rx emits op with the memory at index*8+at, below 2 GiB.
func (a *asm) rx(w bool, op, reg, index uint8, at uint64) {
	a.rex(w, reg, index, 0)
	a.put(op, reg&7<<3|4, 3<<6|index&7<<3|5)
	a.u32(uint32(at))
}

// rm emits op with the memory at base+disp.
func (a *asm) rm(w bool, op, reg, base uint8, disp int32) {
	a.rex(w, reg, 0, base)
	a.put(op)
	a.modrm(reg, base, disp)
}

func (a *asm) modrm(reg, base uint8, disp int32) {
	m := reg&7<<3 | base&7
	sib := base&7 == 4
	switch {
	case disp == 0 && base&7 != 5:
	case disp == int32(int8(disp)):
		m |= 0x40
	default:
		m |= 0x80
	}
	a.put(m)
	if sib {
		a.put(0x24)
	}
	switch m >> 6 {
	case 1:
		a.put(byte(disp))
	case 2:
		a.u32(uint32(disp))
	}
}

// lea emits lea reg, [base + index<<scale + disp].
func (a *asm) lea(w bool, reg, base, index, scale uint8, disp int32) {
	if index == noReg && base != noReg {
		a.rm(w, 0x8d, reg, base, disp)
		return
	}
	x, b := index, base
	if x == noReg {
		x = 4
	}
	if b == noReg {
		a.rex(w, reg, x, 0)
		a.put(0x8d, reg&7<<3|4, scale<<6|x&7<<3|5)
		a.u32(uint32(disp))
		return
	}
	a.rex(w, reg, x, b)
	a.put(0x8d)
	m := reg&7<<3 | 4
	s := scale<<6 | x&7<<3 | b&7
	switch {
	case disp == 0 && b&7 != 5:
		a.put(m, s)
	case disp == int32(int8(disp)):
		a.put(m|0x40, s, byte(disp))
	default:
		a.put(m|0x80, s)
		a.u32(uint32(disp))
	}
}

// gsbase emits RDGSBASE, with op 1, or WRGSBASE, with op 3, of a 64-bit register.
func (a *asm) gsbase(op, r uint8) {
	a.put(0xf3)
	a.rex(true, 0, 0, r)
	a.put(0x0f, 0xae, 0xc0|op<<3|r&7)
}

// mov emits a move between 64-bit registers.
func (a *asm) mov(dst, src uint8) { a.rr(true, 0x89, src, dst) }

// imm emits mov reg, v in its shortest form that keeps the flags.
func (a *asm) imm(reg uint8, v uint64) {
	switch {
	case v>>32 == 0:
		a.rex(false, 0, 0, reg)
		a.put(0xb8 | reg&7)
		a.u32(uint32(v))
	case int64(v) == int64(int32(v)):
		a.rex(true, 0, 0, reg)
		a.put(0xc7, 0xc0|reg&7)
		a.u32(uint32(v))
	default:
		a.rex(true, 0, 0, reg)
		a.put(0xb8 | reg&7)
		a.u64(v)
	}
}

// alui emits an ALU operation (0 add, 1 or, 4 and, 5 sub, 6 xor, 7 cmp) with imm32.
func (a *asm) alui(w bool, op, reg uint8, v int32) {
	a.rex(w, 0, 0, reg)
	if v == int32(int8(v)) {
		a.put(0x83, 0xc0|op<<3|reg&7, byte(v))
		return
	}
	a.put(0x81, 0xc0|op<<3|reg&7)
	a.u32(uint32(v))
}

// aluai is alui on the 32-bit memory at the absolute address at.
func (a *asm) aluai(op uint8, at uint64, v int32) {
	if v == int32(int8(v)) {
		a.put(0x83, op<<3|4, 0x25)
		a.u32(uint32(at))
		a.put(byte(v))
		return
	}
	a.put(0x81, op<<3|4, 0x25)
	a.u32(uint32(at))
	a.u32(uint32(v))
}
