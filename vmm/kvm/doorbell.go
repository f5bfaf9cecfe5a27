package kvm

import (
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/gvmspawn/gvmspawn/vmm/bus"
)

// doorbell is an eventfd that KVM writes when the guest writes to an address.
type doorbell struct {
	vm *VM
	fd int // eventfd, in blocking mode; closed by the last to leave after Close

	mu      sync.Mutex // guards the fields below
	addr    uint64
	bound   bool
	closed  bool
	waiters int // in Wait
}

// NewDoorbell returns a new, unbound bell.
func (vm *VM) NewDoorbell() (bus.Doorbell, error) {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	if vm.closed {
		return nil, ErrClosed
	}
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("create a doorbell (eventfd): %w", err)
	}
	d := &doorbell{vm: vm, fd: fd}
	vm.doorbells[d] = struct{}{}
	return d, nil
}

// Bind makes guest writes to addr ring the bell. Two bells at one address are
// an error.
func (d *doorbell) Bind(addr uint64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return ErrClosed
	}
	if d.bound && d.addr == addr {
		return nil
	}
	if err := d.unbind(); err != nil {
		return err
	}
	if err := d.ioeventfd(addr, 0); err != nil {
		return fmt.Errorf("bind a doorbell to %#x (KVM_IOEVENTFD): %w", addr, err)
	}
	d.addr, d.bound = addr, true
	return nil
}

// Unbind undoes Bind.
func (d *doorbell) Unbind() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.unbind()
}

// unbind undoes Bind.
//
// Preconditions: d.mu is held.
func (d *doorbell) unbind() error {
	if !d.bound {
		return nil
	}
	d.bound = false
	if err := d.ioeventfd(d.addr, KVM_IOEVENTFD_FLAG_DEASSIGN); err != nil {
		return fmt.Errorf("unbind a doorbell from %#x (KVM_IOEVENTFD): %w", d.addr, err)
	}
	return nil
}

// ioeventfd adds or removes the binding. Length 0 is any length.
func (d *doorbell) ioeventfd(addr uint64, flags uint32) error {
	e := kvmIOEventFD{addr: addr, fd: int32(d.fd), flags: flags}
	_, err := ioctlPtr(d.vm.fd, KVM_IOEVENTFD, &e)
	return err
}

// Ring wakes one present or future Wait.
func (d *doorbell) Ring() {
	d.mu.Lock()
	if !d.closed {
		d.signal()
	}
	d.mu.Unlock()
}

// signal writes to the eventfd. That cannot block: the counter would need 2^64 - 2 rings.
//
// Preconditions: d.mu is held and the eventfd is open.
func (d *doorbell) signal() { _, _ = unix.Write(d.fd, eventOne) }

// Wait blocks the thread until the bell has rung.
func (d *doorbell) Wait() bool {
	d.mu.Lock()
	if d.closed {
		d.mu.Unlock()
		return false
	}
	d.waiters++
	d.mu.Unlock()

	var count [8]byte
	var err error
	for {
		if _, err = unix.Read(d.fd, count[:]); err != unix.EINTR {
			break
		}
	}

	d.mu.Lock()
	defer d.mu.Unlock()
	d.waiters--
	if !d.closed {
		return err == nil
	}
	if d.waiters > 0 {
		d.signal() // on to the next one
	} else {
		_ = unix.Close(d.fd)
	}
	return false
}

// FD is the eventfd, or -1 after Close.
func (d *doorbell) FD() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return -1
	}
	return d.fd
}

// Close unbinds the bell and makes every Wait return false.
func (d *doorbell) Close() error {
	d.vm.mu.Lock()
	delete(d.vm.doorbells, d)
	d.vm.mu.Unlock()
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return nil
	}
	err := d.unbind()
	d.closed = true
	if d.waiters > 0 {
		d.signal()
		return err
	}
	return errors.Join(err, unix.Close(d.fd))
}
