package scsi

import (
	"encoding/binary"
	"errors"
	"syscall"

	"github.com/gvmspawn/gvmspawn/virtio/virtq"
	"github.com/gvmspawn/gvmspawn/vmm/disk"
)

// request is one command in flight. It returns to its worker's free list when
// it is answered.
type request struct {
	disk.Request
	w      *worker
	chain  virtq.Chain
	age    int // for worker.flight
	unit   *unit
	target int
	cdb    [maxCDB]byte // read once

	// Where data-out and data-in begin in the chain's two parts, and how long
	// they are at most.
	outAt, outLen, inAt, inLen uint64
	moved, read                uint64 // bytes of either, and of data-in, that were transferred
	ranges                     [maxUnmap]disk.Range
}

// start answers the command or starts it on the disk. It returns how many bytes
// have moved already.
func (r *request) start(more bool) uint64 {
	res, ok := r.parse()
	if !ok {
		r.respond(res, statusGood, senseNone)
		return 0
	}
	s, later := r.command()
	if !later {
		r.finish(s)
		return 0
	}
	if n := r.N; r.w.disks[r.target].Start(&r.Request, more) {
		return n
	}
	return 0
}

// parse reads the header, once, and finds the unit.
func (r *request) parse() (response, bool) {
	d := r.w.dev
	c := &r.chain
	cdbSize, sense := uint64(d.cdbSize.Load()), uint64(d.senseSize.Load())
	r.outAt, r.inAt, r.moved, r.read = requestHeader+cdbSize, responseHeader+sense, 0, 0
	r.outLen, r.inLen = 0, 0
	if c.ReadableLen < r.outAt || c.WritableLen < r.inAt {
		return VIRTIO_SCSI_S_FAILURE, false
	}
	r.outLen, r.inLen = c.ReadableLen-r.outAt, c.WritableLen-r.inAt
	// §5.6.6.1.2: "if neither dataout nor datain is empty, and the
	// VIRTIO_SCSI_F_INOUT feature has not been negotiated, the request will be
	// immediately returned with a response equal to VIRTIO_SCSI_S_FAILURE".
	if r.outLen > 0 && r.inLen > 0 {
		return VIRTIO_SCSI_S_FAILURE, false
	}
	var h [requestHeader + maxCDB]byte
	n := requestHeader + int(min(cdbSize, maxCDB))
	c.ReadAt(h[:n], 0)
	r.cdb = [maxCDB]byte(h[requestHeader:])
	var ok bool
	if r.unit, r.target, ok = d.unit([8]byte(h[:8])); !ok {
		return VIRTIO_SCSI_S_BAD_TARGET, false
	}
	r.Bufs, r.N, r.Off, r.Ranges = r.Bufs[:0], 0, 0, nil
	return VIRTIO_SCSI_S_OK, true
}

// senseOverrun says that a command needs more data than the driver gave buffers for.
var senseOverrun = sense{0xff, 0xff, 0xff}

// finish answers a command with sense, or with good status.
func (r *request) finish(s sense) {
	switch s {
	case senseNone:
		r.respond(VIRTIO_SCSI_S_OK, statusGood, s)
	case senseOverrun:
		// §5.6.6.1.2: "the device MUST set response to VIRTIO_SCSI_S_OVERRUN
		// if the content of the CDB […] requires the transfer of more data
		// than is available in the data buffers".
		r.respond(VIRTIO_SCSI_S_OVERRUN, statusGood, senseNone)
	default:
		r.respond(VIRTIO_SCSI_S_OK, statusCheckCondition, s)
	}
}

// respond writes the answer (§5.6.6.1) and gives the chain back.
func (r *request) respond(res response, status byte, s sense) {
	c := &r.chain
	var b [responseHeader + senseSize]byte
	le := binary.LittleEndian
	n := responseHeader
	if s != senseNone {
		data := s.bytes()
		k := min(uint64(copy(b[responseHeader:], data[:])), r.inAt-responseHeader)
		le.PutUint32(b[0:], uint32(k))
		n += int(k)
	}
	le.PutUint32(b[4:], uint32(r.outLen+r.inLen-min(r.moved, r.outLen+r.inLen)))
	b[10], b[11] = status, byte(res)
	c.WriteAt(b[:n], 0)
	r.w.q.Push(c, uint32(min(c.WritableLen, r.inAt+r.read)))
	r.w.end(r)
}

// done answers a command that the disk has carried out.
func (r *request) done(err error) {
	switch {
	case err == nil:
		r.moved += r.N
		if r.Op == disk.OpRead {
			r.read = r.N
		}
		r.finish(senseNone)
	case r.Op == disk.OpRead:
		r.finish(senseReadError)
	case errors.Is(err, syscall.ENOSPC):
		r.finish(senseSpaceAllocation)
	default:
		r.finish(senseWriteError)
	}
}

// data makes n bytes of data-in, or of data-out, the buffers of the request.
func (r *request) data(out bool, n uint64) sense {
	bufs, off, room := r.chain.Writable, r.inAt, r.inLen
	if out {
		bufs, off, room = r.chain.Readable, r.outAt, r.outLen
	}
	if n > room {
		return senseOverrun
	}
	r.N, r.Bufs = n, virtq.AppendRange(r.Bufs, bufs, off, n)
	return senseNone
}

// reply is data-in of a command that asks for up to limit bytes.
func (r *request) reply(b []byte, limit uint64) sense {
	b = b[:min(uint64(len(b)), limit, r.inLen)]
	r.read = uint64(r.chain.WriteAt(b, r.inAt))
	r.moved = r.read
	return senseNone
}

// list copies data-out, a parameter list of n bytes of which at most len(b) matter.
func (r *request) list(b []byte, n uint64) ([]byte, sense) {
	if n > r.outLen {
		return nil, senseOverrun
	}
	r.moved = n
	return b[:r.chain.ReadAt(b[:min(uint64(len(b)), n)], r.outAt)], senseNone
}
