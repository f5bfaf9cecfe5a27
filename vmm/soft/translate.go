package soft

import (
	"encoding/binary"
	"sync/atomic"

	"github.com/gvmspawn/gvmspawn/vmm/soft/decode"
)

// The translator turns blocks that ran often into host code: the same opcodes
// with guest registers in host registers and memory operands redirected through
// the translation buffers. Every instruction it does not know, and every access
// that misses its buffer, is run by the interpreter, one instruction at a time.
//
// Flags: at a block's entry the guest's arithmetic flags lie in
// jitContext.Flags. Within a block they are in the host's flags, or in memory,
// or both. A check of the translation buffer clobbers the host's; they are
// saved before if something may read them later. That is known for each flag
// and within the block; a fault where a flag is dead may show the handler an
// older one than the processor would.

const (
	// hotRuns is after how many executions a block is translated.
	hotRuns = 12
	// maxTranslations is how many translations a block has at most, one for
	// each address it is mapped at.
	maxTranslations = 4
	// maxAllTranslations is how many there are at all before they are dropped.
	maxAllTranslations = 1 << 19

	// Bytes of code caches: of all CPUs together, and of one at the least and at the
	// most; more than half of it is for rare paths. A Debian tree's boot has some 40 MiB, of which
	// a CPU of many sees the larger part; that of a compiler for one C file, over 60. What is
	// not used takes no memory.
	codeBytes    = 1 << 30
	codeBytesMin = 8 << 20
	codeBytesMax = 256 << 20
	// hugeCode is how much code that runs often is worth huge pages: the host's processor
	// finds less than that by its translation buffers. A Debian tree's boot stays below.
	hugeCode = 16 << 20
)

// What of the guest's vector registers is in the host's.
const (
	vecNone = iota
	vecXMM  // the lower halves; the upper ones are in State
	vecYMM
)

// Kinds of exits from translated code.
const (
	xInterp = iota // run instruction n in the interpreter, then go on behind it
	xLink          // a direct branch whose target is not linked yet
	xEvent         // State.Exit is not zero, at the block's head
	xFetch         // the page's translation is not what the code was made for
)

// draft is a block's host code for one address while it is made.
type draft struct {
	b     *block
	index int // in translator.trs
	la    uint64
	// anywhere: the code runs at any address, that of the page is in
	// jitContext.Page. la is where it was first seen.
	anywhere bool
	vec      uint8 // vecXMM, vecYMM: vector registers that must be in the host's
	x87      bool  // the x87 state must be in the host's registers
	insts    uint32
	// interp has a bit for each instruction that only the interpreter can run.
	interp uint64
	// entry takes flags in memory, entryH in the host's flags. The near ones
	// look at no events. The far ones, which are made when something needs them,
	// also make sure that the page is still mapped to the same memory.
	entry, entryH, near, nearH, far, farH uint64

	farSite, farMiss uint64   // the branch of far for another stamp; where it goes when t is dead
	stamp            uint32   // number in jitContext.Stamps; 0: no far entries
	resume           []uint32 // host code of each instruction, from base
	base             uint64
}

// draftLink is a direct branch to another block.
type draftLink struct {
	rel    uint64 // the target, from the start of the branch's page
	site   uint64 // of the branch's displacement
	stub   uint64 // where it goes while not linked
	inHost bool   // the flags are in the host's
}

// translator is the code cache of one CPU.
type translator struct {
	c        *CPU
	x        *jitContext
	xMap     []byte
	mem      codeMemory
	hot      int // next free byte
	cold     int
	coldFrom int
	huge     bool // the code is in huge pages
	apart    int  // the same for the instructions of groups, one by one
	apartAt  int
	first    int // of hot behind the common parts
	trs      slab[translation]
	links    slab[link]
	fars     slab[farCode] // of translations with far entries, by their stamps
	epoch    uint32        // how often all were dropped
	as       assumptions
	counting bool
	// forward: branches forward within a page look at no events. With other
	// CPUs they do, so that code changed by these is seen at once.
	forward bool
	// gs: while translated code runs, GS addresses the present translation buffer.
	// Go does not use it, and the kernel keeps it for each thread.
	gs     bool
	behind uint16 // the flags that are needed behind list
	looked uint64 // chunks of the page that say so
	// indirect: what runs next is the target of an indirect branch that the jump
	// table did not have.
	indirect bool
	gen      uint64 // CPU.localGen of jitContext.Key
	keys     uint64 // how many there were

	enter, leave, loadXMM, loadYMM, loadX87 uint64

	cross  [2 * decode.MaxLen]byte
	h, k   asm
	g      asm
	draft  draft
	out    []draftLink // of the draft
	list   []tinst
	groups []group
	own    int // how many of list are the block's own; the others are its path
	toward int // where the path goes on, from the start of the block
	next   tinst
	stats  *jitStats
}

