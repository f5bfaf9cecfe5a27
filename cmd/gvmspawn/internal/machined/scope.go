package machined

import (
	"context"
	"fmt"
	"os/exec"
	"strings"

	"github.com/godbus/dbus/v5"
)

// Unit is a scope unit that a machine runs in.
type Unit struct {
	Name, Description string
	Slice             string   // "" for machine.slice
	Properties        []string // NAME=VALUE as "systemctl set-property" takes them
	PIDs              []uint32
}

// ScopeName is the name of a machine's scope.
func ScopeName(machine string) string {
	return "machine-" + strings.ReplaceAll(machine, "-", `\x2d`) + ".scope"
}

const systemd = "org.freedesktop.systemd1"

// StartScope moves processes into a new scope. The scope ends with them.
func StartScope(ctx context.Context, s Scope, u Unit) error {
	ctx, cancel := context.WithTimeout(ctx, Timeout)
	defer cancel()
	b, err := bus(ctx, s)
	if err != nil {
		return fmt.Errorf("cannot reach the service manager: %w", err)
	}
	defer b.Close()
	type property struct {
		Name  string
		Value dbus.Variant
	}
	slice := u.Slice
	if slice == "" {
		slice = "machine.slice"
	}
	properties := []property{
		{"Description", dbus.MakeVariant(u.Description)}, {"Slice", dbus.MakeVariant(slice)}, {"PIDs", dbus.MakeVariant(u.PIDs)},
		{"CollectMode", dbus.MakeVariant("inactive-or-failed")},
	}
	type auxiliary struct {
		Name       string
		Properties []property
	}
	err = b.Object(systemd, "/org/freedesktop/systemd1").CallWithContext(ctx, systemd+".Manager.StartTransientUnit", 0, u.Name, "fail", properties, []auxiliary{}).Err
	if err != nil {
		return fmt.Errorf("cannot make the scope %s: %w", u.Name, err)
	}
	if len(u.Properties) == 0 {
		return nil
	}
	args := append(append([]string{"set-property", "--runtime"}, userFlag(s)...), append([]string{u.Name}, u.Properties...)...)
	if out, err := exec.CommandContext(ctx, "systemctl", args...).CombinedOutput(); err != nil {
		return fmt.Errorf("cannot set the properties of %s: %s", u.Name, strings.TrimSpace(string(out)+" "+err.Error()))
	}
	return nil
}

func userFlag(s Scope) []string {
	if s.User {
		return []string{"--user"}
	}
	return nil
}
