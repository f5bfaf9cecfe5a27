package soft

import (
	"encoding/binary"
	"fmt"
	"strings"
	"testing"

	"github.com/gvmspawn/gvmspawn/vmm/vcpu"
)

// Where protected has its parts.
const (
	atGDT    = 0x500
	atTSS    = 0x600
	atPT     = 0x4000
	atCode   = 0x8000
	atIDT    = 0x10000
	atStubs  = 0x11000
	atRecord = 0x12000
	kernelSP = 0x20000
	istSP    = 0x22000
	userSP   = 0x30800
	atData   = 0x40000
)

// Selectors of protected's GDT.
const (
	selCode64  = 0x08
	selData    = 0x10
	selCode32  = 0x18
	selUser64  = 0x23
	selUserDS  = 0x2b
	selTSS     = 0x30
	selMissing = 0x40 // a data segment that is not present
)

// record is what protected's handler saw.
type record struct {
	vec, err, cr2, rip, cs, flags, rsp, dr6, handlerSP uint64
}

// protected is a guest in 64-bit mode with 4 KiB pages for its first 2 MiB, a
// GDT, a TSS, and an IDT whose handlers make a record and end the guest. Pages
// from atData on, and of user code, are user pages.
func protected(t *testing.T, user bool) (*guest, *CPU) {
	return protectedWith(t, user, Config{CPUs: 1})
}

func protectedWith(t *testing.T, user bool, cfg Config) (*guest, *CPU) {
	g := newGuest(t, cfg)
	c := g.start(0, 3, atCode)
	g.setWord(0x1000, 0x2007)
	g.setWord(0x2000, 0x3007)
	g.setWord(0x3000, atPT|7)
	for i := range uint64(512) {
		pte := i<<12 | pteP | pteW
		if i<<12 >= atData || user && (i<<12 == atCode || i<<12 == 0x9000 || i<<12 == 0x30000) {
			pte |= pteU
		}
		g.setWord(atPT+i*8, pte)
	}
	for i, d := range []uint64{0, 0x00af9b000000ffff, 0x00cf93000000ffff, 0x00cf9b000000ffff, 0x00affb000000ffff, 0x00cff3000000ffff,
		0x0000890006000067, 0, 0x00cf13000000ffff} {
		g.setWord(atGDT+uint64(i)*8, d)
	}
	g.setWord(atTSS+4, kernelSP)
	g.setWord(atTSS+0x24, istSP)
	g.setWord(atTSS+0x60, 0x68<<48) // no I/O permission bitmap
	for v := range uint64(32) {
		off := atStubs + v*16
		g.setWord(atIDT+v*16, off&0xffff|selCode64<<16|0x8e00<<32|off>>16<<48)
		if v == 2 || v == 8 { // on stack 1
			g.ram[atIDT+v*16+4] = 1
		}
		stub := []byte{0x6a, byte(v), 0xe9}
		switch v {
		case 8, 10, 11, 12, 13, 14, 17:
		default:
			stub = append([]byte{0x6a, 0}, stub...)
		}
		stub = binary.LittleEndian.AppendUint32(stub, uint32(atStubs+0x400-(off+uint64(len(stub))+4)))
		copy(g.ram[off:], stub)
	}
	// push rax; mov rax,cr2; mov [record+0x10],rax; … out 0xf4,al; hlt
	g.put(atStubs+0x400, "500f20d04889042510200100488b4424084889042500200100488b4424104889042508200100488b4424184889042518200100488b4424204889042520200100488b4424284889042528200100488b44243048890425302001000f21f048890425382001004889242540200100e6f4f4")
	var r vcpu.Registers
	_ = c.Registers(&r)
	r.GDT, r.IDT = vcpu.Table{Base: atGDT, Limit: 0x4f}, vcpu.Table{Base: atIDT, Limit: 0x1ff}
	r.TR = vcpu.Segment{Selector: selTSS, Base: atTSS, Limit: 0x67, Attr: attrP | 0xb}
	code, data := uint16(selCode64), uint16(selData)
	r.GPR[vcpu.RSP] = kernelSP
	if user {
		code, data = selUser64, selUserDS
		r.GPR[vcpu.RSP] = userSP
	}
	for i := range r.Seg {
		sel := data
		if i == vcpu.CS {
			sel = code
		}
		d := descriptor{lo: g.word(atGDT + uint64(sel&^7))}
		r.Seg[i] = d.segment(sel)
	}
	_ = c.SetRegisters(&r)
	return g, c
}

