package scsi

import "encoding/binary"

// peripheral is the first byte of INQUIRY data: what the unit is, or that
// there is none at this number (SPC-4 §6.6.2).
func (r *request) peripheral() byte {
	switch {
	case r.unit == nil:
		return 0x7f
	case r.unit.cd:
		return typeCD
	}
	return typeDisk
}

// Vital product data pages (SPC-4 §7.8, SBC-3 §6.5).
const (
	vpdSupported       = 0x00
	vpdSerial          = 0x80
	vpdIdentification  = 0x83
	vpdLimits          = 0xb0
	vpdCharacteristics = 0xb1
	vpdProvisioning    = 0xb2
)

const (
	vendor      = "gvmspawn"
	productDisk = "virtual disk"
	productCD   = "virtual CD-ROM"
)

func (u *unit) product() string {
	if u != nil && u.cd {
		return productCD
	}
	return productDisk
}

// pad copies an ASCII field, which is filled up with spaces.
func pad(b []byte, s string) {
	for i := copy(b, s); i < len(b); i++ {
		b[i] = ' '
	}
}

// inquiry is INQUIRY (SPC-4 §6.6).
func (r *request) inquiry() sense {
	limit := uint64(binary.BigEndian.Uint16(r.cdb[3:]))
	if r.cdb[1]&1 != 0 {
		return r.vital(limit)
	}
	if r.cdb[2] != 0 {
		return senseField
	}
	var b [36]byte
	b[0] = r.peripheral()
	if r.unit != nil && r.unit.cd {
		b[1] = 1 << 7 // removable
	}
	b[2] = 6        // SPC-4
	b[3] = 2 | 1<<4 // response data format, hierarchical LUNs
	b[4] = 36 - 5   // additional length
	b[7] = 1 << 1   // command queuing
	pad(b[8:16], vendor)
	pad(b[16:32], r.unit.product())
	pad(b[32:36], "1")
	return r.reply(b[:], limit)
}

// vital is INQUIRY of a vital product data page.
func (r *request) vital(limit uint64) sense {
	u := r.unit
	if u == nil {
		return senseField
	}
	var b [96]byte
	b[0], b[1] = r.peripheral(), r.cdb[2]
	n := 0
	switch page := r.cdb[2]; {
	case page == vpdSupported:
		n = copy(b[4:], []byte{vpdSupported, vpdSerial, vpdIdentification})
		if !u.cd {
			n += copy(b[4+n:], []byte{vpdLimits, vpdCharacteristics, vpdProvisioning})
		}
	case page == vpdSerial:
		n = copy(b[4:], u.serial)
	case page == vpdIdentification:
		n = u.identification(b[4:])
	case page == vpdLimits && !u.cd:
		n = u.limits(b[4:])
	case page == vpdCharacteristics && !u.cd:
		n = 60
		binary.BigEndian.PutUint16(b[4:], 1) // a medium that does not rotate
	case page == vpdProvisioning && !u.cd:
		n = 4
		if u.discards() {
			b[5] = 1<<7 | 1<<6 | 1<<5 // UNMAP, WRITE SAME (16) and (10) with UNMAP
			b[6] = 2                  // thin provisioned
		}
	default:
		return senseField
	}
	binary.BigEndian.PutUint16(b[2:], uint16(n))
	return r.reply(b[:4+n], limit)
}

// identification fills designation descriptors in (SPC-4 §7.8.6): one by vendor
// and serial number, one by locally assigned NAA.
func (u *unit) identification(b []byte) int {
	const ascii, binaryCode, t10, naa = 2, 1, 1, 3
	n := 4
	n += copy(b[n:], vendor)
	n += copy(b[n:], u.serial)
	b[0], b[1], b[3] = ascii, t10, byte(n-4)
	d := b[n : n+12]
	d[0], d[1], d[3] = binaryCode, naa, 8
	copy(d[4:], u.id[:8])
	d[4] = d[4]&0xf | 3<<4 // NAA 3h: locally assigned
	return n + len(d)
}

// limits fills the Block Limits page in (SBC-3 §6.5.3).
func (u *unit) limits(b []byte) int {
	be := binary.BigEndian
	g := u.image.Geometry()
	b[0] = 1 // WSNZ
	be.PutUint16(b[2:], uint16(max(g.PhysicalBlock>>u.shift, 1)))
	be.PutUint32(b[4:], maxSectors<<9>>u.shift)
	if u.discards() {
		be.PutUint32(b[16:], maxUnmapBlocks)
		be.PutUint32(b[20:], maxUnmap)
		be.PutUint32(b[24:], max(g.Cluster>>u.shift, 1))
	}
	be.PutUint64(b[32:], maxSameBlocks)
	return 60
}

// reportLUNs is REPORT LUNS (SPC-4 §6.33): there is logical unit 0.
func (r *request) reportLUNs() sense {
	var b [16]byte
	if r.cdb[2] > 2 {
		return senseField
	}
	if r.cdb[2] != 1 { // well known logical units only: none
		b[3] = 8
	}
	return r.reply(b[:8+b[3]], uint64(binary.BigEndian.Uint32(r.cdb[6:])))
}

// requestSense is REQUEST SENSE (SPC-4 §6.39): sense of other commands went
// with their answers, so that only a unit attention can be pending.
func (r *request) requestSense() sense {
	s := senseNone
	switch {
	case r.cdb[1]&1 != 0:
		return senseField // descriptor format
	case r.unit == nil:
		s = senseNoUnit
	case r.unit.attention.Swap(false):
		s = sensePowerOn
	}
	b := s.bytes()
	return r.reply(b[:], uint64(r.cdb[4]))
}
