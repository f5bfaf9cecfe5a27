package soft

import (
	"github.com/gvmspawn/gvmspawn/vmm/soft/decode"
	"github.com/gvmspawn/gvmspawn/vmm/vcpu"
)

// op is one instruction, ready to execute. fn is a top-level function: the ring
// that operations are kept in is not the collector's.
type op struct {
	fn   func(*CPU, *op) int
	imm  uint64 // immediate; of a generic operation where its instruction was put
	disp int32
	base uint8 // State.R index
	idx  uint8
	sh   uint8 // log2 of the index's scale
	seg  uint8 // State.R index of the segment's base, or regZero
	dst  uint8 // register number, or byte register offset
	src  uint8
	size uint8
	len  uint8
	pos  uint16 // offset from the block's start
}

// block is a straight run of instructions of one page, keyed by its host
// address and the CPU's mode. It depends on no address, so all virtual pages
// that map the memory share it. There are a hundred thousand of them, so they
// are small, and lie in a slab: what is needed seldom is made again.
type block struct {
	host  uint64    // address of its first byte
	page  uint32    // number of its codePage
	next  blockRef  // in the page's list
	chain uint32    // next in the hash bucket, or in the list of free ones
	ops   uint32    // where its operations were put: see opRing
	links [2]uint32 // direct successors in its page, taken and not taken, as they were
	cross uint32    // number of its crossing, if its last instruction lies on two pages; else 0
	tr    uint32    // the first of its translations, 0 for none
	bytes uint16    // length of the code
	mode  uint8     // what of the CPU's state it was decoded for: see modeKey
	n     uint8     // number of operations
	runs  uint8     // executions by the interpreter, up to hotRuns, since the last look at it
	lists uint8     // how many pages list it
	dead  bool
}

// crossing is the second page of a block.
type crossing struct {
	host uint64 // address of the page
	page uint32 // number of its codePage
	next blockRef
}

// blockRef is a link of a page's list of blocks: twice the number of the block, plus
// one where it is in the list as the block's second page.
type blockRef uint32

type blockKey struct {
	host uint64
	mode uint8
}

// jumpEntry caches the block of a virtual address.
type jumpEntry struct {
	la, host uint64
	gen      uint64 // generation of the translations when it was made
	b        uint32
	mode     uint8
	isGlobal bool
}

// codePage is what the CPU knows of a page that holds cached code.
type codePage struct {
	pfn    uint64
	mask   uint64   // 64-byte chunks with code
	blocks blockRef // list
	misses uint32   // stores beside the code
}

const (
	jumpSize = 1 << 13
	hashSize = 1 << 13 // to begin with
	maxOps   = 48
	// maxBlocks is how many blocks a CPU has before all are dropped; the other
	// limit is for all CPUs together without a translator, whose memory is little
	// else.
	maxBlocks       = 1 << 20
	maxInterpBlocks = 1 << 14
	// maxMisses is after how many stores beside its code a page is taken
	// for data with stale code.
	maxMisses = 32
)

func (k blockKey) hash() uint32 {
	return uint32((k.host ^ uint64(k.mode)<<48) * 0x9e3779b97f4a7c15 >> 32)
}

// modeKey is the part of a block's key that is not its address.
func (c *CPU) modeKey() uint8 {
	k := uint8(c.mode)
	if c.s.CPL == 3 {
		k |= 0x80
	}
	if c.mode == decode.Mode32 && c.flat32() {
		k |= modeFlat32
	}
	return k
}

// modeFlat32 is the bit of a block's key for 32-bit code whose segments are flat.
const modeFlat32 = 0x40

// linkable reports whether what runs behind b, without a lookup, is sure to run
// in b's mode: whatever changes the mode or a segment ends a block by stExit.
func (b *block) linkable() bool {
	return b.mode&modeFlat32 != 0 || decode.Mode(b.mode&^0x80) == decode.Mode64
}

// translatable reports whether the translator knows b's mode: 64-bit mode, and flat
// 32-bit code of the kernel, as firmware begins with.
func (b *block) translatable() bool {
	return decode.Mode(b.mode&^0x80) == decode.Mode64 || b.mode == modeFlat32|uint8(decode.Mode32)
}

// decodeMode is the mode of b, which is translatable.
func (b *block) decodeMode() decode.Mode {
	if b.mode&modeFlat32 != 0 {
		return decode.Mode32
	}
	return decode.Mode64
}

