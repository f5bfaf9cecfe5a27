package soft

import (
	"fmt"
	"testing"

	"github.com/gvmspawn/gvmspawn/vmm/vcpu"
)

// TestAlignmentCheck: #AC of SDM vol. 3A §6.15, "Interrupt 17", with the alignments
// of its table 6-7: only with CR0.AM and EFLAGS.AC, at CPL 3.
func TestAlignmentCheck(t *testing.T) {
	const none = -1
	mov := func(low byte) string { return fmt.Sprintf("bb%02x000400", low) } // mov ebx, 0x400xx
	for _, tt := range []struct {
		name string
		code string
		at   int // offset of the instruction at fault
	}{
		{"byte", mov(1) + "8a03", none},
		{"word", mov(2) + "668b03", none},
		{"odd word", mov(1) + "668b03", 5},
		{"doubleword", mov(4) + "8b03", none},
		{"doubleword at 2", mov(2) + "8b03", 5},
		{"store", mov(2) + "8903", 5},
		{"quadword", mov(8) + "488b03", none},
		{"quadword at 4", mov(4) + "488b03", 5},
		{"read, modify, write", mov(4) + "48830301", 5},
		{"locked", mov(2) + "f00fc103", 5},
		{"across pages", codeCross, 5},
		{"push", "bc0404030050", 5},
		{"pop", "bc0404030058", 5},
		{"call", "bc04040300e800000000", 5},
		{"ret", "bc04040300c3", 5},
		{"movsq", "be04000400bf0010040048a5", 10},
		{"rep movsq", "be00000400bf04100400b902000000f348a5", 15},
		{"extended precision", mov(8) + "db2b", none},
		{"extended precision at 4", mov(4) + "db2b", 5},
		{"fstp of it", mov(4) + "d9e8db3b", 7},
		{"environment", mov(4) + "d933", none},
		{"environment at 2", mov(2) + "d933", 5},
		{"movss", mov(4) + "f30f1003", none},
		{"movsd", mov(4) + "f20f1003", 5},
		{"movups at 8", mov(8) + "0f1003", none},
		{"sgdt at 4", mov(4) + "0f0103", none},
		{"sgdt at 2", mov(2) + "0f0103", 5},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, m := range []struct {
				name   string
				user   bool
				cr0    uint64
				flags  uint64
				checks bool
			}{{"all", true, cr0AM, flagAC, true}, {"no AM", true, 0, flagAC, false}, {"no AC", true, cr0AM, 0, false}, {"CPL 0", false, cr0AM, flagAC, false}} {
				g, c := protected(t, m.user)
				c.s.CR0 |= m.cr0
				c.s.Flags |= m.flags
				c.setMode()
				g.put(atCode, tt.code+"0f0b")
				if tt.name == "ret" {
					g.setWord(0x30404, atCode+6)
				}
				g.run()
				r := g.record()
				if !m.checks || tt.at == none {
					if r.vec != vecUD {
						t.Errorf("%s: vector %d at %#x, want no fault", m.name, r.vec, r.rip)
					}
					continue
				}
				if r.vec != vecAC || r.err != 0 || r.rip != atCode+uint64(tt.at) || r.flags&flagRF == 0 {
					t.Errorf("%s: vector %d error %#x at %#x, want 17, 0, %#x", m.name, r.vec, r.err, r.rip, atCode+tt.at)
				}
			}
		})
	}
}

// TestAlignmentCheckHotCode: code that was translated raises #AC, too, from the
// instruction on behind the POPF that sets EFLAGS.AC.
func TestAlignmentCheckHotCode(t *testing.T) {
	g, c := protected(t, true)
	c.s.CR0 |= cr0AM
	c.setMode()
	// mov ebx,0x40001; 1: mov ecx,100; 2: mov eax,[rbx]; dec ecx; jnz 2; pushf; or dword [rsp],AC; popf; jmp 1
	g.put(atCode, "bb01000400b9640000008b03ffc975fa9c810c24000004009debea")
	g.run()
	if r := g.record(); r.vec != vecAC || r.rip != atCode+10 || c.s.R[vcpu.RCX] != 100 {
		t.Errorf("vector %d at %#x with %d rounds to go, want 17, %#x, 100", r.vec, r.rip, c.s.R[vcpu.RCX], atCode+10)
	}
}

