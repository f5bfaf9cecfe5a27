package virtq

import (
	"encoding/binary"
	"fmt"

	"github.com/gvmspawn/gvmspawn/vmm/mem"
)

// Packed virtqueue layout (virtio 1.2 §2.8).
const (
	packedLen   = 8 // le64 addr, le32 len, le16 id, le16 flags
	packedID    = 12
	packedFlags = 14

	packedAvail = 1 << 7  // VIRTQ_DESC_F_AVAIL
	packedUsed  = 1 << 15 // VIRTQ_DESC_F_USED

	eventDesc  = 0 // le16 desc_event_off:15, desc_event_wrap:1; le16 flags
	eventFlags = 2
	eventSize  = 4
	eventWrap  = 1 << 15

	eventEnable  = 0 // RING_EVENT_FLAGS_ENABLE
	eventDisable = 1 // RING_EVENT_FLAGS_DISABLE
	eventAtDesc  = 2 // RING_EVENT_FLAGS_DESC
)

// position is a place in the descriptor ring together with the wrap counter,
// which is 1 in the first round (§2.8.1).
type position struct {
	i    uint16
	wrap bool
}

// advance moves the position n descriptors on, n at most size.
func (p *position) advance(n, size uint16) {
	if p.i += n; p.i >= size { // no overflow: both are at most 2^15
		p.i -= size
		p.wrap = !p.wrap
	}
}

// event is the position in the form of the event suppression structures.
func (p position) event() uint16 {
	if p.wrap {
		return p.i | eventWrap
	}
	return p.i
}

// packed is the packed ring.
type packed struct {
	mem      *mem.Memory
	size     uint16
	eventIdx bool
	indirect bool

	desc   mem.Ordered
	driver mem.Ordered // driver event suppression
	device mem.Ordered // device event suppression
	gpa    mem.GPA     // of desc
	devGPA mem.GPA     // of device

	avail  position // next descriptor to take
	used   position // next descriptor to write
	flight uint32   // descriptors between used and avail
	told   position // used at the last interruptWanted
	fresh  uint32   // descriptors written since, at most 2*size

	// The first element that put wrote since the last publish, if staged.
	staged     bool
	firstAt    uint64 // offset in desc
	firstFlags uint16
}

func newPacked(cfg *Config) (*packed, error) {
	// §2.8.10.1, table of §2.6: 16, 4 and 4 bytes.
	if cfg.Desc%16 != 0 || cfg.Avail%4 != 0 || cfg.Used%4 != 0 {
		return nil, fmt.Errorf("%w: misaligned rings %#x %#x %#x", ErrRing, cfg.Desc, cfg.Avail, cfg.Used)
	}
	p := &packed{
		mem: cfg.Mem, size: cfg.Size, eventIdx: cfg.EventIdx, indirect: cfg.Indirect,
		gpa: cfg.Desc, devGPA: cfg.Used,
		avail: position{wrap: true}, used: position{wrap: true}, told: position{wrap: true},
	}
	var err error
	if p.desc, err = cfg.Mem.OrderedSlice(cfg.Desc, uint64(cfg.Size)*descSize); err != nil {
		return nil, fmt.Errorf("%w: descriptor ring at %#x: %w", ErrRing, cfg.Desc, err)
	}
	if p.driver, err = cfg.Mem.OrderedSlice(cfg.Avail, eventSize); err != nil {
		return nil, fmt.Errorf("%w: driver event suppression at %#x: %w", ErrRing, cfg.Avail, err)
	}
	if p.device, err = cfg.Mem.OrderedSlice(cfg.Used, eventSize); err != nil {
		return nil, fmt.Errorf("%w: device event suppression at %#x: %w", ErrRing, cfg.Used, err)
	}
	return p, nil
}

// head loads the flags of the next descriptor and reports whether it is
// available (§2.8.1). The acquire load orders the driver's other writes to the
// chain, which it makes before these flags (§2.8.21.2), before our reads.
func (p *packed) head() (flags uint16, ok bool) {
	flags = p.desc.LoadUint16(uint64(p.avail.i)*descSize + packedFlags)
	return flags, (flags&packedAvail != 0) == p.avail.wrap && (flags&packedUsed != 0) != p.avail.wrap
}

func (p *packed) available() (bool, error) {
	_, ok := p.head()
	return ok, nil
}

func (p *packed) pop(c *Chain) (bool, error) {
	flags, ok := p.head()
	if !ok {
		return false, nil
	}
	if err := p.walk(c, flags); err != nil {
		return false, err
	}
	// A descriptor belongs to the device until it is used (§2.8.1). A driver
	// that makes it available again meanwhile would have us hold any number.
	if p.flight += uint32(c.count); p.flight > uint32(p.size) {
		return false, fmt.Errorf("%w: more descriptors in flight than the %d of the queue", ErrRing, p.size)
	}
	p.avail.advance(c.count, p.size)
	return true, nil
}

