package virtq

import (
	"encoding/binary"
	"fmt"

	"github.com/gvmspawn/gvmspawn/vmm/mem"
)

// Split virtqueue layout (virtio 1.2 §2.7).
const (
	descSize = 16

	descFNext     = 1 // VIRTQ_DESC_F_NEXT
	descFWrite    = 2 // VIRTQ_DESC_F_WRITE
	descFIndirect = 4 // VIRTQ_DESC_F_INDIRECT

	availFlags = 0 // le16 flags, le16 idx, le16 ring[size], le16 used_event
	availIdx   = 2
	availRing  = 4

	usedFlags = 0 // le16 flags, le16 idx, {le32 id, le32 len} ring[size], le16 avail_event
	usedIdx   = 2
	usedRing  = 4
	usedElem  = 8

	availFNoInterrupt = 1 // VIRTQ_AVAIL_F_NO_INTERRUPT
	usedFNoNotify     = 1 // VIRTQ_USED_F_NO_NOTIFY
)

// desc is one descriptor, read once.
type desc struct {
	addr  mem.GPA
	len   uint32
	flags uint16
	next  uint16
}

func readDesc(table []byte, i int) desc {
	b := table[i*descSize : i*descSize+descSize : i*descSize+descSize]
	return desc{
		addr:  mem.GPA(binary.LittleEndian.Uint64(b)),
		len:   binary.LittleEndian.Uint32(b[8:]),
		flags: binary.LittleEndian.Uint16(b[12:]),
		next:  binary.LittleEndian.Uint16(b[14:]),
	}
}

// split is the split ring.
type split struct {
	mem      *mem.Memory
	size     uint16
	eventIdx bool
	indirect bool

	desc  []byte
	avail mem.Ordered
	used  mem.Ordered
	gpa   mem.GPA // of used, for MarkWritten

	nextAvail uint16 // index of the next available entry to take
	nextUsed  uint16 // index of the next used entry to write
	signalled uint16 // nextUsed at the last interruptWanted
	lapped    bool   // nextUsed has gone all the way round since
}

func newSplit(cfg *Config) (*split, error) {
	n := uint64(cfg.Size)
	if cfg.Desc%16 != 0 || cfg.Avail%2 != 0 || cfg.Used%4 != 0 {
		return nil, fmt.Errorf("%w: misaligned rings %#x %#x %#x", ErrRing, cfg.Desc, cfg.Avail, cfg.Used)
	}
	d, err := cfg.Mem.Slice(cfg.Desc, n*descSize)
	if err != nil {
		return nil, fmt.Errorf("%w: descriptor table at %#x: %w", ErrRing, cfg.Desc, err)
	}
	a, err := cfg.Mem.OrderedSlice(cfg.Avail, availRing+2*n+2)
	if err != nil {
		return nil, fmt.Errorf("%w: available ring at %#x: %w", ErrRing, cfg.Avail, err)
	}
	u, err := cfg.Mem.OrderedSlice(cfg.Used, usedRing+usedElem*n+2)
	if err != nil {
		return nil, fmt.Errorf("%w: used ring at %#x: %w", ErrRing, cfg.Used, err)
	}
	s := &split{
		mem: cfg.Mem, size: cfg.Size, eventIdx: cfg.EventIdx, indirect: cfg.Indirect,
		desc: d, avail: a, used: u, gpa: cfg.Used,
	}
	if s.eventIdx {
		// §2.7.10.2: with EVENT_IDX "the device MUST set flags to 0".
		s.storeUsed(usedFlags, 0)
	}
	return s, nil
}

// pending is how many chains wait. The acquire load of avail.idx orders the
// driver's ring entries and descriptors before our reads of them (§2.7.13.3.1).
func (s *split) pending() (uint16, error) {
	n := s.avail.LoadUint16(availIdx) - s.nextAvail
	if n > s.size {
		return 0, fmt.Errorf("%w: available index is %d ahead of a queue of %d", ErrRing, n, s.size)
	}
	return n, nil
}

func (s *split) available() (bool, error) {
	n, err := s.pending()
	return n > 0, err
}

func (s *split) pop(c *Chain) (bool, error) {
	n, err := s.pending()
	if n == 0 || err != nil {
		return false, err
	}
	head := s.avail.LoadUint16(availRing + 2*uint64(s.nextAvail%s.size))
	c.id, c.count = head, 1
	if err := s.walk(c, head); err != nil {
		return false, err
	}
	s.nextAvail++
	return true, nil
}

