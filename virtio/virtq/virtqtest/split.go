package virtqtest

import (
	"encoding/binary"

	"github.com/gvmspawn/gvmspawn/virtio/virtq"
	"github.com/gvmspawn/gvmspawn/vmm/mem"
)

// Descriptor flags (virtio 1.2 §2.7.5), the same in both ring layouts.
const (
	DescNext     = 1 // VIRTQ_DESC_F_NEXT
	DescWrite    = 2 // VIRTQ_DESC_F_WRITE
	DescIndirect = 4 // VIRTQ_DESC_F_INDIRECT
)

// Desc is a descriptor as a driver writes it.
type Desc struct {
	Addr  mem.GPA
	Len   uint32
	Flags uint16
	Next  uint16 // split ring only
}

// put writes the descriptor in the split ring's layout (§2.7.5).
func (d Desc) put(b []byte) {
	binary.LittleEndian.PutUint64(b, uint64(d.Addr))
	binary.LittleEndian.PutUint32(b[8:], d.Len)
	binary.LittleEndian.PutUint16(b[12:], d.Flags)
	binary.LittleEndian.PutUint16(b[14:], d.Next)
}

// Bytes is the descriptor as it lies in a descriptor table.
func (d Desc) Bytes() []byte {
	b := make([]byte, 16)
	d.put(b)
	return b
}

// Split is the driver's side of a split ring (§2.7), raw: hostile tests use
// it to write what a good driver never would.
type Split struct {
	Size  uint16
	Table []byte // descriptor table
	Avail mem.Ordered
	Used  mem.Ordered

	DescGPA, AvailGPA, UsedGPA mem.GPA

	eventIdx bool
	free     []uint16 // descriptors not in use
	chains   [][]uint16
	avail    uint16 // index of the next available entry
	kicked   uint16 // avail at the last KickNeeded
	used     uint16 // index of the next used entry to take
}

func newSplit(m *Memory, size uint16, eventIdx bool) (*Split, error) {
	n := uint64(size)
	s := &Split{
		Size: size, eventIdx: eventIdx,
		DescGPA: m.Alloc(16 * n), AvailGPA: m.Alloc(6 + 2*n), UsedGPA: m.Alloc(6 + 8*n),
		chains: make([][]uint16, n),
	}
	s.Table = m.Bytes(s.DescGPA, 16*n)
	var err error
	if s.Avail, err = m.OrderedSlice(s.AvailGPA, 6+2*n); err != nil {
		return nil, err
	}
	if s.Used, err = m.OrderedSlice(s.UsedGPA, 6+8*n); err != nil {
		return nil, err
	}
	for i := range size {
		s.free = append(s.free, size-1-i)
	}
	return s, nil
}

// table writes an indirect table (§2.7.5.3).
func (s *Split) table(b []byte, chain []Desc) {
	for i, d := range chain {
		if i+1 < len(chain) {
			d.Flags |= DescNext
			d.Next = uint16(i + 1)
		}
		d.put(b[16*i:])
	}
}

func (s *Split) config(c *virtq.Config) {
	c.Desc, c.Avail, c.Used = s.DescGPA, s.AvailGPA, s.UsedGPA
}

// SetDesc writes descriptor i.
func (s *Split) SetDesc(i int, d Desc) { d.put(s.Table[16*i:]) }

// SetAvail writes the ring entry for the available index idx.
func (s *Split) SetAvail(idx, head uint16) { s.Avail.StoreUint16(4+2*uint64(idx%s.Size), head) }

// SetAvailIdx publishes available entries up to idx.
func (s *Split) SetAvailIdx(idx uint16) { s.Avail.StoreUint16(2, idx) }

// SetAvailFlags writes the flags of the available ring (1: VIRTQ_AVAIL_F_NO_INTERRUPT).
func (s *Split) SetAvailFlags(f uint16) { s.Avail.StoreUint16(0, f) }

// SetUsedEvent writes used_event: with EVENT_IDX, the used index whose
// passing interrupts.
func (s *Split) SetUsedEvent(idx uint16) { s.Avail.StoreUint16(4+2*uint64(s.Size), idx) }

// UsedFlags reads the flags of the used ring (1: VIRTQ_USED_F_NO_NOTIFY).
func (s *Split) UsedFlags() uint16 { return s.Used.LoadUint16(0) }

// UsedIdx reads the used index.
func (s *Split) UsedIdx() uint16 { return s.Used.LoadUint16(2) }

// AvailEvent reads avail_event: with EVENT_IDX, the available index whose
// passing needs a notification.
func (s *Split) AvailEvent() uint16 { return s.Used.LoadUint16(4 + 8*uint64(s.Size)) }

// UsedElem reads the used element at index idx.
func (s *Split) UsedElem(idx uint16) (id, written uint32) {
	b := s.Used[4+8*int(idx%s.Size):]
	return binary.LittleEndian.Uint32(b), binary.LittleEndian.Uint32(b[4:])
}

// room reports whether n descriptors are free.
func (s *Split) room(n int) bool { return len(s.free) >= n }

// add makes a chain of the descriptors available and returns its head (§2.7.13).
func (s *Split) add(chain []Desc) uint16 {
	var idx []uint16
	for range chain {
		idx = append(idx, s.free[len(s.free)-1])
		s.free = s.free[:len(s.free)-1]
	}
	for i, d := range chain {
		if i+1 < len(chain) {
			d.Flags |= DescNext
			d.Next = idx[i+1]
		}
		s.SetDesc(int(idx[i]), d)
	}
	head := idx[0]
	s.chains[head] = idx
	s.SetAvail(s.avail, head)
	s.avail++
	s.SetAvailIdx(s.avail)
	return head
}

// kickNeeded reports whether the device wants to be notified of the chains
// added since the last call (§2.7.10).
func (s *Split) kickNeeded() bool {
	mem.Fence()
	old := s.kicked
	s.kicked = s.avail
	if !s.eventIdx {
		return s.UsedFlags()&1 == 0
	}
	return s.avail-s.AvailEvent()-1 < s.avail-old
}

// kickWanted reports whether the next chain would need a notification.
func (s *Split) kickWanted() bool {
	if !s.eventIdx {
		return s.UsedFlags()&1 == 0
	}
	return s.AvailEvent() == s.avail
}

// take returns the next used chain, if there is one.
func (s *Split) take() (id uint16, written uint32, ok bool) {
	if s.UsedIdx() == s.used {
		return 0, 0, false
	}
	i, written := s.UsedElem(s.used)
	s.used++
	id = uint16(i)
	if int(i) < len(s.chains) {
		s.free = append(s.free, s.chains[i]...)
		s.chains[i] = nil
	}
	return id, written, true
}

// interrupts asks for an interrupt at the next used chain, or for none.
func (s *Split) interrupts(on bool) {
	switch {
	case s.eventIdx && on:
		s.SetUsedEvent(s.used)
	case s.eventIdx:
		s.SetUsedEvent(s.used - 1)
	case on:
		s.SetAvailFlags(0)
	default:
		s.SetAvailFlags(1)
	}
	mem.Fence()
}
