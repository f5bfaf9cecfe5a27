package soft

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/gvmspawn/gvmspawn/vmm/vcpu"
)

// TestStartUp: INIT and a start-up IPI run real-mode code at vector << 12,
// which goes to 32-bit mode and from there to 64-bit mode (SDM vol. 3A §9.4,
// §10.8.5, §10.9).
func TestStartUp(t *testing.T) {
	g := newGuest(t, Config{CPUs: 2})
	bsp := g.start(0, 3, 0x8000)
	g.put(0x8000, "ebfe")
	// cli; xor ax,ax; mov ds,ax; lgdtd cs:[0x100]; mov eax,cr0; or al,1; mov cr0,eax; jmp 0x18:0xa080
	g.put(0xa000, "fa31c08ed82e660f011600010f20c00c010f22c066ea80a000001800")
	g.put(0xa100, "1f00000500000000") // the GDT's limit and base; overwritten below
	// 32 bits: load DS, SS, ESP; CR4 = PAE | OSFXSR; CR3; EFER.LME, NXE; CR0.PG; jmp 0x08:0xa140
	g.put(0xa080, "b8100000008ed88ed0bc007000000f20e00d200200000f22e0b8001000000f22d8b9800000c00f320d000900000f300f20c00d000000800f22c0ea40a100000800")
	// mov rax,0x1122334455667788; mov [0x41000],rax; out 0xf4,al; hlt
	g.put(0xa140, "48b888776655443322114889042500100400e6f4f4")
	binary.LittleEndian.PutUint16(g.ram[0xa100:], 0x1f)
	binary.LittleEndian.PutUint32(g.ram[0xa102:], 0x500)
	for i, d := range []uint64{0, 0x00af9b000000ffff, 0x00cf93000000ffff, 0x00cf9b000000ffff} {
		g.setWord(0x500+uint64(i)*8, d)
	}
	bsp.apic.Write(0x310, 4, 1<<24)
	bsp.apic.Write(0x300, 4, 0x4500)
	bsp.apic.Write(0x300, 4, 0x460a)
	g.run()
	if g.word(0x41000) != 0x1122334455667788 {
		t.Errorf("the second CPU did not arrive: %#x; it is at %#x", g.word(0x41000), g.vm.cpus[1].s.RIP)
	}
	if ap := g.vm.cpus[1]; !ap.long64() || ap.s.Seg[vcpu.CS].Selector != 8 {
		t.Error("the second CPU is not in 64-bit mode")
	}
}

