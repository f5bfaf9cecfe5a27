package soft

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gvmspawn/gvmspawn/vmm/bus"
	"github.com/gvmspawn/gvmspawn/vmm/soft/decode"
	"github.com/gvmspawn/gvmspawn/vmm/vcpu"
)

// setState loads st into the CPU, at code.
func (o *oracle) setState(st *userState, rip uint64) {
	s := o.c.s
	copy(s.R[:16], st.gpr[:])
	s.Flags = 2
	s.setArith(st.flags)
	s.MXCSR = binary.LittleEndian.Uint32(st.fx[24:])
	copy(s.FX[:fxMXCSR], st.fx[:])
	copy(s.FX[fxST:fxXMM], st.fx[fxST:])
	o.c.summarise()
	for i, v := range st.xmm {
		s.XMM[i] = [4]uint64{v[0], v[1], st.high[i][0], st.high[i][1]}
	}
	copy(o.ram[oracleData-oracleBase-dataWindow:][:2*dataWindow], st.data[:])
	s.RIP, s.Exit = rip, 0
}

func (o *oracle) getState(st *userState) {
	s := o.c.s
	copy(st.gpr[:], s.R[:16])
	st.flags = s.rflags()
	copy(st.fx[:fxXMM], s.FX[:])
	binary.LittleEndian.PutUint32(st.fx[24:], s.MXCSR)
	for i := range st.xmm {
		st.xmm[i] = [2]uint64{s.XMM[i][0], s.XMM[i][1]}
		st.high[i] = [2]uint64{s.XMM[i][2], s.XMM[i][3]}
	}
	copy(st.data[:], o.ram[oracleData-oracleBase-dataWindow:][:2*dataWindow])
}

// runFrom runs the code at at from one state until it faults or about most instructions
// have run, and returns where that was, with the state then.
func (o *oracle) runFrom(init, st *userState, at, most uint64) (uint64, exception) {
	c, s := o.c, o.c.s
	o.setState(init, at)
	for s.Count, s.Deadline = 0, most; s.Count < s.Deadline; {
		b := c.lookup()
		if b == nil || c.chain(b) == stFault {
			break
		}
	}
	s.Deadline = bus.Never
	o.getState(st)
	return s.RIP, c.exc
}

// mapOnly maps just [from, to) of the RAM, and [from2, to2) read-only.
func (o *oracle) mapOnly(from, to, from2, to2 uint64) {
	put := func(at, v uint64) { binary.LittleEndian.PutUint64(o.ram[at-oracleBase:], v) }
	put(oracleTab+0x1000, oracleTab+0x2000|7)
	put(oracleTab+0x2000+oracleBase>>21*8, oracleTab+0x3000|7)
	for va := uint64(oracleBase); va < oracleBase+oracleSize; va += 4096 {
		switch {
		case va >= from && va < to:
			put(oracleTab+0x3000+va>>12&511*8, va|7)
		case va >= from2 && va < to2:
			put(oracleTab+0x3000+va>>12&511*8, va|5)
		}
	}
	o.c.flushTLB()
}

// near reports whether in's memory operand is close to where its base points.
func near(in *decode.Inst) bool {
	m := &in.Mem
	for _, a := range in.Args {
		if a.Kind == decode.KMem && (in.AddrSize != 8 || m.Base >= 16 || m.Index != decode.RegNone || m.Disp < -0x800 || m.Disp > 0x800) && in.Op != decode.LEA {
			return false
		}
	}
	switch in.Op {
	case decode.BT, decode.BTS, decode.BTR, decode.BTC:
		return in.Args[0].Kind != decode.KMem || in.Args[1].Kind == decode.KImm
	}
	return true
}

