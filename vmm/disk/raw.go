package disk

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

// Options say how an image file is opened.
type Options struct {
	ReadOnly bool
	// Direct bypasses the host's page cache (O_DIRECT); raw images only.
	Direct bool
	// NoLock leaves out the lock that keeps two machines from one image.
	NoLock bool
	// File, if set, is the open file; the path is then for people and for
	// what lies beside it. Where possible it is opened anew, for a lock of its own.
	File *os.File
	// AnyBacking lets an image name backing files anywhere, not only beside it.
	AnyBacking bool
}

// Raw is a disk whose bytes are those of a file or block device.
type Raw struct {
	file     *os.File
	fd       int
	size     uint64
	readOnly bool
	direct   bool
	geometry Geometry
	// noTryRead and noTryWrite are set when the file system cannot tell
	// whether it would block.
	noTryRead, noTryWrite atomic.Bool
}

// OpenRaw opens a raw image. Whatever its bytes look like, they are the disk's
// bytes: the format is never guessed. The file stays locked until Close, for
// writing or, with ReadOnly, for reading.
func OpenRaw(path string, o Options) (*Raw, error) {
	f, err := OpenFile(path, o)
	if err != nil {
		return nil, err
	}
	r, err := newRaw(f, o.ReadOnly)
	if err == nil && o.Direct {
		err = r.setDirect()
	}
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return r, nil
}

// setDirect turns O_DIRECT on.
func (r *Raw) setDirect() error {
	flags, err := unix.FcntlInt(uintptr(r.fd), unix.F_GETFL, 0)
	if err == nil {
		_, err = unix.FcntlInt(uintptr(r.fd), unix.F_SETFL, flags|unix.O_DIRECT)
	}
	if err != nil {
		return fmt.Errorf("disk image %s: its file system has no direct I/O, use the host's cache: %w", r.file.Name(), err)
	}
	r.direct = true
	return nil
}

// OpenFile opens and locks an image file or block device of any format.
func OpenFile(path string, o Options) (*os.File, error) {
	flags := os.O_RDWR
	if o.ReadOnly {
		flags = os.O_RDONLY
	}
	f, err := open(path, flags, o.File)
	switch {
	case errors.Is(err, os.ErrPermission) && !o.ReadOnly:
		return nil, fmt.Errorf("disk image %s cannot be opened for writing: make it writable or use it read-only: %w", path, err)
	case errors.Is(err, syscall.EISDIR):
		return nil, fmt.Errorf("disk image %s is a directory; --directory= boots a directory", path)
	case err != nil:
		return nil, fmt.Errorf("open disk image: %w", err)
	}
	if err := checkFile(f, path); err == nil && !o.NoLock {
		err = lockFile(f, path, o.ReadOnly)
		if err == nil {
			return f, nil
		}
		_ = f.Close()
		return nil, err
	} else if err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

// open opens a path or, anew, an open file. O_NONBLOCK: opening a FIFO by
// mistake must not hang.
func open(path string, flags int, f *os.File) (*os.File, error) {
	flags |= syscall.O_NONBLOCK | syscall.O_CLOEXEC
	if f == nil {
		return os.OpenFile(path, flags, 0)
	}
	fd, err := syscall.Open(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), flags, 0)
	if err != nil { // a file that we may not open ourselves
		fd, err = unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	}
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

// checkFile refuses what cannot be a disk image.
func checkFile(f *os.File, path string) error {
	st, err := f.Stat()
	switch {
	case err != nil:
		return fmt.Errorf("disk image %s: %w", path, err)
	case st.IsDir():
		return fmt.Errorf("disk image %s is a directory; --directory= boots a directory", path)
	case !st.Mode().IsRegular() && (st.Mode()&os.ModeDevice == 0 || st.Mode()&os.ModeCharDevice != 0):
		return fmt.Errorf("disk image %s is neither a regular file nor a block device", path)
	}
	return nil
}

// InUseError says that another machine or program has locked an image.
type InUseError struct{ Path string }

// Error says what to do.
func (e *InUseError) Error() string {
	return fmt.Sprintf("disk image %s is in use by another machine or program: stop that first, or open it read-only in both", e.Path)
}

// lockFile takes an open file description lock on the whole file, which also
// keeps QEMU's tools away.
func lockFile(f *os.File, path string, readOnly bool) error {
	lk := unix.Flock_t{Type: unix.F_WRLCK, Whence: io.SeekStart}
	if readOnly {
		lk.Type = unix.F_RDLCK
	}
	err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &lk)
	switch err {
	case nil, unix.EOPNOTSUPP, unix.ENOLCK, unix.EINVAL:
		return nil // a file system without locks
	case unix.EAGAIN, unix.EACCES:
		return &InUseError{Path: path}
	}
	return fmt.Errorf("lock disk image %s: %w", path, err)
}

