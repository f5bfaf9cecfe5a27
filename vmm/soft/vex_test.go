package soft

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"runtime"
	"testing"

	"github.com/gvmspawn/gvmspawn/vmm/soft/decode"
	"github.com/gvmspawn/gvmspawn/vmm/vcpu"
)

// Where the native twin has its YMM registers.
const (
	ctxYMM    = 0x1000
	ctxYMMOut = 0x1400
)

// vexNative runs code on the host with all of the YMM registers.
func (o *oracle) vexNative(code []byte, st *userState, ymm *[16][4]uint64) {
	ctx := o.host[oracleCtx-oracleBase:]
	var all []byte
	move := func(op byte, r int, at uint32) { // vmovdqu
		all = append(all, 0xc5, 0xfe&^byte(r>>3<<7), op, byte(r&7)<<3|4, 0x25)
		all = binary.LittleEndian.AppendUint32(all, oracleCtx+at)
	}
	for i, v := range ymm {
		for j, x := range v {
			binary.LittleEndian.PutUint64(ctx[ctxYMM+32*i+8*j:], x)
		}
		move(0x6f, i, uint32(ctxYMM+32*i))
	}
	all = append(all, code...)
	for i := range ymm {
		move(0x7f, i, uint32(ctxYMMOut+32*i))
	}
	all = append(all, 0xc5, 0xf8, 0x77)
	o.native(all, st)
	for i := range ymm {
		for j := range ymm[i] {
			ymm[i][j] = binary.LittleEndian.Uint64(ctx[ctxYMMOut+32*i+8*j:])
		}
	}
}

// vexInterp is the same in the interpreter.
func (o *oracle) vexInterp(code []byte, st *userState, ymm *[16][4]uint64) bool {
	s := o.c.s
	for i := range st.xmm {
		st.xmm[i] = [2]uint64{ymm[i][0], ymm[i][1]}
	}
	s.XMM = *ymm
	ok := o.interp(code, st)
	*ymm = s.XMM
	return ok
}

// randomVEX makes a VEX prefix and random bytes behind it.
func randomVEX(rng *rand.Rand, b []byte) {
	for i := range b {
		b[i] = byte(rng.Uint32())
	}
	b[0] = 0xc4 | byte(rng.IntN(2))
	if b[0] == 0xc4 {
		b[1] = b[1]&0xe0 | byte(1+rng.IntN(3))
		if rng.IntN(2) == 0 {
			b[2] |= 0x78
		}
	} else if rng.IntN(2) == 0 {
		b[1] |= 0x78
	}
}

// placeVEX points the memory operand into the window; false if in is not for
// the oracle.
func placeVEX(in *decode.Inst, st *userState, ymm *[16][4]uint64, code []byte, rng *rand.Rand) bool {
	switch in.Op {
	case decode.VEX:
		f := in.Form
		if f.Reg == 'g' && in.Reg() == 4 || f.Rm == 'g' && in.RM() == 4 || f.Vvvv == 'g' && in.Vvvv == 4 {
			return false // RSP
		}
	case decode.VGATHER:
		if in.Mem.Base >= 16 || in.Mem.Base == 4 || in.AddrSize != 8 {
			return false
		}
		index := min(in.Mem.Index, 16)
		if index == 16 {
			index = 4
		}
		if d := in.Reg(); d == in.Vvvv || d == index || index == in.Vvvv {
			return false // #UD
		}
		for i := range ymm[index] {
			ymm[index][i] = uint64(rng.IntN(200)) | uint64(rng.IntN(200))<<32
			if in.Opcode&1 != 0 {
				ymm[index][i] &= 0xff
			}
		}
		st.gpr[in.Mem.Base] = oracleData - uint64(in.Mem.Disp)
		return true
	case decode.VZEROUPPER, decode.VMASKMOV:
	default:
		return false
	}
	if !in.MemMod() || in.Op == decode.VZEROUPPER {
		return true
	}
	if !place(in, st, code, rng) {
		return false
	}
	if in.Op == decode.VEX && in.Form.Aligned {
		ea := st.gpr[in.Mem.Base] + uint64(in.Mem.Disp)
		if in.Mem.Index != decode.RegNone {
			ea += st.gpr[in.Mem.Index] << in.Mem.Scale
		}
		st.gpr[in.Mem.Base] -= ea & 31
	}
	return true
}

