package soft

import (
	"github.com/gvmspawn/gvmspawn/vmm/soft/decode"
	"github.com/gvmspawn/gvmspawn/vmm/vcpu"
)

// op is one instruction, ready to execute.
type op struct {
	fn   func(*CPU, *op) int
	imm  uint64 // immediate, or index of the decoded instruction
	disp int64
	base uint8 // State.R index
	idx  uint8
	sh   uint8 // log2 of the index's scale
	seg  uint8 // State.R index of the segment's base, or regZero
	dst  uint8 // register number, or byte register offset
	src  uint8
	size uint8
	len  uint8
	pos  uint16 // offset from the block's start
	in   uint16 // index into block.insts, for generic operations
}

// block is a straight run of instructions of one page, keyed by its host
// address and the CPU's mode. It depends on no address, so all virtual pages
// that map the memory share it.
type block struct {
	ops   []op
	insts []decode.Inst
	key   blockKey
	bytes uint32 // length of the code
	gpa   uint64
	gpa2  uint64 // of the second page of a last instruction that crosses; else 0
	host2 uint64
	// ahead is the chunks of the page that translations also depend on.
	ahead uint64
	dead  bool
	runs  uint32 // executions by the interpreter since the last look at it
	trs   []*translation
	links [2]link
	chain *block // next in the hash bucket
}

type blockKey struct {
	host uint64
	mode uint8
}

// link is a direct successor: taken and not taken.
type link struct {
	b      *block
	rip    uint64
	local  uint64 // generations of the translations when it was made
	global uint64
	inPage bool
}

// jumpEntry caches the block of a virtual address.
type jumpEntry struct {
	la            uint64
	b             *block
	local, global uint64
	mode          uint8
	isGlobal      bool
}

// codePage is what the CPU knows of a page that holds cached code.
type codePage struct {
	mask   uint64 // 64-byte chunks with code
	blocks []*block
	misses int // stores beside the code
}

const (
	jumpSize = 1 << 13
	hashSize = 1 << 15
	maxOps   = 48
	// cacheLimit is how many operations the cache has before it is dropped as a
	// whole; the other limit is for all CPUs together without a translator, whose
	// memory is little else.
	cacheLimit       = 600_000
	interpCacheLimit = 50_000
	// maxMisses is after how many stores beside its code a page is taken
	// for data with stale code.
	maxMisses = 32
)

func (k blockKey) hash() uint64 { return (k.host ^ k.host>>12 ^ uint64(k.mode)<<3) & (hashSize - 1) }

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
	return b.key.mode&modeFlat32 != 0 || decode.Mode(b.key.mode&^0x80) == decode.Mode64
}

// translatable reports whether the translator knows b's mode: 64-bit mode, and flat
// 32-bit code of the kernel, as firmware begins with.
func (b *block) translatable() bool {
	return decode.Mode(b.key.mode&^0x80) == decode.Mode64 || b.key.mode == modeFlat32|uint8(decode.Mode32)
}