// newTranslator makes the code cache of c, or returns nil with the reason.
func newTranslator(c *CPU, size int) (*translator, error) {
	j := &translator{c: c, gs: hostGSBase}
	if c.s.addr() >= 1<<31-1<<20 {
		return nil, errHighState
	}
	var err error
	if j.x, j.xMap, err = newJITContext(); err != nil {
		return nil, err
	}
	if j.mem, err = newCodeMemory(size); err == nil {
		if j.trs, err = newSlab[translation](maxAllTranslations); err == nil {
			j.links, err = newSlab[link](4 * maxAllTranslations)
		}
		if err == nil {
			j.fars, err = newSlab[farCode](maxStamps)
		}
	}
	if err != nil {
		j.free()
		return nil, err
	}
	j.counting = c.vm.virtual != nil || c.vm.countInsts
	j.forward = !j.counting && len(c.vm.cpus) <= 1
	j.coldFrom, j.apartAt = size/32*14, size/32*23 // as a boot and jobs of Go fill them
	j.cold, j.apart = j.coldFrom, j.apartAt
	j.common()
	j.clearJumps(0)
	j.clearJumps(1)
	j.as = c.assume()
	return j, nil
}

func (j *translator) free() {
	j.mem.free()
	freeMap(j.xMap)
	j.trs.release()
	j.links.release()
	j.fars.release()
}

// reg is the address of guest register r in State.
func (j *translator) reg(r uint8) uint64 { return j.c.s.addr() + uint64(r)*8 }

// state is the address of State's field at off.
func (j *translator) state(off uint64) uint64 { return j.c.s.addr() + off }

func (j *translator) ctx(off uint64) uint64 { return j.x.addr() + off }

// reset forgets all translations.
func (j *translator) reset() {
	j.epoch++
	for i := uint32(1); i < j.trs.next; i++ {
		j.c.blocks.at(j.trs.at(i).block).tr = 0 // which may be another block by now, with a translation that goes, too
	}
	j.trs.reset()
	j.links.reset()
	j.fars.reset()
	j.hot, j.cold, j.apart = j.first, j.coldFrom, j.apartAt
	j.clearJumps(0)
	j.clearJumps(1)
}

// clearJumps empties a jump table. An empty slot has an address of another
// slot: no branch may match it.
func (j *translator) clearJumps(n int) {
	clear(j.x.Jump[n][:])
	j.x.Jump[n][0].la = 1
}

// patch makes the branch at site go to to.
func (j *translator) patch(site, to uint64) {
	binary.LittleEndian.PutUint32(j.mem.rw[site-j.mem.rx:], uint32(to-(site+4)))
}

func jumpIndex(la uint64) uint64 { return la & (jumpSlots - 1) }

// find returns the translation of b at la, making it if b is hot; nil if there is
// none. far says that its far entries are wanted.
func (j *translator) find(b *block, la uint64, far bool) *translation {
	for i := b.tr; i != 0; {
		t := j.trs.at(i)
		if t.la == la || t.is(trAnywhere) {
			return t
		}
		i = t.next
	}
	if b.runs < hotRuns {
		return nil
	}
	return j.translate(b, la, far)
}

