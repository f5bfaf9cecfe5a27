package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net"
	"os"

	"golang.org/x/sys/unix"

	"github.com/gvmspawn/gvmspawn/cmd/gvmspawn/internal/arg"
	"github.com/gvmspawn/gvmspawn/cmd/gvmspawn/internal/hostvsock"
	"github.com/gvmspawn/gvmspawn/cmd/gvmspawn/internal/identity"
	"github.com/gvmspawn/gvmspawn/vmm"
)

// vhostDevice is where the host's kernel offers to serve a guest's vsock.
const vhostDevice = "/dev/vhost-vsock"

// vhost is a vsock that the host's kernel serves if KVM runs the machine, and the
// context ID that is reserved there.
type vhost struct {
	file      *os.File
	cid       uint32
	notify    *hostvsock.Listener
	listeners []*hostvsock.Listener
}

// openVHost reserves a context ID on hosts with /dev/vhost-vsock, so that their own
// programs reach the guest by it. Without that device, or with the software CPU,
// the guest's vsock lives in this program.
func (r *session) openVHost() error {
	if r.s.vsock == arg.No || r.s.kvm == arg.No || r.s.deterministic {
		return nil
	}
	v := &vhost{file: r.plan.vhostVsock}
	if v.file == nil {
		f, err := os.OpenFile(vhostDevice, os.O_RDWR, 0)
		if err != nil {
			if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, fs.ErrPermission) && !errors.Is(err, unix.ENODEV) && !errors.Is(err, unix.ENXIO) {
				r.log.Debug("The host's vsock is not used", "error", err)
			}
			return nil
		}
		r.files = append(r.files, f)
		v.file = f
	}
	var err error
	if v.cid, err = chooseCID(v.file, r.s.vsockCID, r.name, vmm.SetGuestCID); err != nil {
		return err
	}
	if v.notify, err = hostvsock.Listen(hostvsock.AnyPort, v.cid); err != nil {
		r.log.Warn("The host's vsock is not used", "error", err)
		return nil
	}
	v.listeners = append(v.listeners, v.notify)
	r.vhost = v
	go v.notify.Serve(r.guestNotifies)
	return nil
}

// Numbers of tries for a free context ID (vmspawn.md, as systemd-vmspawn).
const (
	derivedCIDs = 64
	randomCIDs  = 64
)

// chooseCID reserves a context ID: the fixed one if there is one, else the first
// free one of those derived from the machine's name, else one by chance.
func chooseCID(f *os.File, fixed uint32, name string, set func(*os.File, uint32) error) (uint32, error) {
	if fixed != 0 {
		if err := set(f, fixed); err != nil {
			if errors.Is(err, vmm.ErrCIDInUse) {
				return 0, fmt.Errorf("option --vsock-cid: the context ID %d is in use by another machine of this host, choose another one", fixed)
			}
			return 0, fmt.Errorf("option --vsock-cid: %w", err)
		}
		return fixed, nil
	}
	for i := range uint32(derivedCIDs + randomCIDs) {
		cid := identity.CID(name, i)
		if i >= derivedCIDs {
			cid = 3 + rand.Uint32N(1<<32-5) // 3 to 2^32 - 3
		}
		err := set(f, cid)
		if err == nil {
			return cid, nil
		}
		if !errors.Is(err, vmm.ErrCIDInUse) {
			return 0, err
		}
	}
	return 0, fmt.Errorf("no free vsock context ID: %w", unix.EADDRNOTAVAIL)
}

// listen serves a further port of the host for the guest.
func (v *vhost) listen(port uint32, handle func(net.Conn)) error {
	l, err := hostvsock.Listen(port, v.cid)
	if err != nil {
		return err
	}
	v.listeners = append(v.listeners, l)
	go l.Serve(handle)
	return nil
}

// machine is what the machine needs of it.
func (v *vhost) machine() *vmm.VHostVsock {
	if v == nil {
		return nil
	}
	return &vmm.VHostVsock{File: v.file, Dial: func(ctx context.Context, port uint32) (net.Conn, error) { return hostvsock.Dial(ctx, v.cid, port) }}
}

func (v *vhost) close() {
	if v == nil {
		return
	}
	for _, l := range v.listeners {
		_ = l.Close()
	}
}
