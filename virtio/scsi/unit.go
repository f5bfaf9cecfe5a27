package scsi

import (
	"encoding/binary"
	"math/bits"
	"sync/atomic"

	"github.com/gvmspawn/gvmspawn/vmm/disk"
)

// unit is a logical unit.
type unit struct {
	drive  *disk.Drive
	image  disk.Image
	cd     bool
	serial string
	id     [16]byte
	shift  uint // log2 of the block size

	// attention is a unit attention condition that no command has reported yet
	// (SAM-5 §5.14).
	attention  atomic.Bool
	writeCache atomic.Bool
}

func newUnit(t Target) *unit {
	u := &unit{drive: t.Drive, image: t.Drive.Image(), cd: t.CD, serial: t.Serial, id: t.ID, shift: 9}
	switch {
	case u.cd:
		u.shift = 11
	case u.image.Geometry().BlockSize == 4096:
		u.shift = 12
	}
	return u
}

// clear brings the unit into its power-on state.
func (u *unit) clear() {
	u.attention.Store(true)
	u.writeCache.Store(true)
}

func (u *unit) blocks() uint64 { return u.image.Size() >> u.shift }
func (u *unit) readOnly() bool { return u.cd || u.image.ReadOnly() }
func (u *unit) discards() bool { return !u.cd && u.drive.Discards() }

// command decodes the CDB. It returns sense for an answer now, or later for a
// request that the disk carries out.
func (r *request) command() (s sense, later bool) {
	op := r.cdb[0]
	switch {
	case op == opReportLUNs:
		return r.reportLUNs(), false
	case op == opInquiry:
		return r.inquiry(), false
	case op == opRequestSense:
		return r.requestSense(), false
	case r.unit == nil:
		return senseNoUnit, false
	case r.unit.attention.Load() && r.unit.attention.Swap(false):
		return sensePowerOn, false
	}
	if s, later, ok := r.transfer(op); ok {
		return s, later && s == senseNone
	}
	switch op {
	case opTestUnitReady, opPreventAllow:
		return senseNone, false
	case opStartStop:
		return r.startStop(), false
	case opModeSense6, opModeSense10:
		return r.modeSense(), false
	case opReadCapacity10:
		return r.readCapacity10(), false
	case opServiceActionIn:
		if r.cdb[1]&31 == saReadCapacity16 {
			return r.readCapacity16(), false
		}
		return senseField, false
	}
	if r.unit.cd {
		return r.discCommand(op), false
	}
	return r.diskCommand(op)
}

// transfer decodes what moves blocks, flushes or verifies; ok says that it is
// such a command.
func (r *request) transfer(op uint8) (s sense, later, ok bool) {
	switch op {
	case opRead6, opRead10, opRead12, opRead16:
		r.Op = disk.OpRead
		return r.blocks(false), r.N > 0, true
	case opWrite6, opWrite10, opWrite12, opWrite16:
		r.Op = disk.OpWrite
		return r.blocks(true), r.N > 0, true
	case opSyncCache10, opSyncCache16:
		// SBC-3 §5.22: the range is a hint.
		_, _, s := r.extent()
		r.Op = disk.OpFlush
		return s, true, true
	case opVerify10, opVerify16:
		_, _, s := r.extent()
		if r.cdb[1]&6 != 0 {
			s = senseField // BYTCHK: there is no comparison
		}
		return s, false, true
	}
	return senseNone, false, false
}

// address decodes the block address and count of a CDB by its group (SPC-4 §4.3).
func (r *request) address() (lba, n uint64) {
	be, c := binary.BigEndian, &r.cdb
	switch c[0] >> 5 {
	case 0:
		n = uint64(c[4])
		if n == 0 {
			n = 256
		}
		return uint64(c[1]&0x1f)<<16 | uint64(be.Uint16(c[2:])), n
	case 4:
		return be.Uint64(c[2:]), uint64(be.Uint32(c[10:]))
	case 5:
		return uint64(be.Uint32(c[2:])), uint64(be.Uint32(c[6:]))
	}
	return uint64(be.Uint32(c[2:])), uint64(be.Uint16(c[7:]))
}

// extent is address, checked against the unit.
func (r *request) extent() (lba, n uint64, s sense) {
	lba, n = r.address()
	if capacity := r.unit.blocks(); lba > capacity || n > capacity-lba {
		return 0, 0, senseLBARange
	}
	return lba, n, senseNone
}

// blocks is a read or a write (SBC-3 §5.8 to §5.11, §5.32 to §5.35).
func (r *request) blocks(write bool) sense {
	u := r.unit
	lba, n, s := r.extent()
	if s != senseNone {
		return s
	}
	if write && u.readOnly() {
		return senseWriteProtected
	}
	const protect, fua = 0xe0, 1 << 3
	if r.cdb[0]>>5 != 0 && r.cdb[1]&protect != 0 {
		return senseField // there is no protection information
	}
	r.Off = lba << u.shift
	r.Through = write && (!u.writeCache.Load() || (r.cdb[0]>>5 != 0 && r.cdb[1]&fua != 0))
	return r.data(write, n<<u.shift)
}

