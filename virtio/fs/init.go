package fs

import "golang.org/x/sys/unix"

// initSession serves INIT: it ends what was before and agrees on features.
func (r *request) initSession() (int, unix.Errno) {
	var in initIn
	in.Major, in.Minor = view[openIn](r.in).Flags, view[openIn](r.in).OpenFlags
	o, n := answer[initOut](r, 0)
	o.Major, o.Minor = protoMajor, protoMinor
	switch {
	case in.Major > protoMajor:
		return n, 0 // the driver sends another INIT with our version
	case in.Major < protoMajor || in.Minor < minMinor:
		return 0, unix.EPROTO
	}
	copyInit(&in, r.in)
	offered := uint64(in.Flags)
	if in.Flags&initExt != 0 {
		offered |= uint64(in.Flags2) << 32
	}
	r.d.endSession()
	f := r.d.wanted() & offered
	if f&initExt == 0 {
		f &= 1<<32 - 1
	}
	r.d.features.Store(f | inited)
	o.MaxReadahead = min(in.MaxReadahead, maxWrite)
	o.Flags, o.Flags2 = uint32(f), uint32(f>>32)
	o.MaxBackground, o.CongestionThreshold = 256, 192
	o.MaxWrite, o.MaxPages, o.TimeGran = maxWrite, maxPages, 1
	if f&initMapAlignment != 0 {
		o.MapAlignment = daxShift
	}
	return n, 0
}

// copyInit reads as much of the struct as the driver sent.
func copyInit(in *initIn, b []byte) {
	if len(b) >= sizeOf[initIn]() {
		*in = *view[initIn](b)
		return
	}
	s := view[createIn](b) // the same four words
	in.MaxReadahead, in.Flags = s.Umask, s.OpenFlags&^initExt
}

// wanted are the INIT flags that this device and its configuration understand.
func (d *Device) wanted() uint64 {
	f := uint64(initAsyncRead | initAtomicOTrunc | initBigWrites | initDoReaddirplus |
		initAsyncDIO | initParallelDirops | initMaxPages | initHandleKillprivV2 | initSetxattrExt | initExt |
		// A symbolic link never changes its target, and a new one is a new inode.
		initCacheSymlinks |
		initSubmounts | initAllowIdmap)
	if d.cfg.Cache == CacheAuto {
		f |= initAutoInvalData
	}
	if d.cfg.Cache == CacheNever {
		f |= initDirectIOMmap
		f &^= initDoReaddirplus // the guest would look again at once
	}
	if d.cfg.Writeback && d.cfg.Cache != CacheNever {
		f |= initWritebackCache
	}
	if d.cfg.Locks {
		f |= initPosixLocks | initFlockLocks
	}
	if d.cfg.ACL {
		f |= initPosixACL | initDontMask
	}
	if d.dax.ready() {
		f |= initMapAlignment | initHasInodeDAX
	}
	return f
}

// destroy serves DESTROY, the end of a mount. Another INIT may follow.
func (r *request) destroy() (int, unix.Errno) {
	r.d.endSession()
	return 0, 0
}