// pte changes the page table entry of va.
func (g *guest) pte(va uint64, set, clear uint64) {
	at := atPT + va>>12*8
	g.setWord(at, g.word(at)&^clear|set)
}

func (g *guest) record() record {
	w := func(i uint64) uint64 { return g.word(atRecord + i*8) }
	return record{w(0), w(1), w(2), w(3), w(4), w(5), w(6), w(7), w(8)}
}

const (
	codeRead   = "bb00000400488b03"                     // mov ebx,0x40000; mov rax,[rbx]
	codeWrite  = "bb00000400488903"                     // mov ebx,0x40000; mov [rbx],rax
	codeAdd    = "bb0000040048830301"                   // mov ebx,0x40000; add qword [rbx],1
	codeJump   = "bb00000400ffe3"                       // mov ebx,0x40000; jmp rbx
	codeCross  = "bbfc0f0400488903"                     // mov ebx,0x40ffc; mov [rbx],rax
	codeFetch  = "bbfe0f0400ffe3"                       // mov ebx,0x40ffe; jmp rbx
	codeStac   = "0f01cb" + codeRead                    // stac; …
	codeHigh   = "48bb0000000000800000488b03"           // mov rbx,1<<47; mov rax,[rbx]
	codeString = "bef00f0400bff81f0400b920000000fcf3a4" // rep movsb, 32 bytes from 0x40ff0 to 0x41ff8
)

