package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
)

// files does one thing after the other with a file system and looks at the
// result through another call. What it leaves in dir, the host looks at.
func files(dir string) {
	for _, c := range []struct {
		name string
		do   func(dir string) error
	}{
		{"create", createFile}, {"owner", changeOwner}, {"xattr", setXattr}, {"links", makeLinks}, {"rename", renames},
		{"unlinked", useUnlinked}, {"tmpfile", tmpfile}, {"sparse", sparse}, {"fallocate", fallocate}, {"mmap", mapped},
		{"flock", flock}, {"posixlock", posixLock}, {"times", times}, {"nodes", nodes}, {"bigdir", bigDirectory},
		{"append", appends}, {"copyrange", copyRange}, {"setuid", setuidCleared}, {"errors", errorsOf}, {"statfs", statfs},
	} {
		check("files-"+c.name, c.do(dir))
	}
}

// wrong is the error of a check that found something else than it wanted.
func wrong(what string, got, want any) error {
	return fmt.Errorf("%s: got %v, want %v", what, got, want)
}

func createFile(dir string) error {
	path := filepath.Join(dir, "created")
	data := bytes.Repeat([]byte("0123456789abcdef"), 70000)
	if err := os.WriteFile(path, data, 0o640); err != nil {
		return err
	}
	if err := os.Chmod(path, 0o604); err != nil {
		return err
	}
	got, err := os.ReadFile(path)
	if err != nil || !bytes.Equal(got, data) {
		return fmt.Errorf("read back %d bytes of %d: %v", len(got), len(data), err)
	}
	return os.Mkdir(filepath.Join(dir, "made"), 0o1777)
}

func changeOwner(dir string) error {
	path := filepath.Join(dir, "owned")
	err := errors.Join(os.WriteFile(path, []byte("mine"), 0o600), os.Chown(path, 1234, 4321))
	var st unix.Stat_t
	if err == nil {
		err = unix.Stat(path, &st)
	}
	if err == nil && (st.Uid != 1234 || st.Gid != 4321) {
		return wrong("owner", st.Uid, 1234)
	}
	return err
}

func setXattr(dir string) error {
	path := filepath.Join(dir, "owned")
	if err := unix.Setxattr(path, "user.test", []byte("value"), 0); err != nil {
		return err
	}
	b := make([]byte, 100)
	n, err := unix.Getxattr(path, "user.test", b)
	if err != nil || string(b[:n]) != "value" {
		return fmt.Errorf("%q, %v", b[:max(n, 0)], err)
	}
	if n, err = unix.Listxattr(path, b); err != nil || !bytes.Contains(b[:n], []byte("user.test\x00")) {
		return fmt.Errorf("list %q, %v", b[:max(n, 0)], err)
	}
	if _, err := unix.Getxattr(path, "user.none", b); err != unix.ENODATA {
		return wrong("missing attribute", err, unix.ENODATA)
	}
	return nil
}

func makeLinks(dir string) error {
	first := filepath.Join(dir, "first")
	err := errors.Join(os.WriteFile(first, []byte("linked"), 0o644),
		os.Symlink("../first/../elsewhere", filepath.Join(dir, "symlink")), os.Link(first, filepath.Join(dir, "second")))
	if err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Stat(first, &st); err != nil || st.Nlink != 2 {
		return fmt.Errorf("link count %d, %v", st.Nlink, err)
	}
	if to, err := os.Readlink(filepath.Join(dir, "symlink")); to != "../first/../elsewhere" {
		return fmt.Errorf("symlink to %q, %v", to, err)
	}
	return nil
}

func renames(dir string) error {
	a, b := filepath.Join(dir, "rename-a"), filepath.Join(dir, "rename-b")
	err := errors.Join(os.WriteFile(a, []byte("A"), 0o644), os.WriteFile(b, []byte("B"), 0o644))
	if err != nil {
		return err
	}
	if err := unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.RENAME_NOREPLACE); err != unix.EEXIST {
		return wrong("RENAME_NOREPLACE", err, unix.EEXIST)
	}
	if err := unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.RENAME_EXCHANGE); err != nil {
		return fmt.Errorf("RENAME_EXCHANGE: %w", err)
	}
	if got, err := os.ReadFile(a); string(got) != "B" {
		return fmt.Errorf("after the exchange %q, %v", got, err)
	}
	if err := os.Rename(a, b); err != nil {
		return err
	}
	if got, err := os.ReadFile(b); string(got) != "B" {
		return fmt.Errorf("after the rename %q, %v", got, err)
	}
	if _, err := os.Stat(a); !os.IsNotExist(err) {
		return wrong("old name", err, os.ErrNotExist)
	}
	return nil
}