// stackCode makes a PUSH or POP, or moves RSP.
func stackCode(rng *rand.Rand, b []byte) {
	r := byte(rng.IntN(8))
	switch rng.IntN(4) {
	case 0:
		copy(b, []byte{0x6a, byte(rng.Uint32())})
	case 1:
		copy(b, []byte{0x48, 0x83, 0xc4 | byte(rng.IntN(2))*0x28, byte(rng.IntN(8)) * 8})
	default:
		copy(b, []byte{0x40 | byte(rng.IntN(2)), 0x50 | byte(rng.IntN(2))<<3 | r})
	}
}

// snippet makes a few random instructions that only compute. flags are those
// that are defined behind it.
func snippet(rng *rand.Rand, code []byte) (n int, names []string, flags uint64) {
	var undef uint64
	base := uint8(rng.IntN(64)) // of all memory operands, if it is a register
	for range 1 + rng.IntN(6) {
		var buf [20]byte
		var t tinst
		for {
			t = tinst{}
			vex, x87 := hostFeatures.v3 && rng.IntN(4) == 0, rng.IntN(4) == 0
			switch {
			case x87:
				randomX87(rng, buf[:])
			case vex:
				randomVEX(rng, buf[:])
			default:
				randomCode(rng, buf[:])
			}
			stack := rng.IntN(8) == 0
			if stack {
				stackCode(rng, buf[:])
			}
			if decode.Decode(&t.in, buf[:15], decode.Mode64) != nil || !near(&t.in) || t.in.Op == decode.FXSAVE {
				continue
			}
			if m := &t.in.Mem; base < 16 && t.in.MemMod() && m.Base != base {
				continue
			}
			if !stack && !x87 && (vex && (hostFeatures.lacks(&t.in) || t.in.Op == decode.LDMXCSR) || !vex && !oracleOK(&t.in)) {
				continue
			}
			t.classify(3, asSSE|asAVX)
			u := undefined(&t.in, 99)
			if uint64(t.flags.reads)&undef != 0 {
				continue
			}
			undef = undef&^uint64(t.flags.writes) | u
			break
		}
		n += copy(code[n:], buf[:t.in.Len])
		names = append(names, t.in.Op.String())
	}
	return n, names, flagsArith &^ undef
}

// randomX87 makes an x87 instruction, one that moves MXCSR, or a division.
func randomX87(rng *rand.Rand, b []byte) {
	for i := range b {
		b[i] = byte(rng.Uint32())
	}
	if rng.IntN(10) == 0 {
		copy(b, []byte{0x0f, 0xae})
		b[2] = b[2]&0xc7 | byte(2+rng.IntN(2))<<3
		return
	}
	if rng.IntN(8) == 0 {
		n := copy(b, [][]byte{{0x66}, {0x48}, {}}[rng.IntN(3)])
		b[n] = 0xf7
		b[n+1] |= 0x30
		return
	}
	b[0] = 0xd8 | b[0]&7
}

