package gdb

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"strings"

	"github.com/gvmspawn/gvmspawn/vmm/vcpu"
)

// file is all registers of one CPU.
type file struct {
	regs vcpu.Registers
	fpu  vcpu.FPU
}

// register is one register as the target description numbers it.
type register struct {
	name string
	bits int
	typ  string
	get  func(*file) uint64  // of a register of up to 64 bits
	set  func(*file, uint64) // nil: writing it has no effect
	fx   int                 // where a wider one lies in the FPU's image
	wide bool                // fx counts
}

// Offsets in FXSAVE64's image (Intel SDM vol. 1 table 10-2).
const (
	fxFCW   = 0
	fxFSW   = 2
	fxFTW   = 4
	fxFOP   = 6
	fxFIP   = 8
	fxFCS   = 12
	fxFDP   = 16
	fxFDS   = 20
	fxMXCSR = 24
	fxST    = 32
	fxXMM   = 160
)

// feature is one part of the target description.
type feature struct {
	name string
	head string // types
	regs []register
}

// features are the target description's parts; registers are numbered through
// them (Debugging with GDB, G.5.5). The last one is no standard one.
var features = []feature{
	{"org.gnu.gdb.i386.core", flagsType, coreRegisters()},
	{"org.gnu.gdb.i386.sse", sseTypes, sseRegisters()},
	{"org.gnu.gdb.i386.segments", "", segmentRegisters()},
	{"org.gvmspawn.i386.control", "", controlRegisters()},
}

const flagsType = `<flags id="i386_eflags" size="4">` +
	`<field name="CF" start="0" end="0"/><field name="" start="1" end="1"/><field name="PF" start="2" end="2"/>` +
	`<field name="AF" start="4" end="4"/><field name="ZF" start="6" end="6"/><field name="SF" start="7" end="7"/>` +
	`<field name="TF" start="8" end="8"/><field name="IF" start="9" end="9"/><field name="DF" start="10" end="10"/>` +
	`<field name="OF" start="11" end="11"/><field name="NT" start="14" end="14"/><field name="RF" start="16" end="16"/>` +
	`<field name="VM" start="17" end="17"/><field name="AC" start="18" end="18"/><field name="VIF" start="19" end="19"/>` +
	`<field name="VIP" start="20" end="20"/><field name="ID" start="21" end="21"/></flags>`

const sseTypes = `<vector id="v4f" type="ieee_single" count="4"/><vector id="v2d" type="ieee_double" count="2"/>` +
	`<vector id="v16i8" type="int8" count="16"/><vector id="v8i16" type="int16" count="8"/>` +
	`<vector id="v4i32" type="int32" count="4"/><vector id="v2i64" type="int64" count="2"/>` +
	`<union id="vec128"><field name="v4_float" type="v4f"/><field name="v2_double" type="v2d"/>` +
	`<field name="v16_int8" type="v16i8"/><field name="v8_int16" type="v8i16"/><field name="v4_int32" type="v4i32"/>` +
	`<field name="v2_int64" type="v2i64"/><field name="uint128" type="uint128"/></union>`

func coreRegisters() (l []register) {
	order := []int{vcpu.RAX, vcpu.RBX, vcpu.RCX, vcpu.RDX, vcpu.RSI, vcpu.RDI, vcpu.RBP, vcpu.RSP,
		vcpu.R8, vcpu.R9, vcpu.R10, vcpu.R11, vcpu.R12, vcpu.R13, vcpu.R14, vcpu.R15}
	for i, name := range strings.Fields("rax rbx rcx rdx rsi rdi rbp rsp r8 r9 r10 r11 r12 r13 r14 r15") {
		typ := "int64"
		if name == "rbp" || name == "rsp" {
			typ = "data_ptr"
		}
		l = append(l, word(name, typ, func(f *file) *uint64 { return &f.regs.GPR[order[i]] }))
	}
	l = append(l, word("rip", "code_ptr", func(f *file) *uint64 { return &f.regs.RIP }),
		register{name: "eflags", bits: 32, typ: "i386_eflags", get: func(f *file) uint64 { return f.regs.RFLAGS },
			set: func(f *file, v uint64) { f.regs.RFLAGS = v | 2 }})
	for _, s := range []struct {
		name string
		n    int
	}{{"cs", vcpu.CS}, {"ss", vcpu.SS}, {"ds", vcpu.DS}, {"es", vcpu.ES}, {"fs", vcpu.FS}, {"gs", vcpu.GS}} {
		l = append(l, register{name: s.name, bits: 32, typ: "int32", get: func(f *file) uint64 { return uint64(f.regs.Seg[s.n].Selector) }})
	}
	for i := range 8 {
		l = append(l, register{name: fmt.Sprintf("st%d", i), bits: 80, typ: "i387_ext", wide: true, fx: fxST + 16*i})
	}
	return append(l, image("fctrl", fxFCW, 2), image("fstat", fxFSW, 2),
		register{name: "ftag", bits: 32, typ: "int32", get: tagWord, set: setTagWord},
		image("fiseg", fxFCS, 2), image("fioff", fxFIP, 4), image("foseg", fxFDS, 2), image("fooff", fxFDP, 4), image("fop", fxFOP, 2))
}

