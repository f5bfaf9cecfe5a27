package soft

import (
	"encoding/binary"
	"math/rand/v2"
	"sync/atomic"
	"testing"

	"github.com/gvmspawn/gvmspawn/vmm/mem"
	"github.com/gvmspawn/gvmspawn/vmm/soft/decode"
	"github.com/gvmspawn/gvmspawn/vmm/vcpu"
)

// fuzzMachine is one CPU with 1 MiB of RAM.
func fuzzMachine(t testing.TB) (*CPU, []byte) {
	m := mem.New()
	r, err := m.Add("ram", 0, 1<<20, mem.RAM)
	if err != nil {
		t.Fatal(err)
	}
	vm, err := New(Config{Memory: m, CPUs: 1, IO: &testUART{stop: func(string) {}}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { vm.Close(); m.Close() })
	return vm.cpus[0], r.Bytes()
}

// fuzzMode puts the CPU into real, protected, compatibility or 64-bit mode.
func fuzzMode(c *CPU, ram []byte, mode uint8, user bool) {
	put := func(at, v uint64) { binary.LittleEndian.PutUint64(ram[at:], v) }
	put(0x1000, 0x2007)
	put(0x2000, 0x3007)
	put(0x3000, 0x87)
	attr := uint32(attrS | attrP | attrG | attrRW | attrAccessed)
	cpl := uint32(0)
	if user && mode != 0 {
		cpl = 3
		attr |= 3 << 5
	}
	r := vcpu.Registers{RFLAGS: 2, RIP: 0x8000, CR0: cr0NE, IDT: vcpu.Table{Limit: 0x3ff}}
	for i := range r.Seg {
		r.Seg[i] = vcpu.Segment{Limit: 0xffffffff, Attr: attr | attrDB, Selector: uint16(cpl)}
	}
	code := attr | attrCode
	switch mode {
	case 0:
		for i := range r.Seg {
			r.Seg[i] = vcpu.Segment{Limit: 0xffff, Attr: attrS | attrP | attrRW | attrAccessed}
		}
		code = attrS | attrP | attrRW | attrAccessed | attrCode
	case 1:
		r.CR0 |= cr0PE
		code |= attrDB
	default:
		r.CR0 |= cr0PE | cr0PG
		r.CR3, r.CR4, r.EFER = 0x1000, cr4PAE|cr4OSFXSR|cr4OSXMMEXCPT, eferLME|eferLMA|eferSCE|eferNXE
		if mode == 2 {
			code |= attrDB
		} else {
			code |= attrL
		}
	}
	r.Seg[vcpu.CS].Attr = code
	for i := range r.GPR {
		r.GPR[i] = uint64(0x10000 + i*0x1234)
	}
	_ = c.SetRegisters(&r)
}

// spin runs n blocks, delivering what they raise.
func spin(c *CPU, n int) {
	atomic.StoreUint32(&c.s.Exit, exitKick)
	for range n {
		if c.halted || c.waiting {
			return
		}
		if c.stepping() {
			if _, stop := c.step(); stop {
				return
			}
			continue
		}
		c.shadow = false
		b := c.lookup()
		st := stFault
		if b != nil {
			st = c.chain(b)
		}
		if st == stFault {
			if _, stop := c.except(); stop {
				return
			}
		}
	}
}

// FuzzCode runs bytes as code in every mode: whatever they do, the machine
// must neither panic nor touch anything but its own memory.
func FuzzCode(f *testing.F) {
	c, ram := fuzzMachine(f)
	f.Add([]byte{0x90, 0xf4}, uint8(3), true)
	f.Add([]byte{0xf3, 0xa4, 0x0f, 0x01, 0x16, 0x00, 0x10, 0xea, 0, 0, 0, 0}, uint8(0), false)
	f.Fuzz(func(t *testing.T, code []byte, mode uint8, user bool) {
		clear(ram)
		c.resetRegisters()
		c.dropCode()
		copy(ram[0x8000:0x9000], code)
		fuzzMode(c, ram, mode&3, user)
		spin(c, 50)
	})
}

// TestRandomCode is the fuzz target on random bytes.
func TestRandomCode(t *testing.T) {
	c, ram := fuzzMachine(t)
	rng := rand.New(rand.NewPCG(7, 7))
	for n := range 4000 {
		if n%16 == 0 {
			clear(ram)
			for i := 0; i < 0x8000; i += 8 { // descriptors and tables of noise
				binary.LittleEndian.PutUint64(ram[0x4000+i:], rng.Uint64())
			}
		}
		c.resetRegisters()
		code := ram[0x8000:0x8040]
		for i := 0; i < len(code); i += 20 {
			var b [20]byte
			randomCode(rng, b[:])
			copy(code[i:], b[:])
		}
		fuzzMode(c, ram, uint8(n)&3, rng.IntN(2) == 0)
		c.s.GDT = vcpu.Table{Base: 0x4000, Limit: 0xfff}
		c.dropCode()
		spin(c, 20)
	}
}

// TestNoAllocation: the loop allocates nothing once the code is cached.
func TestNoAllocation(t *testing.T) {
	c, ram := fuzzMachine(t)
	fuzzMode(c, ram, 3, false)
	// 1: mov ecx, 100; 2: mov [rsp-16], rcx; paddd xmm0, xmm1; dec ecx; jnz 2; jmp 1
	copy(ram[0x8000:], []byte{0xb9, 100, 0, 0, 0, 0x48, 0x89, 0x4c, 0x24, 0xf0, 0x66, 0x0f, 0xfe, 0xc1, 0xff, 0xc9, 0x75, 0xf3, 0xeb, 0xec})
	if n := testing.AllocsPerRun(50, func() { spin(c, 300) }); n != 0 {
		t.Errorf("%v allocations a run", n)
	}
	if c.s.RIP < 0x8000 || c.s.RIP > 0x8020 {
		t.Errorf("RIP %#x: the loop was left with %+v", c.s.RIP, c.exc)
	}
}

// FuzzDecode: any bytes decode to at most 15 in every mode.
func FuzzDecode(f *testing.F) {
	f.Add([]byte{0x0f, 0x38, 0xf1, 0}, uint8(0))
	f.Fuzz(func(t *testing.T, b []byte, mode uint8) {
		var in decode.Inst
		err := decode.Decode(&in, b, [...]decode.Mode{decode.Mode16, decode.Mode32, decode.Mode64}[mode%3])
		if err == nil && (in.Len == 0 || int(in.Len) > len(b) || in.Len > decode.MaxLen) {
			t.Errorf("% x: length %d", b, in.Len)
		}
	})
}
