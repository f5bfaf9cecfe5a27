package soft

import "testing"

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