// NewFile returns the bytes of an open image file of any format. Its methods
// may also be used beyond its Size, which is that of now.
func NewFile(f *os.File, readOnly bool) (*Raw, error) {
	r := &Raw{file: f, fd: int(f.Fd()), readOnly: readOnly}
	end, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, fmt.Errorf("size of disk image %s: %w", f.Name(), err)
	}
	r.size = uint64(end)
	return r, nil
}

func newRaw(f *os.File, readOnly bool) (*Raw, error) {
	r, err := NewFile(f, readOnly)
	if err != nil {
		return nil, err
	}
	end := r.size
	if end == 0 || end%SectorSize != 0 {
		return nil, fmt.Errorf("disk image %s has %d bytes, but a raw disk is a positive multiple of %d: pad it with truncate(1), or name its format", f.Name(), end, SectorSize)
	}
	r.geometry = Geometry{BlockSize: SectorSize, PhysicalBlock: 4096, Cluster: 4096}
	var st unix.Stat_t
	if unix.Fstat(r.fd, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFBLK {
		r.deviceGeometry()
	}
	return r, nil
}

// deviceGeometry asks a block device for its block sizes.
func (r *Raw) deviceGeometry() {
	if n, err := unix.IoctlGetInt(r.fd, unix.BLKSSZGET); err == nil && n >= SectorSize && n <= 4096 {
		r.geometry.BlockSize = uint32(n)
	}
	if n, err := unix.IoctlGetInt(r.fd, unix.BLKPBSZGET); err == nil && n >= int(r.geometry.BlockSize) && n <= 1<<20 {
		r.geometry.PhysicalBlock = uint32(n)
	}
}

// ReadAt implements Image. A file that was truncated meanwhile gives
// io.ErrUnexpectedEOF.
func (r *Raw) ReadAt(bufs [][]byte, off uint64) error {
	if r.direct && !aligned(bufs, off) {
		return r.bounce(bufs, off, false)
	}
	return transfer(unix.SYS_PREADV2, r.fd, bufs, off, 0)
}

// WriteAt implements Image.
func (r *Raw) WriteAt(bufs [][]byte, off uint64) error {
	if r.direct && !aligned(bufs, off) {
		return r.bounce(bufs, off, true)
	}
	return transfer(unix.SYS_PWRITEV2, r.fd, bufs, off, 0)
}

// TryReadAt reads what is in the page cache.
func (r *Raw) TryReadAt(bufs [][]byte, off uint64) error {
	return r.attempt(&r.noTryRead, unix.SYS_PREADV2, bufs, off)
}

// TryWriteAt writes into the page cache if that needs no waiting.
func (r *Raw) TryWriteAt(bufs [][]byte, off uint64) error {
	return r.attempt(&r.noTryWrite, unix.SYS_PWRITEV2, bufs, off)
}

func (r *Raw) attempt(no *atomic.Bool, nr uintptr, bufs [][]byte, off uint64) error {
	if r.direct {
		return ErrWouldBlock
	}
	if no.Load() {
		return ErrCannotTry
	}
	switch err := transfer(nr, r.fd, bufs, off, unix.RWF_NOWAIT); err {
	case unix.EAGAIN:
		return ErrWouldBlock
	case unix.EOPNOTSUPP:
		no.Store(true)
		return ErrCannotTry
	default:
		return err
	}
}

// directAlign is what direct I/O needs of addresses, lengths and offsets, in bytes.
const directAlign = 512

// bounce carries out what direct I/O cannot do in place, in an aligned buffer.
func (r *Raw) bounce(bufs [][]byte, off uint64, write bool) error {
	v := NewVector(bufs)
	defer v.Free()
	n := Length(bufs)
	b, err := unix.Mmap(-1, 0, int(min(n, bounceSize)), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return err
	}
	defer unix.Munmap(b)
	for n > 0 {
		p := b[:min(n, uint64(len(b)))]
		part := v.Take(uint64(len(p)))
		if write {
			gather(p, part)
			err = transfer(unix.SYS_PWRITEV2, r.fd, [][]byte{p}, off, 0)
		} else if err = transfer(unix.SYS_PREADV2, r.fd, [][]byte{p}, off, 0); err == nil {
			scatter(part, p)
		}
		if err != nil {
			return err
		}
		off, n = off+uint64(len(p)), n-uint64(len(p))
	}
	return nil
}

// bounceSize bounds a bounce buffer in bytes.
const bounceSize = 1 << 20

func gather(p []byte, bufs [][]byte) {
	for _, b := range bufs {
		p = p[copy(p, b):]
	}
}

func scatter(bufs [][]byte, p []byte) {
	for _, b := range bufs {
		p = p[copy(b, p):]
	}
}

// Flush implements Image.
func (r *Raw) Flush() error { return fdatasync(r.fd) }

// fdatasync is repeated when a signal interrupts it.
func fdatasync(fd int) error {
	for {
		if err := unix.Fdatasync(fd); err != unix.EINTR {
			return err
		}
	}
}

// Discard implements Image: it punches a hole.
func (r *Raw) Discard(off, n uint64) error {
	err := fallocate(r.fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
	if err == unix.EOPNOTSUPP || err == unix.ENOSYS {
		return nil // a hint
	}
	return err
}

// WriteZeroes implements Image.
func (r *Raw) WriteZeroes(off, n uint64, unmap bool) error {
	mode := uint32(unix.FALLOC_FL_ZERO_RANGE)
	if unmap {
		mode = unix.FALLOC_FL_PUNCH_HOLE
	}
	err := fallocate(r.fd, mode|unix.FALLOC_FL_KEEP_SIZE, off, n)
	if err == unix.EOPNOTSUPP || err == unix.ENOSYS {
		return writeZeroes(r, off, n)
	}
	return err
}

func fallocate(fd int, mode uint32, off, n uint64) error {
	for {
		if err := unix.Fallocate(fd, mode, int64(off), int64(n)); err != unix.EINTR {
			return err
		}
	}
}

// zeroes is what writeZeroes writes.
var zeroes [256 << 10]byte

// writeZeroes zeroes a range the slow way.
func writeZeroes(img Image, off, n uint64) error {
	for n > 0 {
		k := min(n, uint64(len(zeroes)))
		if err := img.WriteAt([][]byte{zeroes[:k]}, off); err != nil {
			return err
		}
		off += k
		n -= k
	}
	return nil
}

// Size implements Image.
func (r *Raw) Size() uint64 { return r.size }

// ReadOnly implements Image.
func (r *Raw) ReadOnly() bool { return r.readOnly }

// Geometry implements Image.
func (r *Raw) Geometry() Geometry { return r.geometry }

// Close implements Image.
func (r *Raw) Close() error {
	var err error
	if !r.readOnly {
		err = r.Flush()
	}
	// Closing alone would leave the lock to a child between fork and exec,
	// and a machine that reboots opens its images again at once.
	_ = unix.FcntlFlock(uintptr(r.fd), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_UNLCK, Whence: io.SeekStart})
	return errors.Join(err, r.file.Close())
}

// Length is the file's length now, in bytes.
func (r *Raw) Length() (uint64, error) {
	end, err := r.file.Seek(0, io.SeekEnd)
	return uint64(end), err
}

// Resize makes the file n bytes long.
func (r *Raw) Resize(n uint64) error { return r.file.Truncate(int64(n)) }