// TestPageFaults: SDM vol. 3A §4.6 (access rights) and §4.7 (error codes). cr2
// and the instruction's own address are exact.
func TestPageFaults(t *testing.T) {
	const nx = pteNX
	for _, tt := range []struct {
		name       string
		user       bool
		set, clear uint64 // of the PTE of 0x40000
		next       uint64 // bits to clear in the one of 0x41000
		cr0, cr4   uint64
		code       string
		err        int // -1: no fault
		cr2        uint64
	}{
		{"read not present", false, 0, pteP, 0, 0, 0, codeRead, 0, atData},
		{"write not present", false, 0, pteP, 0, 0, 0, codeWrite, 2, atData},
		{"user read not present", true, 0, pteP, 0, 0, 0, codeRead, 4, atData},
		{"user write not present", true, 0, pteP, 0, 0, 0, codeWrite, 6, atData},
		{"user read supervisor page", true, 0, pteU, 0, 0, 0, codeRead, 5, atData},
		{"user write read-only", true, 0, pteW, 0, 0, 0, codeWrite, 7, atData},
		{"user add read-only", true, 0, pteW, 0, 0, 0, codeAdd, 7, atData},
		{"supervisor write read-only", false, 0, pteW, 0, 0, 0, codeWrite, -1, 0},
		{"supervisor write read-only, WP", false, 0, pteW, 0, cr0WP, 0, codeWrite, 3, atData},
		{"add not present", false, 0, pteP, 0, 0, 0, codeAdd, 2, atData},
		{"reserved bit", false, 1 << 50, 0, 0, 0, 0, codeRead, 9, atData},
		{"fetch not present", false, 0, pteP, 0, 0, 0, codeJump, 0x10, atData},
		{"fetch NX", false, nx, pteU, 0, 0, 0, codeJump, 0x11, atData},
		{"user fetch NX", true, nx, 0, 0, 0, 0, codeJump, 0x15, atData},
		{"user fetch supervisor page", true, 0, pteU, 0, 0, 0, codeJump, 0x15, atData},
		{"read NX", true, nx, 0, 0, 0, 0, codeRead, -1, 0},
		{"SMEP", false, 0, 0, 0, 0, cr4SMEP, codeJump, 0x11, atData},
		{"SMAP read", false, 0, 0, 0, 0, cr4SMAP, codeRead, 1, atData},
		{"SMAP write", false, 0, 0, 0, 0, cr4SMAP, codeWrite, 3, atData},
		{"SMAP with AC", false, 0, 0, 0, 0, cr4SMAP, codeStac, -1, 0},
		{"write across pages", true, 0, 0, pteP, 0, 0, codeCross, 6, atData + 0x1000},
		{"write across pages, first", true, 0, pteW, pteP, 0, 0, codeCross, 7, atData + 0xffc},
		{"fetch across pages", true, 0, 0, pteP, 0, 0, codeFetch, 0x14, atData + 0x1000},
	} {
		t.Run(tt.name, func(t *testing.T) {
			g, c := protected(t, tt.user)
			c.s.CR0 |= tt.cr0
			c.s.CR4 |= tt.cr4
			c.setMode()
			g.pte(atData, tt.set, tt.clear)
			g.pte(atData+0x1000, 0, tt.next)
			g.put(atCode, tt.code+"0f0b") // … ud2
			g.put(atData+0xffe, "4805")   // add rax, imm32, of which the rest is on the next page
			before := g.word(atData + 0xff8)
			g.run()
			r := g.record()
			if tt.err < 0 {
				if r.vec != vecUD {
					t.Errorf("vector %d error %#x cr2 %#x, want no fault", r.vec, r.err, r.cr2)
				}
				return
			}
			if r.vec != vecPF || r.err != uint64(tt.err) || r.cr2 != tt.cr2 {
				t.Errorf("vector %d error %#x cr2 %#x, want 14, %#x, %#x", r.vec, r.err, r.cr2, tt.err, tt.cr2)
			}
			if g.word(atData+0xff8) != before {
				t.Error("half of a faulting store was done")
			}
			if r.flags&flagRF == 0 {
				t.Error("RF is clear in the frame of a fault (§17.3.1.1)")
			}
		})
	}
}

// TestAccessedAndDirty: SDM vol. 3A §4.8.
func TestAccessedAndDirty(t *testing.T) {
	for _, tt := range []struct {
		code string
		want uint64
	}{
		{codeRead, pteA}, {codeWrite, pteA | pteD}, {codeAdd, pteA | pteD},
		{codeRead + "488903", pteA | pteD}, // the translation is cached when the write comes
		{"bb00000400f0480fb10b", pteA | pteD},
	} {
		g, _ := protected(t, false)
		g.put(atCode, tt.code+"0f0b")
		g.run()
		if got := g.word(atPT+atData>>12*8) & (pteA | pteD); got != tt.want {
			t.Errorf("%s: A and D are %#x, want %#x", tt.code, got, tt.want)
		}
		if g.word(0x1000)&pteA == 0 || g.word(0x2000)&pteA == 0 || g.word(0x3000)&pteA == 0 {
			t.Error("the upper tables' accessed bits are clear")
		}
	}
}

