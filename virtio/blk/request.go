package blk

import (
	"encoding/binary"
	"errors"

	"github.com/gvmspawn/gvmspawn/virtio/virtq"
)

// errUnsupported becomes VIRTIO_BLK_S_UNSUPP.
var errUnsupported = errors.New("unsupported request")

// errInvalid becomes VIRTIO_BLK_S_IOERR without a log line: the driver made it.
var errInvalid = errors.New("invalid request")

// parse reads the header, once, and gathers the data buffers. If the request
// can be answered without the image, valid is false.
func (r *request) parse() (status byte, valid bool) {
	var h [headerSize]byte
	c := &r.chain
	r.bufs, r.n = r.bufs[:0], 0
	if c.WritableLen == 0 || c.ReadAt(h[:], 0) < headerSize {
		return VIRTIO_BLK_S_IOERR, false
	}
	r.typ = binary.LittleEndian.Uint32(h[0:])
	sector := binary.LittleEndian.Uint64(h[8:])
	switch r.typ {
	case VIRTIO_BLK_T_IN:
		r.gather(c.Writable, 0, c.WritableLen-1)
	case VIRTIO_BLK_T_OUT:
		r.gather(c.Readable, headerSize, c.ReadableLen-headerSize)
		if !r.w.writable {
			// §5.2.6.2: a write to a read-only device fails.
			return VIRTIO_BLK_S_IOERR, false
		}
	case VIRTIO_BLK_T_GET_ID:
		r.chain.WriteAt(r.w.dev.id[:min(idSize, c.WritableLen-1)], 0)
		return VIRTIO_BLK_S_OK, false
	case VIRTIO_BLK_T_FLUSH:
		return VIRTIO_BLK_S_OK, true
	case VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES:
		return r.parseRanges()
	default:
		return VIRTIO_BLK_S_UNSUPP, false
	}
	return r.bound(sector)
}

// bound checks the request against the disk (§5.2.6.1: data is whole sectors;
// §5.2.6.2: a request beyond capacity fails).
func (r *request) bound(sector uint64) (status byte, valid bool) {
	capacity := r.w.dev.cfg.Image.Size() >> sectorShift
	n := r.n >> sectorShift
	if r.n%SectorSize != 0 || sector > capacity || n > capacity-sector {
		return VIRTIO_BLK_S_IOERR, false
	}
	r.off = sector << sectorShift
	if r.n == 0 {
		return VIRTIO_BLK_S_OK, false
	}
	return VIRTIO_BLK_S_OK, true
}

// gather collects n bytes of the buffers, from byte off on.
func (r *request) gather(bufs []virtq.Buffer, off, n uint64) {
	r.n = n
	for _, b := range bufs {
		p := b.Bytes
		k := min(off, uint64(len(p)))
		off -= k
		p = p[k:]
		p = p[:min(uint64(len(p)), n)]
		n -= uint64(len(p))
		if len(p) > 0 {
			r.bufs = append(r.bufs, p)
		}
	}
}

// parseRanges checks the amount of ranges of DISCARD and WRITE_ZEROES.
func (r *request) parseRanges() (status byte, valid bool) {
	d := r.w.dev
	if r.typ == VIRTIO_BLK_T_DISCARD && !d.cfg.Discard {
		return VIRTIO_BLK_S_UNSUPP, false
	}
	n := r.chain.ReadableLen - headerSize
	if !r.w.writable || n == 0 || n%rangeSize != 0 || n/rangeSize > maxRanges {
		return VIRTIO_BLK_S_IOERR, false
	}
	r.n = 0
	return VIRTIO_BLK_S_OK, true
}

// execute carries the request out, waiting as long as it takes.
func (r *request) execute() error {
	d := r.w.dev
	img := d.cfg.Image
	switch r.typ {
	case VIRTIO_BLK_T_IN:
		return img.ReadAt(r.bufs, r.off)
	case VIRTIO_BLK_T_OUT:
		return r.through(img.WriteAt(r.bufs, r.off))
	case VIRTIO_BLK_T_FLUSH:
		return d.flush()
	default:
		return r.through(r.ranges(img))
	}
}

// through flushes a write in write-through mode (§5.2.6.2).
func (r *request) through(err error) error {
	if err == nil && !r.w.dev.writeback.Load() {
		return r.w.dev.flush()
	}
	return err
}

// flush makes all completed writes durable, unless that is not wanted.
func (d *Device) flush() error {
	if d.cfg.NoFlush {
		return nil
	}
	return d.cfg.Image.Flush()
}

// ranges carries out DISCARD and WRITE_ZEROES. All ranges are copied and
// checked before the first is touched.
func (r *request) ranges(img Image) error {
	var b [maxRanges * rangeSize]byte
	p := b[:r.chain.ReadAt(b[:], headerSize)]
	capacity := img.Size() >> sectorShift
	for s := p; len(s) > 0; s = s[rangeSize:] {
		sector, n, flags := parseRange(s)
		// §5.2.6.2: unknown flags, and unmap for a discard, are unsupported.
		if flags&^rangeUnmap != 0 || (r.typ == VIRTIO_BLK_T_DISCARD && flags != 0) {
			return errUnsupported
		}
		if n > maxRangeSectors || sector > capacity || n > capacity-sector {
			return errInvalid
		}
	}
	for s := p; len(s) > 0; s = s[rangeSize:] {
		sector, n, flags := parseRange(s)
		var err error
		switch {
		case n == 0:
		case r.typ == VIRTIO_BLK_T_DISCARD:
			err = img.Discard(sector<<sectorShift, n<<sectorShift)
		default:
			unmap := flags&rangeUnmap != 0 && r.w.dev.cfg.Discard
			err = img.WriteZeroes(sector<<sectorShift, n<<sectorShift, unmap)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func parseRange(b []byte) (sector, n uint64, flags uint32) {
	le := binary.LittleEndian
	return le.Uint64(b), uint64(le.Uint32(b[8:])), le.Uint32(b[12:])
}

// status turns the image's answer into a status byte and logs host errors.
func (r *request) status(err error) byte {
	switch err {
	case nil:
		return VIRTIO_BLK_S_OK
	case errUnsupported:
		return VIRTIO_BLK_S_UNSUPP
	case errInvalid:
		return VIRTIO_BLK_S_IOERR
	}
	r.w.dev.errors.report(r.typ, r.off, err)
	return VIRTIO_BLK_S_IOERR
}

// finish writes the status byte, the last device-writable one (§5.2.6), and
// gives the chain back.
func (r *request) finish(status byte) {
	c := &r.chain
	if c.WritableLen == 0 {
		r.w.q.Push(c, 0) // nowhere to answer
		return
	}
	b := [1]byte{status}
	c.WriteAt(b[:], c.WritableLen-1)
	r.w.q.Push(c, uint32(c.WritableLen))
}