// TestTranslatorSnippets runs random code in the interpreter and translated,
// and compares all registers, memory and the place of a fault.
func TestTranslatorSnippets(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	o := newOracle(t)
	c, s := o.c, o.c.s
	if c.jit == nil {
		t.Skip("no translated code on this host")
	}
	seed := uint64(7)
	if v, err := strconv.ParseUint(os.Getenv("ORACLE_SEED"), 10, 64); err == nil {
		seed = v
	}
	rng := rand.New(rand.NewPCG(seed, 3))
	o.mapOnly(oracleData-0x12000, oracleData+0x12000, oracleCode, oracleBase+oracleSize)
	var init, a, b userState
	// Pointers change by up to 64 KiB when code writes parts of them.
	arena := o.ram[oracleData-oracleBase-0x12000:][:0x24000]
	clean, after := make([]byte, len(arena)), make([]byte, len(arena))
	translated, faults, bad := 0, 0, 0
	at := uint64(oracleCode)
	for range oracleCases() / 6 {
		if at += 128; at > oracleBase+oracleSize-256 {
			at = oracleCode
			c.dropCode()
		}
		init.fill(rng)
		init.fillX87(rng)
		if rng.IntN(8) == 0 { // some exceptions are not masked
			init.fx[0] &= byte(rng.Uint32()) | 0x40
		}
		for i := range init.gpr { // most registers are pointers into the window
			if i == 4 || rng.IntN(3) > 0 {
				init.gpr[i] = oracleData + rng.Uint64N(4096) - 2048
				if rng.IntN(2) == 0 {
					init.gpr[i] &^= 15
				}
			}
		}
		var code [128]byte
		n, names, flags := snippet(rng, code[:100])
		copy(code[n:], []byte{0xeb, 0x00, 0xf4})
		copy(o.ram[at-oracleBase:], code[:])
		copy(arena, clean)
		o.setState(&init, at)
		bl := c.lookup()
		if bl == nil {
			t.Fatal("no block")
		}
		stA := c.exec(bl)
		o.getState(&a)
		ripA := s.RIP
		excA := c.exc
		copy(after, arena)
		copy(arena, clean)
		o.setState(&init, at)
		bl = c.lookup()
		bl.runs = hotRuns
		if rng.IntN(8) == 0 { // each page is missed once
			c.flushTLB()
		}
		stB := c.runTier(bl)
		for stB == stExit && s.RIP-at <= uint64(n) { // an exception is no longer masked
			stB = c.exec(c.lookup())
		}
		o.getState(&b)
		if bl.tr != 0 {
			translated++
		}
		in := decode.Inst{}
		if stA == stFault {
			faults++
			a.flags, b.flags = 0, 0
			if stB != stFault || c.exc != excA {
				t.Errorf("%v % x: interpreter faults with %+v, translated ends with %d %+v", names, code[:n], excA, stB, c.exc)
				bad++
			}
		} else if stB == stFault {
			t.Errorf("%v % x: translated code faults with %+v", names, code[:n], c.exc)
			bad++
		}
		a.flags &= flags
		b.flags &= flags
		if d := diff(&in, &a, &b, 1); d != "" || s.RIP != ripA {
			t.Errorf("%v % x: interpreter (as native) against translated: %s, rip %#x %#x, flags in %#x", names, code[:n], d, ripA, s.RIP, init.flags)
			bad++
		}
		if d := x87Differs(&a, &b); d != "" {
			t.Errorf("%v % x: interpreter (as native) against translated: %s", names, code[:n], d)
			bad++
		}
		if !bytes.Equal(after, arena) {
			t.Errorf("%v % x: memory differs", names, code[:n])
			bad++
		}
		if bad > 10 {
			t.FailNow()
		}
	}
	t.Logf("%d translated, %d faults", translated, faults)
}

// TestTranslatorLockStep boots a kernel twice in virtual time: the interpreter
// and the translator must print the same at the same instruction.
func TestTranslatorLockStep(t *testing.T) {
	if testing.Short() {
		t.Skip("boots a kernel twice")
	}
	var out [2][]byte
	var count [2]uint64
	for i, interp := range []bool{false, true} {
		cfg := Config{Deterministic: true, Seed: 1, BootTime: time.Unix(1_700_000_000, 0), NoTranslator: interp}
		vm, u := bootGuest(t, cfg, "console=ttyS0 panic=-1 reboot=t")
		c := vm.cpus[0]
		var marks []byte
		stop := u.stop
		u.stop = func(line string) {
			marks = fmt.Appendf(marks, "%d %s", c.s.Count, line)
			stop(line)
		}
		limit := time.AfterFunc(3*time.Minute, c.Kick)
		if _, err := c.Run(); err != nil {
			t.Fatal(err)
		}
		limit.Stop()
		out[i], count[i] = marks, c.s.Count
	}
	a, b := bytes.Split(out[0], []byte{'\n'}), bytes.Split(out[1], []byte{'\n'})
	for i := range min(len(a), len(b)) {
		if !bytes.Equal(a[i], b[i]) {
			t.Fatalf("line %d:\ntranslated  %s\ninterpreted %s", i, a[i], b[i])
		}
	}
	if count[0] != count[1] || len(a) != len(b) {
		t.Errorf("%d instructions translated, %d interpreted; %d and %d lines", count[0], count[1], len(a), len(b))
	}
	t.Logf("%d instructions, %d lines", count[0], len(a))
}