// TestExceptions: vectors, error codes and return addresses of SDM vol. 3A §6.15.
func TestExceptions(t *testing.T) {
	for _, tt := range []struct {
		name string
		user bool
		code string
		vec  uint64
		err  uint64
		at   uint64 // offset of the saved RIP
	}{
		{"#DE", false, "31c9f7f1", vecDE, 0, 2},
		{"#BP is a trap", false, "90cc", vecBP, 0, 2},
		{"INT3 at CPL 3 with a gate of DPL 0", true, "90cc", vecGP, 3<<3 | 2, 1},
		{"INT n at CPL 3 with a gate of DPL 0", true, "cd0e", vecGP, 14<<3 | 2, 0},
		{"INT1 ignores the DPL", true, "f1", vecDB, 0, 1},
		{"#UD", true, "0f0b", vecUD, 0, 0},
		{"LOCK NOP", true, "f090", vecUD, 0, 0},
		{"15 bytes are possible", false, "66666666666666666666666666669090cc", vecBP, 0, 17},
		{"16 bytes are not", false, "66666666666666666666666666666690", vecGP, 0, 0},
		{"not canonical", false, codeHigh, vecGP, 0, 10},
		{"stack not canonical", true, "48bc080000000080000050", vecSS, 0, 10},
		{"CLI at CPL 3", true, "fa", vecGP, 0, 0},
		{"HLT at CPL 3", true, "f4", vecGP, 0, 0},
		{"MOV from CR3 at CPL 3", true, "0f20d8", vecGP, 0, 0},
		{"LGDT at CPL 3", true, "0f01142500000400", vecGP, 0, 0},
		{"OUT at CPL 3 without a bitmap", true, "e6f5", vecGP, 0, 0},
		{"RDMSR of nothing", false, "b9452301000f32", vecGP, 0, 5},
		{"CR4 reserved", false, "48b800000000000800000f22e0", vecGP, 0, 10},
		{"CR0.PG without PE", false, "48b800000080000000000f22c0", vecGP, 0, 10},
		{"SS with a bad RPL", false, "b8330000008ed0", vecGP, 0x30, 5},
		{"DS beyond the GDT", false, "b8001000008ed8", vecGP, 0x1000, 5},
		{"DS not present", false, "b8400000008ed8", vecNP, 0x40, 5},
		{"MOVAPS unaligned", true, "bb010004000f2803", vecGP, 0, 5},
	} {
		t.Run(tt.name, func(t *testing.T) {
			g, _ := protected(t, tt.user)
			g.put(atCode, tt.code)
			g.run()
			r := g.record()
			if r.vec != tt.vec || r.err != tt.err || r.rip != atCode+tt.at {
				t.Errorf("vector %d error %#x RIP %#x, want %d, %#x, %#x", r.vec, r.err, r.rip, tt.vec, tt.err, atCode+tt.at)
			}
			cs, sp := uint64(selCode64), uint64(kernelSP)
			if tt.user {
				cs, sp = selUser64, userSP
			}
			if r.cs != cs || tt.vec != vecSS && r.rsp != sp {
				t.Errorf("saved CS %#x RSP %#x, want %#x, %#x", r.cs, r.rsp, cs, sp)
			}
			if r.handlerSP > kernelSP || r.handlerSP < kernelSP-0x100 {
				t.Errorf("the handler's stack is at %#x", r.handlerSP)
			}
		})
	}
}

// TestDoubleFault: SDM vol. 3A §6.15, interrupt 8: a contributory exception
// while another is delivered, on its own stack by the IST (§6.14.5).
func TestDoubleFault(t *testing.T) {
	g, _ := protected(t, false)
	g.put(atCode, "31c9f7f1")  // #DE …
	g.ram[atIDT+0*16+5] = 0x0e // … whose gate is not present: #NP
	g.run()
	r := g.record()
	if r.vec != vecDF || r.err != 0 {
		t.Errorf("vector %d error %#x, want 8, 0", r.vec, r.err)
	}
	if r.handlerSP > istSP || r.handlerSP < istSP-0x100 {
		t.Errorf("the handler's stack is at %#x, not stack 1", r.handlerSP)
	}
}

// TestTripleFault: a fault while #DF is delivered shuts the CPU down; the exit
// says where.
func TestTripleFault(t *testing.T) {
	g, c := protected(t, false)
	g.put(atCode, "9090e80000000031c9f7f1")
	c.s.IDT.Limit = 0
	exits := g.run()
	if exits[0].Reason != vcpu.ExitShutdown {
		t.Fatalf("exit %v", exits[0].Reason)
	}
	for _, want := range []string{fmt.Sprintf("rip %016x", atCode+9), "code f7 f1", "exception 0 error 0x0"} {
		if !strings.Contains(exits[0].Detail, want) {
			t.Errorf("no %q in:\n%s", want, exits[0].Detail)
		}
	}
}