func sseRegisters() (l []register) {
	for i := range 16 {
		l = append(l, register{name: fmt.Sprintf("xmm%d", i), bits: 128, typ: "vec128", wide: true, fx: fxXMM + 16*i})
	}
	return append(l, image("mxcsr", fxMXCSR, 4))
}

func segmentRegisters() []register {
	return []register{
		word("fs_base", "int64", func(f *file) *uint64 { return &f.regs.Seg[vcpu.FS].Base }),
		word("gs_base", "int64", func(f *file) *uint64 { return &f.regs.Seg[vcpu.GS].Base }),
	}
}

func controlRegisters() []register {
	return []register{
		word("cr0", "int64", func(f *file) *uint64 { return &f.regs.CR0 }),
		word("cr2", "int64", func(f *file) *uint64 { return &f.regs.CR2 }),
		word("cr3", "int64", func(f *file) *uint64 { return &f.regs.CR3 }),
		word("cr4", "int64", func(f *file) *uint64 { return &f.regs.CR4 }),
		word("cr8", "int64", func(f *file) *uint64 { return &f.regs.CR8 }),
		word("efer", "int64", func(f *file) *uint64 { return &f.regs.EFER }),
	}
}

// word is a 64-bit register.
func word(name, typ string, p func(*file) *uint64) register {
	return register{name: name, bits: 64, typ: typ, get: func(f *file) uint64 { return *p(f) }, set: func(f *file, v uint64) { *p(f) = v }}
}

// image is a register of 32 bits that is n bytes of the FPU's image.
func image(name string, at, n int) register {
	return register{name: name, bits: 32, typ: "int32",
		get: func(f *file) uint64 {
			var b [8]byte
			copy(b[:n], f.fpu[at:])
			return binary.LittleEndian.Uint64(b[:])
		},
		set: func(f *file, v uint64) {
			var b [8]byte
			binary.LittleEndian.PutUint64(b[:], v)
			copy(f.fpu[at:at+n], b[:])
		}}
}

// tagWord is the x87 tag word from its abridged form: 3 for an empty register,
// 0 for any other (Intel SDM vol. 1 §10.5.1.1).
func tagWord(f *file) (v uint64) {
	for i := range 8 {
		if f.fpu[fxFTW]>>i&1 == 0 {
			v |= 3 << (2 * i)
		}
	}
	return v
}

func setTagWord(f *file, v uint64) {
	f.fpu[fxFTW] = 0
	for i := range 8 {
		if v>>(2*i)&3 != 3 {
			f.fpu[fxFTW] |= 1 << i
		}
	}
}

// registers are all of them, by number.
var registers = func() (l []register) {
	for _, f := range features {
		l = append(l, f.regs...)
	}
	return l
}()

// targetXML is the target description.
var targetXML = func() string {
	var b strings.Builder
	b.WriteString(`<?xml version="1.0"?><!DOCTYPE target SYSTEM "gdb-target.dtd"><target><architecture>i386:x86-64</architecture>`)
	for _, f := range features {
		fmt.Fprintf(&b, `<feature name="%s">%s`, f.name, f.head)
		for _, r := range f.regs {
			fmt.Fprintf(&b, `<reg name="%s" bitsize="%d" type="%s"/>`, r.name, r.bits, r.typ)
		}
		b.WriteString("</feature>")
	}
	b.WriteString("</target>")
	return b.String()
}()

// bytes is the register's value as the protocol transfers it.
func (r *register) bytes(f *file) []byte {
	n := r.bits / 8
	if r.wide {
		return f.fpu[r.fx : r.fx+n]
	}
	return binary.LittleEndian.AppendUint64(nil, r.get(f))[:n]
}

// setBytes sets the register; b is as long as bytes.
func (r *register) setBytes(f *file, b []byte) {
	if r.wide {
		copy(f.fpu[r.fx:], b)
	} else if r.set != nil {
		var v [8]byte
		copy(v[:], b)
		r.set(f, binary.LittleEndian.Uint64(v[:]))
	}
}

// all is the reply to g.
func (f *file) all() string {
	var b []byte
	for i := range registers {
		b = append(b, registers[i].bytes(f)...)
	}
	return hex.EncodeToString(b)
}

// setAll is the request G.
func (f *file) setAll(b []byte) bool {
	for i := range registers {
		n := registers[i].bits / 8
		if len(b) < n {
			return false
		}
		registers[i].setBytes(f, b[:n])
		b = b[n:]
	}
	return len(b) == 0
}
