package soft

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"

	"github.com/gvmspawn/gvmspawn/vmm/vcpu"
)

// access is an instruction that reaches memory at RBX, in a loop.
type access struct {
	name        string
	kind        uint32 // accRead, accWrite or accFetch
	size        uint64
	aligned     bool   // must not cross a page
	before      string // what prepares it: no memory but the scratch page
	code        string
	after       string // follows it, for pushes and calls
	any         bool   // it never faults
	overwritten bool   // what a fault leaves in memory is not defined
}

const (
	atGood    = 0x7ffff000 // every access is allowed here
	atScratch = 0x7fffd000 // and here
	atBad     = 0x80000000 // what is here is up to the case

	restoreSP = "4c89ec" // mov rsp,r13
	rspRBX    = "4889dc" // mov rsp,rbx
	rspPush   = "488d6308"
	rdiRBX    = "4889df"
	rsiRBX    = "4889de"
	rdi       = "4c89f7" // mov rdi,r14: the scratch page
	rsi       = "4c89f6"
	rcx16     = "b910000000"
)

// accesses are instructions of every way to memory. What they read is the
// address behind them.
var accesses = []access{
	{name: "mov r8", size: 1, code: "8a03"},
	{name: "mov r32", size: 4, code: "8b03"},
	{name: "mov r64", size: 8, code: "488b03"},
	{name: "movzx", size: 1, code: "0fb603"},
	{name: "movsxd", size: 4, code: "486303"},
	{name: "mov r, index", size: 8, code: "488b042b"}, // mov rax,[rbx+rbp], RBP is 0
	{name: "add r, m", size: 8, code: "480303"},
	{name: "adc r, m", size: 4, code: "1303"},
	{name: "cmp m, imm", size: 8, code: "48833b00"},
	{name: "cmp m8, imm", size: 1, code: "803b00"},
	{name: "test m, r", size: 8, code: "488503"},
	{name: "imul r, m", size: 8, code: "480faf03"},
	{name: "mul m", size: 8, code: "48f723"},
	{name: "cmov", size: 8, code: "480f4403"},
	{name: "bt m, imm", size: 8, code: "480fba2303"},
	{name: "bsf", size: 8, code: "480fbc03"},
	{name: "xlat", size: 1, before: "31c0", code: "d7"},
	{name: "push m", size: 8, code: "ff33", after: restoreSP},
	{name: "pop r", size: 8, before: rspRBX, code: "58", after: restoreSP},
	{name: "leave", size: 8, before: "4889dd", code: "c9", after: "31ed" + restoreSP},
	{name: "ret", size: 8, before: rspRBX, code: "c3", after: restoreSP},
	{name: "ret imm", size: 8, before: rspRBX, code: "c20800", after: restoreSP},
	{name: "call m", size: 8, code: "ff13", after: restoreSP},
	{name: "jmp m", size: 8, code: "ff23"},
	{name: "lodsq", size: 8, before: rsiRBX, code: "48ad"},
	{name: "movsq from", size: 8, before: rsiRBX + rdi, code: "48a5"},
	{name: "rep movsb from", size: 16, before: rsiRBX + rdi + rcx16, code: "f3a4"},
	{name: "cmpsq", size: 8, before: rsiRBX + rdi, code: "48a7"},
	{name: "cmpsq, the other", size: 8, before: rsi + rdiRBX, code: "48a7"},
	{name: "scasb", size: 1, before: rdiRBX, code: "ae"},
	{name: "movups", size: 16, code: "0f1003"},
	{name: "movdqa", size: 16, aligned: true, code: "660f6f03"},
	{name: "paddd", size: 16, aligned: true, code: "660ffe03"},
	{name: "movsd", size: 8, code: "f20f1003"},
	{name: "addsd", size: 8, code: "f20f5803"},
	{name: "cvtsi2sd", size: 8, code: "f2480f2a03"},
	{name: "movq mm", size: 8, code: "0f6f03", after: "0f77"},
	{name: "fadd", size: 8, code: "dc03"},
	{name: "fild", size: 2, code: "df03"},
	{name: "fldcw", size: 2, code: "d92b", after: "dbe3"},
	{name: "ldmxcsr", size: 4, code: "0fae13"},
	{name: "clflush", size: 1, code: "0fae3b"},
	{name: "prefetch", any: true, size: 1, code: "0f180b"},
	{name: "nop m", any: true, size: 8, code: "480f1f03"},

	{name: "mov m8, r", kind: accWrite, size: 1, code: "8803"},
	{name: "mov m, r", kind: accWrite, size: 8, code: "488903"},
	{name: "mov m, imm", kind: accWrite, size: 4, code: "c70301000000"},
	{name: "setcc", kind: accWrite, size: 1, code: "0f9403"},
	{name: "movnti", kind: accWrite, size: 8, code: "480fc303"},
	{name: "push r", kind: accWrite, size: 8, before: rspPush, code: "50", after: restoreSP},
	{name: "push imm", kind: accWrite, size: 8, before: rspPush, code: "6a01", after: restoreSP},
	{name: "pushf", kind: accWrite, size: 8, before: rspPush, code: "9c", after: restoreSP},
	{name: "push from m", kind: accWrite, size: 8, before: rspPush, code: "41ff36", after: restoreSP}, // push [r14]
	{name: "enter", kind: accWrite, size: 8, before: rspPush, code: "c8000000", after: "31ed" + restoreSP},
	{name: "call", kind: accWrite, size: 8, before: rspPush, code: "e800000000", after: restoreSP},
	{name: "call from m", kind: accWrite, size: 8, before: rspPush, code: "41ff16", after: restoreSP},
	{name: "pop m", kind: accWrite, size: 8, before: "50", code: "8f03"},
	{name: "stosq", kind: accWrite, size: 8, before: rdiRBX, code: "48ab"},
	{name: "rep stosb", kind: accWrite, size: 16, before: rdiRBX + rcx16, code: "f3aa"},
	{name: "movsb to", kind: accWrite, size: 1, before: rsi + rdiRBX, code: "a4"},
	{name: "rep movsq to", kind: accWrite, size: 128, before: rsi + rdiRBX + rcx16, code: "f348a5", overwritten: true},
	{name: "movups to", kind: accWrite, size: 16, code: "0f1103"},
	{name: "movaps to", kind: accWrite, size: 16, aligned: true, code: "0f2903"},
	{name: "movsd to", kind: accWrite, size: 8, code: "f20f1103"},
	{name: "movd to", kind: accWrite, size: 4, code: "660f7e03"},
	{name: "fst", kind: accWrite, size: 8, code: "dd13"},
	{name: "fistp", kind: accWrite, size: 4, before: "d9ee", code: "db1b"},
	{name: "fnstcw", kind: accWrite, size: 2, code: "d93b"},
	{name: "stmxcsr", kind: accWrite, size: 4, code: "0fae1b"},

	{name: "add m, r", kind: accWrite, size: 8, code: "480103"},
	{name: "add m8, imm", kind: accWrite, size: 1, code: "800301"},
	{name: "adc m, r", kind: accWrite, size: 4, code: "1103"},
	{name: "inc", kind: accWrite, size: 4, code: "ff03"},
	{name: "not", kind: accWrite, size: 8, code: "48f713"},
	{name: "neg", kind: accWrite, size: 2, code: "66f71b"},
	{name: "shl", kind: accWrite, size: 8, code: "48d123"},
	{name: "rcr", kind: accWrite, size: 4, code: "c11b03"},
	{name: "shld", kind: accWrite, size: 8, code: "480fa40304"},
	{name: "bts", kind: accWrite, size: 8, code: "480fba2b05"},
	{name: "xadd", kind: accWrite, size: 8, code: "480fc103"},
	{name: "xchg", kind: accWrite, size: 8, code: "488703"},
	{name: "cmpxchg", kind: accWrite, size: 8, code: "480fb10b"},
	{name: "cmpxchg8b", kind: accWrite, size: 8, code: "0fc70b"},
	{name: "lock add", kind: accWrite, size: 8, code: "f0480103"},
	{name: "lock inc", kind: accWrite, size: 4, code: "f0ff03"},
	{name: "lock btc", kind: accWrite, size: 4, code: "f00fba3b05"},
	{name: "lock xadd", kind: accWrite, size: 4, code: "f00fc103"},
	{name: "lock cmpxchg", kind: accWrite, size: 8, code: "f0480fb10b"},
	{name: "lock cmpxchg16b", kind: accWrite, size: 16, aligned: true, code: "f0480fc70b"},

	{name: "jmp r", kind: accFetch, size: 3, code: "ffe3"},
	{name: "call r", kind: accFetch, size: 3, code: "ffd3", after: restoreSP},
	{name: "ret to", kind: accFetch, size: 3, before: "53", code: "c3", after: restoreSP},
}

