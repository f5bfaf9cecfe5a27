package nvme

import (
	"encoding/binary"

	"github.com/gvmspawn/gvmspawn/vmm/disk"
	"github.com/gvmspawn/gvmspawn/vmm/mem"
)

// command is one command in flight. It returns to its queue's free list when
// its completion is posted.
type command struct {
	disk.Request
	sq     *submissionQueue
	id     uint16
	raw    [1 << sqEntryShift]byte // read once
	result uint32
	status status
	pages  []span       // where Bufs are
	ranges []disk.Range // storage of Ranges
}

// span is a piece of guest memory.
type span struct {
	gpa mem.GPA
	n   uint64
}

// dword is command dword i (§4.2).
func (c *command) dword(i int) uint32 { return binary.LittleEndian.Uint32(c.raw[4*i:]) }
func (c *command) qword(i int) uint64 { return binary.LittleEndian.Uint64(c.raw[4*i:]) }
func (c *command) opcode() uint8      { return c.raw[0] }
func (c *command) nsid() uint32       { return c.dword(1) }

// usesSGL reports whether the command asks for what SGLS does not declare:
// anything but PRPs, or fused operations.
func (c *command) usesSGL() bool { return c.raw[1] != 0 }

// start carries the command out or starts it on the disk. It returns how many
// bytes have moved already.
func (c *command) start(more bool) uint64 {
	s := c.sq
	if s.disk == nil {
		if result, st := s.c.admin(c); st != noStatus {
			s.cq.post(c, result, st)
		}
		return 0
	}
	if st := c.parse(); st != noStatus {
		s.cq.post(c, 0, st)
		return 0
	}
	if n := c.N; s.disk.Start(&c.Request, more) {
		return n
	}
	return 0
}

// done answers a command that the disk has carried out.
func (c *command) done(err error) {
	st := statusOK
	switch {
	case err != nil && c.Op == disk.OpRead:
		st = statusUnrecoveredRead
	case err != nil && c.Op == disk.OpWrite:
		st = statusWriteFault
	case err != nil:
		st = statusInternal
	}
	if c.Op == disk.OpRead {
		for _, p := range c.pages {
			c.sq.c.mem.MarkWritten(p.gpa, p.n)
		}
	}
	c.sq.cq.post(c, 0, st)
}

// parse makes a disk request of an I/O command; noStatus says that it is one.
func (c *command) parse() status {
	ctl := c.sq.c
	if c.usesSGL() {
		return statusInvalidField
	}
	c.Bufs, c.pages, c.N, c.Off, c.Ranges = c.Bufs[:0], c.pages[:0], 0, 0, nil
	c.Through = !ctl.writeCache.Load()
	op := c.opcode()
	if ns := c.nsid(); ns != namespace && (op != nvmFlush || ns != broadcast) {
		return statusInvalidNS
	}
	switch op {
	case nvmFlush:
		c.Op = disk.OpFlush
		return noStatus
	case nvmRead:
		c.Op = disk.OpRead
		return c.transfer()
	case nvmWrite:
		c.Op = disk.OpWrite
		return c.transfer()
	case nvmWriteZeroes:
		c.Op = disk.OpWriteZeroes
		return c.zeroes()
	case nvmDatasetMgmt:
		if ctl.cfg.Drive.Discards() {
			c.Op = disk.OpDiscard
			return c.deallocate()
		}
	}
	return statusInvalidOpcode
}

// blocks checks the range of blocks that dwords 10 to 12 name (§6.9, §6.15,
// §6.16): NLB is one less than the number.
func (c *command) blocks() (off, n uint64, st status) {
	ctl := c.sq.c
	lba, count := c.qword(10), uint64(c.dword(12)&0xffff)+1
	if c.dword(12)&(1<<30) != 0 { // force unit access
		c.Through = true
	}
	capacity := ctl.blocks()
	if lba > capacity || count > capacity-lba {
		return 0, 0, statusLBARange
	}
	if c.Op != disk.OpRead && ctl.image.ReadOnly() {
		return 0, 0, statusWriteProtected
	}
	return lba << ctl.shift, count << ctl.shift, noStatus
}

// blocks is the namespace's size.
func (c *Controller) blocks() uint64 { return c.image.Size() >> c.shift }

// transfer is Read and Write.
func (c *command) transfer() status {
	off, n, st := c.blocks()
	if st != noStatus {
		return st
	}
	if n > maxTransfer {
		return statusInvalidField // §5.15.2.2, MDTS
	}
	c.Off, c.N = off, n
	return c.data(n)
}

// zeroes is Write Zeroes (§6.16).
func (c *command) zeroes() status {
	off, n, st := c.blocks()
	if st != noStatus {
		return st
	}
	const deallocate = 1 << 25
	c.ranges = append(c.ranges[:0], disk.Range{Off: off, N: n, Unmap: c.dword(12)&deallocate != 0})
	c.Ranges = c.ranges
	return noStatus
}

// Dataset Management (§6.7): up to 256 ranges of 16 bytes.
const (
	rangeSize      = 16
	maxRanges      = 256
	dsmDeallocate  = 1 << 2
	rangeBlocksAt  = 4
	rangeAddressAt = 8
)

// deallocate is Dataset Management. Attributes other than Deallocate are hints
// about which we do nothing. All ranges are checked before the first is
// touched, and no more than the whole disk is deallocated by one command.
func (c *command) deallocate() status {
	ctl := c.sq.c
	if c.dword(11)&dsmDeallocate == 0 {
		return statusOK
	}
	if ctl.image.ReadOnly() {
		return statusWriteProtected
	}
	var b [maxRanges * rangeSize]byte
	list := b[:(c.dword(10)&0xff+1)*rangeSize]
	if st := c.data(uint64(len(list))); st != noStatus {
		return st
	}
	for p := list; len(p) > 0; {
		p = p[copy(p, c.Bufs[0]):]
		c.Bufs = c.Bufs[1:]
	}
	c.ranges = c.ranges[:0]
	capacity, left := ctl.blocks(), ctl.blocks()
	for p := list; len(p) > 0; p = p[rangeSize:] {
		n, lba := uint64(binary.LittleEndian.Uint32(p[rangeBlocksAt:])), binary.LittleEndian.Uint64(p[rangeAddressAt:])
		if lba > capacity || n > capacity-lba {
			return statusLBARange
		}
		if n = min(n, left); n > 0 {
			left -= n
			c.ranges = append(c.ranges, disk.Range{Off: lba << ctl.shift, N: n << ctl.shift})
		}
	}
	c.Bufs, c.Ranges = c.Bufs[:0], c.ranges
	return noStatus
}
