package nvme

import "encoding/binary"

// identify is Identify (§5.15).
func (c *Controller) identify(cmd *command) status {
	var b [pageSize]byte
	ns := cmd.nsid()
	switch cns := uint8(cmd.dword(10)); cns {
	case cnsNamespace:
		if ns != namespace && ns != broadcast {
			return statusInvalidNS
		}
		c.identifyNamespace(b[:])
	case cnsController:
		c.identifyController(b[:])
	case cnsActive:
		if ns >= broadcast-1 {
			return statusInvalidNS
		}
		if ns < namespace {
			binary.LittleEndian.PutUint32(b[:], namespace)
		}
	case cnsDescriptors:
		if ns != namespace {
			return statusInvalidNS
		}
		// Namespace Identification Descriptor: type 3 is a UUID.
		b[0], b[1] = 3, byte(len(c.cfg.ID))
		copy(b[4:], c.cfg.ID[:])
	default:
		return statusInvalidField
	}
	return cmd.answer(b[:], pageSize)
}

// pad copies an ASCII field, which is filled up with spaces (§1.5).
func pad(b []byte, s string) {
	for i := copy(b, s); i < len(b); i++ {
		b[i] = ' '
	}
}

// identifyController fills the Identify Controller data structure in (§5.15.2.2).
func (c *Controller) identifyController(b []byte) {
	le := binary.LittleEndian
	le.PutUint16(b[0:], vendorID)
	le.PutUint16(b[2:], vendorID)
	pad(b[4:24], c.cfg.Serial)
	pad(b[24:64], "gvmspawn NVMe disk")
	pad(b[64:72], "1")
	b[72] = 6 // RAB: arbitration burst
	b[77] = mdts
	le.PutUint32(b[80:], versionOne4)
	b[111] = 1                   // CNTRLTYPE: I/O controller
	le.PutUint16(b[256:], 1<<8)  // OACS: doorbell buffers
	b[258] = 3                   // ACL: abort commands, less one
	b[259] = maxAsyncEvents - 1  // AERL
	b[260] = 1<<0 | 1<<1         // FRMW: one firmware slot, read-only
	b[261] = 1<<1 | 1<<2         // LPA: effects log, offsets in logs
	le.PutUint16(b[266:], 343)   // WCTEMP, kelvin
	le.PutUint16(b[268:], 353)   // CCTEMP
	b[512] = sqEntryShift * 0x11 // SQES
	b[513] = cqEntryShift * 0x11 // CQES
	le.PutUint32(b[516:], namespace)
	oncs := uint16(1 << 3) // Write Zeroes
	if c.cfg.Drive.Discards() {
		oncs |= 1 << 2 // Dataset Management
	}
	le.PutUint16(b[520:], oncs)
	b[525] = 1<<0 | 3<<1 // VWC: there is one, and Flush takes the broadcast namespace
	copy(b[768:], "nqn.2014-08.org.nvmexpress:uuid:"+uuid(c.cfg.ID))
	le.PutUint16(b[2048:], 2500) // power state 0: MP, centiwatts
}

// uuid is the text of a UUID.
func uuid(id [16]byte) string {
	const digits = "0123456789abcdef"
	var s []byte
	for i, v := range id {
		if i == 4 || i == 6 || i == 8 || i == 10 {
			s = append(s, '-')
		}
		s = append(s, digits[v>>4], digits[v&15])
	}
	return string(s)
}

// identifyNamespace fills the Identify Namespace data structure in (§5.15.2.1):
// one LBA format without metadata.
func (c *Controller) identifyNamespace(b []byte) {
	le := binary.LittleEndian
	n := c.blocks()
	le.PutUint64(b[0:], n)  // NSZE
	le.PutUint64(b[8:], n)  // NCAP
	le.PutUint64(b[16:], n) // NUSE
	b[24] = 1 << 4          // NSFEAT: the hints at 64 are there
	if c.cfg.Drive.Discards() {
		b[33] = 1 << 3 // DLFEAT: Write Zeroes may deallocate
	}
	if c.image.ReadOnly() {
		b[99] = 1 // NSATTR: write protected
	}
	g := c.image.Geometry()
	hint := func(bytes uint32) uint16 { return uint16(max(bytes>>c.shift, 1) - 1) }
	le.PutUint16(b[64:], hint(g.PhysicalBlock)) // NPWG
	le.PutUint16(b[66:], hint(g.PhysicalBlock)) // NPWA
	le.PutUint16(b[68:], hint(g.Cluster))       // NPDG
	le.PutUint16(b[70:], hint(g.Cluster))       // NPDA
	le.PutUint32(b[128:], uint32(c.shift)<<16)  // LBAF 0: LBADS
}