// decodeMode is the mode of b, which is translatable.
func (b *block) decodeMode() decode.Mode {
	if b.key.mode&modeFlat32 != 0 {
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
	if j.la == la && j.b != nil && j.mode == mode && !j.b.dead &&
		(j.local == c.localGen || j.isGlobal && j.global == c.globalGen) {
		return j.b
	}
	b := c.lookupSlow(la, mode)
	if b != nil {
		*j = jumpEntry{la, b, c.localGen, c.globalGen, mode, c.lastGlobal && b.host2 == 0}
	}
	return b
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
		for b := c.hash[k.hash()]; b != nil; b = b.chain {
			if b.key == k && !b.dead && b.host2 == 0 {
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
	for b := c.hash[k.hash()]; b != nil; b = b.chain {
		if b.key != k || b.dead {
			continue
		}
		if b.host2 != 0 {
			_, h2, ok := c.fetchPage(c.wrap((la | 0xfff) + 1))
			if !ok || h2 != b.host2 {
				break
			}
		}
		return b
	}
	return c.build(la, gpa, k)
}

// build decodes the block at la.
func (c *CPU) build(la, gpa uint64, k blockKey) *block {
	if c.cached > c.cacheLimit() || c.thunks.full() {
		c.dropCode()
	}
	b := &block{key: k, gpa: gpa}
	if !c.noCache {
		c.codePage(gpa)
	}
	code := hostBytes(k.host, int(4096-la&0xfff))
	c.insts = c.insts[:0]
	c.ops = c.ops[:0]
	c.ended = false
	global := c.lastGlobal
	pos := 0
	limit := c.maxOps
	if c.cuts != nil && !c.noCache && c.cuts[uint16(la&0xfff)] {
		c.ops = append(c.ops, op{fn: opBreak})
	}
	for len(c.ops) < limit {
		if c.cuts != nil && pos > 0 && c.cuts[uint16(la&0xfff)+uint16(pos)] {
			break
		}
		var in decode.Inst
		err := decode.Decode(&in, code[pos:min(pos+decode.MaxLen, len(code))], c.mode)
		if err == decode.ErrTruncated {
			if pos > 0 {
				break
			}
			if err = c.crossing(b, &in, la, code); err != nil && c.exc.vec == vecPF {
				return nil
			}
		}
		if err != nil && pos > 0 {
			break // the error is for when it is reached
		}
		o := c.compile(&in, err, pos)
		o.pos, o.len = uint16(pos), in.Len
		c.ops = append(c.ops, o)
		pos += int(in.Len)
		if c.ended = err != nil || endsBlock(&in); c.ended || b.host2 != 0 || pos >= len(code) {
			break
		}
	}
	c.finish(b, pos)
	c.lastGlobal = global
	return b
}

// crossing decodes an instruction that lies on two pages.
func (c *CPU) crossing(b *block, in *decode.Inst, la uint64, code []byte) error {
	var buf [2 * decode.MaxLen]byte
	n := copy(buf[:], code)
	c.exc.vec = 0
	gpa, host, ok := c.fetchPage(c.wrap(la + uint64(n)))
	if !ok {
		c.exc.vec = vecPF
		return decode.ErrTruncated
	}
	if !c.noCache {
		c.codePage(gpa)
	}
	copy(buf[n:n+decode.MaxLen], hostBytes(host, decode.MaxLen))
	b.gpa2, b.host2 = gpa, host
	return decode.Decode(in, buf[:decode.MaxLen], c.mode)
}

// finish moves the operations into the block and enters it into the cache.
func (c *CPU) finish(b *block, pos int) {
	if !c.ended {
		c.ops = append(c.ops, op{fn: opEnd, pos: uint16(pos)})
	}
	b.ops = c.newOps(len(c.ops))
	copy(b.ops, c.ops)
	if len(c.insts) > 0 {
		b.insts = append([]decode.Inst(nil), c.insts...)
	}
	b.bytes = uint32(max(pos, 1))
	if c.noCache {
		return
	}
	c.cached += len(b.ops)
	h := b.key.hash()
	b.chain, c.hash[h] = c.hash[h], b
	first := b.bytes
	if b.host2 != 0 {
		first = uint32(4096 - b.gpa&0xfff)
		c.addCode(b, b.gpa2, b.bytes-first)
	}
	c.addCode(b, b.gpa, first)
}

// cacheLimit is the number of operations at which the cache is dropped.
func (c *CPU) cacheLimit() int {
	if c.jit != nil {
		return cacheLimit
	}
	return max(interpCacheLimit/len(c.vm.cpus), interpCacheLimit/8)
}

// newOps takes n operations from an arena.
func (c *CPU) newOps(n int) []op {
	const chunk = 4096
	if len(c.arenaOps) < n {
		c.arenaOps = make([]op, chunk)
	}
	o := c.arenaOps[:n:n]
	c.arenaOps = c.arenaOps[n:]
	return o
}

// chunks is the mask of the 64-byte chunks of a page that [gpa, gpa+n) touches.
func chunks(gpa, n uint64) uint64 {
	lo := gpa & 0xfff >> 6
	hi := min(gpa&0xfff+max(n, 1)-1, 4095) >> 6
	return ^uint64(0) << lo & (^uint64(0) >> (63 - hi))
}

// addCode notes that n bytes at gpa are cached in b.
func (c *CPU) addCode(b *block, gpa uint64, n uint32) {
	p := c.codePage(gpa)
	p.mask |= chunks(gpa, uint64(n))
	p.blocks = append(p.blocks, b)
}

// codeWrite is told of a store to a page with cached code. One of the whole
// page leaves it watched: code is expected there again.
func (c *CPU) codeWrite(p *codePage, gpa, n uint64) {
	m := chunks(gpa, n)
	if p.mask&m == 0 {
		if p.misses++; p.misses > maxMisses {
			c.dropPage(gpa>>12, p)
		}
		return
	}
	kept := p.blocks[:0]
	p.mask = 0
	for _, b := range p.blocks {
		if b.dead {
			continue
		}
		if bm := b.mask(gpa >> 12); bm&m != 0 {
			c.kill(b)
		} else {
			kept = append(kept, b)
			p.mask |= bm
		}
	}
	clear(p.blocks[len(kept):])
	p.blocks = kept
	if len(kept) == 0 && n < 4096 {
		c.dropPage(gpa>>12, p)
	}
}

// mask is the chunks of page pfn that hold the block's code.
func (b *block) mask(pfn uint64) uint64 {
	first := uint64(b.bytes)
	if b.host2 != 0 {
		first = 4096 - b.gpa&0xfff
		if b.gpa2>>12 == pfn {
			return chunks(b.gpa2, uint64(b.bytes)-first)
		}
	}
	return chunks(b.gpa, first) | b.ahead
}

// dropPage forgets all code of a page, so that stores to it are fast again.
func (c *CPU) dropPage(pfn uint64, p *codePage) {
	for _, b := range p.blocks {
		if !b.dead {
			c.kill(b)
		}
	}
	delete(c.pages, pfn)
	c.forgetPage(pfn)
}

// kill takes a block out of use. The running block ends after the present
// instruction.
func (c *CPU) kill(b *block) {
	b.dead = true
	if c.jit != nil {
		c.jit.kill(b)
	}
	c.cached -= len(b.ops)
	for p := &c.hash[b.key.hash()]; *p != nil; p = &(*p).chain {
		if *p == b {
			*p = b.chain
			break
		}
	}
	if b == c.blk {
		for i := range b.ops {
			b.ops[i].fn = opResync
		}
	}
}

// dropCode empties the cache.
func (c *CPU) dropCode() {
	for pfn, p := range c.pages {
		for _, b := range p.blocks {
			b.dead = true
		}
		c.forgetPage(pfn)
	}
	c.thunks.reset()
	clear(c.pages)
	clear(c.hash[:])
	clear(c.jump[:])
	c.arenaOps, c.cached = nil, 0
	if c.jit != nil {
		c.jit.reset()
	}
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

// opGeneric runs the reference implementation.
func opGeneric(c *CPU, o *op) int {
	in := &c.blk.insts[o.in-1]
	c.ip = c.s.R[regBlock] + uint64(o.pos)
	c.next = c.ip + uint64(o.len)
	if c.mode != decode.Mode64 {
		c.next &= 0xffffffff
	}
	return generic[in.Op](c, in)
}

// compile makes the operation of a decoded instruction.
func (c *CPU) compile(in *decode.Inst, err error, pos int) op {
	switch err {
	case nil:
	case decode.ErrTooLong:
		return op{fn: opTooLong}
	default:
		return op{fn: opInvalid}
	}
	if generic[in.Op] == nil || c.vm.features.lacks(in) {
		return op{fn: opInvalid}
	}
	if in.Op == decode.VEX {
		if in.Thunk = c.thunk(in); in.Thunk == 0 {
			return op{fn: opInvalid}
		}
	}
	if c.mode == decode.Mode64 || fast32(in) && c.flat32() {
		if o, ok := fast(in, pos); ok {
			return o
		}
	}
	c.insts = append(c.insts, *in)
	return op{fn: opGeneric, in: uint16(len(c.insts))}
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
