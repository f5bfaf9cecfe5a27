package initrd

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Place is a directory in which the modules of a kernel may be: the root of
// a file system tree that has them in lib/modules/RELEASE or
// usr/lib/modules/RELEASE. A tree is not trusted: a link in it leads nowhere outside
// of it, and only regular files are opened.
type Place struct {
	// Root is the root of the tree: the guest's, "/" for the host's.
	Root string
	// Dir, if set, is the directory of the modules itself, relative to Root.
	Dir string
	// Guest says that this is the tree that the guest will run from, so that
	// it can load further modules from it by itself.
	Guest bool
}

// NextTo lists the places near the kernel image at path: its directory, as in
// /usr/lib/modules/RELEASE/vmlinuz, that directory as a tree, and the tree
// above it, where packages have boot/vmlinuz-RELEASE.
func NextTo(path, release string) []Place {
	dir := filepath.Dir(path)
	places := []Place{{Root: dir}, {Root: filepath.Dir(dir)}}
	if filepath.Base(dir) == release {
		places = append([]Place{{Root: dir, Dir: "."}}, places...)
	}
	return places
}

// moduleDirs lists the directories, relative to Root, to look into.
func (p Place) moduleDirs(release string) []string {
	if p.Dir != "" {
		return []string{p.Dir}
	}
	return []string{"lib/modules/" + release, "usr/lib/modules/" + release}
}

// describe names the place in an error sentence.
func (p Place) describe(release string) string {
	return filepath.Join(p.Root, p.moduleDirs(release)[0])
}

// moduleTree is a module directory, opened.
type moduleTree struct {
	root int    // O_PATH descriptor of the tree
	dir  string // the module directory relative to it
}

// openTree opens the module directory of a release, ENOENT if there is none.
func openTree(p Place, release string) (*moduleTree, error) {
	root, err := unix.Open(p.Root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	for _, dir := range p.moduleDirs(release) {
		t := &moduleTree{root, dir}
		for _, name := range []string{"modules.builtin", "modules.dep", "modules.order"} {
			if f, err := t.open(name); err == nil {
				f.Close()
				return t, nil
			}
		}
	}
	unix.Close(root)
	return nil, unix.ENOENT
}

func (t *moduleTree) close() { unix.Close(t.root) }

// open opens a regular file of the module directory for reading. Neither a
// link nor a "..", in the tree or in name, leads out of the tree, a FIFO does
// not block, and a device is not opened.
func (t *moduleTree) open(name string) (*os.File, error) {
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
	path := filepath.Join(t.dir, name)
	fd, err := unix.Openat2(t.root, path, &how)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, fmt.Errorf("%s is not a regular file", path)
	}
	// The descriptor is of a regular file; opening it anew gives that file.
	rfd, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", fd), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(rfd), path), nil
}

// read returns a whole file of at most limit bytes.
func (t *moduleTree) read(name string, limit int64) ([]byte, error) {
	f, err := t.open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if st.Size() > limit {
		return nil, fmt.Errorf("%s is %d bytes long, more than the %d that are sensible", f.Name(), st.Size(), limit)
	}
	b := make([]byte, st.Size())
	n, err := f.ReadAt(b, 0)
	if n < len(b) {
		return nil, errors.Join(fmt.Errorf("%s changed while it was read", f.Name()), err)
	}
	return b, nil
}

// CheckInit reports that a guest's tree has no init program for a kernel with
// this command line, which would only show as a panic in the guest.
func CheckInit(tree, commandLine string) error {
	inits := fallbackInits
	if path := parameter(commandLine, "init"); path != "" {
		inits = []string{path}
	}
	root, err := unix.Open(tree, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(root)
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
	for _, name := range inits {
		fd, err := unix.Openat2(root, name, &how)
		if err == nil {
			unix.Close(fd)
		}
		if err == nil || !isAbsent(err) || errors.Is(err, fs.ErrPermission) {
			return nil // the guest may see more than we do
		}
	}
	return fmt.Errorf("%s has no init program (%s): it is not the root of an operating system; give another directory, or the program with the kernel argument init=",
		tree, strings.Join(inits, ", "))
}

// isAbsent reports whether a place is just not there, or not to be read.
func isAbsent(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, fs.ErrPermission)
}
