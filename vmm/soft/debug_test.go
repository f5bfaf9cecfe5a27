package soft

import (
	"testing"

	"github.com/gvmspawn/gvmspawn/vmm/vcpu"
)

// TestDebug: single-step and breakpoints (SDM vol. 3B §17.2, §17.3.1): which
// bits DR6 gets, and where the handler returns to.
func TestDebug(t *testing.T) {
	const bs = dr6BS
	for _, tt := range []struct {
		name string
		dr0  uint64
		dr7  uint64
		code string
		dr6  uint64
		at   uint64
	}{
		// pushfq; or dword [rsp],0x100; popfq; nop; nop; ud2: the trap comes behind the first NOP.
		{"single-step", 0, 0, "9c810c24000100009d90900f0b", bs, 10},
		// … rep stosb: a trap behind each iteration.
		{"single-step in REP", 0, 0, "bf00000400b9040000009c810c24000100009df3aa0f0b", bs, 19},
		{"instruction", atCode + 2, 1, "909090900f0b", 1, 2},
		// mov ebx,0x40010; nop; mov [rbx],eax; nop; ud2
		{"write", atData + 0x10, 1 | 1<<16 | 3<<18, "bb10000400908903900f0b", 1, 8},
		{"write of the last byte", atData + 0x13, 1 | 1<<16, "bb10000400908903900f0b", 1, 8},
		{"access by a write", atData + 0x10, 1 | 3<<16, "bb10000400908903900f0b", 1, 8},
		// mov ebx,0x40010; mov eax,[rbx]; nop; ud2
		{"access by a read", atData + 0x10, 1 | 3<<16, "bb100004008b03900f0b", 1, 7},
		// mov ebx,0x40010; lock xadd [rbx],eax; ud2
		{"locked write", atData + 0x10, 1 | 1<<16, "bb10000400f00fc1030f0b", 1, 9},
		// rep movsb, 32 bytes from 0x40ff0 to 0x41ff8
		{"write in REP", 0x42000, 1 | 1<<16, codeString + "0f0b", 1, 16},
		{"port", portEnd + 1, 1 | 2<<16, "e6f5900f0b", 1, 2},
	} {
		t.Run(tt.name, func(t *testing.T) {
			g, c := protected(t, false)
			c.s.CR4 |= cr4DE
			c.s.DR[0] = tt.dr0
			c.writeDR(7, tt.dr7)
			g.put(atCode, tt.code)
			g.run()
			if r := g.record(); r.vec != vecDB || r.dr6&0xe00f != tt.dr6 || r.rip != atCode+tt.at {
				t.Errorf("vector %d DR6 %#x RIP %#x, want 1, %#x, %#x", r.vec, r.dr6&0xe00f, r.rip, tt.dr6, atCode+tt.at)
			}
		})
	}
	for _, tt := range []struct {
		name string
		dr0  uint64
		dr7  uint64
		code string
	}{
		{"a read meets no write breakpoint", atData + 0x10, 1 | 1<<16, "bb100004008b03900f0b"},
		{"the byte behind", atData + 0x14, 1 | 1<<16, "bb10000400908903900f0b"},
		{"disabled", atData + 0x10, 1 << 16, "bb10000400908903900f0b"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			g, c := protected(t, false)
			c.s.DR[0] = tt.dr0
			c.writeDR(7, tt.dr7)
			g.put(atCode, tt.code)
			g.run()
			if r := g.record(); r.vec != vecUD {
				t.Errorf("vector %d DR6 %#x, want #UD", r.vec, r.dr6)
			}
		})
	}
}

// TestDebugHotCode: single-step and breakpoints turned on when a loop has run
// often: each trap comes once, the one behind the POPF that clears TF as well
// (SDM vol. 3B §17.2.4, §17.3.1).
func TestDebugHotCode(t *testing.T) {
	for _, tt := range []struct {
		name           string
		tf, dr0, dr7   uint64
		traps, lastDR6 uint64
	}{
		// Two instructions before the loop of five, two behind it, and PUSHF, AND, POPF.
		{"single-step", flagTF, 0, 0, 2 + 5*50 + 2 + 3, dr6BS},
		{"write", 0, atData + 0x10, 1 | 1<<16 | 3<<18, 50, 1},
		{"byte of a write", 0, atData + 0x12, 1 | 1<<16, 50, 1},
		{"access", 0, atData + 0x10, 1 | 3<<16, 50, 1},
		{"instruction", 0, atCode + 0xd, 1, 50, 1},
		{"another byte", 0, atData + 0x14, 1 | 1<<16 | 3<<18, 0, 0},
		{"single-step and write", flagTF, atData + 0x10, 1 | 1<<16, 2 + 5*50 + 2 + 3, dr6BS},
	} {
		t.Run(tt.name, func(t *testing.T) {
			engines(t, func(t *testing.T, cfg Config) {
				cfg.CPUs = 1
				g := newGuest(t, cfg)
				// mov ebx,0x40010; mov ecx,100; L: nop; mov [rbx],eax; nop; dec ecx; jnz L; test edi,edi; jnz E; inc edi; mov dr7,rsi;
				// pushf; or [rsp],r8; popf; mov ecx,50; jmp L; E: pushf; and qword [rsp],~TF; popf; dr7 = 0; out 0xf4,al; hlt
				g.put(atCode, "bb10000400b96400000090890390ffc975f885ff7512ffc70f23fe9c4c0904249db932000000ebe29c48812424fffeffff9d31c00f23f8e6f4f4")
				g.put(atCode+0x60, "ff042510700000814c24100000010048cf") // inc dword [0x7010]; or dword [rsp+16],RF; iretq
				c := interruptible(g, 0, vecDB, atCode+0x60)
				c.s.DR[0] = tt.dr0
				c.s.R[vcpu.RSI], c.s.R[vcpu.R8], c.s.R[vcpu.RDI] = tt.dr7, tt.tf, 0
				g.run()
				if n := g.word(0x7010); n != tt.traps || n != 0 && c.s.DR[6]&tt.lastDR6 == 0 {
					t.Errorf("%d traps, DR6 %#x at the end; want %d and %#x", n, c.s.DR[6], tt.traps, tt.lastDR6)
				}
			})
		})
	}
}

// TestUMIP: outside ring 0 the instructions that tell of system tables fault
// under CR4.UMIP, and only then (SDM vol. 3A §2.5, §5.9).
func TestUMIP(t *testing.T) {
	for name, code := range map[string]string{"sgdt": "0f0103", "sidt": "0f010b", "sldt": "0f00c0", "str": "0f00c8", "smsw": "0f01e0", "sldt m": "0f0003"} {
		for _, user := range []bool{false, true} {
			for _, umip := range []uint64{0, cr4UMIP} {
				g, c := protected(t, user)
				c.s.CR4 |= umip
				g.put(atCode, "bb00000400"+code+"0f0b") // mov ebx,0x40000; …; ud2
				g.run()
				want := uint64(vecUD)
				if user && umip != 0 {
					want = vecGP
				}
				if r := g.record(); r.vec != want || r.err != 0 || want == vecGP && r.rip != atCode+5 {
					t.Errorf("%s, user %t, UMIP %t: vector %d error %#x RIP %#x, want %d", name, user, umip != 0, r.vec, r.err, r.rip, want)
				}
			}
		}
	}
}
