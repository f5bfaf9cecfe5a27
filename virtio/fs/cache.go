package fs

import (
	"time"

	"golang.org/x/sys/unix"
)

// stamp is what a file looked like when the guest last opened it.
type stamp struct {
	size         uint64
	mtime, ctime unix.StatxTimestamp
	// settled: the times were old enough that any later change shows in them.
	settled bool
}

// Times that a stamp must be old to be settled. The kernel's file times move
// with its tick, of 10 ms at most; file systems without nanoseconds count in
// steps of up to 2 s.
const (
	tick   = 20 * time.Millisecond
	coarse = 2100 * time.Millisecond
)

func (d *Device) stampOf(st *unix.Statx_t) stamp {
	s := stamp{size: st.Size, mtime: st.Mtime, ctime: st.Ctime}
	if d.cfg.InOrder { // the host's clock has no say; what the guest itself changes is never settled
		s.settled = d.cfg.ReadOnly
		return s
	}
	need := tick
	if s.mtime.Nsec == 0 && s.ctime.Nsec == 0 {
		need = coarse
	}
	now := time.Now()
	s.settled = now.Sub(time.Unix(s.mtime.Sec, int64(s.mtime.Nsec))) > need &&
		now.Sub(time.Unix(s.ctime.Sec, int64(s.ctime.Nsec))) > need
	return s
}

// unchanged reports whether a file with stamp s now is the one that had stamp
// old then, and takes note of s.
func (i *inode) unchanged(s stamp) bool {
	i.mu.Lock()
	old := i.stamp
	i.stamp = s
	i.mu.Unlock()
	return old.settled && old.size == s.size && old.mtime == s.mtime && old.ctime == s.ctime
}

// cacheFlags says whether the guest may keep the pages it has of the file i,
// just opened as fd.
func (r *request) cacheFlags(i *inode, fd int) uint32 {
	if r.d.cfg.Cache == CacheAuto && r.fstat(fd) != 0 {
		return 0
	}
	return r.cacheFlagsNow(i)
}

// cacheFlagsNow is cacheFlags with the attributes of now in r.st. With CacheAuto it may if the host's file has not changed
// since the guest opened it last: then all it has cached was read from what is
// there now.
func (r *request) cacheFlagsNow(i *inode) uint32 {
	var dir uint32
	if i.isDir() {
		dir = fopenCacheDir
	}
	switch r.d.cfg.Cache {
	case CacheAlways:
		return fopenKeepCache | dir
	case CacheNever:
		if i.isDir() {
			return 0
		}
		return fopenDirectIO
	}
	if i.unchanged(r.d.stampOf(&r.st)) {
		return fopenKeepCache | dir
	}
	return dir
}