// faultCase is an access with the rights that its page has.
type faultCase struct {
	*access
	user     bool
	loops    int    // how often the instruction has run before
	place    int    // 0: on the page; 1: its last part is; 2: its first part is
	level    int    // of the entry that says so: 0 PTE, 1 PDE, 2 PDPTE; 3, 4: of 2 MiB, 1 GiB
	clear    uint64 // bits of that entry
	set      uint64
	cr0, cr4 uint64
	ac       bool
	noNX     bool // EFER.NXE is off
}

func (f *faultCase) String() string {
	return fmt.Sprintf("%s, user %t, %d times before, place %d, level %d, entry -%#x +%#x, CR0 %#x CR4 %#x AC %t NXE %t",
		f.name, f.user, f.loops, f.place, f.level, f.clear, f.set, f.cr0, f.cr4, f.ac, !f.noNX)
}

// rights is what the page's translation allows when it is there: SDM vol. 3A
// §4.6.1.
func (f *faultCase) denied() bool {
	page := pteU &^ f.clear // the rest of the translation is a user's if there is one
	if !f.user && f.set&pteU == 0 {
		page = 0
	}
	readOnly, nx := f.clear&pteW != 0, f.set&pteNX != 0
	switch {
	case f.kind == accFetch && f.user:
		return page == 0 || nx
	case f.kind == accFetch:
		return nx || page != 0 && f.cr4&cr4SMEP != 0
	case f.user:
		return page == 0 || f.kind == accWrite && readOnly
	}
	return page != 0 && f.cr4&cr4SMAP != 0 && !f.ac || f.kind == accWrite && readOnly && f.cr0&cr0WP != 0
}

