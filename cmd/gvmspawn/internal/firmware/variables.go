package firmware

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/gvmspawn/gvmspawn/firmware/uefi"
)

// maxImage bounds code images and variable stores, in bytes: no flash of a PC
// is larger.
const maxImage = 16 << 20

// errTooBig is returned for a file beyond it.
var errTooBig = fmt.Errorf("is larger than %d MiB, which no firmware is", maxImage>>20)

// Keep is how the variables of a machine are kept.
type Keep uint8

// Values of Keep.
const (
	// KeepAuto is a file beside the image, unless the machine is ephemeral.
	KeepAuto Keep = iota
	// KeepOff forgets them at the machine's end.
	KeepOff
	// KeepFile is a file that the user names.
	KeepFile
)

// stateSuffix is of the file that keeps an image's variables.
const stateSuffix = ".efinvramstate"

// StatePath is that file's path; an image is a path without a slash at its end.
func StatePath(image string) string { return image + stateSuffix }

// ReadTemplate reads an initial variable store. The error names the file and
// says what is wrong with it.
func ReadTemplate(path string, open func(path string) (io.ReadCloser, error)) ([]byte, error) {
	b, err := ReadImage(path, open)
	if err != nil {
		return nil, fmt.Errorf("cannot read %s, the template of the EFI variables: %w", path, bare(err))
	}
	if !uefi.IsStore(b) {
		return nil, fmt.Errorf("%s is not a template of EFI variables, or it is truncated", path)
	}
	return b, nil
}

// ReadImage reads a whole code image or variable store.
func ReadImage(path string, open func(path string) (io.ReadCloser, error)) ([]byte, error) {
	f, err := open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxImage+1))
	if err != nil {
		return nil, err
	}
	if len(b) > maxImage {
		return nil, fmt.Errorf("%s %w", path, errTooBig)
	}
	return b, nil
}

// OpenState returns nothing if the file at path can be a machine's variables,
// which it first makes from the template if it does not exist. It appears
// complete or not at all. The error names the file and says what to do.
func OpenState(path string, template []byte) error {
	fi, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		if err = create(path, template); err == nil || !errors.Is(err, fs.ErrExist) {
			return err
		}
		fi, err = os.Stat(path) // somebody was faster
	}
	if err != nil {
		return err
	}
	switch {
	case !fi.Mode().IsRegular():
		return fmt.Errorf("%s, which is to keep the EFI variables, is not a regular file", path)
	case fi.Size() != int64(len(template)):
		return fmt.Errorf("%s has %d bytes, but the variables of this firmware take %d: use the firmware that it was made with, or remove it",
			path, fi.Size(), len(template))
	}
	b, err := ReadImage(path, func(path string) (io.ReadCloser, error) { return os.Open(path) })
	if err != nil {
		return err
	}
	if !uefi.IsStore(b) {
		return fmt.Errorf("%s is not a store of EFI variables: name another file, or remove it", path)
	}
	return nil
}

// create makes a file that is complete when it appears.
func create(path string, content []byte) (err error) {
	defer func() {
		if err != nil && !errors.Is(err, fs.ErrExist) {
			err = fmt.Errorf("cannot keep the EFI variables in %s, say where with --efi-nvram-state=: %w", path, bare(err))
		}
	}()
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) //nolint:errcheck // it has another name by then, or an error is on its way
	_, err = f.Write(content)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Link(f.Name(), path)
}

// bare is the cause of an error about a file that the message names anyway.
func bare(err error) error {
	var pe *fs.PathError
	var le *os.LinkError
	switch {
	case errors.As(err, &pe):
		return pe.Err
	case errors.As(err, &le):
		return le.Err
	}
	return err
}