// flowProgram fills code with blocks of random instructions that end with
// random branches, calls and returns among them, some across pages, and
// stores into their own page.
func flowProgram(rng *rand.Rand, code []byte) {
	const blocks = 48
	for i := range code {
		code[i] = 0x0f // any stray jump ends at 0f 0f, which is undefined
	}
	step := len(code) / blocks
	rel := func(at int, target int) []byte {
		return binary.LittleEndian.AppendUint32(nil, uint32(int32(target*step-at-4)))
	}
	for i := range blocks {
		p := i * step
		put := func(b ...byte) { p += copy(code[p:], b) }
		put(0x49, 0xff, 0xcc)                     // dec r12
		put(0x0f, 0x84)                           // je end
		put(rel(p, blocks-1)...)                  //
		n, _, flags := snippet(rng, code[p:p+60]) //
		p += n                                    //
		if flags != flagsArith {                  // what is undefined must not be seen later
			put(0x45, 0x39, 0xed) // cmp r13d, r13d
		}
		put(0x41, 0xbd, byte(i), byte(rng.Uint32()), 0, 0) // mov r13d, i
		t, u := rng.IntN(blocks-1), rng.IntN(blocks-1)
		switch rng.IntN(7) {
		case 0: // test r13d, 256; jcc; jmp
			put(0x41, 0xf7, 0xc5, 0, 1, 0, 0, 0x0f, 0x80|byte(rng.IntN(16)))
			put(rel(p, t)...)
			put(0xe9)
			put(rel(p, u)...)
		case 1: // call t; jmp u
			put(0x48, 0x8d, 0x24, 0x25) // lea rsp, [stack]
			put(binary.LittleEndian.AppendUint32(nil, oracleData+0x8000)...)
			put(0xe8)
			put(rel(p, t)...)
			put(0xe9)
			put(rel(p, u)...)
		case 2: // lea r14, [rip+t]; push r14; ret
			put(0x48, 0x8d, 0x24, 0x25)
			put(binary.LittleEndian.AppendUint32(nil, oracleData+0x8000)...)
			put(0x4c, 0x8d, 0x35)
			put(rel(p, t)...)
			put(0x41, 0x56, 0xc3)
		case 3: // lea r15, [rip+t]; jmp r15
			put(0x4c, 0x8d, 0x3d)
			put(rel(p, t)...)
			put(0x41, 0xff, 0xe7)
		case 4: // lea r11, [rip+t]; mov [tmp], r11; call [tmp]
			put(0x48, 0x8d, 0x24, 0x25)
			put(binary.LittleEndian.AppendUint32(nil, oracleData+0x8000)...)
			put(0x4c, 0x8d, 0x1d)
			put(rel(p, t)...)
			put(0x4c, 0x89, 0x1c, 0x25)
			put(binary.LittleEndian.AppendUint32(nil, oracleData+0x9000)...)
			put(0xff, 0x14, 0x25)
			put(binary.LittleEndian.AppendUint32(nil, oracleData+0x9000)...)
		case 5: // change the immediate of a MOV elsewhere, then go on
			put(0x44, 0x88, 0x2d) // mov [rip+x], r13b: the last byte of code is never run
			put(binary.LittleEndian.AppendUint32(nil, uint32(int32(len(code)-1-p-4)))...)
			put(0xe9)
			put(rel(p, t)...)
		default:
			put(0xe9)
			put(rel(p, t)...)
		}
	}
	copy(code[(blocks-1)*step:], []byte{0x0f, 0x0b})
}