// want is the error code of the page fault, or -1: SDM vol. 3A §4.7.
func (f *faultCase) want() int {
	err := int(f.kind)
	if f.user {
		err |= accUser
	}
	if f.kind == accFetch && f.noNX && f.cr4&cr4SMEP == 0 {
		err &^= accFetch
	}
	const reserved = 1<<51 | 1<<50
	switch {
	case f.any:
		return -1
	case f.clear&pteP != 0:
		return err
	case f.set&reserved != 0, f.noNX && f.set&pteNX != 0, f.level >= 3 && f.set&(1<<13) != 0:
		return err | pfP | pfRSVD
	case f.denied():
		return err | pfP
	}
	return -1
}

// randomFault picks a case.
func randomFault(rng *rand.Rand) *faultCase {
	f := &faultCase{access: &accesses[rng.IntN(len(accesses))], user: rng.IntN(2) == 0, loops: []int{0, 1, hotRuns + 30}[rng.IntN(3)]}
	if !f.aligned && f.size > 1 {
		f.place = rng.IntN(3)
	}
	if f.level = rng.IntN(5); f.place == 2 {
		f.level = 0 // the next page has to be good
	}
	pick := func(v uint64) uint64 { return v * rng.Uint64N(2) }
	switch rng.IntN(6) {
	case 0:
		f.clear = pteP
	case 1:
		f.clear = pteW
	case 2:
		f.clear, f.set = pick(pteU), pick(pteNX)
	case 3:
		f.set = 1 << 51
		if f.level >= 3 {
			f.set = 1 << 13
		}
	case 4:
		f.clear = pteU | pick(pteW)
	}
	f.cr0 = pick(cr0WP)
	f.cr4 = pick(cr4SMEP) | pick(cr4SMAP)
	f.ac = rng.IntN(2) == 0
	if f.noNX = rng.IntN(8) == 0; f.noNX && f.clear == 0 {
		f.set |= pick(pteNX)
	}
	if f.user {
		f.clear, f.set = f.clear&^(f.set&pteU), f.set&^pteU
	} else {
		f.set |= pick(pteU)
		f.clear &^= pteU
	}
	return f
}

// faultMachine is protected's guest, made ready for another case.
type faultMachine struct {
	g *guest
	c *CPU
	// The state when a case begins.
	ram  []byte
	regs vcpu.Registers
}

func newFaultMachine(t *testing.T, user bool, cfg Config) *faultMachine {
	cfg.CPUs = 1
	g, c := protectedWith(t, user, cfg)
	m := &faultMachine{g: g, c: c}
	g.ram[atIDT+vecPF*16+4] = 1 // page faults have a stack of their own
	rights := uint64(pteP | pteW)
	if user {
		rights |= pteU
	}
	// Every level allows everything but where the case says so. The page at atGood + 0x1000 is that of the case.
	g.setWord(0x2000+1*8, 0x60000|pteP|pteW|pteU)
	g.setWord(0x60000+511*8, 0x61000|pteP|pteW|pteU)
	for i := range uint64(3) {
		g.setWord(0x61000+(509+i)*8, (0x50000+i<<12)|rights)
	}
	g.setWord(0x2000+2*8, 0x62000|pteP|pteW|pteU)
	g.setWord(0x62000, 0x63000|pteP|pteW|pteU)
	g.setWord(0x63000, 0x53000|rights)
	g.setWord(0x63008, 0x54000|rights)
	m.ram = bytes.Clone(g.ram)
	_ = c.Registers(&m.regs)
	return m
}

