package soft

import (
	"bytes"
	"math/rand/v2"
	"runtime"
	"sync/atomic"
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

// TestTranslatorFlat32: translated flat 32-bit code of ring 0 does what the interpreter
// does, also where it faults, and with registers whose upper halves hold anything.
func TestTranslatorFlat32(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	c, ram := fuzzMachine(t)
	if c.jit == nil {
		t.Skip("no translated code on this host")
	}
	rng := rand.New(rand.NewPCG(13, 14))
	data := make([]byte, len(ram))
	for i := range data {
		data[i] = byte(rng.Uint32())
	}
	type result struct {
		st    int
		exc   exception
		regs  [8]uint64
		flags uint64
		rip   uint64
		ram   []byte
	}
	var regs [8]uint64
	run := func(code []byte, flags uint64, translated bool) result {
		copy(ram, data)
		copy(ram[0x8000:], code)
		c.dropCode()
		fuzzMode(c, ram, 1, false)
		copy(c.s.R[:8], regs[:])
		c.s.setArith(flags)
		c.exc = exception{}
		atomic.StoreUint32(&c.s.Exit, 0)
		b := c.lookup()
		if b == nil || !b.translatable() {
			t.Fatal("the code is not translatable")
		}
		var r result
		if translated {
			b.runs = hotRuns
			r.st = c.runTier(b)
			if b.tr == 0 && !b.dead {
				r.st = -1
			}
		} else {
			r.st = c.exec(b)
		}
		copy(r.regs[:], c.s.R[:8])
		r.exc, r.flags, r.rip, r.ram = c.exc, c.s.arith(), c.s.RIP&0xffffffff, bytes.Clone(ram[:0x100000])
		return r
	}
	made, faults := map[string]int{}, 0
	for n := 0; n < flat32Cases(); n++ {
		var code [128]byte
		var undef uint64
		at, names := 0, []string{}
		for range 1 + rng.IntN(8) {
			var in decode.Inst
			var tr tinst
			for {
				for i := range 16 {
					code[at+i] = byte(rng.Uint32())
				}
				if rng.IntN(3) == 0 {
					code[at] = 0x0f
				}
				if decode.Decode(&in, code[at:at+15], decode.Mode32) != nil || c.vm.features.lacks(&in) || generic[in.Op] == nil {
					continue
				}
				tr = tinst{in: in, code: code[at : at+int(in.Len)]}
				tr.classify(0, c.jit.as)
				if tr.class == tcInterp || ends(tr.class) || uint64(tr.flags.reads)&undef != 0 {
					continue
				}
				undef = undef&^uint64(tr.flags.writes) | undefined(&in, 2)
				break
			}
			names = append(names, in.Op.String())
			at += int(in.Len)
		}
		code[at] = 0xf4 // hlt
		for i := range regs {
			if regs[i] = randomValue(rng); rng.IntN(2) == 0 {
				regs[i] = regs[i]&0xfffff | regs[i]&^0xffffffff
			}
		}
		flags := rng.Uint64() & flagsArith
		want, got := run(code[:at+1], flags, false), run(code[:at+1], flags, true)
		switch {
		case !bytes.Equal(want.ram[0x8000:0x9000], data[0x8000:0x9000]) && !bytes.HasPrefix(want.ram[0x8000:], code[:at+1]):
			continue // it wrote to itself
		case got.st == -1:
			t.Fatalf("% x is not translated", code[:at])
		case want.exc != got.exc || want.rip != got.rip || (want.st == stFault) != (got.st == stFault):
			t.Errorf("% x %v: interpreted %d %+v at %#x, translated %d %+v at %#x", code[:at], names, want.st, want.exc, want.rip, got.st, got.exc, got.rip)
		case low32(want.regs) != low32(got.regs):
			t.Errorf("% x %v: interpreted %x, translated %x", code[:at], names, want.regs, got.regs)
		case !bytes.Equal(want.ram, got.ram):
			t.Errorf("% x %v: memory differs", code[:at], names)
		case want.rip >= uint64(0x8000+at) && (want.flags^got.flags)&^undef != 0: // it came to the end
			t.Errorf("% x %v: flags interpreted %#x, translated %#x", code[:at], names, want.flags, got.flags)
		}
		faults += int(boolBit(want.st == stFault))
		for _, name := range names {
			made[name]++
		}
	}
	if len(made) < 25 || faults == 0 {
		t.Errorf("only %d operations, %d faults", len(made), faults)
	}
	t.Logf("%d operations, %d faults of %d", len(made), faults, flat32Cases())
}

// low32 is what 32-bit code sees of registers.
func low32(r [8]uint64) [8]uint64 {
	for i := range r {
		r[i] &= 0xffffffff
	}
	return r
}