// TestImplicitSMAP: descriptors on a user page cannot be read under CR4.SMAP,
// whatever EFLAGS.AC and the CPL are: such accesses are implicit supervisor-mode
// accesses (SDM vol. 3A §4.6.1).
func TestImplicitSMAP(t *testing.T) {
	for _, tt := range []struct {
		name       string
		user, smap bool
		stac       bool
		fault      bool
	}{
		{"without SMAP", false, false, false, false},
		{"SMAP", false, true, false, true},
		{"SMAP with AC", false, true, true, true},
		{"from CPL 3", true, true, false, true},
		{"from CPL 3 without SMAP", true, false, false, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			g, c := protected(t, tt.user)
			c.s.Seg[segLDTR] = vcpu.Segment{Selector: 0x28, Base: atData, Limit: 0xff, Attr: attrP | 2}
			g.setWord(atData+8, g.word(atGDT+selUserDS&^7))
			code := "b80f0000008ed8" // mov eax, 0xf; mov ds, eax
			if tt.stac {
				code = "0f01cb" + code
			}
			if tt.smap {
				c.s.CR4 |= cr4SMAP
			}
			c.setMode()
			g.put(atCode, code+"0f0b")
			g.run()
			r := g.record()
			if !tt.fault {
				if r.vec != vecUD {
					t.Errorf("vector %d error %#x cr2 %#x, want no fault", r.vec, r.err, r.cr2)
				}
			} else if r.vec != vecPF || r.err != 1 || r.cr2 != atData+8 {
				t.Errorf("vector %d error %#x cr2 %#x, want 14, 1, %#x", r.vec, r.err, r.cr2, atData+8)
			}
		})
	}
	for _, stac := range []bool{true, false} { // the frame of an exception is an ordinary access
		g, c := protected(t, false)
		c.s.CR4 |= cr4SMAP
		c.s.R[vcpu.RSP] = atData + 0x800
		c.setMode()
		code, want := "0f0b", uint64(vecDF)
		if stac {
			code, want = "0f01cb0f0b", vecUD
		}
		g.put(atCode, code)
		g.run()
		if r := g.record(); r.vec != want {
			t.Errorf("a frame on a user page, AC %v: vector %d, want %d", stac, r.vec, want)
		}
	}
}

// TestSysretTrap: SYSRET that sets TF traps before the instruction that it goes to
// (Linux arch/x86/entry, do_syscall_64); SDM vol. 3B §17.3.1.4 has the trap of an
// IRET or POPF behind the next one.
func TestSysretTrap(t *testing.T) {
	for _, tt := range []struct {
		name string
		code string
		at   uint64
	}{
		{"sysret", "b90090000041bb02010000480f07", 0x9000},             // mov ecx, 0x9000; mov r11d, 0x102; sysretq
		{"iret", "6a2b680008030068020100006a23680090000048cf", 0x9001}, // push SS, RSP, flags, CS, RIP; iretq
	} {
		t.Run(tt.name, func(t *testing.T) {
			g, c := protected(t, false)
			g.pte(0x9000, pteU, 0)
			c.s.EFER |= eferSCE
			c.star = 0x10 << 48
			g.put(atCode, tt.code)
			g.put(0x9000, "90900f0b")
			g.run()
			if r := g.record(); r.vec != vecDB || r.rip != tt.at || r.dr6&dr6BS == 0 || r.cs != selUser64 {
				t.Errorf("vector %d DR6 %#x CS %#x RIP %#x, want 1 with BS at %#x", r.vec, r.dr6, r.cs, r.rip, tt.at)
			}
		})
	}
}
