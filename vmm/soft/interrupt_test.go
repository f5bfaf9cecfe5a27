package soft

import (
	"slices"
	"testing"

	"github.com/gvmspawn/gvmspawn/vmm/vcpu"
)

// interruptible gives CPU i a code segment and an IDT with one gate, and starts
// it at 0x8000 with interrupts off.
func interruptible(g *guest, i int, vector, handler uint64) *CPU {
	c := g.start(i, 3, 0x8000)
	g.setWord(atGDT+selCode64, 0x00af9b000000ffff)
	g.setWord(atIDT+vector*16, handler&0xffff|selCode64<<16|0x8e00<<32|handler>>16<<48)
	c.s.GDT = vcpu.Table{Base: atGDT, Limit: 0xff}
	c.s.IDT = vcpu.Table{Base: atIDT, Limit: 0xfff}
	c.s.Seg[vcpu.CS].Selector = selCode64
	return c
}

// TestIPIStorm: two CPUs, halted in between, send each other an interrupt for
// every one that they get: none may be lost (SDM vol. 3A §11.6).
func TestIPIStorm(t *testing.T) {
	engines(t, func(t *testing.T, cfg Config) {
		cfg.CPUs = 2
		g := newGuest(t, cfg)
		// wrmsr APIC_BASE,r11 (x2APIC on); wrmsr SVR,0x1ff; mov [r12],1; test r8d,r8d; je I; W: pause;
		// cmp [0x7004],0; je W; wrmsr ICR,r8<<32|0x40; I: sti; hlt; jmp I
		// handler: inc [r9]; cmp [r9],3000; jae D; wrmsr EOI,0; wrmsr ICR,r8<<32|0x40; iretq; D: out 0xf4,al; cli; hlt
		g.put(0x8000, "b91b0000004489d831d20f30b90f080000b8ff01000031d20f3041c70424010000004585c0741bf390833c25047000000074f4"+
			"b930080000b8400000004489c20f30fbf4ebfc41ff01418139b80b0000731cb90b08000031c031d20f30b930080000b8400000004489c20f3048cfe6f4faf4")
		for i := range uint64(2) {
			c := interruptible(g, int(i), 0x40, 0x8046)
			c.s.R[vcpu.R8], c.s.R[vcpu.R9], c.s.R[vcpu.R12] = 1-i, 0x7010+16*i, 0x7000+4*i
			c.s.R[vcpu.R11] = 0xfee00c00 | (1-i)<<8
		}
		g.run()
		a, b := uint32(g.word(0x7010)), uint32(g.word(0x7020))
		if max(a, b) != 3000 || min(a, b) < 2999 {
			t.Errorf("the CPUs got %d and %d interrupts", a, b)
		}
	})
}

// TestInterruptShadow: an interrupt that waits comes behind the instruction
// after STI, and not at all if that is CLI (SDM vol. 2B, STI).
func TestInterruptShadow(t *testing.T) {
	engines(t, func(t *testing.T, cfg Config) {
		cfg.CPUs = 1
		g := newGuest(t, cfg)
		// x2APIC on; wrmsr SELF_IPI,0x40; xor ebx,ebx; sti; inc ebx; inc ebx; out 0xf4,al; hlt
		// handler: mov eax,ebx; out 0xf5,eax; wrmsr EOI,0; cmp ebx,50; jae F; mov ebx,50; wrmsr SELF_IPI,0x40;
		// sti; cli; inc ebx; inc ebx; sti; mov eax,ss; inc ebx; out 0xf5,eax; F: out 0xf4,al; hlt
		g.put(0x8000, "b91b000000b8000de0fe31d20f30b90f080000b8ff01000031d20f30b93f080000b8400000000f3031dbfbffc3ffc3e6f4f4"+
			"89d8e7f5b90b08000031c031d20f3083fb32731ebb32000000b93f080000b8400000000f30fbfaffc3ffc3fb8cd0ffc3e7f5e6f4f4")
		interruptible(g, 0, 0x40, 0x8032)
		g.run()
		if want := []uint32{1, 52}; !slices.Equal(g.out, want) {
			t.Errorf("interrupts at %v, want %v", g.out, want)
		}
	})
}

