package main

import (
	"errors"
	"fmt"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/gvmspawn/gvmspawn/vmm"
)

// openTAP makes the machine's TAP device, or takes it over if the
// administrator made it before.
func openTAP(name string) (*os.File, error) {
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
		req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
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
		fd, err := unix.FcntlInt(nics[i].TAP.Fd(), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return nil, fmt.Errorf("cannot duplicate the TAP device: %w", err)
		}
		if err := unix.SetNonblock(fd, true); err != nil {
			return nil, fmt.Errorf("cannot duplicate the TAP device: %w", err)
		}
		nics[i].TAP = os.NewFile(uintptr(fd), nics[i].TAP.Name())
	}
	return nics, nil
}
