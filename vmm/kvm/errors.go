package kvm

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// Cause says why a host's KVM cannot be used.
type Cause uint8

const (
	// Missing: there is no /dev/kvm, or nothing behind it.
	Missing Cause = iota
	// NotPermitted: the user may not open it.
	NotPermitted
	// Busy: another hypervisor has the CPU's virtualization extensions.
	Busy
	// WrongVersion: not the API of KVM, or a kernel that is too old.
	WrongVersion
	// Emulating: KVM without virtualization extensions (kvm_pvm), whose
	// instruction emulator cannot run an unmodified kernel.
	Emulating
	// NoSMM: it lacks System Management Mode, which Config asks for.
	NoSMM
	// Broken: it answers, but a guest does not run.
	Broken
)

// causeText is the sentence of each cause.
var causeText = [...]string{
	Missing:      "this host has no usable /dev/kvm: load the kernel module kvm_intel or kvm_amd, and enable virtualization in the firmware setup",
	NotPermitted: "/dev/kvm may not be opened by this user: become a member of its group (usually kvm), or run as root",
	Busy:         "/dev/kvm is busy: another hypervisor on this host uses the CPU's virtualization extensions, so stop that one first",
	WrongVersion: "/dev/kvm of this host's kernel is too old or not KVM: Linux 4.14 or later is needed",
	Emulating:    "/dev/kvm of this host emulates instructions instead of using virtualization extensions (kvm_pvm), and cannot run an unmodified kernel",
	NoSMM:        "/dev/kvm of this host has no System Management Mode, which the firmware needs: take firmware without that need, or the software CPU (--kvm=no)",
	Broken:       "/dev/kvm does not run guests on this host",
}

// UnusableError is returned by [New] and [Probe] when this host's KVM cannot
// run a stock kernel, whatever the machine's configuration but for SMM.
type UnusableError struct {
	Cause Cause
	Err   error // what the kernel said, or nil
}

// Error is one sentence that says what to do.
func (e *UnusableError) Error() string {
	if e.Err == nil {
		return causeText[e.Cause]
	}
	return fmt.Sprintf("%s (%v)", causeText[e.Cause], e.Err)
}

// Unwrap returns the kernel's error.
func (e *UnusableError) Unwrap() error { return e.Err }

// errTooOld says which capability an old kernel lacks.
func errTooOld(capability string) error {
	return &UnusableError{WrongVersion, errors.New("it lacks " + capability)}
}

// openDevice opens /dev/kvm.
func openDevice(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_CLOEXEC, 0)
	if err == nil {
		return f, nil
	}
	var errno unix.Errno
	errors.As(err, &errno)
	switch {
	case errors.Is(err, fs.ErrPermission):
		return nil, &UnusableError{NotPermitted, nil}
	case errno == unix.EBUSY:
		return nil, &UnusableError{Busy, nil}
	case errors.Is(err, fs.ErrNotExist), errno == unix.ENODEV, errno == unix.ENXIO:
		return nil, &UnusableError{Missing, nil}
	}
	return nil, err
}

// createError is what a failing KVM_CREATE_VM means.
func createError(err error) error {
	switch err {
	case unix.EBUSY:
		return &UnusableError{Busy, nil}
	case unix.ENODEV, unix.ENXIO:
		return &UnusableError{Missing, err}
	case unix.EPERM, unix.EACCES:
		return &UnusableError{NotPermitted, err}
	case unix.EOPNOTSUPP:
		return &UnusableError{Broken, err}
	}
	return fmt.Errorf("create a virtual machine (KVM_CREATE_VM): %w", err)
}
