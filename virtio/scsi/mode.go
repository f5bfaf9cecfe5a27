package scsi

import (
	"encoding/binary"

	"github.com/gvmspawn/gvmspawn/vmm/disk"
)

// Mode pages (SPC-4 §7.5, SBC-3 §6.4.5, MMC-6 §7.1).
const (
	pageCaching      = 0x08
	pageControl      = 0x0a
	pageCapabilities = 0x2a // of a CD-ROM drive
	pageAll          = 0x3f

	cachingSize      = 20
	cachingWCE       = 1 << 2
	controlSize      = 12
	capabilitiesSize = 22
)

// modeSense is MODE SENSE (6) and (10) (SPC-4 §6.13, §6.14).
func (r *request) modeSense() sense {
	u := r.unit
	const current, changeable, saved = 0, 1, 3
	const noDescriptor = 1 << 3
	control, page := r.cdb[2]>>6, r.cdb[2]&0x3f
	if control == saved {
		return senseNoSaving
	}
	if r.cdb[3] != 0 && r.cdb[3] != 0xff {
		return senseField // no subpages
	}
	var pages [cachingSize + controlSize + capabilitiesSize]byte
	p, found := pages[:0], page == pageAll
	for _, id := range u.modePages() {
		if page == id || page == pageAll {
			p, found = u.modePage(p, id, control == changeable, control == current), true
		}
	}
	if !found {
		return senseField
	}
	var b [16 + len(pages)]byte
	long := r.cdb[0] == opModeSense10
	n := u.modeHeader(b[:], long, !u.cd && r.cdb[1]&noDescriptor == 0)
	n += copy(b[n:], p)
	if long {
		binary.BigEndian.PutUint16(b[:], uint16(n-2))
		return r.reply(b[:n], uint64(binary.BigEndian.Uint16(r.cdb[7:])))
	}
	b[0] = byte(n - 1)
	return r.reply(b[:n], uint64(r.cdb[4]))
}

// modeHeader fills the mode parameter header and block descriptor in, without
// the length (SPC-4 §7.5.5, §7.5.7).
func (u *unit) modeHeader(b []byte, long, descriptor bool) int {
	specific := byte(0)
	if !u.cd {
		specific = 1 << 4 // DPOFUA
		if u.readOnly() {
			specific |= 1 << 7
		}
	}
	n := 4
	if long {
		n = 8
		b[3] = specific
	} else {
		b[2] = specific
	}
	if descriptor {
		b[n-1] = 8
		binary.BigEndian.PutUint32(b[n:], uint32(min(u.blocks(), 0xff_ffff)))
		binary.BigEndian.PutUint32(b[n+4:], 1<<u.shift)
		n += 8
	}
	return n
}

func (u *unit) modePages() []byte {
	if u.cd {
		return discPages
	}
	return diskPages
}

var (
	diskPages = []byte{pageCaching, pageControl}
	discPages = []byte{pageControl, pageCapabilities}
)

// modePage appends a page: its values now, its initial ones, or a mask of what
// can be changed.
func (u *unit) modePage(p []byte, id byte, mask, now bool) []byte {
	at := len(p)
	switch id {
	case pageCaching:
		p = append(p, make([]byte, cachingSize)...)
		if mask || !now || u.writeCache.Load() {
			p[at+2] = cachingWCE
		}
	case pageControl:
		p = append(p, make([]byte, controlSize)...)
		if !mask {
			p[at+3] = 1 << 4 // unrestricted reordering
		}
	case pageCapabilities:
		p = append(p, make([]byte, capabilitiesSize)...)
		if !mask {
			p[at+2] = 1<<0 | 1<<1 | 1<<3 // reads CD-R, CD-RW, DVD-ROM
			p[at+6] = 1 << 5             // a tray
			binary.BigEndian.PutUint16(p[at+8:], 706)
			binary.BigEndian.PutUint16(p[at+14:], 706)
		}
	}
	p[at], p[at+1] = id, byte(len(p)-at-2)
	return p
}

// modeSelect is MODE SELECT (6) and (10) (SPC-4 §6.11, §6.12): the write cache
// can be switched. Switching it off flushes it.
func (r *request) modeSelect() (s sense, later bool) {
	const pageFormat, save = 1 << 4, 1 << 0
	if r.cdb[1]&save != 0 || r.cdb[1]&pageFormat == 0 {
		return senseField, false
	}
	n, header := uint64(r.cdb[4]), 4
	if r.cdb[0] == opModeSelect10 {
		n, header = uint64(binary.BigEndian.Uint16(r.cdb[7:])), 8
	}
	if n == 0 {
		return senseNone, false
	}
	var b [128]byte
	p, s := r.list(b[:], n)
	if s != senseNone {
		return s, false
	}
	if len(p) < header || uint64(len(p)) < n {
		return senseListLength, false
	}
	descriptors := int(p[header-1])
	if header == 8 {
		descriptors |= int(p[6]) << 8
	}
	if p = p[header:]; descriptors != 0 && descriptors != 8 || len(p) < descriptors {
		return senseList, false
	}
	on, s := r.unit.selected(p[descriptors:])
	if s != senseNone {
		return s, false
	}
	off := r.unit.writeCache.Swap(on) && !on
	r.Op = disk.OpFlush
	return senseNone, off
}

// selected reads mode pages and returns whether the write cache is to be on.
// What cannot be changed must be as it is.
func (u *unit) selected(p []byte) (cache bool, s sense) {
	cache = u.writeCache.Load()
	var b [cachingSize]byte
	for len(p) > 0 {
		id := p[0] & 0x3f
		if id != pageCaching && id != pageControl || p[0]&(1<<6) != 0 {
			return false, senseList
		}
		want := u.modePage(b[:0], id, false, true)
		if len(p) < len(want) || p[1] != want[1] {
			return false, senseListLength
		}
		for i := 2; i < len(want); i++ {
			mask := byte(0)
			if id == pageCaching && i == 2 {
				mask = cachingWCE
				cache = p[i]&mask != 0
			}
			if (p[i]^want[i])&^mask != 0 {
				return false, senseList
			}
		}
		p = p[len(want):]
	}
	return cache, senseNone
}