// TestTranslatorFlow runs random programs of many blocks in both engines, with
// instructions counted and, where they end by themselves, without.
func TestTranslatorFlow(t *testing.T) {
	t.Run("counting", func(t *testing.T) { translatorFlow(t, true, false) })
	t.Run("free", func(t *testing.T) { translatorFlow(t, false, false) })
	t.Run("small rings", func(t *testing.T) { translatorFlow(t, false, true) })
	t.Run("small rings, counting", func(t *testing.T) { translatorFlow(t, true, true) })
	if hostGSBase {
		hostGSBase = false
		defer func() { hostGSBase = true }()
		t.Run("without GS", func(t *testing.T) { translatorFlow(t, false, false) })
	}
}

// translatorFlow runs them. With small rings hardly an operation is still there when
// it is needed.
func translatorFlow(t *testing.T, counting, small bool) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	o := newOracle(t)
	c, s := o.c, o.c.s
	j := c.jit
	if j == nil {
		t.Skip("no translated code on this host")
	}
	j.counting, j.forward = counting, !counting
	if small {
		c.smallRings(t)
	}
	const size = 0x2800
	const most = 20000 // instructions
	at := uint64(oracleCode)
	o.mapOnly(oracleData-0x12000, oracleData+0x12000, oracleCode, oracleBase+oracleSize)
	for va := uint64(oracleCode); va < oracleCode+0x4000; va += 4096 { // writable
		binary.LittleEndian.PutUint64(o.ram[oracleTab+0x3000+va>>12&511*8-oracleBase:], va|7)
	}
	c.flushTLB()
	seed := uint64(9)
	if v, err := strconv.ParseUint(os.Getenv("ORACLE_SEED"), 10, 64); err == nil {
		seed = v
	}
	rng := rand.New(rand.NewPCG(seed, 4))
	var init, a, b userState
	arena := o.ram[oracleData-oracleBase-0x12000:][:0x24000]
	clean, after := make([]byte, len(arena)), make([]byte, len(arena))
	program := make([]byte, size)
	long := 0
	run := func(st *userState) (uint64, exception) {
		copy(arena, clean)
		copy(o.ram[at-oracleBase:], program)
		c.dropCode()
		return o.runFrom(&init, st, at, most)
	}
	for range oracleCases() / 100 {
		init.fill(rng)
		for i := range init.gpr {
			init.gpr[i] = oracleData + rng.Uint64N(2048) - 1024
		}
		init.gpr[12] = 600
		flowProgram(rng, program)
		c.jit = nil
		ripA, excA := run(&a)
		countA := s.Count
		copy(after, arena)
		c.jit = j
		if !counting && countA >= most {
			continue
		}
		ripB, excB := run(&b)
		long += int(boolBit(countA > 1000))
		if !counting {
			s.Count = countA
		}
		var in decode.Inst
		a.flags, b.flags = 0, 0
		if d := diff(&in, &a, &b, 1); d != "" || ripA != ripB || excA != excB || countA != s.Count || !bytes.Equal(after, arena) {
			t.Errorf("interpreter (as native) against translated: %s, rip %#x %#x, %+v %+v", d, ripA, ripB, excA, excB)
			break
		}
	}
	t.Logf("%d programs ran long", long)
}

// TestTranslatorLooksAhead: what a block leaves out because of the code behind it
// is right again when that code changes.
func TestTranslatorLooksAhead(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	o := newOracle(t)
	c, s := o.c, o.c.s
	if c.jit == nil {
		t.Skip("no translated code on this host")
	}
	const at, behind = oracleCode + 0x40, oracleCode // the path does not go back
	code := o.ram[oracleCode-oracleBase:]
	put := func(at int, b ...byte) { copy(code[at:], b) }
	put(0x40, 0x48, 0x01, 0xd8, 0x48, 0x89, 0x1e, 0xeb, 0xb8) // add rax, rbx; mov [rsi], rbx; jmp behind
	put(0, 0x48, 0x39, 0xc9, 0x0f, 0x92, 0xc2, 0xf4)          // behind: cmp rcx, rcx; setc dl; hlt
	var st userState
	run := func() uint64 {
		st.gpr[0], st.gpr[2], st.gpr[3], st.gpr[6] = ^uint64(0), 0, 1, oracleData
		for _, rip := range []uint64{behind, at} {
			o.setState(&st, rip)
			b := c.lookup()
			b.runs = hotRuns
			if rip == at {
				c.chain(b)
			}
		}
		return s.R[2] & 0xff
	}
	if run(); run() != 0 {
		t.Fatal("CMP of a register with itself sets CF")
	}
	if c.jit.trs.next < 3 {
		t.Fatal("nothing was translated")
	}
	put(0, 0x90, 0x90, 0x90)
	c.codeWrite(c.pages[behind>>12], behind, 3)
	if run() != 1 {
		t.Error("ADD's CF is lost, which nothing overwrites any more")
	}
}

