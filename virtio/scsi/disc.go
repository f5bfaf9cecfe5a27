package scsi

import "encoding/binary"

// discCommand decodes what only CD-ROM drives have (MMC-6): one session with
// one data track that covers the medium.
func (r *request) discCommand(op uint8) sense {
	switch op {
	case opReadTOC:
		return r.readTOC()
	case opGetConfig:
		return r.getConfiguration()
	case opGetEvent:
		return r.getEvent()
	case opReadDiscInfo:
		return r.readDiscInfo()
	}
	return senseOpcode
}

// position writes a block address, as minute, second and frame if asked to.
func position(b []byte, lba uint64, msf bool) {
	if !msf {
		binary.BigEndian.PutUint32(b, uint32(min(lba, 0xffff_ffff)))
		return
	}
	const frames, leadIn = 75, 150
	lba = min(lba+leadIn, 100*60*frames-1)
	b[0], b[1], b[2], b[3] = 0, byte(lba/frames/60), byte(lba/frames%60), byte(lba%frames)
}

// readTOC is READ TOC/PMA/ATIP (MMC-6 §6.26).
func (r *request) readTOC() sense {
	msf := r.cdb[1]&2 != 0
	format, limit := r.cdb[2]&15, uint64(binary.BigEndian.Uint16(r.cdb[7:]))
	if format == 0 {
		format = r.cdb[9] >> 6 // where older drivers have it
	}
	const data, leadOut = 0x14, 0xaa
	var b [20]byte
	b[2], b[3] = 1, 1
	n := 4
	switch {
	case format == 1: // sessions
		b[n+1], b[n+2] = data, 1
		position(b[n+4:], 0, msf)
		n += 8
	case format == 0 && (r.cdb[6] <= 1 || r.cdb[6] == leadOut):
		if r.cdb[6] != leadOut {
			b[n+1], b[n+2] = data, 1
			position(b[n+4:], 0, msf)
			n += 8
		}
		b[n+1], b[n+2] = data, leadOut
		position(b[n+4:], r.unit.blocks(), msf)
		n += 8
	default:
		return senseField
	}
	binary.BigEndian.PutUint16(b[:], uint16(n-2))
	return r.reply(b[:n], limit)
}

// Profiles and features (MMC-6 §5.3).
const (
	profileCD        = 0x08
	profileDVD       = 0x10
	featureProfiles  = 0
	featureCore      = 1
	featureRemovable = 3
	// cdBlocks is the most that a CD holds, 80 minutes.
	cdBlocks = 80 * 60 * 75
)

// getConfiguration is GET CONFIGURATION (MMC-6 §6.6).
func (r *request) getConfiguration() sense {
	profile := byte(profileCD)
	if r.unit.blocks() > cdBlocks {
		profile = profileDVD
	}
	const current, persistent = 1, 2
	profiles := []byte{0, 0, persistent | current, 8, 0, profileDVD, 0, 0, 0, profileCD, 0, 0}
	if profiles[6] = current; profile == profileCD {
		profiles[6], profiles[10] = 0, current
	}
	features := [...]struct {
		id   uint16
		data []byte
	}{
		{featureProfiles, profiles},
		{featureCore, []byte{0, 1, persistent | current, 8, 0, 0, 0, 1, 0, 0, 0, 0}},
		{featureRemovable, []byte{0, 3, persistent | current, 4, 1 << 5, 0, 0, 0}},
	}
	kind, first := r.cdb[1]&3, binary.BigEndian.Uint16(r.cdb[2:])
	var b [64]byte
	n := 8
	for _, f := range features {
		if f.id == first || (f.id > first && kind != 2) {
			n += copy(b[n:], f.data)
		}
	}
	binary.BigEndian.PutUint32(b[:], uint32(n-4))
	b[7] = profile
	return r.reply(b[:n], uint64(binary.BigEndian.Uint16(r.cdb[7:])))
}

// getEvent is GET EVENT STATUS NOTIFICATION (MMC-6 §6.7): the medium is there,
// and nothing happens.
func (r *request) getEvent() sense {
	const polled, media, none = 1 << 0, 4, 1 << 7
	if r.cdb[1]&polled == 0 {
		return senseField
	}
	b := [8]byte{0, 2, none, 1 << media}
	n := 4
	if r.cdb[4]&(1<<media) != 0 {
		b[1], b[2], b[5] = 6, media, 1<<1 // media present
		n = 8
	}
	return r.reply(b[:n], uint64(binary.BigEndian.Uint16(r.cdb[7:])))
}

// readDiscInfo is READ DISC INFORMATION (MMC-6 §6.22) of a finished disc.
func (r *request) readDiscInfo() sense {
	if r.cdb[1]&7 != 0 {
		return senseField
	}
	b := [34]byte{0, 32, 0x0e, 1, 1, 1, 1, 1 << 5}
	return r.reply(b[:], uint64(binary.BigEndian.Uint16(r.cdb[7:])))
}
