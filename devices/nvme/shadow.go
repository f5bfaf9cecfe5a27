package nvme

import "github.com/gvmspawn/gvmspawn/vmm/mem"

// shadowDoorbells are the buffers of Doorbell Buffer Config (§5.7, §7.13): the
// host keeps tails and heads in memory, and rings a doorbell only when it
// passes the event index beside it. Entries are as far apart as doorbells.
// Queues have at most 2^16 entries, so the low halves say everything.
type shadowDoorbells struct {
	buffer, event mem.Ordered
	m             *mem.Memory
	eventGPA      mem.GPA
}

func newShadow(m *mem.Memory, buffer, event uint64) (*shadowDoorbells, error) {
	b, err := m.OrderedSlice(mem.GPA(buffer), pageSize)
	if err != nil {
		return nil, err
	}
	e, err := m.OrderedSlice(mem.GPA(event), pageSize)
	return &shadowDoorbells{b, e, m, mem.GPA(event)}, err
}

func (d *shadowDoorbells) load(i uint64) uint32 {
	return uint32(d.buffer.LoadUint16(4*i)) | uint32(d.buffer.LoadUint16(4*i+2))<<16
}

// tail is where the host is in a submission queue, head in a completion queue.
func (d *shadowDoorbells) tail(id uint16) uint32 { return d.load(2 * uint64(id)) }
func (d *shadowDoorbells) head(id uint16) uint32 { return d.load(2*uint64(id) + 1) }

// wait asks for the doorbell when the host moves on from value v.
func (d *shadowDoorbells) wait(i uint64, v uint16) {
	d.event.StoreUint16(4*i, v)
	d.m.MarkWritten(d.eventGPA+mem.GPA(4*i), 4)
	mem.Fence() // the index is visible before the buffer is looked at again
}

func (d *shadowDoorbells) waitForTail(id, v uint16) { d.wait(2*uint64(id), v) }
func (d *shadowDoorbells) waitForHead(id, v uint16) { d.wait(2*uint64(id)+1, v) }
