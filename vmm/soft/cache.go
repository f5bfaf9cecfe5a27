package soft

// This file is the memory of a CPU's decoded code.

// blockCache holds the blocks, and what finds them.
type blockCache struct {
	blocks    slab[block]
	pageSlab  slab[codePage]
	crossings slab[crossing]
	ring      opRing
	insts     instRing
	hash      []uint32 // buckets of blocks, a power of two of them
	hashed    int      // blocks in them
	freeBlock uint32   // list
	freePages []uint32
	pages     map[uint64]*codePage // by page number; they lie in pageSlab
}

const (
	// ringOps and ringInsts are the sizes of the rings. Without a translator, when
	// operations are all there is to run, the former is for most of what the blocks
	// have, and is divided between the CPUs, but for an eighth.
	ringOps       = 1 << 16
	interpRingOps = 8 * maxInterpBlocks
	ringInsts     = 1 << 11
)

// newBlockCache makes the cache of one of n CPUs, which have a translator or not.
func newBlockCache(translator bool, n int) (k blockCache, err error) {
	blocks, ops := maxBlocks, ringOps
	if !translator {
		part := max(n, 1)
		for blocks, ops = maxInterpBlocks, interpRingOps; part > 1 && blocks > maxInterpBlocks/8; part /= 2 {
			blocks, ops = blocks/2, ops/2
		}
	}
	k.pages = map[uint64]*codePage{}
	k.hash = make([]uint32, hashSize)
	k.insts = newInstRing(ringInsts)
	if k.blocks, err = newSlab[block](blocks); err == nil {
		if k.pageSlab, err = newSlab[codePage](blocks); err == nil {
			if k.crossings, err = newSlab[crossing](blocks); err == nil {
				k.ring, err = newOpRing(ops)
			}
		}
	}
	if err != nil {
		k.release()
	}
	return k, err
}

func (k *blockCache) release() {
	k.blocks.release()
	k.pageSlab.release()
	k.crossings.release()
	k.ring.slab.release()
}

// cacheFull reports whether there may be too little room for another block.
func (k *blockCache) cacheFull() bool {
	return k.blocks.left() == 0 || k.crossings.left() == 0 || k.pageSlab.left() < 2 && len(k.freePages) < 2
}

// resetCache forgets all blocks, and returns their memory to the host.
func (k *blockCache) resetCache() {
	k.blocks.reset()
	k.pageSlab.reset()
	k.crossings.reset()
	k.ring.reset()
	if len(k.hash) > hashSize {
		k.hash = make([]uint32, hashSize)
	} else {
		clear(k.hash)
	}
	k.hashed, k.freeBlock, k.freePages = 0, 0, nil
}

// newBlock returns the record of a new block. One that crosses is never one that was
// used before, nor is it used again: of all that remembers a block's number, nobody
// looks at the second page.
func (k *blockCache) newBlock(crosses bool) *block {
	if i := k.freeBlock; i != 0 && !crosses {
		b := k.blocks.at(i)
		k.freeBlock = b.chain
		return b
	}
	return k.blocks.take()
}

func (k *blockCache) newPage() *codePage {
	if n := len(k.freePages); n > 0 {
		i := k.freePages[n-1]
		k.freePages = k.freePages[:n-1]
		return k.pageSlab.at(i)
	}
	return k.pageSlab.take()
}

// bucket is the first block that may be that of the key.
func (k *blockCache) bucket(key blockKey) *block {
	return k.block(k.hash[key.hash()&uint32(len(k.hash)-1)])
}

// chained is the next one.
func (k *blockCache) chained(b *block) *block { return k.block(b.chain) }

// block is the block of a number, nil for 0.
func (k *blockCache) block(i uint32) *block {
	if i == 0 {
		return nil
	}
	return k.blocks.at(i)
}

// enterHash makes b known, and the table larger when it is full.
func (k *blockCache) enterHash(b *block) {
	if k.hashed++; k.hashed > len(k.hash) {
		old := k.hash
		k.hash = make([]uint32, 2*len(old))
		for _, i := range old {
			for i != 0 {
				o := k.blocks.at(i)
				i = o.chain
				k.push(o)
			}
		}
	}
	k.push(b)
}

func (k *blockCache) push(b *block) {
	p := k.slotOf(b)
	b.chain, *p = *p, k.blocks.index(b)
}

// slotOf is the bucket of b.
func (k *blockCache) slotOf(b *block) *uint32 {
	return &k.hash[blockKey{b.host, b.mode}.hash()&uint32(len(k.hash)-1)]
}

func (k *blockCache) leaveHash(b *block) {
	me := k.blocks.index(b)
	for p := k.slotOf(b); *p != 0; p = &k.blocks.at(*p).chain {
		if *p == me {
			*p = b.chain
			k.hashed--
			return
		}
	}
}

// listed is where the list of a page goes on behind ref.
func (k *blockCache) listed(ref blockRef) *blockRef {
	b := k.blocks.at(uint32(ref >> 1))
	if ref&1 != 0 {
		return &k.crossings.at(b.cross).next
	}
	return &b.next
}

// unlist takes the dead block at *at out of a page's list, and frees it if it is in no other.
func (k *blockCache) unlist(at *blockRef) {
	b := k.blocks.at(uint32(*at >> 1))
	*at = *k.listed(*at)
	if b.lists--; b.lists == 0 && b.cross == 0 {
		b.chain, k.freeBlock = k.freeBlock, k.blocks.index(b)
	}
}
