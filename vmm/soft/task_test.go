package soft

import (
	"bytes"
	"encoding/binary"
	"math"
	"strings"
	"testing"

	"github.com/gvmspawn/gvmspawn/vmm/vcpu"
)

// taskCode switches between two tasks at each interrupt of the local APIC's
// timer, which R9 sets; [0x7000] is the present task's area: the FPU's state,
// and RSP at 0x800. The tasks are at 0x80d0:
//
//	L: addsd xmm0,xmm1; paddd xmm2,xmm3; mulpd xmm4,xmm5; fadd st,st(1); add rax,rdx; rol rax,7; dec rcx; jnz L
//	movsd [rdi],xmm0; movups [rdi+16],xmm2; movups [rdi+32],xmm4; fstp tbyte [rdi+64]; mov [rdi+80],rax
//	stmxcsr [rdi+88]; fnstcw [rdi+92]; lock dec dword [0x7020]; jnz W; out 0xf4,al; W: pause; jmp W
const taskCode = "b91b000000b8000de0fe31d20f30b90f080000b8ff01000031d20f30b93e080000b80b0000000f30b932080000b8400002000f30b9380800004489c80f30" +
	"488b1c2500700000eb4f00000000000000000000000000000000000000000000000050515253565" +
	"7ff042510700000488b1c2500700000b80700000031d2480fae03904889a3000800004881f30010000048891c2500700000488ba300080000b80700000031d2480fae0b90" +
	"b90b08000031c00f305f5e5b5a595848cf000000000000000000000000000000000000000000" +
	"f20f58c1660ffed3660f59e590d8c14801d048c1c00748ffc975e5f20f11070f1157100f11672090db7f40488947500fae5f58d97f5cf0ff0c25207000007502e6f4f390ebfc"

// TestFPUAcrossSwitches: two tasks compute with SSE, AVX or x87 registers, each
// with its own rounding and precision, while the timer switches between them by
// FXSAVE and FXRSTOR, or XSAVE and XRSTOR: their results are those of each alone
// (SDM vol. 1 §10.5, §13.7, §13.8; vol. 3A §14.2).
func TestFPUAcrossSwitches(t *testing.T) {
	const area, result = 0x50000, 0x60000
	code := map[string]string{"fxsave": taskCode, "xsave": strings.NewReplacer("480fae0390", "480fae2390", "480fae0b90", "480fae2b90",
		"660f59e590", "c5dd59e590", "0f11672090", "c5fc116720").Replace(taskCode)}
	run := func(t *testing.T, cfg Config, how string, tasks []uint64, ticks uint64) [2][]byte {
		cfg.CPUs = 1
		loops := uint64(1_000_000)
		if cfg.NoTranslator {
			loops = 200_000
		}
		g := newGuest(t, cfg)
		c := interruptible(g, 0, 0x40, 0x8060)
		c.s.CR4 |= cr4OSXSAVE
		c.s.XCR0 = 7
		g.put(0x8000, code[how])
		for i := range uint64(2) {
			a := area + i<<12
			fx := g.ram[a:]
			copy(fx, []byte{0x7f, byte(3 + 4*i), 0, 0, 3}) // round to nearest or down, extended; ST0 and ST1
			if i == 1 {
				fx[1] = 0x0c // truncate, single
			}
			binary.LittleEndian.PutUint32(fx[24:], 0x1f80|uint32(1+i)<<13)
			for j, v := range []float64{1 + float64(i), 0.1, 0, 0, 1.5, 1 + 1e-9*float64(1+i)} {
				for k := range uint64(2) {
					binary.LittleEndian.PutUint64(fx[fxXMM+16*j+8*int(k):], math.Float64bits(v))
					binary.LittleEndian.PutUint64(fx[xsaveYMM+16*j+8*int(k):], math.Float64bits(v+float64(k)))
				}
			}
			binary.LittleEndian.PutUint32(fx[fxXMM+16*3:], uint32(7+i))
			copy(fx[32:], []byte{0, 0, 0, 0, 0, 0, 0, 0x80, 0xff, 0x3f})                      // 1
			copy(fx[48:], []byte{0xcd, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xfb, 0x3f}) // 0.1
			g.setWord(a+xsaveHeader, 7)
			sp := uint64(0x70000) + i<<12
			g.setWord(a+0x800, sp)
			// RDI, RSI, RBX, RDX, RCX, RAX; RIP, CS, RFLAGS, RSP, SS
			for j, v := range []uint64{result + i<<12, 0, 0, 0x9e3779b97f4a7c15 + i, loops, i, 0x80d0, selCode64, flagIF | 2, sp + 0x800, 0} {
				g.setWord(sp+uint64(j)*8, v)
			}
		}
		g.setWord(0x7000, area+tasks[0]<<12)
		g.setWord(0x7020, uint64(len(tasks)))
		c.s.R[vcpu.R9] = ticks
		g.run()
		if n := g.word(0x7010); ticks != 0 && n < 20 {
			t.Errorf("%d switches", n)
		}
		return [2][]byte{bytes.Clone(g.ram[result:][:96]), bytes.Clone(g.ram[result+0x1000:][:96])}
	}
	for how := range code {
		t.Run(how, func(t *testing.T) {
			engines(t, func(t *testing.T, cfg Config) {
				a, b := run(t, cfg, how, []uint64{0}, 0)[0], run(t, cfg, how, []uint64{1}, 0)[1]
				if bytes.Equal(a, b) || bytes.Equal(a, make([]byte, len(a))) {
					t.Fatalf("the tasks alone: % x, % x", a, b)
				}
				both := run(t, cfg, how, []uint64{0, 1}, 20_000)
				if !bytes.Equal(both[0], a) || !bytes.Equal(both[1], b) {
					t.Errorf("alone\n% x\n% x\ntogether\n% x\n% x", a, b, both[0], both[1])
				}
			})
		})
	}
}