// walk follows the chain that begins at p.avail. Its descriptors are
// neighbours in the ring; the last one holds the buffer ID (§2.8.6).
func (p *packed) walk(c *Chain, flags uint16) error {
	at := p.avail
	for c.count = 1; ; c.count++ {
		b := p.desc[int(at.i)*descSize : int(at.i+1)*descSize]
		d := desc{
			addr:  mem.GPA(binary.LittleEndian.Uint64(b)),
			len:   binary.LittleEndian.Uint32(b[packedLen:]),
			flags: flags,
		}
		c.id = binary.LittleEndian.Uint16(b[packedID:])
		if err := p.add(c, d); err != nil {
			return err
		}
		if flags&descFNext == 0 {
			return nil
		}
		if c.count == p.size {
			return fmt.Errorf("%w: chain without end", ErrRing)
		}
		at.advance(1, p.size)
		flags = p.desc.LoadUint16(uint64(at.i)*descSize + packedFlags)
	}
}

// add appends what a descriptor of the ring refers to: a buffer or a table.
func (p *packed) add(c *Chain, d desc) error {
	if d.flags&descFIndirect == 0 {
		return c.add(p.mem, d)
	}
	// §2.8.7, §2.8.19: only when negotiated, not together with NEXT.
	if !p.indirect || d.flags&descFNext != 0 {
		return fmt.Errorf("%w: indirect descriptor where none is allowed", ErrRing)
	}
	if d.len == 0 || d.len%descSize != 0 || d.len/descSize > uint32(max(maxChain, int(p.size))) {
		return fmt.Errorf("%w: indirect table of %d bytes", ErrRing, d.len)
	}
	t, err := p.mem.Slice(d.addr, uint64(d.len))
	if err != nil {
		return fmt.Errorf("%w: indirect table at %#x: %w", ErrRing, d.addr, err)
	}
	for ; len(t) > 0; t = t[descSize:] {
		e := desc{
			addr: mem.GPA(binary.LittleEndian.Uint64(t)),
			len:  binary.LittleEndian.Uint32(t[packedLen:]),
			// §2.8.7: WRITE is the only flag there; all others are ignored.
			flags: binary.LittleEndian.Uint16(t[packedFlags:]) & descFWrite,
		}
		if err := c.add(p.mem, e); err != nil {
			return err
		}
	}
	return nil
}

func (p *packed) put(id, count uint16, written uint32) {
	at := uint64(p.used.i) * descSize
	binary.LittleEndian.PutUint32(p.desc[at+packedLen:], written)
	binary.LittleEndian.PutUint16(p.desc[at+packedID:], id)
	flags := uint16(0)
	if p.used.wrap {
		flags = packedAvail | packedUsed
	}
	if written > 0 {
		flags |= descFWrite // §2.8.4: the element's length means something
	}
	// The driver looks at the elements in order, so the first one's flags
	// hide all others until publish.
	if p.staged {
		p.desc.StoreUint16(at+packedFlags, flags)
	} else {
		p.staged, p.firstAt, p.firstFlags = true, at, flags
	}
	p.mem.MarkWritten(p.gpa+mem.GPA(at)+packedLen, descSize-packedLen)
	p.used.advance(count, p.size)
	p.flight -= uint32(count)
	p.fresh = min(p.fresh+uint32(count), 2*uint32(p.size))
}

func (p *packed) publish() {
	// The release store orders the elements, and the data before them, before
	// the flags.
	p.desc.StoreUint16(p.firstAt+packedFlags, p.firstFlags)
	p.mem.MarkWritten(p.gpa+mem.GPA(p.firstAt)+packedFlags, 2)
	p.staged = false
}

func (p *packed) interruptWanted() bool {
	if p.fresh == 0 {
		return false
	}
	old, fresh := p.told, p.fresh
	p.told, p.fresh = p.used, 0
	// §2.8.14: publish the flags before reading the driver's wish.
	mem.Fence()
	flags := p.driver.LoadUint16(eventFlags)
	if flags != eventAtDesc || !p.eventIdx {
		return flags != eventDisable
	}
	return p.passed(old, fresh, p.driver.LoadUint16(eventDesc))
}

// passed reports whether the event position is among the n after from. Both
// rounds of the wrap counter make a circle of 2*size positions.
func (p *packed) passed(from position, n uint32, event uint16) bool {
	round := 2 * uint32(p.size)
	place := func(i uint16, wrap bool) uint32 {
		if wrap {
			return uint32(i)
		}
		return uint32(i) + uint32(p.size)
	}
	at := place(event&^eventWrap, event&eventWrap != 0) % round // hostile offsets land somewhere
	return (at+round-place(from.i, from.wrap))%round < n
}

func (p *packed) enableKicks() {
	if p.eventIdx {
		p.device.StoreUint16(eventDesc, p.avail.event())
		p.device.StoreUint16(eventFlags, eventAtDesc)
	} else {
		p.device.StoreUint16(eventFlags, eventEnable)
	}
	p.mem.MarkWritten(p.devGPA, eventSize)
	// Publish the wish before looking at the descriptors again.
	mem.Fence()
}

func (p *packed) disableKicks() {
	p.device.StoreUint16(eventFlags, eventDisable)
	p.mem.MarkWritten(p.devGPA, eventSize)
}