// lookup finds or makes the block at State.RIP. nil means that c.exc is pending.
func (c *CPU) lookup() *block {
	s := c.s
	la := s.RIP
	if c.mode != decode.Mode64 {
		s.RIP &= 0xffffffff
		if s.RIP > uint64(s.Seg[vcpu.CS].Limit) {
			c.faultErr(vecGP, 0)
			return nil
		}
		la = (la + s.Seg[vcpu.CS].Base) & 0xffffffff
	}
	mode := c.modeKey()
	j := &c.jump[la&(jumpSize-1)]
	if j.la == la && j.mode == mode && j.b != 0 && (j.gen == c.localGen || j.isGlobal && j.gen == c.globalGen) {
		if b := c.blocks.at(j.b); b.is(blockKey{j.host, mode}) {
			return b
		}
	}
	b := c.lookupSlow(la, mode)
	if b != nil {
		*j = jumpEntry{la, b.host, c.localGen, c.blocks.index(b), mode, c.lastGlobal && b.cross == 0}
		if j.isGlobal {
			j.gen = c.globalGen
		}
	}
	return b
}

// is reports whether b is the block of k. Numbers of dead blocks are used again, so
// what remembers one has to ask.
func (b *block) is(k blockKey) bool { return b.host == k.host && b.mode == k.mode && !b.dead }

// successor is where a direct branch led before, if it is for sure what is at
// State.RIP now.
func (c *CPU) successor(b *block, taken int) *block {
	rip := c.s.RIP
	if (c.s.R[regBlock]^rip)>>12 != 0 {
		return nil
	}
	if n := c.blocks.at(b.links[taken]); n.is(blockKey{b.host&^0xfff | rip&0xfff, b.mode}) && n.cross == 0 {
		return n
	}
	return nil
}

// fetchPage returns guest and host address of code at la.
func (c *CPU) fetchPage(la uint64) (gpa, host uint64, ok bool) {
	if !c.checkLinear(la, 1) {
		return 0, 0, false
	}
	gpa, host, ok = c.translate(la, accFetch, c.tlbMode)
	if ok && host == 0 {
		return 0, 0, c.fault(vecUD) // code in a device
	}
	return gpa, host, ok
}

func (c *CPU) lookupSlow(la uint64, mode uint8) *block {
	if e := c.s.entry(la); la^e.Exec < 4096 { // a present translation spares the walk
		k := blockKey{e.Host + la&0xfff, mode}
		for b := c.bucket(k); b != nil; b = c.chained(b) {
			if b.is(k) && b.cross == 0 {
				c.lastGlobal = false
				return b
			}
		}
	}
	gpa, host, ok := c.fetchPage(la)
	if !ok {
		return nil
	}
	k := blockKey{host, mode}
	for b := c.bucket(k); b != nil; b = c.chained(b) {
		if !b.is(k) {
			continue
		}
		if b.cross != 0 {
			_, h2, ok := c.fetchPage(c.wrap((la | 0xfff) + 1))
			if !ok || h2 != c.crossings.at(b.cross).host {
				break
			}
		}
		return b
	}
	return c.build(la, gpa, k)
}

// making is the block under construction.
type making struct {
	ops         []op
	bytes       int
	ended       bool   // by a branch
	gpa2, host2 uint64 // of the page behind it, if its last instruction crosses; else 0
	// again: it was made before, so that host2 is known.
	again bool
	block block // the one that was made last, if it is not for the cache
}

// build decodes the block at la.
func (c *CPU) build(la, gpa uint64, k blockKey) *block {
	if c.cacheFull() || c.thunks.full() {
		c.dropCode()
	}
	if !c.noCache {
		c.codePage(gpa)
	}
	global := c.lastGlobal
	c.making.host2 = 0
	if !c.decodeRun(k.host, la) {
		return nil
	}
	c.lastGlobal = global
	return c.finish(gpa, k)
}

