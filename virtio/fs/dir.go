package fs

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// maxDirReply bounds the reply to READDIR; the guest asks again.
const maxDirReply = 64 << 10

// dentsSize is how much of a directory is read at once, and minDents the least
// (an entry with the longest name has 280 bytes).
const (
	dentsSize = 32 << 10
	minDents  = 512
)

// plusMost is how many entries READDIRPLUS looks up in one pass over a directory.
// Each takes two system calls, where the guest's own LOOKUP costs ten times as much;
// but who lists a huge directory is not often interested in all of it.
const plusMost = 4096

// unknownPos marks a directory descriptor that has to be positioned again.
const unknownPos = ^uint64(0)

// opendir serves OPENDIR.
func (r *request) opendir() (int, unix.Errno) {
	i, e := r.directory(r.hdr.NodeID)
	if e != 0 {
		return 0, e
	}
	defer i.put()
	if e := r.mayUse(i, 4); e != 0 {
		return 0, e
	}
	if e := r.d.takeFD(); e != 0 {
		return 0, e
	}
	fd := -1
	if !i.synthetic() {
		const flags = unix.O_RDONLY | unix.O_DIRECTORY
		if fd, e = sysOpenat(i.fd, dot[:], flags, 0); e == unix.EACCES { // that takes the right to search, too
			fd, e = sysOpenat(r.d.host.proc, r.proc(i.fd), flags, 0)
		}
		if e != 0 {
			fdsInUse.Add(-1)
			return 0, hideLimit(e)
		}
	}
	h := r.newHandle(i, fd, unix.O_RDONLY)
	o, n := answer[openOut](r, 0)
	o.FH = h.id
	if fd >= 0 {
		o.OpenFlags = r.cacheFlags(i, fd)
	}
	return n, 0
}

// readdir serves READDIR, readdirplus serves READDIRPLUS.
func (r *request) readdir() (int, unix.Errno)     { return r.list(false) }
func (r *request) readdirplus() (int, unix.Errno) { return r.list(true) }

func (r *request) list(plus bool) (int, unix.Errno) {
	in := view[readIn](r.in)
	h, e := r.handle(in.FH, unix.S_IFDIR)
	if e != 0 {
		return 0, e
	}
	defer h.put()
	l := listing{r: r, dir: h.inode, plus: plus, looks: plusMost, buf: r.room(r.fits(min(in.Size, maxDirReply)))}
	if h.inode.synthetic() {
		return l.single(in.Offset)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if e := l.seek(h, in.Offset); e != 0 {
		return 0, e
	}
	if in.Offset == 0 {
		h.looked = 0
	}
	l.looks -= h.looked
	e = l.fill(h)
	h.looked = plusMost - l.looks
	if l.n > 0 {
		return l.n, 0 // an error will come again
	}
	return 0, e
}

// listing is a reply to READDIR or READDIRPLUS in the making.
type listing struct {
	r    *request
	dir  *inode
	plus bool
	// looks is how many entries may still be looked up.
	looks int
	buf   []byte
	n     int
}

// seek positions the descriptor. The guest may send any offset; the file
// system makes of it what it likes.
func (l *listing) seek(h *handle, off uint64) unix.Errno {
	if h.pos == off {
		return 0
	}
	h.pos = unknownPos
	if off > maxOffset {
		return unix.EINVAL
	}
	if _, e := sysLseek(h.fd, int64(off), unix.SEEK_SET); e != 0 {
		return e
	}
	h.pos = off
	return 0
}

// fill reads entries until the reply is full or the directory ends.
// Preconditions: the handle's lock is held.
func (l *listing) fill(h *handle) unix.Errno {
	if l.r.dents == nil {
		l.r.dents = make([]byte, dentsSize)
	}
	for {
		// Read about as much as fits, since the rest is read again.
		want := len(l.buf) - l.n
		if l.plus {
			want /= 6
		}
		n, e := sysGetdents(h.fd, l.r.dents[:min(max(want, minDents), dentsSize)])
		if e != 0 || n == 0 {
			return e
		}
		for b := l.r.dents[:n]; len(b) > 0; {
			next := binary.LittleEndian.Uint64(b[8:])
			size := binary.LittleEndian.Uint16(b[16:])
			if !l.add(binary.LittleEndian.Uint64(b), next, b[18], b[19:size]) {
				h.pos = unknownPos
				if l.n == 0 {
					return unix.EINVAL // no room for even one
				}
				return 0
			}
			h.pos = next
			b = b[size:]
		}
	}
}

// add appends an entry, if it fits. name is NUL-terminated and may have more
// NULs behind it.
func (l *listing) add(ino, next uint64, typ byte, name []byte) bool {
	name, _, e := takeString(name)
	if e != 0 {
		return true
	}
	bare := name[:len(name)-1]
	dots := len(bare) > 0 && bare[0] == '.' && (len(bare) == 1 || len(bare) == 2 && bare[1] == '.')
	if dots && len(bare) == 2 && l.dir.id == rootID {
		ino = l.dir.key.ino // nothing above the root is the guest's business
	}
	size := (direntSize + len(bare) + 7) &^ 7
	if l.plus {
		size += entryOutSize
	}
	if size > len(l.buf)-l.n {
		return false
	}
	b := l.buf[l.n : l.n+size]
	clear(b)
	if l.plus {
		o := view[entryOut](b)
		if !dots {
			l.look(o, name, ino)
		}
		if o.NodeID == 0 {
			o.Attr.Ino, o.Attr.Mode = ino, uint32(typ)<<12
		}
		b = b[entryOutSize:]
	}
	d := view[dirent](b)
	d.Ino, d.Off, d.Namelen, d.Type = ino, next, uint32(len(bare)), uint32(typ)
	copy(b[direntSize:], bare)
	l.n += size
	return true
}

// look does the LOOKUP in READDIRPLUS. When it fails the entry goes without:
// node ID 0 tells the guest to look itself. Directories of any size are listed
// in full, but they use up at most half of our descriptors.
func (l *listing) look(o *entryOut, name []byte, ino uint64) {
	if l.looks == 0 || fdsInUse.Load() > l.r.d.host.fdMax/2 {
		return
	}
	l.looks--
	i, e := l.r.resolveListed(l.dir, name, ino)
	if e != 0 {
		return
	}
	l.r.fillEntry(o, l.dir, i)
	i.put()
}

// single lists the synthetic directory of a shared file.
func (l *listing) single(off uint64) (int, unix.Errno) {
	if off > 2 {
		return 0, 0
	}
	_ = (off > 0 || l.add(rootID, 1, unix.DT_DIR, []byte(".\x00"))) &&
		(off > 1 || l.add(rootID, 2, unix.DT_DIR, []byte("..\x00"))) &&
		l.add(rootID+1, 3, unix.DT_REG, l.r.d.host.guestName)
	return l.n, 0
}
