package qcow2

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// findBacking says where the backing file is that the header of the image at path
// names. Unless it may be anywhere it lies in the image's directory or below, with no
// way out by "..", a link or an absolute name, and is open: whoever wrote the header
// could give the guest any file of the host to read.
func findBacking(name, path string, anywhere bool) (string, *os.File, error) {
	if i := strings.IndexAny(name, ":/"); i >= 0 && name[i] == ':' {
		return "", nil, fmt.Errorf("backing file %q is not a plain path", name)
	}
	dir := filepath.Dir(path)
	if anywhere {
		if !filepath.IsAbs(name) {
			name = filepath.Join(dir, name)
		}
		return name, nil, nil
	}
	below, ok := nameBelow(dir, name)
	if !ok {
		return "", nil, outside(name)
	}
	f, err := openBelow(dir, below)
	if errors.Is(err, unix.EXDEV) {
		return "", nil, outside(name)
	}
	if err != nil {
		return "", nil, fmt.Errorf("backing file %s: %w", name, err)
	}
	return filepath.Join(dir, below), f, nil
}

func outside(name string) error {
	return fmt.Errorf("backing file %s is outside the image's directory; if the image is to be trusted with any file of this host, use --disk-backing=anywhere", name)
}

// nameBelow makes an absolute name below dir relative to it.
func nameBelow(dir, name string) (string, bool) {
	if !filepath.IsAbs(name) {
		return name, true
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", false
	}
	for _, d := range []func(string) (string, error){func(d string) (string, error) { return d, nil }, filepath.EvalSymlinks} {
		if d, err := d(dir); err == nil {
			if rel, err := filepath.Rel(d, name); err == nil && filepath.IsLocal(rel) {
				return rel, true
			}
		}
	}
	return "", false
}

// openBelow opens a file below dir for reading. EXDEV is a way out.
func openBelow(dir, name string) (*os.File, error) {
	d, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = unix.Close(d) }()
	how := unix.OpenHow{Flags: unix.O_RDONLY | unix.O_NONBLOCK | unix.O_NOCTTY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS}
	for {
		fd, err := unix.Openat2(d, name, &how)
		if err == unix.EAGAIN || err == unix.EINTR {
			continue // something was renamed meanwhile
		}
		if err != nil {
			return nil, err
		}
		return os.NewFile(uintptr(fd), filepath.Join(dir, name)), nil
	}
}
