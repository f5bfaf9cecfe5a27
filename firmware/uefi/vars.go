package uefi

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// Vars is an open variable store. While it is open no other process can open it
// so.
type Vars struct {
	file    *os.File
	path    string
	Content []byte // what was in it
}

// OpenVars opens the variable store at path, an existing regular file, for
// reading and writing, and reads it.
func OpenVars(path string) (*Vars, error) {
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("cannot open the variable store: %w", err)
	}
	v := &Vars{file: f, path: path}
	if err := v.open(); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return v, nil
}

func (v *Vars) open() error {
	st, err := v.file.Stat()
	if err != nil {
		return fmt.Errorf("variable store %s: %w", v.path, err)
	}
	if !st.Mode().IsRegular() {
		return fmt.Errorf("the variable store %s is not a regular file", v.path)
	}
	if err := v.lock(); err != nil {
		return err
	}
	if err := checkSize("variable store", v.path, st.Size()); err != nil {
		return err
	}
	v.Content = make([]byte, st.Size())
	if _, err := io.ReadFull(v.file, v.Content); err != nil {
		return fmt.Errorf("cannot read the variable store %s: %w", v.path, err)
	}
	return checkVolume(v.path, v.Content[:fvMinimum], st.Size())
}

// lock keeps other machines away, as long as the file is open.
func (v *Vars) lock() error {
	l := unix.Flock_t{Type: unix.F_WRLCK, Whence: io.SeekStart}
	err := unix.FcntlFlock(v.file.Fd(), unix.F_OFD_SETLK, &l)
	switch {
	case errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES):
		return fmt.Errorf("the variable store %s is in use by another machine: give this one its own copy", v.path)
	case err != nil:
		return fmt.Errorf("cannot lock the variable store %s: %w", v.path, err)
	}
	return nil
}

// WriteAt implements io.WriterAt: the change survives the process.
func (v *Vars) WriteAt(p []byte, off int64) (int, error) {
	n, err := v.file.WriteAt(p, off)
	if err != nil {
		return n, fmt.Errorf("cannot write the variable store: %w", err)
	}
	return n, nil
}

// Close makes the store survive the host, too, and lets others have it.
func (v *Vars) Close() error {
	return errors.Join(v.file.Sync(), v.file.Close())
}
