package initrd

import "encoding/binary"

// reg is a 64-bit general register in the encoding of ModRM and REX.
type reg byte

const (
	rax reg = iota
	rcx
	rdx
	rbx
	rsp
	rbp
	rsi
	rdi
	r8
	r9
	r10
	r11
	r12
	r13
	r14
	r15
)

// cond is a condition in the encoding of Jcc.
type cond byte

const (
	condE  cond = 0x4
	condNE cond = 0x5
	condS  cond = 0x8
	condNS cond = 0x9
	condL  cond = 0xc
)

// label is a place in the code or, behind it, in the data.
type label int

// asm assembles the few x86-64 instructions that a Program needs. References
// are relative to RIP, so that the code needs no address.
type asm struct {
	code   []byte
	places []int // of each label, -1 while not bound
	fixups []fixup
}

// fixup is a rel32 field that ends at end and means a label.
type fixup struct {
	end int
	to  label
}

func (a *asm) emit(b ...byte) { a.code = append(a.code, b...) }

func (a *asm) imm32(v uint32) { a.code = binary.LittleEndian.AppendUint32(a.code, v) }

// newLabel makes a label that bind places later.
func (a *asm) newLabel() label {
	a.places = append(a.places, -1)
	return label(len(a.places) - 1)
}

func (a *asm) bind(l label) { a.places[l] = len(a.code) }

// rel32 leaves room for a reference to l, at the end of an instruction.
func (a *asm) rel32(l label) {
	a.imm32(0)
	a.fixups = append(a.fixups, fixup{len(a.code), l})
}

// link fills in all references.
func (a *asm) link() {
	for _, f := range a.fixups {
		binary.LittleEndian.PutUint32(a.code[f.end-4:], uint32(a.places[f.to]-f.end))
	}
}

// rex is REX.W with R from the reg field and B from the r/m or opcode field.
func rex(regField, rm reg) byte { return 0x48 | byte(regField>>3)<<2 | byte(rm>>3) }

// modRM names two registers.
func modRM(regField, rm reg) byte { return 0xc0 | byte(regField&7)<<3 | byte(rm&7) }

// movImm is mov r32, imm32, which clears the upper half, or for negative
// values mov r64, simm32. Values are in the range of those.
func (a *asm) movImm(r reg, v int64) {
	switch {
	case v == 0:
		if r >= r8 {
			a.emit(0x45)
		}
		a.emit(0x31, modRM(r&7, r&7)) // xor r32, r32: REX above extends both fields
	case v < 0:
		a.emit(rex(0, r), 0xc7, modRM(0, r))
		a.imm32(uint32(v))
	default:
		if r >= r8 {
			a.emit(0x41)
		}
		a.emit(0xb8 | byte(r&7))
		a.imm32(uint32(v))
	}
}

// mov is mov dst, src.
func (a *asm) mov(dst, src reg) { a.emit(rex(src, dst), 0x89, modRM(src, dst)) }

// lea is lea r, [rip + l].
func (a *asm) lea(r reg, l label) {
	a.emit(rex(r, 0), 0x8d, byte(r&7)<<3|5)
	a.rel32(l)
}

func (a *asm) syscall() { a.emit(0x0f, 0x05) }

// testRAX sets SF and ZF from RAX: a system call failed if it is negative.
func (a *asm) testRAX() { a.emit(0x48, 0x85, 0xc0) }

// cmpRAX is cmp rax, simm32.
func (a *asm) cmpRAX(v int32) {
	a.emit(0x48, 0x3d)
	a.imm32(uint32(v))
}

func (a *asm) jcc(c cond, l label) {
	a.emit(0x0f, 0x80|byte(c))
	a.rel32(l)
}

func (a *asm) jmp(l label) {
	a.emit(0xe9)
	a.rel32(l)
}

func (a *asm) call(l label) {
	a.emit(0xe8)
	a.rel32(l)
}

func (a *asm) ret() { a.emit(0xc3) }

// dec is dec r, which sets ZF at zero.
func (a *asm) dec(r reg) { a.emit(rex(0, r), 0xff, modRM(1, r)) }
