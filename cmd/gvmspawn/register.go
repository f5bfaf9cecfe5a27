package main

import (
	"context"
	"fmt"
	"os"
	"sync"

	"github.com/gvmspawn/gvmspawn/cmd/gvmspawn/internal/arg"
	"github.com/gvmspawn/gvmspawn/cmd/gvmspawn/internal/instance"
	"github.com/gvmspawn/gvmspawn/cmd/gvmspawn/internal/machined"
)

// register makes the machine known to systemd-machined as --register= says.
// What is returned undoes it. With auto nothing waits for machined, and where
// there is none that is no more than a debug message.
func (r *session) register() (undo func(), err error) {
	if err := r.startScope(); err != nil {
		return nil, err
	}
	switch r.s.register {
	case arg.No:
		return func() {}, nil
	case arg.Yes:
		reg, err := machined.Register(context.Background(), r.scope(), r.registration())
		if err != nil {
			return nil, fmt.Errorf("option --register=yes: %w", err)
		}
		undo := r.registerToo()
		return func() { undo(); r.unregister(reg) }, nil
	}
	return r.inBackground(func(ctx context.Context) (*machined.Registration, error) {
		return machined.Register(ctx, r.scope(), r.registration())
	}, r.registerToo()), nil
}

// registerToo makes a machine of a user known to the system's machined as
// well, if that lets the user: then others find it by name.
func (r *session) registerToo() (undo func()) {
	scope := r.scope()
	if !scope.User || r.s.user {
		return func() {}
	}
	return r.inBackground(func(ctx context.Context) (*machined.Registration, error) {
		m := r.registration()
		m.AllocateUnit, m.Interactive = false, false
		return machined.Register(ctx, machined.System(), m)
	}, func() {})
}

// inBackground registers while the machine starts. What is returned undoes
// that, after also.
func (r *session) inBackground(register func(context.Context) (*machined.Registration, error), also func()) (undo func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		reg, err := register(ctx)
		if err != nil {
			r.log.Debug("The machine is not registered", "error", err)
			return
		}
		<-ctx.Done()
		r.unregister(reg)
	})
	return func() { also(); cancel(); wg.Wait() }
}

func (r *session) unregister(reg *machined.Registration) {
	if err := reg.Close(); err != nil {
		r.log.Debug("Cannot unregister the machine", "error", err)
	}
}

// scope is which machined is meant: the system's for root, else the user's.
func (r *session) scope() machined.Scope {
	if r.s.user || !r.s.system && os.Geteuid() != 0 {
		return machined.User()
	}
	return machined.System()
}

func (r *session) registration() machined.Machine {
	m := machined.Machine{Name: r.name, ID: r.s.uuid, Leader: os.Getpid(), CID: r.cid(), SSHKey: r.keyPath,
		Interactive: !r.s.noAskPassword && isTerminal(os.Stdin), AllocateUnit: !r.s.keepUnit && !r.ownScope()}
	if r.image.Directory {
		m.RootDirectory = r.image.Path
	}
	if r.instance != nil {
		m.Control = r.instance.Path(instance.ControlSocket)
		if m.CID != 0 {
			// The host's kernel knows nothing of our vsock.
			m.SSHAddress = "vsock-mux/" + r.instance.Path(instance.VsockSocket)
		}
	}
	return m
}

// ownScope reports whether we make the machine's scope ourselves, because
// machined would not make it as it shall be.
func (r *session) ownScope() bool {
	return !r.s.keepUnit && (r.s.slice != "" || len(r.s.properties) > 0)
}

func (r *session) startScope() error {
	if !r.ownScope() {
		return nil
	}
	return machined.StartScope(context.Background(), r.scope(), machined.Unit{Name: machined.ScopeName(r.name), Description: "Virtual Machine " + r.name,
		Slice: r.s.slice, Properties: r.s.properties, PIDs: []uint32{uint32(os.Getpid())}})
}
