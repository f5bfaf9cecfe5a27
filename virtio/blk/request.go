package blk

import (
	"encoding/binary"

	"github.com/gvmspawn/gvmspawn/virtio/virtq"
	"github.com/gvmspawn/gvmspawn/vmm/disk"
)

// parse reads the header, once, and gathers the data buffers. If the request
// can be answered without the image, valid is false.
func (r *request) parse() (status byte, valid bool) {
	var h [headerSize]byte
	c := &r.chain
	r.Bufs, r.N = r.Bufs[:0], 0
	if c.WritableLen == 0 || c.ReadAt(h[:], 0) < headerSize {
		return VIRTIO_BLK_S_IOERR, false
	}
	typ := binary.LittleEndian.Uint32(h[0:])
	sector := binary.LittleEndian.Uint64(h[8:])
	r.Through = !r.w.dev.writeback.Load()
	switch typ {
	case VIRTIO_BLK_T_IN:
		r.Op = disk.OpRead
		r.data(c.Writable, 0, c.WritableLen-1)
	case VIRTIO_BLK_T_OUT:
		r.Op = disk.OpWrite
		r.data(c.Readable, headerSize, c.ReadableLen-headerSize)
		if !r.w.writable {
			// §5.2.6.2: a write to a read-only device fails.
			return VIRTIO_BLK_S_IOERR, false
		}
	case VIRTIO_BLK_T_GET_ID:
		r.chain.WriteAt(r.w.dev.id[:min(idSize, c.WritableLen-1)], 0)
		return VIRTIO_BLK_S_OK, false
	case VIRTIO_BLK_T_FLUSH:
		r.Op = disk.OpFlush
		return VIRTIO_BLK_S_OK, true
	case VIRTIO_BLK_T_DISCARD:
		r.Op = disk.OpDiscard
		return r.parseRanges()
	case VIRTIO_BLK_T_WRITE_ZEROES:
		r.Op = disk.OpWriteZeroes
		return r.parseRanges()
	default:
		return VIRTIO_BLK_S_UNSUPP, false
	}
	return r.bound(sector)
}

// bound checks the request against the disk (§5.2.6.1: data is whole sectors;
// §5.2.6.2: a request beyond capacity fails).
func (r *request) bound(sector uint64) (status byte, valid bool) {
	capacity := r.w.dev.image.Size() >> sectorShift
	n := r.N >> sectorShift
	if r.N%sectorSize != 0 || sector > capacity || n > capacity-sector {
		return VIRTIO_BLK_S_IOERR, false
	}
	r.Off = sector << sectorShift
	if r.N == 0 {
		return VIRTIO_BLK_S_OK, false
	}
	return VIRTIO_BLK_S_OK, true
}

// data makes n bytes of the buffers, from byte off on, those of the request.
func (r *request) data(bufs []virtq.Buffer, off, n uint64) {
	r.N, r.Bufs = n, virtq.AppendRange(r.Bufs, bufs, off, n)
}

// parseRanges copies the ranges of DISCARD and WRITE_ZEROES and checks all of
// them before the first is touched.
func (r *request) parseRanges() (status byte, valid bool) {
	d := r.w.dev
	discard := r.Op == disk.OpDiscard
	if discard && !d.cfg.Drive.Discards() && r.w.writable {
		return VIRTIO_BLK_S_UNSUPP, false
	}
	n := r.chain.ReadableLen - headerSize
	if !r.w.writable || n == 0 || n%rangeSize != 0 || n/rangeSize > maxRanges {
		return VIRTIO_BLK_S_IOERR, false
	}
	var b [maxRanges * rangeSize]byte
	r.Ranges = r.ranges[:0]
	capacity := d.image.Size() >> sectorShift
	for p := b[:r.chain.ReadAt(b[:], headerSize)]; len(p) > 0; p = p[rangeSize:] {
		sector, n, flags := parseRange(p)
		// §5.2.6.2: unknown flags, and unmap for a discard, are unsupported.
		if flags&^rangeUnmap != 0 || (discard && flags != 0) {
			return VIRTIO_BLK_S_UNSUPP, false
		}
		if n > maxRangeSectors || sector > capacity || n > capacity-sector {
			return VIRTIO_BLK_S_IOERR, false
		}
		r.Ranges = append(r.Ranges, disk.Range{Off: sector << sectorShift, N: n << sectorShift, Unmap: flags&rangeUnmap != 0})
	}
	return VIRTIO_BLK_S_OK, true
}

func parseRange(b []byte) (sector, n uint64, flags uint32) {
	le := binary.LittleEndian
	return le.Uint64(b), uint64(le.Uint32(b[8:])), le.Uint32(b[12:])
}

// done answers a request that the disk has carried out.
func (r *request) done(err error) {
	if err != nil {
		r.finish(VIRTIO_BLK_S_IOERR)
		return
	}
	r.finish(VIRTIO_BLK_S_OK)
}

// finish writes the status byte, the last device-writable one (§5.2.6), and
// gives the chain back.
func (r *request) finish(status byte) {
	c := &r.chain
	n := c.WritableLen
	if n > 0 { // else there is nowhere to answer
		b := [1]byte{status}
		c.WriteAt(b[:], n-1)
	}
	r.w.q.Push(c, uint32(n))
	r.w.free.Put(r)
}