// useUnlinked: an unlinked file lives on while it is open.
func useUnlinked(dir string) error {
	f, err := os.Create(filepath.Join(dir, "gone"))
	if err != nil {
		return err
	}
	defer f.Close()
	if err := os.Remove(f.Name()); err != nil {
		return err
	}
	if _, err := f.WriteAt([]byte("still here"), 5000); err != nil {
		return err
	}
	b := make([]byte, 10)
	if _, err := f.ReadAt(b, 5000); err != nil || string(b) != "still here" {
		return fmt.Errorf("%q, %v", b, err)
	}
	fi, err := f.Stat()
	if err != nil || fi.Size() != 5010 {
		return fmt.Errorf("fstat: %v, %v", fi, err)
	}
	return f.Truncate(0)
}

func tmpfile(dir string) error {
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR, 0o600)
	if errors.Is(err, unix.EOPNOTSUPP) {
		return nil // FUSE has it since Linux 6.2
	}
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), "tmpfile")
	defer f.Close()
	if _, err := f.WriteString("no name yet"); err != nil {
		return err
	}
	path := filepath.Join(dir, "tmpfile")
	if err := unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", fd), unix.AT_FDCWD, path, unix.AT_SYMLINK_FOLLOW); err != nil {
		return fmt.Errorf("give it a name: %w", err)
	}
	got, err := os.ReadFile(path)
	if string(got) != "no name yet" {
		return fmt.Errorf("%q, %v", got, err)
	}
	return err
}

func sparse(dir string) error {
	f, err := os.Create(filepath.Join(dir, "sparse"))
	if err != nil {
		return err
	}
	defer f.Close()
	const data = 1 << 20
	if _, err := f.WriteAt(bytes.Repeat([]byte{7}, 4096), data); err != nil {
		return err
	}
	if err := f.Truncate(8 << 20); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if off, err := unix.Seek(int(f.Fd()), 0, unix.SEEK_DATA); err != nil || off > data {
		return fmt.Errorf("SEEK_DATA %d, %v", off, err)
	}
	off, err := unix.Seek(int(f.Fd()), data, unix.SEEK_HOLE)
	if err != nil || off < data+4096 || off > 8<<20 {
		return fmt.Errorf("SEEK_HOLE %d, %v", off, err)
	}
	return nil
}

func fallocate(dir string) error {
	f, err := os.Create(filepath.Join(dir, "fallocated"))
	if err != nil {
		return err
	}
	defer f.Close()
	fd := int(f.Fd())
	if err := unix.Fallocate(fd, 0, 0, 1<<20); err != nil {
		return err
	}
	if fi, err := f.Stat(); err != nil || fi.Size() != 1<<20 {
		return fmt.Errorf("size: %v, %v", fi, err)
	}
	if _, err := f.WriteAt(bytes.Repeat([]byte{9}, 1<<20), 0); err != nil {
		return err
	}
	if err := unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 4096, 8192); err != nil {
		return fmt.Errorf("punch: %w", err)
	}
	b := make([]byte, 16384)
	if _, err := f.ReadAt(b, 0); err != nil {
		return err
	}
	want := slices.Concat(bytes.Repeat([]byte{9}, 4096), make([]byte, 8192), bytes.Repeat([]byte{9}, 4096))
	if !bytes.Equal(b, want) {
		return errors.New("the hole is not where it was punched")
	}
	return nil
}

func mapped(dir string) error {
	f, err := os.Create(filepath.Join(dir, "mapped"))
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Truncate(64 << 10); err != nil {
		return err
	}
	m, err := unix.Mmap(int(f.Fd()), 0, 64<<10, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	for i := range m {
		m[i] = byte(i * 7)
	}
	if err := unix.Msync(m, unix.MS_SYNC); err != nil {
		return err
	}
	b := make([]byte, len(m))
	if _, err := f.ReadAt(b, 0); err != nil || !bytes.Equal(b, m) {
		return fmt.Errorf("read after mmap writes differs, %v", err)
	}
	if _, err := f.WriteAt([]byte("through write"), 4090); err != nil {
		return err
	}
	if !bytes.Equal(m[4090:4103], []byte("through write")) {
		return errors.New("the mapping does not see a write")
	}
	return unix.Munmap(m)
}