// runTier runs b, in host code if it is hot, and whatever follows.
func (c *CPU) runTier(b *block) int {
	j := c.jit
	if j == nil || b.dead || !b.translatable() {
		return c.exec(b)
	}
	far := j.indirect && c.mode == decode.Mode64 // 32-bit code has no jump table
	j.indirect = false
	b.runs = min(b.runs+1, hotRuns)
	if b.runs < hotRuns && b.tr == 0 || c.due() {
		return c.exec(b)
	}
	if as := c.assume(); as != j.as {
		j.reset()
		j.as = as
	}
	t := j.find(b, c.s.RIP, far)
	if t == nil || t.is(trX87) && !c.x87Masked() {
		return c.exec(b)
	}
	if far && !j.enterJump(t) {
		return stIndirect
	}
	return j.run(t)
}

// due reports whether the loop must look at events before the next block.
func (c *CPU) due() bool { return atomic.LoadUint32(&c.s.Exit) != 0 || c.s.Count >= c.s.Deadline }

// userTable is the number of the jump table of the present mode.
func (c *CPU) userTable() int { return int(boolBit(c.s.CPL == 3)) }

// enterJump enters t, at State.RIP, into the jump table. It returns false if t had
// to go for that.
func (j *translator) enterJump(t *translation) bool {
	if !j.makeFar(t) {
		return false
	}
	rip := j.c.s.RIP
	to, _ := j.farEntries(t)
	j.x.Jump[j.c.userTable()][jumpIndex(rip)] = jumpSlot{rip, to}
	return true
}

// run executes t and what follows until the loop has to look at something.
func (j *translator) run(t *translation) int {
	c := j.c
	s, x := c.s, j.x
	x.Page = s.RIP &^ 0xfff
	x.Flags = packFlags(s.arith())
	x.Resume = j.address(t, t.entry)
	x.Want, x.WantX87 = 0, 0
	if j.interpOnly(t, 0) {
		j.count(int(t.insts))
		if st := j.interp(t, 0); st != stNext {
			return st
		}
	}
	for {
		j.before()
		runCode(j.enter)
		j.after()
		id := ld32(x.ExitPC)
		if j.stats != nil {
			j.stats.kinds[id&3]++
		}
		t = j.trs.at(id >> 8)
		n := int(id >> 2 & 63)
		switch id & 3 {
		case xInterp:
			if st := j.interp(t, n); st != stNext {
				return st
			}
		case xLink:
			next, st := j.link(t, n)
			if next == nil {
				return st
			}
			x.Resume, x.Want, x.WantX87 = j.address(next, next.entry), 0, 0
			x.Page = s.RIP &^ 0xfff
		case xEvent:
			s.RIP = j.at(t)
			return stIndirect
		case xFetch:
			s.RIP = j.at(t)
			if st := j.fetch(t); st != stNext {
				return st
			}
			x.Resume, x.Want, x.WantX87 = j.address(t, t.entry), 0, 0
		}
	}
}

// fetch fills the translations of t's pages, which are not what its code needs.
// stNext means that it is the code at State.RIP.
func (j *translator) fetch(t *translation) int {
	c := j.c
	_, host, ok := c.fetchPage(c.s.RIP)
	j.indirect = true
	if !ok {
		return stFault
	}
	if t.is(trDead) {
		return stIndirect
	}
	if b := c.blocks.at(t.block); b.cross == 0 {
		if host != b.host || c.due() {
			return stIndirect
		}
		j.indirect = false
		return stNext
	}
	if _, _, ok := c.fetchPage(c.wrap((c.s.RIP | 0xfff) + 1)); !ok {
		return stFault
	}
	b := c.lookup()
	if b == nil {
		return stFault
	}
	st := c.exec(b) // it may fail again, so it has to be done here
	if st == stTaken || st == stFall {
		st = stIndirect
	}
	return st
}

// at is where the code of t runs at present.
func (j *translator) at(t *translation) uint64 {
	if t.is(trAnywhere) {
		return j.x.Page | t.la&0xfff
	}
	return t.la
}

// before copies what translated code uses of CPU.
func (j *translator) before() {
	c, x := j.c, j.x
	if j.gen != c.localGen {
		j.gen = c.localGen
		j.newKey()
	}
	x.Intr = uint32(boolBit(c.intrWaiting))
	x.KernelGS = c.kernelGS
	x.TLBs = [2]uint64{c.slot.modes[tlbSup].addr, c.slot.modes[tlbSMAP].addr}
	if c.dataBreaks {
		x.TLBs = [2]uint64{c.emptyTLB, c.emptyTLB}
	}
}