// TestTranslatorByteShift: a count of 32 leaves a byte and the flags alone, REX.W
// or not (SDM vol. 2B, SAL and its kin: the count is masked to 5 bits).
func TestTranslatorByteShift(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	o := newOracle(t)
	c := o.c
	if c.jit == nil {
		t.Skip("no translated code on this host")
	}
	copy(o.ram[oracleCode-oracleBase:], []byte{0x48, 0x89, 0x1e, 0x48, 0xc0, 0xf8, 0x20, 0xeb, 0x00, 0xf4}) // mov [rsi], rbx; sar al, 0x20; jmp
	var st userState
	st.gpr[6] = oracleData
	for _, f := range []uint64{flagsArith, 0} {
		st.flags = f
		o.setState(&st, oracleCode)
		b := c.lookup()
		b.runs = hotRuns
		c.runTier(b)
		if got := c.s.arith(); got != f {
			t.Errorf("flags %#x, want %#x", got, f)
		}
	}
}

// fuzzTranslated runs code in 64-bit mode, translated at once.
func fuzzTranslated(c *CPU, ram, code []byte, mode uint8, user bool) {
	clear(ram)
	gate, segment := 16, uint64(0x00af9b000000ffff)
	if mode == 1 {
		gate, segment = 8, 0x00cf9b000000ffff
	}
	for i := 0; i < 0x1000; i += gate { // interrupt gates back into the code
		binary.LittleEndian.PutUint64(ram[0x4000+i:], 0x8e00<<32|8<<16|0x8000|uint64(i&0xff0))
	}
	binary.LittleEndian.PutUint64(ram[0x5008:], segment)
	c.resetRegisters()
	c.dropCode()
	copy(ram[0x8000:0xa000], code)
	fuzzMode(c, ram, mode, user)
	s := c.s
	s.IDT, s.GDT = vcpu.Table{Base: 0x4000, Limit: 0xfff}, vcpu.Table{Base: 0x5000, Limit: 0xff}
	atomic.StoreUint32(&s.Exit, 0)
	defer func() { s.Deadline = bus.Never }()
	var late atomic.Bool // a REP with a huge count
	defer time.AfterFunc(50*time.Millisecond, func() { late.Store(true); c.Kick() }).Stop()
	for s.Count, s.Deadline = 0, 5000; s.Count < s.Deadline && !c.halted && !c.waiting && !c.stepping() && !late.Load(); {
		c.shadow = false
		atomic.StoreUint32(&s.Exit, 0)
		b := c.lookup()
		st := stFault
		if b != nil {
			b.runs = hotRuns
			st = c.chain(b)
		}
		if st == stFault {
			s.Count++
			if _, stop := c.except(); stop {
				return
			}
		}
	}
}

