package bootentry

import (
	"io/fs"
	"os"
	"path"
	"strconv"

	"golang.org/x/sys/unix"
)

// Tree is a directory as a file system of its own: no name and no symbolic
// link in it leads out of it, whatever happens to it meanwhile (openat2(2),
// RESOLVE_IN_ROOT). Absolute links are relative to it, as after a chroot.
type Tree struct{ dir *os.File }

// OpenTree opens the directory at root.
func OpenTree(root string) (*Tree, error) {
	fd, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: root, Err: err}
	}
	return &Tree{os.NewFile(uintptr(fd), root)}, nil
}

// Close frees the tree; files opened from it stay open.
func (t *Tree) Close() error { return t.dir.Close() }

// Open implements fs.FS. It opens regular files and directories only, and
// never waits for a FIFO.
func (t *Tree) Open(name string) (fs.File, error) {
	if !fs.ValidPath(name) {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrInvalid}
	}
	// O_PATH first: opening a device may have effects of its own.
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
	var fd int
	var err error
	for range 32 { // EAGAIN: somebody renames directories in the tree
		if fd, err = unix.Openat2(int(t.dir.Fd()), name, &how); err != unix.EAGAIN {
			break
		}
	}
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, &fs.PathError{Op: "stat", Path: name, Err: err}
	}
	if k := st.Mode & unix.S_IFMT; k != unix.S_IFREG && k != unix.S_IFDIR {
		return nil, &fs.PathError{Op: "open", Path: name, Err: unix.EINVAL}
	}
	f, err := os.OpenFile("/proc/self/fd/"+strconv.Itoa(fd), os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: unix.EACCES}
	}
	return namedFile{f, path.Base(name)}, nil
}

// namedFile is an open file under the name that it was opened by.
type namedFile struct {
	*os.File
	name string
}

// prefixed is the part of a file system below a directory.
func prefixed(fsys fs.FS, dir string) fs.FS {
	sub, err := fs.Sub(fsys, dir)
	if err != nil {
		return fsys
	}
	return sub
}
