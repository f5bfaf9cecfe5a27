package soft

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"strconv"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/gvmspawn/gvmspawn/vmm/mem"
	"github.com/gvmspawn/gvmspawn/vmm/soft/decode"
	"github.com/gvmspawn/gvmspawn/vmm/vcpu"
)

// The oracle runs single user-mode instructions on the host's CPU and in the
// interpreter, from the same random registers, flags and memory, and compares
// all of them afterwards.

const (
	oracleBase = 0x1000_0000 // of the guest's RAM, and of the native twin
	oracleSize = 0x20_0000
	oracleData = oracleBase + 0x10_0000 // middle of the window for memory operands
	oracleCode = oracleBase + 0x1f_0000
	oracleCtx  = oracleBase + 0x1e_0000 // native only
	oracleTab  = oracleBase + 0x1a_0000 // page tables, guest only
	dataWindow = 0x2000
)

// userState is what an instruction may read and write.
type userState struct {
	gpr   [16]uint64
	flags uint64
	xmm   [16][2]uint64
	high  [16][2]uint64 // upper halves of YMM registers
	fx    [512]byte
	data  [2 * dataWindow]byte
}

type oracle struct {
	host              []byte // native twin of the guest's RAM at oracleBase
	ram               []byte
	c                 *CPU
	entry             func()
	entryPtr, codePtr uintptr
}