// FuzzTranslator runs bytes as translated code, at ring 0 or 3, or of 32 bits: whatever they
// do, the machine must neither panic nor touch anything but its own memory.
func FuzzTranslator(f *testing.F) {
	c, ram := fuzzMachine(f)
	if c.jit == nil {
		f.Skip("no translated code on this host")
	}
	c.jit.counting = true
	rng := rand.New(rand.NewPCG(1, 5))
	for i := range 40 {
		code := make([]byte, 0x2000)
		flowProgram(rng, code)
		f.Add(code, uint8(i))
		for at := 0; at < len(code); at += 20 {
			var b [20]byte
			randomCode(rng, b[:])
			copy(code[at:], b[:])
		}
		f.Add(code, uint8(i))
	}
	f.Fuzz(func(t *testing.T, code []byte, kind uint8) {
		switch kind % 3 {
		case 0:
			fuzzTranslated(c, ram, code, 3, false)
		case 1:
			fuzzTranslated(c, ram, code, 3, true)
		case 2:
			fuzzTranslated(c, ram, code, 1, false)
		}
	})
}

// TestTranslatorNoAllocation: translated code and its exits allocate nothing.
func TestTranslatorNoAllocation(t *testing.T) {
	c, ram := fuzzMachine(t)
	if c.jit == nil {
		t.Skip("no translated code on this host")
	}
	c.jit.counting = true
	fuzzMode(c, ram, 3, false)
	// 1: mov ecx, 100; 2: mov [rsp-16], rcx; pushf; popf; paddd xmm0, xmm1; dec ecx; jnz 2; jmp 1
	copy(ram[0x8000:], []byte{0xb9, 100, 0, 0, 0, 0x48, 0x89, 0x4c, 0x24, 0xf0, 0x9c, 0x9d, 0x66, 0x0f, 0xfe, 0xc1, 0xff, 0xc9, 0x75, 0xf1, 0xeb, 0xea})
	run := func() {
		for c.s.Count, c.s.Deadline = 0, 20000; c.s.Count < c.s.Deadline; {
			c.chain(c.lookup())
		}
	}
	run()
	if n := testing.AllocsPerRun(50, run); n != 0 {
		t.Errorf("%v allocations a run", n)
	}
	if c.jit.trs.next == 1 {
		t.Error("nothing was translated")
	}
}