// TestNMI: a non-maskable interrupt is held off until the handler of the one
// before returns by IRET (SDM vol. 3A §6.7.1).
func TestNMI(t *testing.T) {
	engines(t, func(t *testing.T, cfg Config) {
		cfg.CPUs = 1
		g := newGuest(t, cfg)
		// x2APIC on; xor ebx,ebx; wrmsr ICR,NMI to itself; nop; nop; out 0xf5,ebx; out 0xf4,al; hlt
		// handler: inc ebx; cmp ebx,3; jae L; wrmsr ICR,NMI; nop; out 0xf5,ebx; L: iretq
		g.put(0x8000, "b91b000000b8000de0fe31d20f30b90f080000b8ff0100000f3031dbb930080000b8000400000f30909089d8e7f5e6f4f4"+
			"ffc383fb03730cb8000400000f309089d8e7f548cf")
		interruptible(g, 0, 2, 0x8031)
		g.run()
		if want := []uint32{1, 2, 3}; !slices.Equal(g.out, want) {
			t.Errorf("the guest reports %v, want %v", g.out, want)
		}
	})
}

// TestPCID: translations of two address spaces live side by side, and go when
// CR3 is loaded without bit 63, by INVLPG and by INVPCID (SDM vol. 3A §4.10).
func TestPCID(t *testing.T) {
	engines(t, func(t *testing.T, cfg Config) {
		cfg.CPUs = 1
		g := newGuest(t, cfg)
		g.start(0, 3, 0x8000)
		for i, at := range []uint64{0x10000, 0x14000} { // 0x200000 is another page in each
			g.setWord(at, at+0x1000|pteP|pteW)
			g.setWord(at+0x1000, at+0x2000|pteP|pteW)
			g.setWord(at+0x2000, 0|pteP|pteW|ptePS|pteG)
			g.setWord(at+0x2008, at+0x3000|pteP|pteW)
			g.setWord(at+0x3000, 0x40000+uint64(i)*0x1000|pteP|pteW)
			g.setWord(0x40000+uint64(i)*0x1000, 3+4*uint64(i))
		}
		g.setWord(0x42000, 9)
		g.setWord(0x7100, 2) // INVPCID's descriptor
		g.setWord(0x7108, 0x200000)
		// CR4.PCIDE, PGE on; r8 = 0x10001, r9 = 0x14002, both with bit 63; 200 times: mov cr3,r8; add esi,[0x200000];
		// mov cr3,r9; add edi,[0x200000]. Report both. PTE of 1 to the third page; mov cr3,0x10001; report [0x200000].
		// PTE of 1 back; invlpg; report. PTE of 2 to the third page; invpcid 0; mov cr3,r9; report.
		g.put(0x8000, "0f20e00d800002000f22e049b8010001000000008049b9024001000000008031f631ffb9c8000000410f22d803342500002000"+
			"410f22d9033c2500002000ffc975e689f0e7f589f8e7f5c70425003001000320040041ba01000100410f22da8b042500002000e7f5"+
			"c7042500300100030004000f013c25000020008b042500002000e7f5c70425007001000320040031c0660f3882042500710000"+
			"410f22d98b042500002000e7f5e6f4f4")
		g.run()
		if want := []uint32{600, 1400, 9, 3, 9}; !slices.Equal(g.out, want) {
			t.Errorf("the guest reports %v, want %v", g.out, want)
		}
	})
}

// TestLazyFPU: a vector instruction faults while CR0.TS is set, each time, in hot
// code too, and is done once when the handler has cleared it (SDM vol. 3A §14.5.1).
func TestLazyFPU(t *testing.T) {
	engines(t, func(t *testing.T, cfg Config) {
		cfg.CPUs = 1
		g := newGuest(t, cfg)
		// mov ecx,100; xor ebx,ebx; xmm1 = 1; xmm0 = 0; L: CR0.TS on; paddd xmm0,xmm1; dec ecx; jne L; report xmm0 and ebx
		// handler: inc ebx; clts; iretq
		g.put(0x8000, "b96400000031dbb801000000660f6ec8660fefc00f20c083c8080f22c0660ffec1ffc975ef660f7ec0e7f589d8e7f5e6f4f4ffc30f0648cf")
		interruptible(g, 0, vecNM, 0x8032)
		g.run()
		if want := []uint32{100, 100}; !slices.Equal(g.out, want) {
			t.Errorf("the guest reports %v, want %v", g.out, want)
		}
	})
}