// TestStrings: string instructions across pages, backwards, overlapping, from
// and to devices (SDM vol. 1 §7.3.9), with the registers they leave.
func TestStrings(t *testing.T) {
	pattern := func(b []byte) {
		for i := range b {
			b[i] = byte(i*7 + 1)
		}
	}
	same := func(dst, src, n int) func(*guest) bool {
		return func(g *guest) bool { return bytes.Equal(g.ram[dst:dst+n], g.ram[src:src+n]) }
	}
	all := func(dst, n int, v byte) func(*guest) bool {
		return func(g *guest) bool { return bytes.Equal(g.ram[dst:dst+n], bytes.Repeat([]byte{v}, n)) }
	}
	for _, tt := range []struct {
		name, code    string
		ok            func(*guest) bool
		rsi, rdi, rcx uint64
	}{
		{"movsb", codeString, same(0x41ff8, 0x40ff0, 32), 0x41010, 0x42018, 0},
		{"movsq, elements across pages", "bee40f0400bff41f0400b908000000fcf348a5", same(0x41ff4, 0x40fe4, 64), 0x41024, 0x42034, 0},
		{"movsb backwards", "be0f100400bf07200400b920000000fdf3a4", same(0x41fe8, 0x40ff0, 32), 0x40fef, 0x41fe7, 0},
		{"overlapping", "be00000400bf01000400b964000000c60677fcf3a4", all(0x40000, 101, 0x77), 0x40064, 0x40065, 0},
		{"stosb", "b85a000000bff81f0400b920000000fcf3aa", all(0x41ff8, 32, 0x5a), 0, 0x42018, 0},
		{"from a device", "be000010d0bff80f0400b904000000fcf3a5", all(0x40ff8, 16, 0xab), 0xd0100010, 0x41008, 0},
		{"to a device", "bef80f0400bf100010d0b904000000fcf3a5", func(g *guest) bool { return bytes.Equal(g.wrote, g.ram[0x40ff8:0x41008]) }, 0x41008, 0xd0100020, 0},
		{"bytes to a device, across its pages", "bef80f0400bff80f10d0b910000000fcf3a4",
			func(g *guest) bool { return bytes.Equal(g.wrote, g.ram[0x40ff8:0x41008]) }, 0x41008, 0xd0101008, 0},
		{"stosw to a device", "b85aa50000bffe0f10d0b903000000fc66f3ab", func(g *guest) bool { return string(g.wrote) == "\x5a\xa5\x5a\xa5\x5a\xa5" }, 0, 0xd0101004, 0},
		{"from a device to a device", "be000010d0bf000110d0b902000000fcf348a5",
			func(g *guest) bool { return bytes.Equal(g.wrote, bytes.Repeat([]byte{0xab}, 16)) }, 0xd0100010, 0xd0100110, 0},
		{"outsb", "bef80f0400b910000000baf5000000fcf36e", func(g *guest) bool {
			for i, v := range g.out {
				if byte(v) != g.ram[0x40ff8+i] {
					return false
				}
			}
			return len(g.out) == 16
		}, 0x41008, 0, 0},
		{"insw", "bffc0f0400b904000000baf5000000fc66f36d", func(g *guest) bool { return string(g.ram[0x40ffc:0x41004]) == "ABCDEFGH" }, 0, 0x41004, 0},
		{"insb backwards", "bf03100400b908000000baf5000000fdf36c", func(g *guest) bool { return string(g.ram[0x40ffc:0x41004]) == "\x00\x00\x00\x00GECA" }, 0, 0x40ffb, 0},
		{"repne scasb", "bff80f0400b94000000031c0fcf2ae", func(*guest) bool { return true }, 0, 0x41011, 0x40 - 25},
		{"repe cmpsb", "bef80f0400bff82f0400b940000000fcf3a6", func(*guest) bool { return true }, 0x41001, 0x43001, 0x40 - 9},
	} {
		t.Run(tt.name, func(t *testing.T) {
			g, c := protected(t, false)
			g.read = func(addr uint64, size int) uint64 { return 0xabababababababab }
			g.in = []uint32{0x4241, 0x4443, 0x4645, 0x4847}
			// 0xd0100000, a device, by a 1 GiB page.
			g.setWord(0x2000+3*8, 0xc0000000|pteP|pteW|ptePS)
			pattern(g.ram[0x40f00:0x41100])
			copy(g.ram[0x42ff8:], g.ram[0x40ff8:0x41000])
			g.ram[0x43000] = ^g.ram[0x41000]
			g.ram[0x41010] = 0
			g.put(atCode, tt.code+"0f0b")
			c.s.R[vcpu.RSI], c.s.R[vcpu.RDI] = 0, 0
			g.run()
			if !tt.ok(g) {
				t.Error("the memory is wrong")
			}
			if r := &c.s.R; tt.rsi != 0 && r[vcpu.RSI] != tt.rsi || r[vcpu.RDI] != tt.rdi || r[vcpu.RCX] != tt.rcx {
				t.Errorf("RSI %#x RDI %#x RCX %#x, want %#x, %#x, %#x", r[vcpu.RSI], r[vcpu.RDI], r[vcpu.RCX], tt.rsi, tt.rdi, tt.rcx)
			}
			if rec := g.record(); rec.vec != vecUD {
				t.Errorf("vector %d cr2 %#x", rec.vec, rec.cr2)
			}
		})
	}
}

// TestStringFault: a fault in the middle of REP MOVSB leaves the registers at
// the element that failed, and what was done stays (SDM vol. 2B, REP).
func TestStringFault(t *testing.T) {
	g, c := protected(t, true)
	g.pte(0x42000, 0, pteP)
	g.put(atCode, codeString)
	g.run()
	r := g.record()
	if r.vec != vecPF || r.cr2 != 0x42000 || r.err != 6 {
		t.Errorf("vector %d error %#x cr2 %#x", r.vec, r.err, r.cr2)
	}
	if s := &c.s.R; s[vcpu.RCX] != 24 || s[vcpu.RDI] != 0x42000 || s[vcpu.RSI] != 0x40ff8 {
		t.Errorf("RSI %#x RDI %#x RCX %d", s[vcpu.RSI], s[vcpu.RDI], s[vcpu.RCX])
	}
}

// TestInterpreterCacheBound: without a translator the cache of decoded code stays
// small, whatever the guest runs.
func TestInterpreterCacheBound(t *testing.T) {
	g := newGuest(t, Config{CPUs: 1, NoTranslator: true})
	c := g.start(0, 3, 0x10000)
	const end = 0x1f0000
	for i := 0x10000; i < end; i++ {
		g.ram[i] = 0x90
	}
	g.put(end, "e6f4f4") // out 0xf4, al; hlt
	g.run()
	if c.blocks.next == 1 {
		t.Error("no block is cached")
	}
	if n := len(c.blocks.raw) + len(c.ring.slab.raw); n > 5<<20 {
		t.Errorf("the cache takes up to %d bytes", n)
	}
}