// faultState is what there is to see when the guest has ended.
type faultState struct {
	rec    record
	regs   [16]uint64
	xmm    [16][2]uint64
	memory [3 * 4096]byte
	scrap  [4096]byte
	entry  uint64
	rax    uint64
}

// run runs a case and returns the state, where the access began and its RIP.
func (m *faultMachine) run(f *faultCase) (st faultState, at, rip uint64) {
	g, c := m.g, m.c
	copy(g.ram, m.ram)
	c.dropCode()
	g.ended.Store(false)
	rights := uint64(pteP | pteW)
	if f.user || f.level > 0 && f.level < 3 {
		rights |= pteU
	}
	at, base := uint64(atBad+0x100), uint64(0)
	switch f.level {
	case 0:
		g.setWord(0x63000, (0x53000|rights)&^f.clear|f.set)
	case 1:
		g.setWord(0x62000, (0x63000|rights)&^f.clear|f.set)
	case 2:
		g.setWord(0x2010, (0x62000|rights)&^f.clear|f.set)
	case 3:
		g.setWord(0x62000, (0|ptePS|rights)&^f.clear|f.set)
		base = 0x53000
	case 4:
		g.setWord(0x2010, (0|ptePS|rights)&^f.clear|f.set)
		base = 0x53000
	}
	if !f.user && f.set&pteU != 0 && (f.level == 1 || f.level == 2) {
		g.setWord(0x63000, 0x53000|rights) // all levels say so
	}
	at += base
	// The page of the case lies behind the good one only with small pages.
	switch half := f.size / 2; f.place {
	case 1:
		if base == 0 {
			at = atBad - max(half, 1)
		}
	case 2:
		at = atBad + 0x1000 - max(half, 1)
	}
	good := uint64(atGood + 0x200)
	// L: cmp r12d,1; cmove rbx,r8; before; access; after; dec r12d; jnz L; ud2
	code := "4183fc01490f44d8" + f.before
	rip = atCode + uint64(len(code)/2)
	code += f.code
	end := uint64(atCode + len(code)/2)
	code += f.after + "41ffcc"
	code += hex.EncodeToString([]byte{0x75, byte(-(len(code)/2 + 2))}) + "0f0b"
	g.put(atCode, code)
	page := g.ram[0x50000:0x55000]
	for i := range page {
		page[i] = byte(i * 5)
	}
	put := func(va uint64, b []byte) { // a range of the pages of this test, at its mapped place
		for i, v := range b {
			a := va + uint64(i)
			switch {
			case a >= atBad:
				a = a - atBad - base + 0x53000
			default:
				a = a - atScratch + 0x50000
			}
			g.ram[a] = v
		}
	}
	content := binary.LittleEndian.AppendUint64(nil, end)
	content = append(content, content...)
	if f.kind == accFetch {
		content = []byte{0x41, 0xff, 0xe7} // jmp r15
	}
	for _, a := range []uint64{at, good, atScratch + 0x300} {
		put(a, content)
	}
	r := m.regs
	r.CR0 |= f.cr0
	r.CR4 |= f.cr4
	if f.noNX {
		r.EFER &^= eferNXE
	}
	if f.ac {
		r.RFLAGS |= flagAC
	}
	for i := range r.GPR {
		if i != vcpu.RSP {
			r.GPR[i] = 0x1111_0000_0000_0000*uint64(i+1)&(1<<63-1) + 7
		}
	}
	r.GPR[vcpu.RBP] = 0
	r.GPR[vcpu.RBX], r.GPR[vcpu.R8] = good, at
	r.GPR[vcpu.R12], r.GPR[vcpu.R13], r.GPR[vcpu.R14], r.GPR[vcpu.R15] = uint64(f.loops)+1, r.GPR[vcpu.RSP], atScratch+0x300, end
	_ = c.SetRegisters(&r)
	c.resetFPU()
	c.s.MXCSR = 0x1f80
	c.flushTLB()
	c.halted, c.waiting, c.shutdown = false, false, false
	before := bytes.Clone(g.ram[0x52000:0x55000])
	if ex := g.run(); ex[0].Reason != vcpu.ExitKick {
		g.t.Errorf("%v: exit %v %s", f, ex[0].Reason, ex[0].Detail)
	}
	st.rec = g.record()
	copy(st.regs[:], c.s.R[:16])
	for i := range st.xmm {
		st.xmm[i] = [2]uint64{c.s.XMM[i][0], c.s.XMM[i][1]}
	}
	copy(st.memory[:], g.ram[0x52000:0x55000])
	copy(st.scrap[:], g.ram[0x50000:0x51000])
	st.rax = g.word(st.rec.handlerSP)
	st.entry = g.word([]uint64{0x63000, 0x62000, 0x2010, 0x62000, 0x2010}[f.level])
	if want := f.want(); want >= 0 && !f.overwritten && st.rec.vec == vecPF {
		// Pages but the good one are as they were.
		if !bytes.Equal(before[0x1000:], st.memory[0x1000:]) {
			g.t.Errorf("%v: a faulting access changed memory", f)
		}
	}
	return st, at, rip
}

