package main

import (
	"errors"
	"fmt"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/gvmspawn/gvmspawn/vmm"
)

// maxTAPQueues bounds the queues of a TAP device; more help no guest.
const maxTAPQueues = 8

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
	privileges := errors.New("option --network-tap needs root privileges, use --network-user-mode instead")
	if errors.Is(err, unix.EACCES) {
		return nil, privileges
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
			return nil, privileges
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
