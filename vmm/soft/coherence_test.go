package soft

import (
	"encoding/binary"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gvmspawn/gvmspawn/vmm/mem"
)

// caller calls the function at 0x9000 for ever and stores its result at 0x7000.
const caller = "bf00900000ffd789042500700000f390ebf3"

// function is mov eax, 0; ret.
const function = "b800000000c3"

// TestCrossModifyingCode: one CPU changes an instruction that another one
// executes all the time, and waits each time until it sees the effect (SDM
// vol. 3A §9.1.3). Neither CPU executes a serialising instruction: no change
// may be missed.
func TestCrossModifyingCode(t *testing.T) {
	g := newGuest(t, Config{CPUs: 2})
	g.start(0, 3, 0x8000)
	g.start(1, 3, 0xa000)
	// xor ecx,ecx; L: inc ecx; mov [0x9001],ecx; W: pause; cmp [0x7000],ecx; jne W; cmp ecx,3000; jne L; out 0xf4,al; hlt
	g.put(0x8000, "31c9ffc1890c2501900000f390390c250070000075f581f9b80b000075e4e6f4f4")
	g.put(0x9000, function)
	g.put(0xa000, caller)
	g.run()
}

// TestCrossModifyingLocked is the same with LOCK CMPXCHG as the store.
func TestCrossModifyingLocked(t *testing.T) {
	g := newGuest(t, Config{CPUs: 2})
	g.start(0, 3, 0x8000)
	g.start(1, 3, 0xa000)
	// xor ecx,ecx; L: mov eax,ecx; inc ecx; lock cmpxchg [0x9001],ecx; W: pause; cmp [0x7000],ecx; jne W; cmp ecx,3000; jne L; out 0xf4,al; hlt
	g.put(0x8000, "31c989c8ffc1f00fb10c2501900000f390390c250070000075f581f9b80b000075e0e6f4f4")
	g.put(0x9000, function)
	g.put(0xa000, caller)
	g.run()
}

// TestDeviceWritesCode: a device writes to an instruction that the CPU executes
// all the time.
func TestDeviceWritesCode(t *testing.T) {
	g := newGuest(t, Config{CPUs: 1})
	g.start(0, 3, 0xa000)
	g.put(0x9000, function)
	g.put(0xa000, caller)
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		defer g.end()
		ordered, _ := g.mem.OrderedSlice(0x7000, 4)
		for n := uint32(1); n < 2000; n++ {
			b := binary.LittleEndian.AppendUint32(nil, n)
			_ = g.mem.WriteAt(b, mem.GPA(0x9001))
			for start := time.Now(); ordered.LoadUint16(0) != uint16(n); {
				if time.Since(start) > 5*time.Second {
					t.Error("a device's write to code is not seen")
					return
				}
			}
		}
	})
	g.run()
}

// TestNoticesOverflow: a CPU that does not run gets more notices than its queue
// holds; it drops everything and the others' requests are answered.
func TestNoticesOverflow(t *testing.T) {
	g := newGuest(t, Config{CPUs: 2})
	a, b := g.start(0, 3, 0x8000), g.start(1, 3, 0x9000)
	g.put(0x8000, function)
	if a.lookup() == nil || len(a.pages) == 0 {
		t.Fatal("no block")
	}
	for i := range uint64(maxNotices + 10) {
		a.post(notice{gpa: i << 12 % (2 << 20), kind: noticeTag, from: 1})
	}
	a.takeNotices()
	if len(a.pages) != 0 {
		t.Error("code survives an overflow of notices")
	}
	if atomic.LoadUint32(&b.s.Exit)&exitFlush == 0 || len(b.notices) == 0 {
		t.Error("the other CPU got no answer")
	}
}

// TestSelfModifyingCode: a store to code takes effect with the next instruction
// of the same CPU, in the same block or page or across two (SDM vol. 3A §9.1.3
// leaves that to newer processors, all of which do it).
func TestSelfModifyingCode(t *testing.T) {
	const report = "e7f5e6f4f4" // out 0xf5,eax; out 0xf4,al; hlt
	for _, tt := range []struct{ name, code string }{
		// mov byte [rip+1],42; mov eax,0
		{"next instruction", "c605010000002ab800000000" + report},
		// lock or byte [rip+1],42; mov eax,0
		{"next instruction, locked", "f0800d010000002ab800000000" + report},
		// mov edi,0x8012; mov eax,42; mov ecx,1; rep stosb; mov eax,0
		{"next instruction, string", "bf12800000b82a000000b901000000f3aab800000000" + report},
		// movups xmm0,[0x9100]; movups [rbx],xmm0; jmp rbx
		{"vector store", "bb208000000f100425009100000f1103ffe3"},
		// a function at 0x8100 is changed and called 100 times
		{"loop", "b964000000890c2501810000bb00810000ffd339c8750bffc975eab82a000000" + report},
		// the same with one that lies on two pages
		{"loop across pages", "b964000000890c25ff8f0000bbfe8f0000ffd339c8750bffc975eab82a000000" + report},
	} {
		t.Run(tt.name, func(t *testing.T) {
			g := newGuest(t, Config{CPUs: 1})
			g.start(0, 3, 0x8000)
			g.put(0x8000, tt.code)
			g.put(0x8100, function)
			g.put(0x8ffe, function)
			g.put(0x9100, "b82a000000"+report)
			g.run()
			if len(g.out) != 1 || g.out[0] != 42 {
				t.Errorf("the guest reports %v, want 42", g.out)
			}
		})
	}
}

// TestStaleCode: a page with code that is only written to any more gets its
// fast stores back.
func TestStaleCode(t *testing.T) {
	g := newGuest(t, Config{CPUs: 1})
	c := g.start(0, 3, 0x9000)
	g.put(0x9000, function)
	c.lookup()
	// mov ecx,100; mov ebx,0x9800; L: mov [rbx],ecx; dec ecx; jnz L; out 0xf4,al; hlt
	g.put(0x8000, "b964000000bb00980000890bffc975fae6f4f4")
	c.s.RIP = 0x8000
	g.run()
	if c.pages[9] != nil {
		t.Error("the page still counts as code")
	}
	if p := g.vm.page(0x9000); p.coders.Load() != 0 || p.writers.Load() != 1 {
		t.Errorf("coders %d writers %d", p.coders.Load(), p.writers.Load())
	}
}