// TestTranslatorCollector: garbage collections do not wait for translated code
// that never leaves by itself, and Kick ends it.
func TestTranslatorCollector(t *testing.T) {
	c, ram := fuzzMachine(t)
	if c.jit == nil {
		t.Skip("no translated code on this host")
	}
	fuzzMode(c, ram, 3, false)
	copy(ram[0x8000:], []byte{0x49, 0xff, 0xc6, 0x66, 0x0f, 0xfe, 0xc1, 0xeb, 0xf7}) // 1: inc r14; paddd xmm0, xmm1; jmp 1
	done := make(chan vcpu.Exit)
	go func() {
		ex, _ := c.Run()
		done <- ex
	}()
	time.Sleep(20 * time.Millisecond) // let it become hot
	for range 20 {
		start := time.Now()
		runtime.GC()
		if d := time.Since(start); d > 2*time.Second {
			t.Errorf("a collection took %v", d)
		}
	}
	c.Kick()
	select {
	case ex := <-done:
		if ex.Reason != vcpu.ExitKick {
			t.Errorf("exit %v %v", ex.Reason, ex.Detail)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("the kick was not seen")
	}
	if c.jit.trs.next == 1 {
		t.Error("nothing was translated")
	}
}

// TestCodeMemory runs a few bytes from both kinds of code memory.
func TestCodeMemory(t *testing.T) {
	for name, f := range map[string]func(int) (codeMemory, error){"one mapping": newCodeMemory, "two mappings": newDualMemory} {
		m, err := f(4096)
		if err != nil {
			t.Skipf("%s: %v", name, err)
		}
		m.rw[0] = 0xc3 // ret
		jitCall(m.rx)
		m.free()
	}
}

// TestTranslatorRemap: calls and returns between pages, direct and not, go to
// what the pages are mapped to, also when that changes (SDM vol. 3A §4.10.4), and
// when it is mapped twice.
func TestTranslatorRemap(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	o := newOracle(t)
	c, s := o.c, o.c.s
	if c.jit == nil {
		t.Skip("no translated code on this host")
	}
	const (
		caller, callee, again = oracleCode, oracleCode + 0x1000, oracleCode + 0x2000 // addresses
		memory                = oracleCode + 0x3000                                  // two pages of callers, two of callees
	)
	o.mapOnly(oracleData, oracleData+0x1000, oracleCode, oracleCode+0x7000)
	for i := range 2 {
		n := byte(1 + i)
		// 1: call callee+0x10; mov rbx, [rsi]; call rbx; add eax, n<<16; jmp rel to 2 on the same page; 2: dec ecx; jnz 1; hlt
		copy(o.ram[memory+i<<12-oracleBase:], []byte{0xe8, 0x0b, 0x10, 0, 0, 0x48, 0x8b, 0x1e, 0xff, 0xd3, 0x05, 0, 0, n, 0, 0xeb, 0, 0xff, 0xc9, 0x75, 0xeb, 0xf4})
		p := o.ram[memory+(2+i)<<12-oracleBase:]
		copy(p[0x10:], []byte{0x83, 0xc0, n, 0xc3})                            // add eax, n; ret
		copy(p[0x40:], []byte{0x05, 0, n, 0, 0, 0xff, 0x34, 0x24, 0xc2, 8, 0}) // add eax, n<<8; push [rsp]; ret 8
	}
	remap := func(va uint64, page int) {
		binary.LittleEndian.PutUint64(o.ram[oracleTab+0x3000+va>>12&511*8-oracleBase:], uint64(memory+page<<12)|5)
	}
	for _, cpl := range []uint32{3, 0} {
		c.setCPL(cpl)
		remap(caller, 0)
		remap(callee, 2)
		remap(again, 3)
		c.flushTLB()
		run := func(what string, target uint64, want uint64) {
			t.Helper()
			for range 2 {
				var st userState
				st.gpr[1], st.gpr[4], st.gpr[6] = 100, oracleData+0x800, oracleData
				binary.LittleEndian.PutUint64(st.data[dataWindow:], target)
				o.setState(&st, caller)
				for b := c.lookup(); b != nil && s.RIP != caller+0x15; b = c.lookup() {
					if c.chain(b) == stFault {
						break
					}
				}
				if got := s.R[0]; got != 100*want || s.R[1] != 0 {
					t.Errorf("ring %d, %s: %#x in %d rounds, want %#x", cpl, what, got, 100-s.R[1], 100*want)
				}
			}
		}
		run("first", callee+0x40, 0x1_0101)
		remap(callee, 3)
		c.flushPage(callee)
		run("INVLPG", callee+0x40, 0x1_0202)
		remap(callee, 2)
		c.useSlot(0, false)
		run("CR3", callee+0x40, 0x1_0101)
		c.useSlot(1, false)
		run("another PCID", callee+0x40, 0x1_0101)
		remap(caller, 1)
		c.flushPage(caller)
		run("the caller", callee+0x40, 0x2_0101)
		run("a target on another page", again+0x40, 0x2_0201)
		remap(callee, 3)
		c.flushPage(callee)
		run("one page at two addresses", again+0x40, 0x2_0202)
		p := o.ram[memory+3<<12-oracleBase:]
		p[0x42] = 4
		c.codeWrite(c.pages[(memory+3<<12)>>12], memory+3<<12+0x42, 1)
		run("a store to the code", again+0x40, 0x2_0402)
		p[0x42] = 2
		c.codeWrite(c.pages[(memory+3<<12)>>12], memory+3<<12+0x42, 1)
		run("a store back", again+0x40, 0x2_0202)
		c.jit.keys = 1<<12*1<<15 - 1<<15 - 3 // about to come round
		for range 5 {
			remap(caller, 0)
			c.flushPage(caller)
			run("keys come round", again+0x40, 0x1_0202)
			remap(caller, 1)
			c.flushPage(caller)
			run("keys come round", again+0x40, 0x2_0202)
		}
	}
	if c.jit.trs.next == 1 || c.jit.fars.next == 1 {
		t.Error("nothing was translated")
	}
}