func newOracle(t testing.TB) *oracle {
	p, err := unix.MmapPtr(-1, 0, hostPtr(oracleBase), oracleSize, unix.PROT_READ|unix.PROT_WRITE|unix.PROT_EXEC,
		unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_FIXED_NOREPLACE)
	if err != nil {
		t.Skipf("no executable memory at a fixed address: %v", err)
	}
	o := &oracle{host: unsafe.Slice((*byte)(p), oracleSize)}
	t.Cleanup(func() { _ = unix.MunmapPtr(p, oracleSize) })
	m := mem.New()
	r, err := m.Add("ram", oracleBase, oracleSize, mem.RAM)
	if err != nil {
		t.Fatal(err)
	}
	o.ram = r.Bytes()
	vm, err := New(Config{Memory: m, CPUs: 1, IO: &testUART{}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { vm.Close(); m.Close() })
	o.c = vm.cpus[0]
	o.longMode()
	o.trampoline()
	return o
}

// longMode puts the CPU into ring 3 of 64-bit mode with memory mapped one to one.
func (o *oracle) longMode() {
	put := func(at, v uint64) { binary.LittleEndian.PutUint64(o.ram[at-oracleBase:], v) }
	put(oracleTab, oracleTab+0x1000|7)
	put(oracleTab+0x1000, 0|7|ptePS)
	flat := vcpu.Segment{Limit: 0xffffffff, Attr: attrS | attrP | attrG | attrRW | attrAccessed | 3<<5 | attrDB}
	code := flat
	code.Attr = attrS | attrP | attrG | attrRW | attrAccessed | attrCode | attrL | 3<<5
	regs := vcpu.Registers{CR0: cr0PE | cr0PG | cr0NE | cr0MP, CR3: oracleTab, CR4: cr4PAE | cr4OSFXSR | cr4OSXMMEXCPT, EFER: eferLME | eferLMA | eferSCE, RFLAGS: 2}
	for i := range regs.Seg {
		regs.Seg[i] = flat
	}
	regs.Seg[vcpu.CS] = code
	o.c.SetRegisters(&regs)
	o.c.s.MXCSR = 0x1f80
	if o.c.vm.features.v3 {
		o.c.s.CR4 |= cr4OSXSAVE
		o.c.s.XCR0 = o.c.vm.features.xcr0
	}
}

// ctx field offsets from oracleCtx.
const (
	ctxGPR   = 0
	ctxFlags = 128
	ctxSP    = 136
	ctxRet   = 144
	ctxXMM   = 256
	ctxSave  = 512
	ctxFX    = 1024
)

// trampoline writes the code around the instruction under test.
func (o *oracle) trampoline() {
	var b []byte
	mov := func(op byte, reg int, at uint32) { // mov reg<->[abs32]
		b = append(b, 0x48|byte(reg>>3)<<2, op, byte(reg&7)<<3|4, 0x25)
		b = binary.LittleEndian.AppendUint32(b, oracleCtx+at)
	}
	abs := func(at uint32, pre ...byte) {
		b = append(b, pre...)
		b = binary.LittleEndian.AppendUint32(b, oracleCtx+at)
	}
	for _, r := range []int{3, 4, 5, 12, 13, 14, 15} { // save the Go side's
		mov(0x89, r, uint32(ctxSave+8*r))
	}
	abs(ctxFX, 0x48, 0x0f, 0xae, 0x0c, 0x25) // fxrstor64 [ctxFX]
	abs(ctxFlags, 0xff, 0x34, 0x25)          // push flags
	b = append(b, 0x9d)
	for r := range 16 {
		mov(0x8b, r, uint32(ctxGPR+8*r))
	}
	b = append(b, 0xe9)
	b = binary.LittleEndian.AppendUint32(b, uint32(oracleCode-(oracleCtx+0x2000+len(b)+4)))
	copy(o.host[oracleCtx-oracleBase+0x2000:], b)
	b = b[:0]
	for r := range 16 {
		mov(0x89, r, uint32(ctxGPR+8*r))
	}
	mov(0x8b, 4, ctxSave+8*4)
	b = append(b, 0x9c)                      // pushf
	abs(ctxFlags, 0x8f, 0x04, 0x25)          // pop flags
	b = append(b, 0x6a, 0x02, 0x9d)          // push 2; popf
	abs(ctxFX, 0x48, 0x0f, 0xae, 0x04, 0x25) // fxsave64
	for _, r := range []int{3, 5, 12, 13, 14, 15} {
		mov(0x8b, r, uint32(ctxSave+8*r))
	}
	b = append(b, 0xdb, 0xe3)                   // fninit
	abs(ctxSave, 0x0f, 0xae, 0x14, 0x25)        // ldmxcsr [ctxSave]
	b = append(b, 0x45, 0x0f, 0x57, 0xff, 0xc3) // xorps xmm15, xmm15; ret
	copy(o.host[oracleCtx-oracleBase+0x3000:], b)
	binary.LittleEndian.PutUint32(o.host[oracleCtx-oracleBase+ctxSave:], 0x1f80)
	o.codePtr = oracleCtx + 0x2000
	o.entryPtr = uintptr(unsafe.Pointer(&o.codePtr))
	o.entry = *(*func())(unsafe.Pointer(&o.entryPtr))
}

// native runs code on the host.
func (o *oracle) native(code []byte, st *userState) {
	at := oracleCode - oracleBase
	n := copy(o.host[at:], code)
	b := append([]byte{}, 0xe9)
	b = binary.LittleEndian.AppendUint32(b, uint32(oracleCtx+0x3000-(oracleCode+n+5)))
	copy(o.host[at+n:], b)
	ctx := o.host[oracleCtx-oracleBase:]
	for i, v := range st.gpr {
		binary.LittleEndian.PutUint64(ctx[ctxGPR+8*i:], v)
	}
	binary.LittleEndian.PutUint64(ctx[ctxFlags:], st.flags)
	copy(ctx[ctxFX:], st.fx[:])
	for i, v := range st.xmm {
		binary.LittleEndian.PutUint64(ctx[ctxFX+160+16*i:], v[0])
		binary.LittleEndian.PutUint64(ctx[ctxFX+168+16*i:], v[1])
	}
	w := o.host[oracleData-oracleBase-dataWindow:][:2*dataWindow]
	copy(w, st.data[:])
	o.entry()
	for i := range st.gpr {
		st.gpr[i] = binary.LittleEndian.Uint64(ctx[ctxGPR+8*i:])
	}
	st.flags = binary.LittleEndian.Uint64(ctx[ctxFlags:])
	copy(st.fx[:], ctx[ctxFX:])
	for i := range st.xmm {
		st.xmm[i][0] = binary.LittleEndian.Uint64(ctx[ctxFX+160+16*i:])
		st.xmm[i][1] = binary.LittleEndian.Uint64(ctx[ctxFX+168+16*i:])
	}
	copy(st.data[:], w)
}

// interp runs code in the interpreter; false means that it faulted.
func (o *oracle) interp(code []byte, st *userState) bool {
	c, s := o.c, o.c.s
	copy(o.ram[oracleCode-oracleBase:], code)
	copy(s.R[:16], st.gpr[:])
	s.Flags = 2
	s.setArith(st.flags)
	s.Flags |= st.flags & flagDF
	copy(s.FX[:160], st.fx[:160])
	s.MXCSR = binary.LittleEndian.Uint32(st.fx[24:])
	for i, v := range st.xmm {
		c.setXMM(uint8(i), v)
	}
	w := o.ram[oracleData-oracleBase-dataWindow:][:2*dataWindow]
	copy(w, st.data[:])
	s.RIP = oracleCode
	s.Exit = 0
	if st := c.single(); st == stFault {
		return false
	}
	copy(st.gpr[:], s.R[:16])
	st.flags = s.rflags()
	copy(st.fx[:160], s.FX[:160])
	binary.LittleEndian.PutUint32(st.fx[24:], s.MXCSR)
	for i := range st.xmm {
		st.xmm[i] = [2]uint64{s.XMM[i][0], s.XMM[i][1]}
	}
	copy(st.data[:], w)
	return true
}

// skipOps are operations that the oracle cannot run: they trap, branch or
// depend on the machine.
var skipOps = map[decode.Op]bool{
	decode.IN: true, decode.OUT: true, decode.INSB: true, decode.INSV: true, decode.OUTSB: true, decode.OUTSV: true,
	decode.HLT: true, decode.CLI: true, decode.STI: true, decode.POPF: true, decode.PUSHF: true,
	decode.RDTSC: true, decode.RDTSCP: true, decode.CPUID: true, decode.RDRAND: true, decode.RDSEED: true, decode.RDPID: true, decode.RDPMC: true,
	decode.XGETBV: true, decode.VMCALL: true, decode.VMMCALL: true, decode.SYSCALL: true, decode.SYSENTER: true,
	decode.ENTER: true, decode.MOVSEG: true, decode.XLAT: true, decode.FWAIT: true, decode.MASKMOVDQU: true, decode.MASKMOVQ: true,
	decode.LAR: true, decode.LSL: true, decode.VERR: true, decode.VERW: true, decode.SLDT: true, decode.STR: true, decode.SMSW: true,
	decode.SGDT: true, decode.SIDT: true, decode.LEAVE: true, decode.DIV: true, decode.IDIV: true,
	decode.RDFSBASE: true, decode.RDGSBASE: true, decode.WRFSBASE: true, decode.WRGSBASE: true,
	decode.XSAVE: true, decode.XSAVEOPT: true, decode.XRSTOR: true,
	decode.FXRSTOR: true, decode.LDMXCSR: true, decode.XCHG: false,
	decode.LSS: true, decode.LFS: true, decode.LGS: true, decode.RDPKRU: true, decode.WRPKRU: true,
	decode.PUSH: true, decode.POP: true, // their own test
}

// hostFeatures is all that the host's CPU lends.
var hostFeatures = newFeatures(false)

// oracleOK reports whether in can be run in both worlds.
func oracleOK(in *decode.Inst) bool {
	if generic[in.Op] == nil || skipOps[in.Op] || in.VEX || hostFeatures.lacks(in) {
		return false
	}
	switch in.Op {
	case decode.JCC, decode.JMP, decode.JMPR, decode.CALL, decode.CALLR, decode.RET, decode.RETF, decode.IRET, decode.JMPF, decode.CALLF,
		decode.LOOP, decode.LOOPE, decode.LOOPNE, decode.JCXZ, decode.INT, decode.INT3, decode.INT1, decode.SYSRET, decode.SYSEXIT,
		decode.UD0, decode.UD1, decode.UD2, decode.RSM, decode.X87, decode.BOUND, decode.INTO:
		return false
	case decode.MOVSB, decode.MOVSV, decode.STOSB, decode.STOSV, decode.LODSB, decode.LODSV, decode.CMPSB, decode.CMPSV, decode.SCASB, decode.SCASV:
		return false
	case decode.INVPCID:
		return false
	case decode.INVD, decode.WBINVD, decode.CLTS, decode.LMSW, decode.LGDT, decode.LIDT, decode.LLDT, decode.LTR, decode.INVLPG, decode.SWAPGS,
		decode.RDMSR, decode.WRMSR, decode.CLAC, decode.STAC, decode.MONITOR, decode.MWAIT, decode.XSETBV:
		return false
	case decode.PAUSE:
		return in.REX&1 == 0 // an XCHG with R8 on AMD's CPUs
	case decode.NOP:
		// PREFETCHW with a register is a NOP on Intel's CPUs and #UD on AMD's.
		if in.Opcode == 0x0d && !in.MemMod() {
			return false
		}
	}
	for _, a := range in.Args {
		switch a.Kind {
		case decode.KSeg, decode.KCR, decode.KDR, decode.KMMX:
			return false
		case decode.KReg:
			if a.Reg == 4 && a.Size != 1 {
				return false
			}
		}
		if a.Kind == decode.KMem && in.Mem.Seg >= decode.FS {
			return false
		}
	}
	return true
}

// undefined is the flags that op leaves undefined (SDM vol. 2).
func undefined(in *decode.Inst, count uint64) uint64 {
	switch in.Op {
	case decode.AND, decode.OR, decode.XOR, decode.TEST:
		return flagAF
	case decode.SHL, decode.SHR, decode.SAR:
		u := uint64(flagAF)
		if count != 1 {
			u |= flagOF
		}
		if count >= uint64(in.Args[0].Size)*8 {
			u |= flagCF
		}
		return u
	case decode.ROL, decode.ROR, decode.RCL, decode.RCR:
		if count != 1 {
			return flagOF
		}
		return 0
	case decode.SHLD, decode.SHRD:
		u := uint64(flagAF)
		if count != 1 {
			u |= flagOF
		}
		if count > uint64(in.Args[0].Size)*8 {
			u = flagsArith
		}
		return u
	case decode.MUL, decode.IMUL, decode.IMUL2, decode.IMUL3:
		return flagSF | flagZF | flagAF | flagPF
	case decode.DIV, decode.IDIV:
		return flagsArith
	case decode.LZCNT, decode.TZCNT:
		return flagOF | flagSF | flagAF | flagPF
	case decode.BSF, decode.BSR:
		return flagsArith &^ flagZF
	case decode.BT, decode.BTS, decode.BTR, decode.BTC:
		return flagOF | flagSF | flagAF | flagPF
	}
	return 0
}

// place makes the memory operand of in point into the data window by setting
// its base register. It reports false if it cannot.
func place(in *decode.Inst, st *userState, code []byte, rng *rand.Rand) bool {
	m := &in.Mem
	var isMem bool
	for _, a := range in.Args {
		isMem = isMem || a.Kind == decode.KMem
	}
	if !isMem || in.Op == decode.LEA || in.Op == decode.NOP {
		return true
	}
	if in.AddrSize != 8 || m.Base >= 16 || m.Base == 4 || m.Base == m.Index {
		return false
	}
	ea := uint64(oracleData) + rng.Uint64N(512) - 256
	for _, a := range in.Args {
		if a.Kind == decode.KMem && a.Size == 16 && !a.Unaligned || a.Kind == decode.KMem && a.Size == 0 {
			ea &^= 63
		}
	}
	if m.Index != decode.RegNone {
		if m.Index == 4 {
			return false
		}
		ea -= st.gpr[m.Index] << m.Scale
	}
	st.gpr[m.Base] = ea - uint64(m.Disp)
	switch in.Op {
	case decode.BT, decode.BTS, decode.BTR, decode.BTC:
		if in.Args[1].Kind == decode.KReg {
			r := in.Args[1].Reg
			if r == m.Base || r == m.Index {
				return false
			}
			st.gpr[r] = uint64(int64(rng.IntN(16000) - 8000))
			if in.OpSize < 8 { // upper bits are ignored
				st.gpr[r] = st.gpr[r]&ipMask(in.OpSize) | rng.Uint64()&^ipMask(in.OpSize)
			}
		}
	case decode.CMPXCHG8B:
		if rng.IntN(2) == 0 {
			at := int(oracleData - dataWindow)
			off := int(ea) + 0 - at
			if m.Index == decode.RegNone && off >= 0 && off < len(st.data)-16 {
				copy(st.data[off:], binary.LittleEndian.AppendUint64(nil, st.gpr[0]))
			}
		}
	}
	return true
}

func randomValue(rng *rand.Rand) uint64 {
	v := rng.Uint64()
	switch rng.IntN(6) {
	case 0:
		return v >> (rng.UintN(64))
	case 1:
		return uint64(int64(v) >> (rng.UintN(64)))
	case 2:
		return []uint64{0, 1, 0x7f, 0x80, 0xff, 0x7fff, 0x8000, 0xffff, 0x7fffffff, 0x80000000, 0xffffffff, 1 << 63, 1<<63 - 1, ^uint64(0)}[rng.IntN(14)]
	}
	return v
}

func randomFloatish(rng *rand.Rand) uint64 {
	switch rng.IntN(8) {
	case 0:
		return []uint64{0x3ff0000000000000, 0x7ff0000000000000, 0xfff8000000000000, 0x7ff4000000000000, 0x0000000000000001, 0x4340000000000001}[rng.IntN(6)]
	case 1:
		return uint64(0x3f800000|rng.Uint32()&0x807fffff)<<32 | uint64(0x40000000^rng.Uint32()>>8)
	case 2:
		return 0x3ff0000000000000 ^ rng.Uint64()>>12 ^ rng.Uint64()&(1<<63) ^ rng.Uint64N(64)<<52
	}
	return randomValue(rng)
}

func (st *userState) fill(rng *rand.Rand) {
	for i := range st.gpr {
		st.gpr[i] = randomValue(rng)
	}
	st.gpr[4] = oracleData + 0x800
	for i := range st.xmm {
		st.xmm[i] = [2]uint64{randomFloatish(rng), randomFloatish(rng)}
		st.high[i] = [2]uint64{randomFloatish(rng), randomFloatish(rng)}
	}
	st.flags = rng.Uint64()&flagsArith | 2
	for i := 0; i < len(st.data); i += 8 {
		binary.LittleEndian.PutUint64(st.data[i:], randomFloatish(rng))
	}
	st.fx = [512]byte{0: 0x7f, 1: 0x03}
	binary.LittleEndian.PutUint32(st.fx[24:], 0x1f80|rng.Uint32()&0xe040)
}

// randomCode makes bytes that often decode to something interesting.
func randomCode(rng *rand.Rand, b []byte) {
	for i := range b {
		b[i] = byte(rng.Uint32())
	}
	i := 0
	if rng.IntN(4) == 0 {
		b[i] = []byte{0x66, 0xf2, 0xf3, 0xf0}[rng.IntN(4)]
		i++
	}
	if rng.IntN(2) == 0 {
		b[i] = 0x40 | byte(rng.IntN(16))
		i++
	}
	switch rng.IntN(4) {
	case 0:
		b[i] = 0x0f
	case 1:
		b[i] = 0x0f
		b[i+1] = 0x38 | byte(rng.IntN(2))<<1
	}
}

func oracleCases() int {
	if n, err := strconv.Atoi(os.Getenv("ORACLE_CASES")); err == nil {
		return n
	}
	return 60000
}

// TestOracle compares single instructions with the host's CPU.
func TestOracle(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	o := newOracle(t)
	seed := uint64(1)
	if s, err := strconv.ParseUint(os.Getenv("ORACLE_SEED"), 10, 64); err == nil {
		seed = s
	}
	rng := rand.New(rand.NewPCG(seed, 2))
	var init, a, b userState
	seen := map[string]int{}
	failed := map[string]int{}
	for n := 0; n < oracleCases(); {
		var buf [20]byte
		randomCode(rng, buf[:])
		var in decode.Inst
		if decode.Decode(&in, buf[:15], decode.Mode64) != nil || !oracleOK(&in) {
			continue
		}
		if n&63 == 0 || in.Attrs&decode.AttrNative != 0 {
			init.fill(rng)
		} else {
			for i := range init.gpr {
				if i != 4 {
					init.gpr[i] = randomValue(rng)
				}
			}
			init.flags = rng.Uint64()&flagsArith | 2
		}
		code := buf[:in.Len]
		if !place(&in, &init, code, rng) {
			continue
		}
		n++
		name := in.Op.String()
		seen[name]++
		a, b = init, init
		if os.Getenv("ORACLE_PRINT") != "" {
			os.WriteFile("/tmp/last", fmt.Appendf(nil, "%s % x %+v\n", name, code, in), 0o644)
		}
		o.native(code, &a)
		if !o.interp(code, &b) {
			failed[name]++
			if failed[name] < 3 {
				t.Errorf("%s % x: interpreter faults with %+v", name, code, o.c.exc)
			}
			continue
		}
		count := init.gpr[1]
		if in.Args[1].Kind == decode.KImm || in.Args[2].Kind == decode.KImm {
			count = in.Imm
		}
		if in.OpSize == 8 {
			count &= 63
		} else {
			count &= 31
		}
		if d := diff(&in, &a, &b, count); d != "" {
			failed[name]++
			if failed[name] < 3 {
				t.Errorf("%s % x (count %d, flags in %#x): %s\n in %x", name, code, count, init.flags, d, init.gpr)
			}
		}
	}
	t.Logf("%d operations", len(seen))
	for k, v := range failed {
		t.Logf("failed %s: %d of %d", k, v, seen[k])
	}
}

func diff(in *decode.Inst, a, b *userState, count uint64) string {
	for i := range a.gpr {
		if a.gpr[i] != b.gpr[i] {
			if (in.Op == decode.SHLD || in.Op == decode.SHRD) && count > uint64(in.OpSize)*8 {
				continue
			}
			if in.Op == decode.BSWAP && in.OpSize == 2 {
				continue
			}
			return fmt.Sprintf("r%d native %#x, interpreted %#x", i, a.gpr[i], b.gpr[i])
		}
	}
	m := ^undefined(in, count) & flagsArith
	if count == 0 {
		switch in.Op {
		case decode.SHL, decode.SHR, decode.SAR, decode.ROL, decode.ROR, decode.RCL, decode.RCR, decode.SHLD, decode.SHRD:
			m = flagsArith
		}
	}
	if (a.flags^b.flags)&m != 0 {
		return fmt.Sprintf("flags native %#x, interpreted %#x (mask %#x)", a.flags&flagsArith, b.flags&flagsArith, m)
	}
	for i := range a.xmm {
		if a.xmm[i] != b.xmm[i] {
			return fmt.Sprintf("xmm%d native %#x, interpreted %#x", i, a.xmm[i], b.xmm[i])
		}
		if a.high[i] != b.high[i] {
			return fmt.Sprintf("ymm%d's upper half native %#x, interpreted %#x", i, a.high[i], b.high[i])
		}
	}
	if x, y := binary.LittleEndian.Uint32(a.fx[24:]), binary.LittleEndian.Uint32(b.fx[24:]); x != y {
		return fmt.Sprintf("mxcsr native %#x, interpreted %#x", x, y)
	}
	if (in.Op == decode.SHLD || in.Op == decode.SHRD) && count > uint64(in.OpSize)*8 || in.Op == decode.FXSAVE {
		return ""
	}
	if a.data != b.data {
		for i := range a.data {
			if a.data[i] != b.data[i] {
				return fmt.Sprintf("byte %d of the window native %#x, interpreted %#x", i-dataWindow, a.data[i], b.data[i])
			}
		}
	}
	return ""
}
