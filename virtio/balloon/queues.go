package balloon

import (
	"encoding/binary"

	"github.com/gvmspawn/gvmspawn/virtio/virtq"
	"github.com/gvmspawn/gvmspawn/vmm/mem"
)

// pages is a run of page frames that are discarded together.
type pages struct {
	first, n uint64
}

// add puts a page before or behind the run; false means that it does not touch it.
func (r *pages) add(pfn uint64) bool {
	switch {
	case r.n == 0:
		r.first = pfn
	case pfn+1 == r.first:
		r.first = pfn
	case pfn != r.first+r.n:
		return false
	}
	r.n++
	return true
}

// inflate is the worker of the inflateq: arrays of le32 page frame numbers
// that the guest gives up (§5.5.6).
func (d *Device) inflate(q *virtq.Queue) {
	var c virtq.Chain
	for q.Wait() {
		for q.Pop(&c) {
			d.inflateChain(&c)
			q.Push(&c, 0)
		}
		q.Notify()
	}
}

func (d *Device) inflateChain(c *virtq.Chain) {
	var b [1024]byte
	var run pages
	for off := uint64(0); !d.over.Load(); {
		n := c.ReadAt(b[:], off) &^ 3
		if n == 0 {
			break
		}
		off += uint64(n)
		for p := b[:n]; len(p) > 0; p = p[4:] {
			if pfn := uint64(binary.LittleEndian.Uint32(p)); !run.add(pfn) {
				d.discard(run)
				run = pages{pfn, 1}
			}
		}
	}
	d.discard(run)
}

// discard drops pages. If a run is not wholly RAM, its pages go one by one:
// one wrong number must not keep its neighbours.
func (d *Device) discard(r pages) {
	if r.n == 0 || d.cfg.Memory.Discard(mem.GPA(r.first<<pageShift), r.n<<pageShift) == nil || r.n == 1 {
		return
	}
	for i := range r.n {
		if d.over.Load() {
			return
		}
		_ = d.cfg.Memory.Discard(mem.GPA((r.first+i)<<pageShift), 1<<pageShift)
	}
}

// deflate is the worker of the deflateq. The guest may touch the pages as soon
// as it has its buffer back; they come back as zeros when it does.
func (d *Device) deflate(q *virtq.Queue) {
	var c virtq.Chain
	for q.Wait() {
		for q.Pop(&c) {
			q.Push(&c, 0)
		}
		q.Notify()
	}
}

// reports is the worker of the reporting_vq: each device-writable buffer is
// free memory, which stays free until the buffer is given back (§5.5.6.7). keep
// says that it is full of a poison_val other than 0, and "the device MUST NOT modify
// the content of a reported page to a value other than poison_val" (§5.5.6.7.2).
func (d *Device) reports(q *virtq.Queue, keep bool) {
	var c virtq.Chain
	for q.Wait() {
		for q.Pop(&c) {
			for _, b := range c.Writable {
				if d.over.Load() {
					return
				}
				if !keep {
					_ = d.cfg.Memory.Discard(b.GPA, uint64(len(b.Bytes)))
				}
			}
			q.Push(&c, 0)
		}
		q.Notify()
	}
}

// hints is the worker of the free_page_vq: device-readable le32 command IDs
// begin and end a run, device-writable buffers in between are hints (§5.5.6.6).
func (d *Device) hints(q *virtq.Queue) {
	c := virtq.Chain{Untouched: true}
	var id [4]byte
	current := uint32(VIRTIO_BALLOON_CMD_ID_STOP)
	for q.Wait() {
		for q.Pop(&c) {
			before := current
			if c.ReadAt(id[:], 0) == len(id) {
				current = binary.LittleEndian.Uint32(id[:])
			}
			d.hint(&c, before, current)
			q.Push(&c, 0)
		}
		q.Notify()
	}
}

// hint takes what a chain says: the driver's command ID was before and is current.
func (d *Device) hint(c *virtq.Chain, before, current uint32) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.cmdID < cmdFirst {
		return
	}
	if before == d.cmdID && current == VIRTIO_BALLOON_CMD_ID_STOP {
		d.told = d.cmdID
		d.cond.Broadcast()
	}
	// A hint of an old run is worth nothing.
	for _, b := range c.Writable {
		if current == d.cmdID && len(b.Bytes) > 0 && !d.over.Load() {
			d.cfg.Hint(b.GPA, uint64(len(b.Bytes)))
		}
	}
}

// statistics is the worker of the statsq. The device holds the driver's one
// buffer until it wants numbers; giving it back asks for them (§5.5.6.3).
func (d *Device) statistics(q *virtq.Queue) {
	var c virtq.Chain
	asked := false // the chain answers a request
	for q.Wait() {
		if !q.Pop(&c) {
			continue
		}
		s := parseStats(&c)
		d.mu.Lock()
		act := d.act
		if asked {
			d.stats = s
			d.got = d.asked
			d.cond.Broadcast()
		}
		for d.act == act && act != nil && d.asked == d.got {
			q.Away()
			d.cond.Wait()
		}
		active := d.act == act && act != nil
		d.mu.Unlock()
		if !active {
			return
		}
		asked = true
		q.Push(&c, 0)
		q.Notify()
	}
}

// parseStats reads up to numStats entries; unknown tags are skipped.
func parseStats(c *virtq.Chain) Stats {
	s := noStats
	var b [2 * numStats * statSize]byte
	for p := b[:c.ReadAt(b[:], 0)]; len(p) >= statSize; p = p[statSize:] {
		v := int64(min(binary.LittleEndian.Uint64(p[2:]), 1<<63-1))
		switch binary.LittleEndian.Uint16(p) {
		case VIRTIO_BALLOON_S_SWAP_IN:
			s.SwapIn = v
		case VIRTIO_BALLOON_S_SWAP_OUT:
			s.SwapOut = v
		case VIRTIO_BALLOON_S_MAJFLT:
			s.MajorFaults = v
		case VIRTIO_BALLOON_S_MINFLT:
			s.MinorFaults = v
		case VIRTIO_BALLOON_S_MEMFREE:
			s.Free = v
		case VIRTIO_BALLOON_S_MEMTOT:
			s.Total = v
		case VIRTIO_BALLOON_S_AVAIL:
			s.Available = v
		case VIRTIO_BALLOON_S_CACHES:
			s.Caches = v
		case VIRTIO_BALLOON_S_HTLB_GET:
			s.HugePages = v
		case VIRTIO_BALLOON_S_HTLB_ERR:
			s.HugePageFailures = v
		}
	}
	return s
}