// TestOracleVEX compares VEX-encoded instructions with the host's CPU.
func TestOracleVEX(t *testing.T) {
	if !HostHasV3() {
		t.Skip("the host's CPU is no x86-64-v3")
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	o := newOracle(t)
	rng := rand.New(rand.NewPCG(3, 4))
	var init, a, b userState
	var ymm, x, y [16][4]uint64
	seen, failed := map[string]int{}, map[string]int{}
	for n := 0; n < oracleCases()/2; {
		var buf [20]byte
		randomVEX(rng, buf[:])
		var in decode.Inst
		if decode.Decode(&in, buf[:15], decode.Mode64) != nil || hostFeatures.lacks(&in) {
			continue
		}
		if n&15 == 0 {
			init.fill(rng)
			for i := range ymm {
				ymm[i] = [4]uint64{randomFloatish(rng), randomFloatish(rng), randomFloatish(rng), randomFloatish(rng)}
			}
		}
		code := buf[:in.Len]
		if !placeVEX(&in, &init, &ymm, code, rng) {
			continue
		}
		n++
		name := fmt.Sprintf("%s %d %02x %02x", in.Op, in.Map, in.Opcode, in.Prefix)
		seen[name]++
		a, b, x, y = init, init, ymm, ymm
		for i := range a.xmm {
			a.xmm[i] = [2]uint64{ymm[i][0], ymm[i][1]}
		}
		o.vexNative(code, &a, &x)
		if !o.vexInterp(code, &b, &y) {
			if failed[name]++; failed[name] < 3 {
				t.Errorf("%s % x: interpreter faults with %+v", name, code, o.c.exc)
			}
			continue
		}
		d := diff(&in, &a, &b, 0)
		for i := range x {
			if x[i] != y[i] {
				d = fmt.Sprintf("ymm%d native %#x, interpreted %#x", i, x[i], y[i])
			}
		}
		if d != "" {
			if failed[name]++; failed[name] < 3 {
				t.Errorf("%s % x: %s", name, code, d)
			}
		}
	}
	t.Logf("%d forms", len(seen))
	if len(seen) < 300 {
		t.Errorf("only %d forms were tried", len(seen))
	}
}

// TestTranslatorVEX: VEX-encoded instructions are translated, whatever their
// general registers, and do what the host's CPU does.
func TestTranslatorVEX(t *testing.T) {
	if !HostHasV3() {
		t.Skip("the host's CPU is no x86-64-v3")
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	o := newOracle(t)
	c := o.c
	if c.jit == nil {
		t.Skip("no translated code on this host")
	}
	rng := rand.New(rand.NewPCG(5, 5))
	var init, a, b userState
	var ymm [16][4]uint64
	at := uint64(oracleCode)
	failed := 0
	for n := 0; n < oracleCases()/10; {
		var buf [20]byte
		randomVEX(rng, buf[:])
		var in decode.Inst
		if decode.Decode(&in, buf[:15], decode.Mode64) != nil || hostFeatures.lacks(&in) || in.Op == decode.VGATHER {
			continue
		}
		if n&15 == 0 {
			init.fill(rng)
		}
		code := buf[:in.Len]
		if !placeVEX(&in, &init, &ymm, code, rng) {
			continue
		}
		n++
		if at += 32; at > oracleBase+oracleSize-256 {
			at = oracleCode
			c.dropCode()
		}
		a, b = init, init
		for i := range ymm {
			ymm[i] = [4]uint64{a.xmm[i][0], a.xmm[i][1], a.high[i][0], a.high[i][1]}
		}
		o.vexNative(code, &a, &ymm)
		for i, v := range ymm {
			a.xmm[i], a.high[i] = [2]uint64{v[0], v[1]}, [2]uint64{v[2], v[3]}
		}
		copy(o.ram[at-oracleBase:], append(code, 0xeb, 0x00, 0xf4))
		o.setState(&b, at)
		bl := c.lookup()
		bl.runs = hotRuns
		st := c.runTier(bl)
		o.getState(&b)
		d := diff(&in, &a, &b, 0)
		switch {
		case st == stFault:
			d = fmt.Sprintf("fault %+v", c.exc)
		case bl.tr == 0 || c.jit.interpOnly(c.jit.trs.at(bl.tr), 0):
			d = "not translated"
		}
		if d != "" {
			if failed++; failed > 10 {
				t.FailNow()
			}
			t.Errorf("%v %d %02x, % x: %s", in.Op, in.Map, in.Opcode, code, d)
		}
	}
}

// TestXsave: XSAVE writes what RFBM selects and leaves the rest, XRSTOR loads
// it and initialises what is not in XSTATE_BV (SDM vol. 1 §13.7, §13.8).
func TestXsave(t *testing.T) {
	if !HostHasV3() {
		t.Skip("the host's CPU is no x86-64-v3")
	}
	g := newGuest(t, Config{CPUs: 1})
	c := g.start(0, 3, 0x8000)
	// mov eax,cr4; or eax,0x40000; mov cr4,eax; xor ecx,ecx; xgetbv; or eax,7; xsetbv
	enable := "0f20e00d000004000f22e031c90f01d083c8070f01d1"
	// mov ebx,0x40000; mov eax,6; xor edx,edx; xsave [rbx]; vzeroall; mov eax,4; xrstor [rbx]; out 0xf4,al
	g.put(0x8000, enable+"bb00000400b80600000031d20fae23c5fc77b8040000000fae2be6f4f4")
	for i := range c.s.XMM {
		c.s.XMM[i] = [4]uint64{1, 2, uint64(i) + 3, 4}
	}
	g.setWord(0x40000, 0x5555)
	g.run()
	if got := g.word(0x40000 + xsaveHeader); got != 6 {
		t.Errorf("XSTATE_BV %#x, want 6", got)
	}
	if g.word(0x40000) != 0x5555 {
		t.Error("the x87 state was saved without RFBM[0]")
	}
	if g.word(0x40000+fxXMM+16) != 1 || g.word(0x40000+xsaveYMM+16) != 4 {
		t.Error("the vector registers were not saved")
	}
	for i, v := range c.s.XMM {
		if v != [4]uint64{0, 0, uint64(i) + 3, 4} {
			t.Fatalf("YMM%d is %x after XRSTOR of the upper halves", i, v)
		}
	}
	if c.s.R[vcpu.RCX] != 0 {
		t.Error("RCX")
	}
}

// TestV2: with Config.V2 no VEX prefix is valid.
func TestV2(t *testing.T) {
	g, _ := protectedWith(t, false, Config{CPUs: 1, V2: true})
	g.put(atCode, "c4e278f2c0") // andn eax, eax, eax
	g.run()
	if r := g.record(); r.vec != vecUD || r.rip != atCode {
		t.Errorf("vector %d at %#x, want #UD", r.vec, r.rip)
	}
}
