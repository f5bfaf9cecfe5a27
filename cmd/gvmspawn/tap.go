package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/gvmspawn/gvmspawn/cmd/gvmspawn/internal/identity"
	"github.com/gvmspawn/gvmspawn/cmd/gvmspawn/internal/nsresource"
	"github.com/gvmspawn/gvmspawn/vmm"
)

// maxTAPQueues bounds the queues of a TAP device; more help no guest.
const maxTAPQueues = 8

// errPrivileges is a TAP device that we may not make ourselves.
var errPrivileges = errors.New("making a TAP device needs root privileges")

// taps are the queues of the machine's TAP device. Without privileges
// systemd-nsresourced makes it, under a name of its own.
func (p *plan) taps() ([]*os.File, error) {
	taps, err := openTAPs(identity.TapName(p.name), p.s.cpus.CPUs)
	if errors.Is(err, errPrivileges) {
		t, nerr := nsresource.Open(context.Background(), nsresource.Socket)
		if nerr != nil {
			return nil, fmt.Errorf("option --network-tap: %w, and %w; use --network-user-mode instead", err, nerr)
		}
		p.cfg.Log.Debug("systemd-nsresourced made the TAP device", "interface", t.Name)
		p.files = append(p.files, t.Namespace)
		taps, err = []*os.File{t.File}, nil
	}
	p.files = append(p.files, taps...)
	return taps, err
}

// openTAPs makes the machine's TAP device, or takes it over if the administrator made
// it before, with a queue for each CPU. One that was made for a single queue has one.
func openTAPs(name string, cpus int) ([]*os.File, error) {
	var files []*os.File
	for range min(cpus, maxTAPQueues) {
		flags := uint16(unix.IFF_MULTI_QUEUE)
		if cpus == 1 {
			flags = 0
		}
		f, err := openTAP(name, flags)
		if errors.Is(err, unix.EINVAL) && len(files) == 0 && flags != 0 {
			f, err = openTAP(name, 0)
			cpus = 1
		}
		if err != nil {
			closeAll(files)
			return nil, err
		}
		files = append(files, f)
		if cpus == 1 {
			break
		}
	}
	return files, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		_ = f.Close()
	}
}

// openTAP opens one queue of a TAP device.
func openTAP(name string, flags uint16) (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if errors.Is(err, unix.EACCES) {
		return nil, errPrivileges
	}
	if err != nil {
		return nil, fmt.Errorf("option --network-tap: /dev/net/tun cannot be opened: %w", err)
	}
	req, err := unix.NewIfreq(name)
	if err == nil {
		req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR | flags)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
	}
	if err != nil {
		unix.Close(fd)
		if errors.Is(err, unix.EPERM) {
			return nil, errPrivileges
		}
		return nil, fmt.Errorf("option --network-tap: cannot make the interface %s: %w", name, err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// duplicateTAPs gives a boot TAP descriptors of its own: a machine closes its
// own, and the interface has to outlive a reboot.
func duplicateTAPs(nics []vmm.NIC) ([]vmm.NIC, error) {
	nics = slices.Clone(nics)
	for i := range nics {
		if nics[i].TAP == nil {
			continue
		}
		var err error
		if nics[i].TAP, err = duplicateTAP(nics[i].TAP); err != nil {
			return nil, err
		}
		nics[i].Queues = slices.Clone(nics[i].Queues)
		for j, f := range nics[i].Queues {
			if nics[i].Queues[j], err = duplicateTAP(f); err != nil {
				return nil, err
			}
		}
	}
	return nics, nil
}

func duplicateTAP(f *os.File) (*os.File, error) {
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("cannot duplicate the TAP device: %w", err)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		return nil, fmt.Errorf("cannot duplicate the TAP device: %w", err)
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}
