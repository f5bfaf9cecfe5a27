package soft

import (
	"runtime"
	"testing"
	"unsafe"

	"github.com/gvmspawn/gvmspawn/vmm/layout"
	"github.com/gvmspawn/gvmspawn/vmm/mem"
	"github.com/gvmspawn/gvmspawn/vmm/soft/decode"
	"github.com/gvmspawn/gvmspawn/vmm/vcpu"
)

// TestRecordSizes: a machine has a hundred thousand of each of these.
func TestRecordSizes(t *testing.T) {
	for name, c := range map[string]struct{ have, want uintptr }{
		"block": {unsafe.Sizeof(block{}), 48}, "op": {unsafe.Sizeof(op{}), 32}, "translation": {unsafe.Sizeof(translation{}), 64},
		"link": {unsafe.Sizeof(link{}), 16}, "farCode": {unsafe.Sizeof(farCode{}), 16},
	} {
		if c.have != c.want {
			t.Errorf("%s has %d bytes, want %d", name, c.have, c.want)
		}
	}
}

// smallRings gives the CPU rings that hold hardly more than one block.
func (c *CPU) smallRings(t testing.TB) {
	c.dropCode()
	c.ring.slab.release()
	var err error
	if c.ring, err = newOpRing(64); err != nil {
		t.Fatal(err)
	}
	c.insts = newInstRing(1)
}

// TestSlab: records are zero when they are taken, also after a reset, whether it
// clears them or returns their memory.
func TestSlab(t *testing.T) {
	s, err := newSlab[block](5000)
	if err != nil {
		t.Fatal(err)
	}
	defer s.release()
	for _, n := range []int{3, 4999, 4999} {
		for i := range n {
			b := s.take()
			if *b != (block{}) || s.index(b) != uint32(i+1) || s.at(uint32(i+1)) != b {
				t.Fatalf("record %d of %d is %+v, number %d", i+1, n, *b, s.index(b))
			}
			b.host, b.dead = 1, true
		}
		if s.left() != 4999-n {
			t.Errorf("%d records are left behind %d", s.left(), n)
		}
		s.reset()
	}
}

// TestPagesOutsideHeap: what is known of the guest's pages, 256 MiB here, is not in the
// collector's way, and goes with the machine.
func TestPagesOutsideHeap(t *testing.T) {
	heap := func() uint64 {
		runtime.GC()
		var s runtime.MemStats
		runtime.ReadMemStats(&s)
		return s.HeapAlloc
	}
	m := mem.New()
	defer m.Close()
	if _, err := m.Add("much", 0, 64*layout.GiB, mem.RAM); err != nil {
		t.Skip(err)
	}
	before := heap()
	vm, err := New(Config{Memory: m, CPUs: 1, IO: &testUART{}})
	if err != nil {
		t.Fatal(err)
	}
	after := heap()
	for _, gpa := range []uint64{0, 64*layout.GiB - 1} {
		if p := vm.page(gpa); p == nil || p.coders.Load() != 0 || p.writers.Load() != 0 {
			t.Errorf("page %#x: %v", gpa, p)
		}
	}
	if err := vm.Close(); err != nil {
		t.Error(err)
	}
	if after > before+16*layout.MiB {
		t.Errorf("%d MiB of Go heap", (after-before)/layout.MiB)
	}
	if vm.page(0) != nil {
		t.Error("a page is left")
	}
}

// TestTrimRing: the ring of operations is empty after a trim, and code runs on.
func TestTrimRing(t *testing.T) {
	g := newGuest(t, Config{CPUs: 1})
	c := g.start(0, 3, 0x8000)
	g.put(0x8000, "ffc0ebfc") // L: inc eax; jmp L
	for range 5 {
		if c.exec(c.lookup()) == stFault {
			t.Fatal("a fault")
		}
	}
	made, next := c.blocks.next, c.ring.next
	g.vm.Trim()
	c.takeNotices()
	if empty := 2 * uint32(len(c.ring.slab.mem)); c.ring.next != empty || next == empty || c.blocks.next != made {
		t.Errorf("%d operations and %d blocks, %d and %d before", c.ring.next, c.blocks.next, next, made)
	}
	before := c.s.R[vcpu.RAX]
	for range 5 {
		if c.exec(c.lookup()) == stFault {
			t.Fatal("a fault")
		}
	}
	if c.s.R[vcpu.RAX] == before || c.blocks.next != made {
		t.Errorf("RAX %d and %d, %d blocks", before, c.s.R[vcpu.RAX], c.blocks.next)
	}
}

