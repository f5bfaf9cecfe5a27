package soft

import "github.com/gvmspawn/gvmspawn/vmm/soft/decode"

// opRing keeps the operations of the blocks that were made or run by the
// interpreter last. A block whose operations were overwritten gets them again from
// its code: most blocks are translated soon, or never run again, and hardly need
// theirs any more.
type opRing struct {
	slab slab[op] // of a power of two
	next uint32   // where the next ones are put, counted over all rounds
}

func newOpRing(n int) (opRing, error) {
	s, err := newSlab[op](n)
	return opRing{slab: s, next: 2 * uint32(n)}, err
}

// has reports whether what was put at at is still there. at 0 is nowhere.
func (r *opRing) has(at uint32) bool { return r.next-at <= uint32(len(r.slab.mem)) }

// ops is n operations that are there.
func (r *opRing) ops(at uint32, n uint8) []op {
	i := at & uint32(len(r.slab.mem)-1)
	return r.slab.mem[i : i+uint32(n)]
}

// full reports whether the numbers of places are used up, which would come round.
func (r *opRing) full() bool { return r.next > ^uint32(0)-uint32(2*len(r.slab.mem)) }

// reset empties the ring. No block may know a place any more.
func (r *opRing) reset() {
	r.slab.next = uint32(len(r.slab.mem))
	r.slab.reset()
	r.next = 2 * uint32(len(r.slab.mem))
}

// put moves operations into the ring.
func (r *opRing) put(ops []op) (at uint32) {
	size := uint32(len(r.slab.mem))
	if i := r.next & (size - 1); i+uint32(len(ops)) > size {
		r.next += size - i
	}
	at = r.next
	r.next += uint32(len(ops))
	copy(r.ops(at, uint8(len(ops))), ops)
	return at
}

// instRing keeps the instructions of generic operations in the same way.
type instRing struct {
	mem  []decode.Inst // of a power of two
	next uint64
}

func newInstRing(n int) instRing { return instRing{make([]decode.Inst, n), uint64(n)} }

func (r *instRing) put(in *decode.Inst) (at uint64) {
	at = r.next
	r.next++
	r.mem[at&uint64(len(r.mem)-1)] = *in
	return at
}

// at is the instruction that was put at at, nil if it was overwritten.
func (r *instRing) at(at uint64) *decode.Inst {
	if r.next-at > uint64(len(r.mem)) {
		return nil
	}
	return &r.mem[at&uint64(len(r.mem)-1)]
}

// opsOf returns the operations of b. nil means that the code has changed and b is
// dead: what tells of the change is on its way.
func (c *CPU) opsOf(b *block) []op {
	if c.ring.has(b.ops) {
		return c.ring.ops(b.ops, b.n)
	}
	return c.makeAgain(b)
}

func (c *CPU) makeAgain(b *block) []op {
	r := &c.making
	r.again, r.host2 = true, 0
	if b.cross != 0 {
		r.host2 = c.crossings.at(b.cross).host
	}
	ok := c.decodeRun(b.host, 0)
	r.again = false
	if !ok || len(r.ops) != int(b.n) || r.bytes != int(b.bytes) || (r.host2 != 0) != (b.cross != 0) || c.jit != nil && !c.jit.fits(b, r.ops) {
		c.kill(b)
		return nil
	}
	c.putOps(b)
	return c.ring.ops(b.ops, b.n)
}

// putOps moves the operations that were made into the ring.
func (c *CPU) putOps(b *block) {
	if c.ring.full() {
		c.forgetOps()
	}
	b.ops = c.ring.put(c.making.ops)
}

// forgetOps empties the ring, and returns its memory to the host.
func (c *CPU) forgetOps() {
	for i := range c.blocks.next {
		c.blocks.at(i).ops = 0
	}
	c.ring.reset()
}

// Trim implements vcpu.Trimmer: what only code at the start has used is a ring full of
// operations. Each CPU empties its own when it next looks at its notices.
func (vm *VM) Trim() {
	for _, c := range vm.cpus {
		c.post(notice{kind: noticeTrim})
	}
}

// opGeneric runs the reference implementation.
func opGeneric(c *CPU, o *op) int {
	c.ip = c.s.R[regBlock] + uint64(o.pos)
	c.next = c.ip + uint64(o.len)
	if c.mode != decode.Mode64 {
		c.next &= 0xffffffff
	}
	in := c.insts.at(o.imm)
	if in == nil {
		if in = c.decodeAgain(o); in == nil {
			return opResync(c, o)
		}
	}
	return generic[in.Op](c, in)
}

// decodeAgain returns the instruction of a generic operation of the running block.
// nil means that it has changed, and the block is dead.
func (c *CPU) decodeAgain(o *op) *decode.Inst {
	b := c.blk
	var buf [decode.MaxLen]byte
	code := buf[:min(int(o.len), len(buf))]
	at := b.host + uint64(o.pos)
	n := copy(code, hostBytes(at, int(min(uint64(len(code)), 4096-at&0xfff))))
	if n < len(code) && b.cross != 0 {
		copy(code[n:], hostBytes(c.crossings.at(b.cross).host, len(code)-n))
	}
	var in decode.Inst
	err := decode.Decode(&in, code, c.mode)
	if err == nil && in.Len == o.len && c.generic(&in) {
		o.imm = c.insts.put(&in)
		return c.insts.at(o.imm)
	}
	c.kill(b)
	return nil
}
