// Package treesum describes a directory tree in one number, so that a guest
// and its host can tell whether they see the same.
package treesum

import (
	"crypto/sha256"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Sum returns the hash of everything that a program can see of a tree without
// its times: names, types, modes, owners, link counts of files, sizes,
// contents, link targets and extended attributes of the "user" namespace.
func Sum(root string) (string, error) {
	h := sha256.New()
	err := filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		return describe(h, name, path)
	})
	return fmt.Sprintf("%x", h.Sum(nil)[:16]), err
}

func describe(w io.Writer, name, path string) error {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return fmt.Errorf("lstat %s: %w", path, err)
	}
	fmt.Fprintf(w, "%q %o %d:%d\n", name, st.Mode, st.Uid, st.Gid)
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFLNK:
		target, err := os.Readlink(path)
		fmt.Fprintf(w, "%q\n", target)
		return err
	case unix.S_IFREG:
		fmt.Fprintf(w, "%d %d\n", st.Nlink, st.Size)
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		if _, err := io.Copy(w, f); err != nil {
			return err
		}
	}
	value := make([]byte, 256)
	if n, err := unix.Getxattr(path, "user.test", value); err == nil {
		fmt.Fprintf(w, "%q\n", value[:n])
	}
	return nil
}