// newKey makes the stamps of all translations stale: addresses may be mapped to
// other memory than before. A key has bits only where those of a page's address
// are known, so that no two pages with two keys give the same stamp, and is
// never 0 there.
func (j *translator) newKey() {
	const low, high = 1<<12 - 1, 1 << 15
	if j.keys++; j.keys == low*high {
		clear(j.x.Stamps[:j.fars.next])
		j.keys = 0
	}
	j.x.Key = j.keys%low + 1 | j.keys/low<<48
}

// after takes back what it may have changed.
func (j *translator) after() {
	c, x := j.c, j.x
	c.s.setArith(unpackFlags(x.Flags))
	c.kernelGS = x.KernelGS
	if j.as&asSMAP != 0 {
		c.setTLBMode()
	}
}

// interp runs instruction n of t, and those behind it that only the interpreter
// can run. stNext means that t goes on in host code; enter is prepared for that.
func (j *translator) interp(t *translation, n int) int {
	c, s, x := j.c, j.c.s, j.x
	b := c.blocks.at(t.block)
	la := j.at(t)
	if n >= int(t.own) {
		return j.interpPath(t, n)
	}
	s.R[regBlock], s.RIP = la, la
	c.blk = b
	ops := c.opsOf(b)
	if ops == nil {
		s.RIP = la&^0xfff | j.offsetOf(t, n)
		j.count(n - int(t.insts))
		return stExit
	}
	if j.counting {
		s.Count -= uint64(t.insts)
	}
	for {
		o := &ops[n]
		if j.stats != nil {
			j.stats.note(b, o, !j.interpOnly(t, n))
		}
		st := o.fn(c, o)
		n++
		switch st {
		case stNext:
			if b.dead || !j.holds(t) {
				s.RIP = la + uint64(o.pos) + uint64(o.len)
				j.count(n)
				return stExit
			}
			if j.interpOnly(t, n) {
				continue
			}
			j.count(int(t.insts))
			x.Flags = packFlags(s.arith())
			x.Resume = j.resumeAt(t, n)
			x.Want, x.WantX87 = uint32(t.vec()), uint32(boolBit(t.is(trX87)))
			return stNext
		case stFault:
			s.RIP = la + uint64(o.pos)
			j.count(n - 1)
			return st
		case stTaken, stFall:
			j.count(n)
			return stIndirect
		}
		j.count(n)
		j.indirect = st == stIndirect
		return st
	}
}

// holds reports whether the CPU is still as t's code assumes.
func (j *translator) holds(t *translation) bool {
	return j.c.assume() == j.as && (!t.is(trX87) || j.c.x87Masked())
}

func (j *translator) count(n int) {
	if j.counting {
		j.c.s.Count += uint64(n)
	}
}

// link resolves the direct branch n of t. nil means that the loop goes on with st.
func (j *translator) link(t *translation, n int) (next *translation, st int) {
	c := j.c
	l := j.links.at(t.out + uint32(n))
	rel := uint64(int64(l.rel))
	rip := j.at(t)&^0xfff + rel
	c.s.RIP = rip
	if c.due() {
		return nil, stIndirect
	}
	epoch := j.epoch
	b := c.lookup()
	if b == nil {
		return nil, stFault
	}
	if b.runs < hotRuns && b.tr == 0 {
		return nil, stIndirect
	}
	far := rel>>12 != 0
	next = j.find(b, rip, far)
	if next == nil || far && !j.makeFar(next) || j.epoch != epoch || t.is(trDead) {
		return nil, stIndirect
	}
	var to, toH uint64
	switch {
	case far:
		to, toH = j.farEntries(next)
	case j.forward && rel > t.la&0xfff: // every loop has a branch that is none of these
		to, toH = j.address(next, next.near), j.address(next, next.nearH)
	default:
		to, toH = j.address(next, next.entry), j.address(next, next.entryH)
	}
	if l.stub&linkHost != 0 {
		to = toH
	}
	j.connect(l, next, to)
	return next, stNext
}