// TestManyBlocks: blocks are found however many there are, and the table of them grows.
func TestManyBlocks(t *testing.T) {
	g := newGuest(t, Config{CPUs: 1})
	c := g.start(0, 3, 0x8000)
	const n = 3 * hashSize
	for i := range n {
		g.put(0x10000+uint64(i)*16, "eb0e") // jmp behind the next 14 bytes
	}
	find := func(i int) *block {
		c.s.RIP = 0x10000 + uint64(i)*16
		return c.lookup()
	}
	for i := range n {
		find(i)
	}
	made := c.blocks.next
	for i := range n {
		if b := find(i); b == nil || b.host&0xffff != uint64(i*16&0xffff) {
			t.Fatalf("block %d is %+v", i, b)
		}
	}
	if made != n+1 || c.blocks.next != made || len(c.hash) < n {
		t.Errorf("%d blocks made, later %d; a table of %d", made-1, c.blocks.next-1, len(c.hash))
	}
	c.dropCode()
	if c.blocks.next != 1 || len(c.hash) != hashSize || len(c.pages) != 0 {
		t.Error("something is left")
	}
}

// TestBlockNumbers: the numbers of blocks that stores killed are used again, those of
// blocks on two pages are not, and who remembers one sees that it is another's.
func TestBlockNumbers(t *testing.T) {
	g := newGuest(t, Config{CPUs: 1})
	c := g.start(0, 3, 0x8000)
	g.put(0x9000, function)
	g.put(0xa000, function)
	g.put(0xaffe, function)
	at := func(rip uint64) *block {
		c.s.RIP = rip
		return c.lookup()
	}
	b := at(0x9000)
	number := c.blocks.index(b)
	for range 100 {
		c.codeWrite(c.pages[9], 0x9001, 1)
		if !b.dead {
			t.Fatal("the store killed nothing")
		}
		if other := at(0xa000); c.blocks.index(other) != number {
			t.Fatalf("number %d, want %d", c.blocks.index(other), number)
		}
		if again := at(0x9000); again == b || again.host&0xffff != 0x9000 {
			t.Fatalf("the block of 0x9000 is at %#x", again.host)
		}
		c.codeWrite(c.pages[0xa], 0xa001, 1)
		b = at(0x9000)
		if c.blocks.next > number+2 {
			t.Fatalf("%d blocks", c.blocks.next)
		}
		c.codeWrite(c.pages[9], 0x9001, 1)
		number, b = c.blocks.index(b), at(0x9000)
		if c.blocks.index(b) != number {
			t.Fatalf("number %d, want %d", c.blocks.index(b), number)
		}
	}
	crossing := at(0xaffe)
	if crossing.cross == 0 || crossing.lists != 2 {
		t.Fatalf("%+v does not cross", crossing)
	}
	c.codeWrite(c.pages[0xb], 0xb000, 1) // of the two pages' lists it leaves one now, the other later
	c.codeWrite(c.pages[0xa], 0xaffe, 1)
	for _, rip := range []uint64{0x8100, 0x8200, 0xaffe} {
		if at(rip) == crossing {
			t.Error("the number of a block on two pages is used again")
		}
	}
}

