// Package machined registers a machine with systemd-machined, so that
// machinectl knows it: by varlink (io.systemd.Machine), else by D-Bus
// (org.freedesktop.machine1). A service that hangs costs a bounded time.
package machined

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/godbus/dbus/v5"

	"github.com/gvmspawn/gvmspawn/cmd/gvmspawn/internal/varlink"
)

// service is the name under which machines are registered. It is
// systemd-vmspawn's, because machinectl treats machines by it.
const service = "systemd-vmspawn"

// Timeout bounds a registration.
const Timeout = 10 * time.Second

// Machine is what machined is told.
type Machine struct {
	Name          string
	ID            [16]byte // zero: not given
	Leader        int      // process ID
	RootDirectory string   // "" for a disk image
	CID           uint32   // 0: no vsock
	SSHAddress    string
	SSHKey        string // path of the private key
	Control       string // path of the control socket
	// Interactive lets polkit ask for a password.
	Interactive bool
	// AllocateUnit puts the leader into a scope of its own.
	AllocateUnit bool
}

// Scope is which machined is meant.
type Scope struct {
	// Socket is its varlink socket.
	Socket string
	// User selects the user's bus instead of the system's.
	User bool
}

// System is the system's machined.
func System() Scope { return Scope{Socket: "/run/systemd/machine/io.systemd.Machine"} }

// User is the machined of the user's service manager.
func User() Scope {
	dir := os.Getenv("XDG_RUNTIME_DIR")
	if dir == "" {
		dir = fmt.Sprintf("/run/user/%d", os.Geteuid())
	}
	return Scope{filepath.Join(dir, "systemd/machine/io.systemd.Machine"), true}
}

// registration is the parameters of io.systemd.Machine.Register.
type registration struct {
	Name                           string `json:"name"`
	ID                             string `json:"id,omitempty"`
	Service                        string `json:"service"`
	Class                          string `json:"class"`
	LeaderProcessID                any    `json:"leaderProcessId,omitempty"`
	RootDirectory                  string `json:"rootDirectory,omitempty"`
	VSockCID                       uint32 `json:"vSockCid,omitempty"`
	SSHAddress                     string `json:"sshAddress,omitempty"`
	SSHPrivateKeyPath              string `json:"sshPrivateKeyPath,omitempty"`
	ControlAddress                 string `json:"controlAddress,omitempty"`
	AllowInteractiveAuthentication bool   `json:"allowInteractiveAuthentication,omitempty"`
	AllocateUnit                   bool   `json:"allocateUnit,omitempty"`
}

// Registration is a machine that machined knows.
type Registration struct {
	unregister func(context.Context) error
}

// Register makes a machine known. The registration is to be closed.
func Register(ctx context.Context, s Scope, m Machine) (*Registration, error) {
	ctx, cancel := context.WithTimeout(ctx, Timeout)
	defer cancel()
	err := registerVarlink(ctx, s, m)
	if err == nil {
		return &Registration{func(ctx context.Context) error { return unregisterVarlink(ctx, s, m.Name) }}, nil
	}
	var refused *varlink.Error
	if errors.As(err, &refused) {
		return nil, fmt.Errorf("systemd-machined refuses the machine: %w", refused)
	}
	if ctx.Err() != nil {
		return nil, errors.New("systemd-machined does not answer")
	}
	if derr := registerDBus(ctx, s, m); derr != nil {
		return nil, fmt.Errorf("systemd-machined cannot be reached: %w", err)
	}
	return &Registration{func(ctx context.Context) error { return unregisterDBus(ctx, s, m.Name) }}, nil
}

// Close makes machined forget the machine.
func (r *Registration) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), Timeout)
	defer cancel()
	return r.unregister(ctx)
}

// registerVarlink registers by varlink. Older versions do not know the newest
// fields; they say which, and are asked again without it.
func registerVarlink(ctx context.Context, s Scope, m Machine) error {
	c, err := varlink.Dial(ctx, s.Socket)
	if err != nil {
		return err
	}
	defer c.Close()
	r := registration{Name: m.Name, Service: service, Class: "vm", RootDirectory: m.RootDirectory, VSockCID: m.CID, SSHAddress: m.SSHAddress,
		SSHPrivateKeyPath: m.SSHKey, ControlAddress: m.Control, AllowInteractiveAuthentication: m.Interactive, AllocateUnit: m.AllocateUnit,
		LeaderProcessID: map[string]int{"pid": m.Leader}}
	if m.ID != [16]byte{} {
		r.ID = hex.EncodeToString(m.ID[:])
	}
	drop := map[string]func(){
		"controlAddress": func() { r.ControlAddress = "" }, "allocateUnit": func() { r.AllocateUnit = false },
		"leaderProcessId": func() { r.LeaderProcessID = nil }, "allowInteractiveAuthentication": func() { r.AllowInteractiveAuthentication = false },
		"sshPrivateKeyPath": func() { r.SSHPrivateKeyPath = "" }, "sshAddress": func() { r.SSHAddress = "" }, "vSockCid": func() { r.VSockCID = 0 },
	}
	for {
		err := c.Call(ctx, "io.systemd.Machine.Register", r, nil)
		var e *varlink.Error
		if !errors.As(err, &e) || e.Name != varlink.ErrInvalidParameter {
			return err
		}
		name, _ := e.Parameters["parameter"].(string)
		f, known := drop[name]
		if !known {
			return err
		}
		delete(drop, name)
		f()
	}
}

func unregisterVarlink(ctx context.Context, s Scope, name string) error {
	c, err := varlink.Dial(ctx, s.Socket)
	if err != nil {
		return err
	}
	defer c.Close()
	err = c.Call(ctx, "io.systemd.Machine.Unregister", map[string]string{"name": name}, nil)
	var e *varlink.Error
	if errors.As(err, &e) && e.Name == "io.systemd.Machine.NoSuchMachine" {
		return nil
	}
	return err
}

// bus connects to the system's or the user's bus.
func bus(ctx context.Context, s Scope) (*dbus.Conn, error) {
	if s.User {
		return dbus.ConnectSessionBus(dbus.WithContext(ctx))
	}
	return dbus.ConnectSystemBus(dbus.WithContext(ctx))
}

const manager = "org.freedesktop.machine1"

func registerDBus(ctx context.Context, s Scope, m Machine) error {
	b, err := bus(ctx, s)
	if err != nil {
		return err
	}
	defer b.Close()
	id := []byte{}
	if m.ID != [16]byte{} {
		id = m.ID[:]
	}
	return b.Object(manager, "/org/freedesktop/machine1").CallWithContext(ctx, manager+".Manager.RegisterMachine", 0,
		m.Name, id, service, "vm", uint32(m.Leader), m.RootDirectory).Err
}

func unregisterDBus(ctx context.Context, s Scope, name string) error {
	b, err := bus(ctx, s)
	if err != nil {
		return err
	}
	defer b.Close()
	return b.Object(manager, "/org/freedesktop/machine1").CallWithContext(ctx, manager+".Manager.UnregisterMachine", 0, name).Err
}
