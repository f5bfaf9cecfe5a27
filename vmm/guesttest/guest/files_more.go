package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

func flock(dir string) error {
	path := filepath.Join(dir, "lock")
	a, err := os.Create(path)
	if err != nil {
		return err
	}
	defer a.Close()
	b, err := os.Open(path)
	if err != nil {
		return err
	}
	defer b.Close()
	if err := unix.Flock(int(a.Fd()), unix.LOCK_EX); err != nil {
		return err
	}
	if err := unix.Flock(int(b.Fd()), unix.LOCK_SH|unix.LOCK_NB); err != unix.EWOULDBLOCK {
		return wrong("second lock", err, unix.EWOULDBLOCK)
	}
	if err := unix.Flock(int(a.Fd()), unix.LOCK_UN); err != nil {
		return err
	}
	return unix.Flock(int(b.Fd()), unix.LOCK_SH|unix.LOCK_NB)
}

// posixLock uses locks of open files, which conflict within one process.
func posixLock(dir string) error {
	path := filepath.Join(dir, "lock")
	a, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer a.Close()
	b, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer b.Close()
	lock := func(f *os.File, typ int16, start, n int64) error {
		return unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: typ, Start: start, Len: n})
	}
	if err := lock(a, unix.F_WRLCK, 0, 100); err != nil {
		return err
	}
	if err := lock(b, unix.F_WRLCK, 50, 10); err != unix.EAGAIN {
		return wrong("lock inside another's", err, unix.EAGAIN)
	}
	if err := lock(b, unix.F_WRLCK, 100, 10); err != nil {
		return fmt.Errorf("lock behind another's: %w", err)
	}
	if err := lock(a, unix.F_UNLCK, 50, 50); err != nil {
		return err
	}
	return lock(b, unix.F_WRLCK, 50, 10)
}

func times(dir string) error {
	path := filepath.Join(dir, "times")
	at, mt := time.Unix(1_000_000_000, 123_456_789), time.Unix(1_700_000_000, 987_654_321)
	if err := errors.Join(os.WriteFile(path, nil, 0o644), os.Chtimes(path, at, mt)); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return err
	}
	if st.Mtim.Nano() != mt.UnixNano() || st.Atim.Nano() != at.UnixNano() {
		return wrong("times", []int64{st.Atim.Nano(), st.Mtim.Nano()}, []int64{at.UnixNano(), mt.UnixNano()})
	}
	return nil
}

// nodes: a FIFO works within the guest; devices are not made on the host, but
// the whiteouts of overlayfs are.
func nodes(dir string) error {
	fifo := filepath.Join(dir, "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		return err
	}
	r, err := os.OpenFile(fifo, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer r.Close()
	if _, err := r.WriteString("pipe"); err != nil {
		return err
	}
	b := make([]byte, 4)
	if _, err := r.Read(b); err != nil || string(b) != "pipe" {
		return fmt.Errorf("%q, %v", b, err)
	}
	if err := unix.Mknod(filepath.Join(dir, "null"), unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3))); err != unix.EPERM {
		return wrong("make a device", err, unix.EPERM)
	}
	return unix.Mknod(filepath.Join(dir, "whiteout"), unix.S_IFCHR|0o600, 0)
}

func bigDirectory(dir string) error {
	big := filepath.Join(dir, "big")
	if err := os.Mkdir(big, 0o755); err != nil {
		return err
	}
	const n = 400
	for i := range n {
		if err := os.WriteFile(filepath.Join(big, fmt.Sprintf("%s-%d", strings.Repeat("n", i%200), i)), []byte{byte(i)}, 0o644); err != nil {
			return err
		}
	}
	entries, err := os.ReadDir(big)
	if err != nil || len(entries) != n {
		return fmt.Errorf("%d entries of %d, %v", len(entries), n, err)
	}
	for i, e := range entries {
		if i%2 == 0 {
			continue
		}
		if err := os.Remove(filepath.Join(big, e.Name())); err != nil {
			return err
		}
	}
	if err := os.Remove(big); !errors.Is(err, unix.ENOTEMPTY) {
		return wrong("remove a full directory", err, unix.ENOTEMPTY)
	}
	return nil
}

func appends(dir string) error {
	path := filepath.Join(dir, "appended")
	a, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	defer a.Close()
	b, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	defer b.Close()
	var want []byte
	for i := range 50 {
		line := fmt.Appendf(nil, "line %d\n", i)
		want = append(want, line...)
		f := a
		if i%2 == 1 {
			f = b
		}
		if _, err := f.Write(line); err != nil {
			return err
		}
	}
	got, err := os.ReadFile(path)
	if !bytes.Equal(got, want) {
		return fmt.Errorf("%d bytes of %d, %v", len(got), len(want), err)
	}
	return err
}

func copyRange(dir string) error {
	from, err := os.Open(filepath.Join(dir, "created"))
	if err != nil {
		return err
	}
	defer from.Close()
	to, err := os.Create(filepath.Join(dir, "copied"))
	if err != nil {
		return err
	}
	defer to.Close()
	off := int64(100)
	n, err := unix.CopyFileRange(int(from.Fd()), &off, int(to.Fd()), nil, 100_000, 0)
	if err != nil || n == 0 {
		return fmt.Errorf("%d bytes, %w", n, err)
	}
	want, got := make([]byte, n), make([]byte, n)
	if _, err := from.ReadAt(want, 100); err != nil {
		return err
	}
	if _, err := to.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
		return fmt.Errorf("the copy differs, %v", err)
	}
	return nil
}

// setuidCleared: who writes a file without CAP_FSETID clears its set-user-ID
// bit, and a change of the owner always does.
func setuidCleared(dir string) error {
	path := filepath.Join(dir, "setuid")
	if err := errors.Join(os.WriteFile(path, []byte("x"), 0o755), unix.Chmod(path, 0o4755), os.Chown(path, 1, 1)); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil || st.Mode&0o7777 != 0o755 {
		return fmt.Errorf("mode %o after a change of the owner, %v", st.Mode, err)
	}
	return nil
}

// errorsOf: errors are those that a local file system gives.
func errorsOf(dir string) error {
	for _, c := range []struct {
		what string
		got  error
		want unix.Errno
	}{
		{"missing", unix.Access(filepath.Join(dir, "nope"), unix.F_OK), unix.ENOENT},
		{"below a file", unix.Access(filepath.Join(dir, "created", "x"), unix.F_OK), unix.ENOTDIR},
		{"long name", unix.Mkdir(filepath.Join(dir, strings.Repeat("l", 256)), 0o755), unix.ENAMETOOLONG},
		{"exists", unix.Mkdir(filepath.Join(dir, "made"), 0o755), unix.EEXIST},
		{"unlink a directory", unix.Unlink(filepath.Join(dir, "made")), unix.EISDIR},
		{"remove a file as directory", unix.Rmdir(filepath.Join(dir, "created")), unix.ENOTDIR},
		{"into itself", unix.Rename(filepath.Join(dir, "made"), filepath.Join(dir, "made", "x")), unix.EINVAL},
		{"link to a directory", unix.Link(filepath.Join(dir, "made"), filepath.Join(dir, "made2")), unix.EPERM},
	} {
		if c.got != c.want {
			return wrong(c.what, c.got, c.want)
		}
	}
	return nil
}

func statfs(dir string) error {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return err
	}
	if st.Blocks == 0 || st.Bfree > st.Blocks || st.Namelen < 255 {
		return fmt.Errorf("%+v", st)
	}
	return nil
}