// walk follows the chain from head through the descriptor table and at most
// one indirect table at its end.
func (s *split) walk(c *Chain, i uint16) error {
	table, size := s.desc, s.size
	indirect := false
	// One more for the descriptor that refers to the indirect table.
	for left := 1 + max(maxChain, int(s.size)); left > 0; left-- {
		if i >= size {
			return fmt.Errorf("%w: descriptor %d of %d", ErrRing, i, size)
		}
		d := readDesc(table, int(i))
		if d.flags&descFIndirect != 0 {
			// §2.7.5.3.1: not nested, not together with NEXT, only when negotiated.
			if indirect || !s.indirect || d.flags&descFNext != 0 {
				return fmt.Errorf("%w: indirect descriptor where none is allowed", ErrRing)
			}
			if d.len == 0 || d.len%descSize != 0 || d.len/descSize > MaxSize {
				return fmt.Errorf("%w: indirect table of %d bytes", ErrRing, d.len)
			}
			t, err := s.mem.Slice(d.addr, uint64(d.len))
			if err != nil {
				return fmt.Errorf("%w: indirect table at %#x: %w", ErrRing, d.addr, err)
			}
			table, size, i, indirect = t, uint16(d.len/descSize), 0, true
			continue
		}
		if err := c.add(s.mem, d); err != nil {
			return err
		}
		if d.flags&descFNext == 0 {
			return nil
		}
		i = d.next
	}
	return fmt.Errorf("%w: chain without end", ErrRing)
}

// add appends a descriptor's buffer to the chain.
func (c *Chain) add(m *mem.Memory, d desc) error {
	find := m.DMA
	if c.Untouched && d.flags&descFWrite != 0 {
		find = m.Address
	}
	b, err := find(d.addr, uint64(d.len))
	if err != nil {
		return fmt.Errorf("%w: buffer %#x+%#x: %w", ErrRing, d.addr, d.len, err)
	}
	if d.flags&descFWrite != 0 {
		c.WritableLen += uint64(d.len)
		c.Writable = append(c.Writable, Buffer{d.addr, b})
	} else {
		// §2.7.4.2: device-readable descriptors come first.
		if len(c.Writable) > 0 {
			return fmt.Errorf("%w: device-readable descriptor after a writable one", ErrRing)
		}
		c.ReadableLen += uint64(d.len)
		c.Readable = append(c.Readable, Buffer{d.addr, b})
	}
	if c.ReadableLen+c.WritableLen >= 1<<32 {
		return fmt.Errorf("%w: chain of 4 GiB or more", ErrRing)
	}
	return nil
}

func (s *split) put(id, _ uint16, written uint32) {
	off := usedRing + usedElem*uint64(s.nextUsed%s.size)
	binary.LittleEndian.PutUint32(s.used[off:], uint32(id))
	binary.LittleEndian.PutUint32(s.used[off+4:], written)
	s.mem.MarkWritten(s.gpa+mem.GPA(off), usedElem)
	s.nextUsed++
	s.lapped = s.lapped || s.nextUsed == s.signalled
}

func (s *split) publish() {
	// The release store orders the elements, and the data before them, before
	// the index.
	s.storeUsed(usedIdx, s.nextUsed)
}

func (s *split) interruptWanted() bool {
	last, lapped := s.signalled, s.lapped
	if s.nextUsed == last && !lapped {
		return false
	}
	s.signalled, s.lapped = s.nextUsed, false
	// §2.7.7.1, §2.7.8: publish the index before reading the driver's wish.
	mem.Fence()
	if !s.eventIdx {
		return s.avail.LoadUint16(availFlags)&availFNoInterrupt == 0
	}
	event := s.avail.LoadUint16(availRing + 2*uint64(s.size))
	return lapped || s.nextUsed-event-1 < s.nextUsed-last
}

func (s *split) enableKicks() {
	if s.eventIdx {
		s.storeUsed(usedRing+usedElem*uint64(s.size), s.nextAvail)
	} else {
		s.storeUsed(usedFlags, 0)
	}
	// §2.7.10: publish the wish before looking at avail.idx again.
	mem.Fence()
}

func (s *split) disableKicks() {
	// With EVENT_IDX the event index is simply left behind (§2.7.10).
	if !s.eventIdx {
		s.storeUsed(usedFlags, usedFNoNotify)
	}
}

// storeUsed stores a field of the used ring and tells the dirty log.
func (s *split) storeUsed(off uint64, v uint16) {
	s.used.StoreUint16(off, v)
	s.mem.MarkWritten(s.gpa+mem.GPA(off), 2)
}
