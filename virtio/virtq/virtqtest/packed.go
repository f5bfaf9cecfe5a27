package virtqtest

import (
	"encoding/binary"

	"github.com/gvmspawn/gvmspawn/virtio/virtq"
	"github.com/gvmspawn/gvmspawn/vmm/mem"
)

// Flags of packed descriptors (virtio 1.2 §2.8.1).
const (
	DescAvail = 1 << 7  // VIRTQ_DESC_F_AVAIL
	DescUsed  = 1 << 15 // VIRTQ_DESC_F_USED
)

// Packed is the driver's side of a packed ring (§2.8), raw.
type Packed struct {
	Size   uint16
	Ring   mem.Ordered // descriptors
	Driver mem.Ordered // driver event suppression
	Device mem.Ordered // device event suppression

	RingGPA, DriverGPA, DeviceGPA mem.GPA

	eventIdx bool
	ids      []uint16 // buffer IDs not in use
	counts   []uint16 // descriptors of each buffer in flight
	left     int      // free descriptors
	next     mark     // where the next chain goes
	kicked   mark     // next at the last kickNeeded
	used     mark     // where the next used descriptor comes
}

// mark is a place in the ring, counted in descriptors from the start. The ring
// index is its remainder, the wrap counter the parity of its quotient.
type mark uint64

func (p *Packed) index(m mark) int { return int(m % mark(p.Size)) }
func (p *Packed) wrap(m mark) bool { return m/mark(p.Size)%2 == 0 }

// event is a mark as the event suppression structures have it (§2.8.10).
func (p *Packed) event(m mark) uint16 {
	e := uint16(p.index(m))
	if p.wrap(m) {
		e |= 1 << 15
	}
	return e
}

func newPacked(m *Memory, size uint16, eventIdx bool) (*Packed, error) {
	n := uint64(size)
	p := &Packed{
		Size: size, eventIdx: eventIdx, left: int(size),
		RingGPA: m.Alloc(16 * n), DriverGPA: m.Alloc(4), DeviceGPA: m.Alloc(4),
		counts: make([]uint16, n),
	}
	for i := range size {
		p.ids = append(p.ids, size-1-i)
	}
	var err error
	if p.Ring, err = m.OrderedSlice(p.RingGPA, 16*n); err != nil {
		return nil, err
	}
	if p.Driver, err = m.OrderedSlice(p.DriverGPA, 4); err != nil {
		return nil, err
	}
	p.Device, err = m.OrderedSlice(p.DeviceGPA, 4)
	return p, err
}

func (p *Packed) config(c *virtq.Config) {
	c.Desc, c.Avail, c.Used = p.RingGPA, p.DriverGPA, p.DeviceGPA
}

// SetDesc writes descriptor i, its flags last. Flags must hold the wrap
// counter's bits: see Available.
func (p *Packed) SetDesc(i int, d Desc, id uint16) {
	b := p.Ring[16*i:]
	binary.LittleEndian.PutUint64(b, uint64(d.Addr))
	binary.LittleEndian.PutUint32(b[8:], d.Len)
	binary.LittleEndian.PutUint16(b[12:], id)
	p.Ring.StoreUint16(uint64(16*i+14), d.Flags)
}

// Available is the flag bits of an available descriptor, by wrap counter (§2.8.1).
func Available(wrap bool) uint16 {
	if wrap {
		return DescAvail
	}
	return DescUsed
}

// SetDriverEvent writes the driver event suppression structure (§2.8.10).
func (p *Packed) SetDriverEvent(desc, flags uint16) {
	p.Driver.StoreUint16(0, desc)
	p.Driver.StoreUint16(2, flags)
}

// DeviceEvent reads the device event suppression structure.
func (p *Packed) DeviceEvent() (desc, flags uint16) {
	flags = p.Device.LoadUint16(2)
	return p.Device.LoadUint16(0), flags
}

func (p *Packed) room(n int) bool { return p.left >= n }

// table writes an indirect table (§2.8.7): no NEXT, no IDs.
func (p *Packed) table(b []byte, chain []Desc) {
	for i, d := range chain {
		e := b[16*i : 16*i+16]
		binary.LittleEndian.PutUint64(e, uint64(d.Addr))
		binary.LittleEndian.PutUint32(e[8:], d.Len)
		binary.LittleEndian.PutUint16(e[12:], 0)
		binary.LittleEndian.PutUint16(e[14:], d.Flags)
	}
}

// add makes a chain available, its first descriptor last (§2.8.21).
func (p *Packed) add(chain []Desc) uint16 {
	id := p.ids[len(p.ids)-1]
	p.ids = p.ids[:len(p.ids)-1]
	for i := len(chain) - 1; i >= 0; i-- {
		d, at := chain[i], p.next+mark(i)
		d.Flags |= Available(p.wrap(at))
		if i+1 < len(chain) {
			d.Flags |= DescNext
		}
		p.SetDesc(p.index(at), d, id)
	}
	p.counts[id] = uint16(len(chain))
	p.left -= len(chain)
	p.next += mark(len(chain))
	return id
}

func (p *Packed) kickNeeded() bool {
	mem.Fence()
	old := p.kicked
	p.kicked = p.next
	desc, flags := p.DeviceEvent()
	switch {
	case flags == 2 && p.eventIdx:
		for m := old; m < p.next; m++ {
			if p.event(m) == desc {
				return true
			}
		}
		return false
	default:
		return flags != 1
	}
}

func (p *Packed) kickWanted() bool {
	desc, flags := p.DeviceEvent()
	return flags == 0 || (flags == 2 && desc == p.event(p.next))
}

func (p *Packed) take() (id uint16, written uint32, ok bool) {
	at := 16 * p.index(p.used)
	flags := p.Ring.LoadUint16(uint64(at + 14))
	if w := p.wrap(p.used); (flags&DescAvail != 0) != w || (flags&DescUsed != 0) != w {
		return 0, 0, false
	}
	written = binary.LittleEndian.Uint32(p.Ring[at+8:])
	id = binary.LittleEndian.Uint16(p.Ring[at+12:])
	if int(id) < len(p.counts) && p.counts[id] > 0 {
		p.used += mark(p.counts[id])
		p.left += int(p.counts[id])
		p.counts[id] = 0
		p.ids = append(p.ids, id)
	}
	return id, written, true
}

func (p *Packed) interrupts(on bool) {
	switch {
	case !on:
		p.Driver.StoreUint16(2, 1)
	case p.eventIdx:
		p.SetDriverEvent(p.event(p.used), 2)
	default:
		p.Driver.StoreUint16(2, 0)
	}
	mem.Fence()
}
