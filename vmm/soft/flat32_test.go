package soft

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"github.com/gvmspawn/gvmspawn/vmm/soft/decode"
	"github.com/gvmspawn/gvmspawn/vmm/vcpu"
)

// TestFlat32: the specialised functions do for flat 32-bit code what the
// generic ones do, instruction by instruction.
func TestFlat32(t *testing.T) {
	c, ram := fuzzMachine(t)
	rng := rand.New(rand.NewPCG(11, 12))
	data := make([]byte, len(ram))
	seen := map[decode.Op]int{}
	run := func(code []byte, regs *[8]uint64, flags uint64, flat bool) (int, exception) {
		copy(ram, data)
		copy(ram[0x8000:], code)
		fuzzMode(c, ram, 1, false)
		if !flat {
			c.s.Seg[vcpu.ES].Limit--
		}
		if c.flat32() != flat {
			t.Fatal("flat32 is wrong")
		}
		copy(c.s.R[:8], regs[:])
		c.s.setArith(flags)
		c.exc = exception{}
		return c.single(), c.exc
	}
	for i := range data {
		data[i] = byte(rng.Uint32())
	}
	for n := 0; n < flat32Cases(); {
		var code [16]byte
		for i := range code {
			code[i] = byte(rng.Uint32())
		}
		if rng.IntN(3) == 0 {
			code[0] = 0x0f
		}
		var in decode.Inst
		if decode.Decode(&in, code[:15], decode.Mode32) != nil || !fast32(&in) || in.Map == 1 && in.Opcode&^3 == 0x20 {
			continue
		}
		n++
		seen[in.Op]++
		var regs [8]uint64
		for i := range regs {
			if regs[i] = randomValue(rng) & 0xffffffff; rng.IntN(2) == 0 {
				regs[i] &= 0xfffff
			}
		}
		flags := rng.Uint64() & flagsArith
		st1, e1 := run(code[:], &regs, flags, false)
		r1, f1, ip1 := c.s.R, c.s.arith(), c.s.RIP
		sum1 := bytes.Clone(ram)
		st2, e2 := run(code[:], &regs, flags, true)
		switch {
		case st1 != st2 || e1 != e2:
			t.Errorf("% x %v: generic %d %+v, specialised %d %+v", code[:in.Len], in.Op, st1, e1, st2, e2)
		case st1 == stFault:
		case [8]uint64(r1[:8]) != [8]uint64(c.s.R[:8]) || ip1&0xffffffff != c.s.RIP&0xffffffff:
			t.Errorf("% x %v: generic %x %x, specialised %x %x", code[:in.Len], in.Op, r1[:8], ip1, c.s.R[:8], c.s.RIP)
		case (f1^c.s.arith())&^undefined(&in, 2) != 0:
			t.Errorf("% x %v: flags generic %#x, specialised %#x", code[:in.Len], in.Op, f1, c.s.arith())
		case !bytes.Equal(sum1, ram):
			t.Errorf("% x %v: memory differs", code[:in.Len], in.Op)
		}
	}
	if len(seen) < 25 {
		t.Errorf("only %d operations", len(seen))
	}
}

func flat32Cases() int { return oracleCases() / 20 }
