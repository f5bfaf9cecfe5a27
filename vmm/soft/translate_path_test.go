package soft

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"runtime"
	"testing"

	"github.com/gvmspawn/gvmspawn/vmm/soft/decode"
)

// pathProgram fills code, which lies in one page, with pieces of random instructions
// that end with branches forward.
func pathProgram(rng *rand.Rand, code []byte) {
	const pieces = 8
	step := len(code) / pieces
	for i := range code {
		code[i] = 0x0f // 0f 0f is undefined
	}
	for i := range pieces - 1 {
		p := i * step
		put := func(b ...byte) { p += copy(code[p:], b) }
		rel := func() []byte {
			return binary.LittleEndian.AppendUint32(nil, uint32((i+1+rng.IntN(pieces-i-1))*step-p-4))
		}
		for range rng.IntN(4) { // accesses by an index, at times changed
			rex, reg := byte(0x4a), byte(rng.IntN(3)) // rax, rcx, rdx
			if rng.IntN(8) == 0 {
				put(0x49, 0xff, 0xc1) // inc r9
			}
			op, base, scale := byte(0x8b-rng.IntN(2)*2), byte(6+rng.IntN(2)), byte(rng.IntN(4)) // mov; rsi, rdi
			put(rex, op, 0x44|reg<<3, scale<<6|1<<3|base, byte(rng.Uint32()))
		}
		n, _, flags := snippet(rng, code[p:p+80])
		p += n
		if flags != flagsArith { // what is undefined must not be seen later
			put(0x45, 0x39, 0xed) // cmp r13d, r13d
		}
		for range 1 + rng.IntN(3) { // jcc, at times behind a load
			if rng.IntN(2) == 0 {
				put(0x48, 0x8b, 0x53, byte(rng.Uint32())) // mov rdx, [rbx+disp8]
			}
			put(0x0f, 0x80|byte(rng.IntN(16)))
			put(rel()...)
		}
		put(0xe9)
		put(rel()...)
	}
}

// TestTranslatorPath runs programs of branches forward in both engines, many times with other
// registers, so that translations go on behind the branches, and with pages of
// their data that are missing or not in the translation buffer.
func TestTranslatorPath(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	o := newOracle(t)
	c := o.c
	j := c.jit
	if j == nil {
		t.Skip("no translated code on this host")
	}
	o.mapOnly(oracleData-0x12000, oracleData+0x12000, oracleCode, oracleBase+oracleSize)
	rng := rand.New(rand.NewPCG(11, 5))
	var init, a, b userState
	arena := o.ram[oracleData-oracleBase-0x12000:][:0x24000]
	clean, after := make([]byte, len(arena)), make([]byte, len(arena))
	run := func(st *userState) (uint64, exception) {
		copy(arena, clean)
		return o.runFrom(&init, st, oracleCode, 10000)
	}
	long, faults := 0, 0
	for range oracleCases() / 100 {
		copy(arena, clean)
		program := o.ram[oracleCode-oracleBase:][:0x500]
		pathProgram(rng, program)
		c.dropCode()
		base := oracleData + rng.Uint64N(3)*0x7ff - 0x7ff
		for range 2 * hotRuns {
			init.fill(rng)
			for i := range init.gpr {
				init.gpr[i] = base + rng.Uint64N(256)
			}
			init.gpr[9] = rng.Uint64N(8)
			pte := o.ram[oracleTab+0x3000+(oracleData-0x1000+rng.Uint64N(3)*0x1000)>>12&511*8-oracleBase:]
			old := pte[0]
			if rng.IntN(4) == 0 {
				pte[0] &^= byte(1 + rng.Uint32()&2) // not present, or neither that nor writable
			}
			if rng.IntN(2) == 0 || pte[0] != old {
				c.flushTLB()
			}
			c.jit = nil
			ripA, excA := run(&a)
			copy(after, arena)
			if pte[0] != old {
				c.flushTLB()
			}
			c.jit = j
			ripB, excB := run(&b)
			var in decode.Inst
			a.flags, b.flags = 0, 0
			if d := diff(&in, &a, &b, 1); d != "" || ripA != ripB || excA != excB || !bytes.Equal(after, arena) {
				t.Fatalf("interpreter (as native) against translated: %s, rip %#x %#x, %+v %+v\n%x", d, ripA, ripB, excA, excB, program)
			}
			faults += int(boolBit(excA.vec == vecPF))
			if pte[0] != old {
				pte[0] = old
				c.flushTLB()
			}
		}
		long += j.paths()
	}
	t.Logf("%d long translations, %d page faults", long, faults)
	if long == 0 || faults == 0 {
		t.Error("that is too few")
	}
}

// TestTranslatorPathStore: stores into the code that a path comes by later, from its
// first block and from behind a branch, are seen at once.
func TestTranslatorPathStore(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	o := newOracle(t)
	c, s := o.c, o.c.s
	if c.jit == nil {
		t.Skip("no translated code on this host")
	}
	code := []byte{
		0x88, 0x05, 14, 0, 0, 0, // mov [1f+1], al
		0x48, 0x39, 0xc9, // cmp rcx, rcx
		0x75, 0x37, // jne
		0x88, 0x1d, 10, 0, 0, 0, // mov [2f+1], bl
		0x72, 0x2f, // jb
		0xba, 0, 0, 0, 0, // 1: mov edx, imm32
		0xeb, 0x00, // jmp
		0xbe, 0, 0, 0, 0, // 2: mov esi, imm32
		0x0f, 0x0b, // ud2
	}
	copy(o.ram[oracleCode-oracleBase:], code)
	var st userState
	for i := range uint64(100) {
		st.gpr[0], st.gpr[3], st.gpr[2], st.gpr[6] = i, i+1, 99, 99
		for _, pos := range []uint64{26, 19, 11, 0} { // every block is there, and hot
			o.setState(&st, oracleCode+pos)
			c.lookup().runs = hotRuns
		}
		for range 100 {
			if b := c.lookup(); b == nil || c.chain(b) == stFault {
				break
			}
		}
		if s.RIP != oracleCode+uint64(len(code))-2 || s.R[2] != i || s.R[6] != i+1 {
			t.Fatalf("round %d: rip %#x, rdx %d, rsi %d; want %d and one more", i, s.RIP, s.R[2], s.R[6], i)
		}
	}
	if c.jit.paths() == 0 {
		t.Error("no path went on behind a branch")
	}
}

// paths is how many translations go on behind their blocks.
func (j *translator) paths() (n int) {
	for i := uint32(1); i < j.trs.next; i++ {
		t := j.trs.at(i)
		n += int(boolBit(t.insts > t.own))
	}
	return n
}