// decodeRun decodes the block at a host address, into c.making. la is its address, which
// is needed where it may cross to a page that is not known yet. false means that
// this page cannot be read.
func (c *CPU) decodeRun(host, la uint64) bool {
	off := uint16(host & 0xfff)
	code := hostBytes(host, 4096-int(off))
	r := &c.making
	r.ops, r.ended, r.bytes = r.ops[:0], false, 0
	if c.cuts != nil && !c.noCache && c.cuts[off] {
		r.ops = append(r.ops, op{fn: opBreak})
	}
	crosses := false
	for len(r.ops) < c.maxOps {
		pos := r.bytes
		if c.cuts != nil && pos > 0 && c.cuts[off+uint16(pos)] {
			break
		}
		var in decode.Inst
		err := decode.Decode(&in, code[pos:min(pos+decode.MaxLen, len(code))], c.mode)
		if err == decode.ErrTruncated {
			if pos > 0 {
				break
			}
			if err = c.decodeCrossing(&in, la, code); err != nil && c.exc.vec == vecPF {
				return false
			}
			crosses = true
		}
		if err != nil && pos > 0 {
			break // the error is for when it is reached
		}
		o := c.compile(&in, err, pos)
		o.pos, o.len = uint16(pos), in.Len
		r.ops = append(r.ops, o)
		r.bytes += int(in.Len)
		if r.ended = err != nil || endsBlock(&in); r.ended || crosses || r.bytes >= len(code) {
			break
		}
	}
	if !r.ended {
		r.ops = append(r.ops, op{fn: opEnd, pos: uint16(r.bytes)})
	}
	r.bytes = max(r.bytes, 1)
	return crosses == (r.host2 != 0)
}

// decodeCrossing decodes an instruction that lies on two pages.
func (c *CPU) decodeCrossing(in *decode.Inst, la uint64, code []byte) error {
	var buf [2 * decode.MaxLen]byte
	r := &c.making
	n := copy(buf[:], code)
	c.exc.vec = 0
	if !r.again {
		gpa, host, ok := c.fetchPage(c.wrap(la + uint64(n)))
		if !ok {
			c.exc.vec = vecPF
			return decode.ErrTruncated
		}
		if !c.noCache {
			c.codePage(gpa)
		}
		r.gpa2, r.host2 = gpa, host
	}
	if r.host2 != 0 {
		copy(buf[n:n+decode.MaxLen], hostBytes(r.host2, decode.MaxLen))
	}
	return decode.Decode(in, buf[:decode.MaxLen], c.mode)
}

// finish makes a block of c.making and enters it into the cache.
func (c *CPU) finish(gpa uint64, k blockKey) *block {
	r := &c.making
	b := &r.block
	if !c.noCache {
		b = c.newBlock(r.host2 != 0)
	}
	*b = block{host: k.host, mode: k.mode, bytes: uint16(r.bytes), n: uint8(len(r.ops))}
	if c.noCache {
		return b
	}
	c.putOps(b)
	first := uint64(r.bytes)
	page := c.codePage(gpa)
	b.page = c.pageSlab.index(page)
	if r.host2 != 0 {
		first = 4096 - k.host&0xfff
		x, page2 := c.crossings.take(), c.codePage(r.gpa2)
		b.cross = c.crossings.index(x)
		x.host, x.page = r.host2, c.pageSlab.index(page2)
		c.addCode(page2, chunks(r.gpa2, uint64(r.bytes)-first), b, true)
	}
	c.addCode(page, chunks(gpa, first), b, false)
	c.enterHash(b)
	return b
}

// chunks is the mask of the 64-byte chunks of a page that [gpa, gpa+n) touches.
func chunks(gpa, n uint64) uint64 {
	lo := gpa & 0xfff >> 6
	hi := min(gpa&0xfff+max(n, 1)-1, 4095) >> 6
	return ^uint64(0) << lo & (^uint64(0) >> (63 - hi))
}

// addCode notes that a page's chunks are cached in b, whose second page it may be.
func (c *CPU) addCode(p *codePage, mask uint64, b *block, second bool) {
	p.mask |= mask
	ref := blockRef(c.blocks.index(b) << 1)
	if second {
		ref |= 1
	}
	next := c.listed(ref)
	*next, p.blocks = p.blocks, ref
	b.lists++
}

// codeWrite is told of a store to a page with cached code. One of the whole
// page leaves it watched: code is expected there again.
func (c *CPU) codeWrite(p *codePage, gpa, n uint64) {
	m := chunks(gpa, n)
	if p.mask&m == 0 {
		if p.misses++; p.misses > maxMisses {
			c.dropPage(p)
		}
		return
	}
	p.mask = 0
	for at := &p.blocks; *at != 0; {
		b := c.blocks.at(uint32(*at >> 1))
		if !b.dead {
			bm := c.blockMask(b, *at&1 != 0)
			if bm&m == 0 {
				p.mask |= bm
				at = c.listed(*at)
				continue
			}
			c.kill(b)
		}
		c.unlist(at)
	}
	if p.blocks == 0 && n < 4096 {
		c.dropPage(p)
	}
}