// TestOperationsAgain: a block whose operations are gone does what it did, in the interpreter
// and where translated code leaves an instruction to it; one whose code has
// changed, before anyone was told, is not run on.
func TestOperationsAgain(t *testing.T) {
	for _, translated := range []bool{false, true} {
		g := newGuest(t, Config{CPUs: 1, NoTranslator: !translated})
		c := g.start(0, 3, 0x8000)
		if translated && c.jit == nil {
			t.Skip("no translated code on this host")
		}
		g.put(0x8000, "ffc00f01e1ffc0f4") // inc eax; smsw ecx; inc eax; hlt
		run := func() (*block, int) {
			c.s.RIP, c.s.R[vcpu.RAX] = 0x8000, 0
			b := c.lookup()
			st := c.runTier(b)
			c.halted = false
			return b, st
		}
		for range 2 * hotRuns {
			run()
		}
		b, _ := run()
		if translated && (b.tr == 0 || !c.jit.interpOnly(c.jit.trs.at(b.tr), 1)) {
			t.Fatal("the block is not translated with SMSW left out")
		}
		c.ring.next += 2 * uint32(len(c.ring.slab.mem))
		c.insts = newInstRing(1)
		c.insts.next += 2
		if _, st := run(); c.s.R[vcpu.RAX] != 2 || b.dead {
			t.Errorf("translated %v: EAX %d, status %d", translated, c.s.R[vcpu.RAX], st)
		}
		if translated { // as many bytes and instructions, in other places
			g.put(0x8000, "0f1f00ffc0ffc0f4") // nop; inc eax; inc eax; hlt
		} else {
			g.put(0x8000, "90")
		}
		c.ring.next += 2 * uint32(len(c.ring.slab.mem))
		_, st := run()
		if !b.dead || !translated && st != stIndirect {
			t.Errorf("translated %v: the changed block goes on with status %d", translated, st)
		}
		if want := uint64(boolBit(translated)); c.s.R[vcpu.RAX] != want || c.s.RIP != 0x8000+2*want { // INC was in host code
			t.Errorf("translated %v: EAX %d, RIP %#x", translated, c.s.R[vcpu.RAX], c.s.RIP)
		}
	}
}

// TestGenericAgain: an instruction that the generic code needs is decoded again from
// the code, also from that on two pages, and not when it has changed.
func TestGenericAgain(t *testing.T) {
	g := newGuest(t, Config{CPUs: 1, NoTranslator: true})
	c := g.start(0, 3, 0x8ffd)
	g.put(0x8ffd, "480fbae80790") // bts rax, 7; nop: on two pages
	b := c.lookup()
	if b.cross == 0 {
		t.Fatal("the instruction is on one page")
	}
	o := c.opsOf(b)[0]
	c.blk = b
	var want decode.Inst
	if decode.Decode(&want, []byte{0x48, 0x0f, 0xba, 0xe8, 0x07}, decode.Mode64) != nil {
		t.Fatal("no instruction")
	}
	if in := c.decodeAgain(&o); in == nil || in.Op != want.Op || in.Imm != want.Imm || in.Len != want.Len {
		t.Errorf("decoded as %+v", in)
	}
	g.ram[0x9001] = 0x41 // another prefix in its place
	g.ram[0x8ffd] = 0x90
	if c.decodeAgain(&o) != nil || !b.dead {
		t.Error("the changed instruction is executed")
	}
}

// TestRingComesRound: when the numbers of places in the ring are used up, nobody takes a
// new one for an old one.
func TestRingComesRound(t *testing.T) {
	g := newGuest(t, Config{CPUs: 1})
	c := g.start(0, 3, 0x8000)
	g.put(0x8000, "ffc0c3")
	g.put(0x8100, "ffc8c3")
	c.lookup()
	c.ring.next = ^uint32(0) - 2*uint32(len(c.ring.slab.mem)) + 1
	c.s.RIP = 0x8100
	b := c.lookup()
	if c.ring.next > 3*uint32(len(c.ring.slab.mem)) || !c.ring.has(b.ops) {
		t.Fatalf("the ring is at %#x", c.ring.next)
	}
	c.s.RIP = 0x8000
	if b := c.lookup(); b.ops != 0 || c.opsOf(b)[0].dst != 0 || b.ops == 0 {
		t.Errorf("the old block has its operations at %#x", b.ops)
	}
}

// TestHugeCode: code may move to huge pages while it is used, whether the host has any.
func TestHugeCode(t *testing.T) {
	m, err := newCodeMemory(8 << 20)
	if err != nil {
		t.Skip(err)
	}
	defer m.free()
	for i := range m.rw[:5<<20] {
		m.rw[i] = byte(i >> 12)
	}
	m.hugePages(6<<20, 5<<20)
	for i, b := range m.rw[:5<<20] {
		if b != byte(i>>12) {
			t.Fatalf("byte %#x is %#x", i, b)
		}
	}
}
