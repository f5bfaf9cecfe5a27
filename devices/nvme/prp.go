package nvme

import (
	"encoding/binary"

	"github.com/gvmspawn/gvmspawn/vmm/mem"
)

// data finds the n bytes of guest memory, at most maxTransfer, that the
// command's PRP entries name (§4.3), and puts them into Bufs and pages.
func (c *command) data(n uint64) status {
	const prp1, prp2 = 6, 8 // dwords
	c.Bufs, c.pages = c.Bufs[:0], c.pages[:0]
	first := c.qword(prp1)
	if first&3 != 0 {
		return statusInvalidOffset
	}
	k := min(n, pageSize-first%pageSize)
	run := span{mem.GPA(first), k}
	n -= k
	switch second := c.qword(prp2); {
	case n == 0:
	case n <= pageSize:
		if second%pageSize != 0 {
			return statusInvalidOffset
		}
		if st := c.join(&run, mem.GPA(second), n); st != noStatus {
			return st
		}
	default:
		if st := c.list(&run, second, n); st != noStatus {
			return st
		}
	}
	return c.add(run)
}

// list walks the PRP list at gpa. Its last entry in a page names the next page
// of the list if more than that one is needed.
func (c *command) list(run *span, gpa, n uint64) status {
	if gpa&7 != 0 {
		return statusInvalidOffset
	}
	var b [pageSize]byte // read once
	for {
		pages := (n + pageSize - 1) / pageSize
		room := (pageSize - gpa%pageSize) / 8
		p := b[:8*min(pages, room)]
		if c.sq.c.mem.ReadAt(p, mem.GPA(gpa)) != nil {
			return statusTransferError
		}
		more := pages > room
		for len(p) > 0 && !(more && len(p) == 8) {
			e := binary.LittleEndian.Uint64(p)
			if e%pageSize != 0 {
				return statusInvalidOffset
			}
			k := min(n, pageSize)
			if st := c.join(run, mem.GPA(e), k); st != noStatus {
				return st
			}
			n -= k
			p = p[8:]
		}
		if !more {
			return noStatus
		}
		if gpa = binary.LittleEndian.Uint64(p); gpa%pageSize != 0 {
			return statusInvalidOffset
		}
	}
}

// join appends a page to the run that is being gathered, or begins a new run.
func (c *command) join(run *span, gpa mem.GPA, n uint64) status {
	if gpa == run.gpa+mem.GPA(run.n) && gpa != 0 {
		run.n += n
		return noStatus
	}
	st := c.add(*run)
	*run = span{gpa, n}
	return st
}

// add appends a run of guest memory. Pages that follow each other may still be
// of different regions.
func (c *command) add(run span) status {
	b, err := c.sq.c.mem.DMA(run.gpa, run.n)
	if err == nil {
		c.Bufs, c.pages = append(c.Bufs, b), append(c.pages, run)
		return noStatus
	}
	k := pageSize - uint64(run.gpa)%pageSize
	if run.n <= k {
		return statusTransferError
	}
	if st := c.add(span{run.gpa, k}); st != noStatus {
		return st
	}
	return c.add(span{run.gpa + mem.GPA(k), run.n - k})
}

// answer copies b to the guest, followed by zeroes up to n bytes.
func (c *command) answer(b []byte, n uint64) status {
	if st := c.data(n); st != noStatus {
		return st
	}
	for i, p := range c.Bufs {
		k := copy(p, b)
		clear(p[k:])
		b = b[k:]
		c.sq.c.mem.MarkWritten(c.pages[i].gpa, c.pages[i].n)
	}
	return statusOK
}