// check compares a state with what the SDM says.
func (f *faultCase) check(t *testing.T, st *faultState, at, rip uint64) {
	t.Helper()
	r, want := &st.rec, f.want()
	if want < 0 {
		if r.vec != vecUD {
			t.Errorf("%v: vector %d error %#x CR2 %#x RIP %#x, want no fault", f, r.vec, r.err, r.cr2, r.rip)
		} else if dirty := st.entry&pteD != 0; f.level != 1 && f.level != 2 && !f.any && (dirty != (f.kind == accWrite) || st.entry&pteA == 0) {
			t.Errorf("%v: entry %#x afterwards (SDM vol. 3A §4.8)", f, st.entry)
		}
		return
	}
	cr2, sp := at, uint64(kernelSP)
	if f.user {
		sp = userSP
	}
	if f.place == 1 && f.level < 3 {
		cr2 = atBad
	}
	if f.kind == accFetch {
		rip = at
		if f.name == "call r" {
			sp -= 8
		}
	}
	switch f.before {
	case rspRBX:
		sp = at
	case rspPush:
		sp = at + 8
	case "50":
		sp -= 8
	}
	if r.vec != vecPF || r.err != uint64(want) || r.cr2 != cr2 || r.rip != rip || r.rsp != sp {
		t.Errorf("%v: vector %d error %#x CR2 %#x RIP %#x RSP %#x, want 14, %#x, %#x, %#x, %#x", f, r.vec, r.err, r.cr2, r.rip, r.rsp, want, cr2, rip, sp)
	}
	if st.entry&pteD != 0 && (f.level == 0 || f.level >= 3) {
		t.Errorf("%v: a faulting access set D (SDM vol. 3A §4.8)", f)
	}
	if st.regs[vcpu.RBX] != at || st.regs[vcpu.R12] != 1 {
		t.Errorf("%v: RBX %#x R12 %d after the fault", f, st.regs[vcpu.RBX], st.regs[vcpu.R12])
	}
}

// TestFaultMatrix: instructions of every way to memory, in code that has run
// often, once or never before, meet pages with all sorts of rights, at every
// level of the tables and with part of the operand: the error code, CR2, RIP
// and RSP are those of SDM vol. 3A §4.6, §4.7 and §6.15 (interrupt 14), nothing
// is half done, and the translator leaves what the interpreter leaves.
func TestFaultMatrix(t *testing.T) {
	n, seed := oracleCases()/15, uint64(3)
	if v, err := strconv.ParseUint(os.Getenv("ORACLE_SEED"), 10, 64); err == nil {
		seed = v
	}
	rng := rand.New(rand.NewPCG(seed, 9))
	var machines [2][2]*faultMachine
	for i, noTranslator := range []bool{false, true} {
		for j, user := range []bool{false, true} {
			machines[i][j] = newFaultMachine(t, user, Config{NoTranslator: noTranslator})
		}
	}
	faults := 0
	for range n {
		f := randomFault(rng)
		var st [2]faultState
		for i := range machines {
			var at, rip uint64
			st[i], at, rip = machines[i][boolBit(f.user)].run(f)
			f.check(t, &st[i], at, rip)
			st[i].rec.flags &^= flagsArith // the translator may leave out what the instruction overwrites
		}
		if st[0] != st[1] {
			t.Errorf("%v: the engines differ: translator %+v %x rax %#x, interpreter %+v %x rax %#x", f, st[0].rec, st[0].regs, st[0].rax, st[1].rec, st[1].regs, st[1].rax)
		}
		faults += int(boolBit(f.want() >= 0))
		if t.Failed() {
			break
		}
	}
	t.Logf("%d cases, %d faults", n, faults)
}
