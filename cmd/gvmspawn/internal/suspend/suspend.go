// Package suspend tells when the host goes to sleep and wakes up again, with
// time to act in between: by a delay inhibitor of systemd-logind (systemd.io,
// "Inhibitor Locks").
package suspend

import (
	"context"
	"fmt"
	"os"

	"github.com/godbus/dbus/v5"
)

const (
	login   = "org.freedesktop.login1"
	manager = login + ".Manager"
	object  = dbus.ObjectPath("/org/freedesktop/login1")
)

// Watch calls sleep before the host sleeps, which waits for that a few
// seconds, and wake afterwards. It returns when ctx ends, or at once with an
// error where there is no logind.
func Watch(ctx context.Context, name string, sleep, wake func()) error {
	b, err := dbus.ConnectSystemBus(dbus.WithContext(ctx))
	if err != nil {
		return fmt.Errorf("cannot reach the system bus: %w", err)
	}
	defer b.Close()
	if err := b.AddMatchSignalContext(ctx, dbus.WithMatchObjectPath(object), dbus.WithMatchInterface(manager), dbus.WithMatchMember("PrepareForSleep"), dbus.WithMatchSender(login)); err != nil {
		return fmt.Errorf("cannot listen for the host's sleep: %w", err)
	}
	signals := make(chan *dbus.Signal, 16)
	b.Signal(signals)
	lock, err := inhibit(ctx, b, name)
	if err != nil {
		return err
	}
	defer func() { lock.Close() }() // nil and closed files only give an error
	for {
		select {
		case s, ok := <-signals:
			if !ok {
				return nil // the bus is gone
			}
			start, isBool := false, false
			if len(s.Body) == 1 && s.Name == manager+".PrepareForSleep" {
				start, isBool = s.Body[0].(bool)
			}
			switch {
			case !isBool:
			case start:
				sleep()
				lock.Close() // now the host may
			default:
				wake()
				if lock, err = inhibit(ctx, b, name); err != nil && ctx.Err() == nil {
					return err
				}
			}
		case <-ctx.Done():
			return nil
		}
	}
}

// inhibit delays the host's sleep until the file is closed.
func inhibit(ctx context.Context, b *dbus.Conn, name string) (*os.File, error) {
	var fd dbus.UnixFD
	err := b.Object(login, object).CallWithContext(ctx, manager+".Inhibit", 0, "sleep", name, "The virtual machine is paused first", "delay").Store(&fd)
	if err != nil {
		return nil, fmt.Errorf("cannot delay the host's sleep: %w", err)
	}
	return os.NewFile(uintptr(fd), "inhibitor"), nil
}