// diskCommand decodes what only disks have.
func (r *request) diskCommand(op uint8) (s sense, later bool) {
	switch op {
	case opModeSelect6, opModeSelect10:
		return r.modeSelect()
	case opUnmap:
		s = r.unmap()
	case opWriteSame10, opWriteSame16:
		s = r.writeSame()
	default:
		return senseOpcode, false
	}
	return s, s == senseNone && len(r.Ranges) > 0
}

const (
	// maxUnmap is how many descriptors UNMAP takes, and maxUnmapBlocks and
	// maxSameBlocks how many blocks it and WRITE SAME take (SBC-3 §6.5.3).
	maxUnmap       = 64
	maxUnmapBlocks = 1 << 22
	maxSameBlocks  = 1 << 22
	unmapHeader    = 8
	unmapSize      = 16
)

// unmap is UNMAP (SBC-3 §5.28). All descriptors are checked before the first
// is carried out.
func (r *request) unmap() sense {
	u := r.unit
	switch {
	case !u.discards():
		return senseOpcode
	case r.cdb[1]&1 != 0:
		return senseField // ANCHOR
	}
	be := binary.BigEndian
	var b [unmapHeader + maxUnmap*unmapSize]byte
	n := uint64(be.Uint16(r.cdb[7:]))
	if n == 0 {
		return senseNone
	}
	p, s := r.list(b[:], n)
	switch {
	case s != senseNone:
		return s
	case len(p) < unmapHeader:
		return senseListLength
	}
	want := int(be.Uint16(p[2:])) / unmapSize * unmapSize
	if p = p[unmapHeader:]; want > maxUnmap*unmapSize {
		return senseList
	}
	r.Op, r.Ranges, r.Through = disk.OpDiscard, r.ranges[:0], false
	total := uint64(0)
	for p = p[:min(want, len(p)/unmapSize*unmapSize)]; len(p) > 0; p = p[unmapSize:] {
		lba, k := be.Uint64(p), uint64(be.Uint32(p[8:]))
		if capacity := u.blocks(); lba > capacity || k > capacity-lba {
			return senseLBARange
		}
		if total += k; total > maxUnmapBlocks {
			return senseList
		}
		r.Ranges = append(r.Ranges, disk.Range{Off: lba << u.shift, N: k << u.shift})
	}
	if u.readOnly() {
		return senseWriteProtected
	}
	return senseNone
}

// writeSame is WRITE SAME of zeroes (SBC-3 §5.41, §5.42); other patterns are refused.
func (r *request) writeSame() sense {
	u := r.unit
	const unmap, noData, anchor = 1 << 3, 1 << 0, 1 << 4
	lba, n, s := r.extent()
	switch {
	case s != senseNone:
		return s
	case n == 0 || n > maxSameBlocks || r.cdb[1]&(anchor|0xe0) != 0:
		return senseField // WSNZ of the block limits, and what is not supported
	case u.readOnly():
		return senseWriteProtected
	}
	if r.cdb[0] == opWriteSame10 || r.cdb[1]&noData == 0 {
		var b [4096]byte
		p, s := r.list(b[:], 1<<u.shift)
		if s != senseNone {
			return s
		}
		for _, v := range p {
			if v != 0 {
				return senseList
			}
		}
	}
	r.Op, r.Through = disk.OpWriteZeroes, !u.writeCache.Load()
	r.Ranges = append(r.ranges[:0], disk.Range{Off: lba << u.shift, N: n << u.shift, Unmap: r.cdb[1]&unmap != 0})
	return senseNone
}

// readCapacity10 is READ CAPACITY (10) (SBC-3 §5.15).
func (r *request) readCapacity10() sense {
	var b [8]byte
	last := min(max(r.unit.blocks(), 1)-1, 0xffff_ffff)
	binary.BigEndian.PutUint32(b[:], uint32(last))
	binary.BigEndian.PutUint32(b[4:], 1<<r.unit.shift)
	return r.reply(b[:], 8)
}

// readCapacity16 is READ CAPACITY (16) (SBC-3 §5.16).
func (r *request) readCapacity16() sense {
	u := r.unit
	var b [32]byte
	binary.BigEndian.PutUint64(b[:], max(u.blocks(), 1)-1)
	binary.BigEndian.PutUint32(b[8:], 1<<u.shift)
	b[13] = uint8(bits.Len32(u.image.Geometry().PhysicalBlock>>u.shift|1) - 1) // physical blocks
	if u.discards() {
		b[14] = 1 << 7 // LBPME
	}
	return r.reply(b[:], uint64(binary.BigEndian.Uint32(r.cdb[10:])))
}

// startStop is START STOP UNIT (SBC-3 §5.20). The medium stays where it is.
func (r *request) startStop() sense {
	const loadEject, start = 1 << 1, 1 << 0
	if r.cdb[4]&(loadEject|start) == loadEject {
		return senseRemoval
	}
	return senseNone
}