// blockMask is the chunks of a block's page, or of its second one, that hold its
// code or what its translations depend on.
func (c *CPU) blockMask(b *block, second bool) uint64 {
	n := uint64(b.bytes)
	if b.cross != 0 {
		first := 4096 - b.host&0xfff
		if second {
			return chunks(0, n-first)
		}
		n = first
	}
	m := chunks(b.host, n)
	if c.jit != nil {
		m |= c.jit.ahead(b)
	}
	return m
}

// dropPage forgets all code of a page, so that stores to it are fast again.
func (c *CPU) dropPage(p *codePage) {
	for p.blocks != 0 {
		if b := c.blocks.at(uint32(p.blocks >> 1)); !b.dead {
			c.kill(b)
		}
		c.unlist(&p.blocks)
	}
	delete(c.pages, p.pfn)
	c.forgetPage(p.pfn)
	c.freePages = append(c.freePages, c.pageSlab.index(p))
}

// kill takes a block out of use. The running block ends after the present
// instruction.
func (c *CPU) kill(b *block) {
	b.dead = true
	if c.jit != nil {
		c.jit.kill(b)
	}
	c.leaveHash(b)
	if b == c.blk && c.ring.has(b.ops) {
		ops := c.ring.ops(b.ops, b.n)
		for i := range ops {
			ops[i].fn = opResync
		}
	}
}

// dropCode empties the cache.
func (c *CPU) dropCode() {
	for pfn := range c.pages {
		c.forgetPage(pfn)
	}
	c.thunks.reset()
	clear(c.pages)
	clear(c.jump[:])
	if c.jit != nil {
		c.jit.reset()
	}
	c.resetCache()
	c.flushTLB() // write tags were withheld; fill them anew
}

// opEnd closes a block that does not end with a branch.
func opEnd(c *CPU, o *op) int {
	c.s.RIP = c.s.R[regBlock] + uint64(o.pos)
	c.s.Count-- // it is no instruction
	return stFall
}

// opResync leaves a block that was changed by its own instruction.
func opResync(c *CPU, o *op) int {
	c.s.RIP = c.s.R[regBlock] + uint64(o.pos)
	c.s.Count--
	return stExit
}

// opInvalid is an instruction that cannot be decoded.
func opInvalid(c *CPU, o *op) int {
	c.next = c.s.R[regBlock] + uint64(o.pos)
	c.noteInvalid()
	return c.raise(vecUD)
}

func opTooLong(c *CPU, o *op) int { return c.raiseErr(vecGP, 0) }

// compile makes the operation of a decoded instruction.
func (c *CPU) compile(in *decode.Inst, err error, pos int) op {
	switch err {
	case nil:
	case decode.ErrTooLong:
		return op{fn: opTooLong}
	default:
		return op{fn: opInvalid}
	}
	if !c.generic(in) {
		return op{fn: opInvalid}
	}
	if c.mode == decode.Mode64 || fast32(in) && c.flat32() {
		if o, ok := fast(in, pos); ok {
			return o
		}
	}
	return op{fn: opGeneric, imm: c.insts.put(in)}
}

// generic reports whether there is a reference implementation of in, and prepares it.
func (c *CPU) generic(in *decode.Inst) bool {
	if generic[in.Op] == nil || c.vm.features.lacks(in) {
		return false
	}
	if in.Op == decode.VEX {
		in.Thunk = c.thunk(in)
		return in.Thunk != 0
	}
	return true
}

// endsBlock reports whether nothing after in belongs to its block.
func endsBlock(in *decode.Inst) bool {
	switch in.Op {
	case decode.JCC, decode.JMP, decode.JMPR, decode.CALL, decode.CALLR, decode.RET, decode.RETF, decode.IRET,
		decode.LOOP, decode.LOOPE, decode.LOOPNE, decode.JCXZ, decode.JMPF, decode.CALLF,
		decode.INT, decode.INT3, decode.INT1, decode.SYSCALL, decode.SYSRET, decode.SYSENTER, decode.SYSEXIT,
		decode.HLT, decode.CPUID, decode.WRMSR, decode.INVLPG, decode.INVPCID, decode.CLTS, decode.LMSW, decode.XSETBV,
		decode.UD2, decode.RSM:
		return true
	case decode.MOV:
		return in.Args[0].Kind == decode.KCR || in.Args[0].Kind == decode.KDR
	}
	return false
}
