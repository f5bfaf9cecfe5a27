package machined

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/godbus/dbus/v5"

	"github.com/gvmspawn/gvmspawn/cmd/gvmspawn/internal/bustest"
)

// manager1 is a service manager that keeps what it is asked.
type manager1 struct{ calls chan string }

// StartTransientUnit is org.freedesktop.systemd1.Manager's.
func (m *manager1) StartTransientUnit(name, mode string, properties []struct {
	Name  string
	Value dbus.Variant
}, _ []struct {
	Name       string
	Properties []struct {
		Name  string
		Value dbus.Variant
	}
}) (dbus.ObjectPath, *dbus.Error) {
	s := name + " " + mode
	for _, p := range properties {
		s += fmt.Sprintf(" %s=%v", p.Name, p.Value.Value())
	}
	m.calls <- s
	if strings.Contains(name, "refused") {
		return "", dbus.MakeFailedError(fmt.Errorf("refused"))
	}
	return "/org/freedesktop/systemd1/job/1", nil
}

// RegisterMachine is org.freedesktop.machine1.Manager's.
func (m *manager1) RegisterMachine(name string, id []byte, service, class string, leader uint32, root string) (dbus.ObjectPath, *dbus.Error) {
	m.calls <- fmt.Sprintf("register %s %d %s %s %d %s", name, len(id), service, class, leader, root)
	return "/org/freedesktop/machine1/machine/x", nil
}

// UnregisterMachine is org.freedesktop.machine1.Manager's.
func (m *manager1) UnregisterMachine(name string) *dbus.Error {
	m.calls <- "unregister " + name
	return nil
}

// fakeBus starts a bus with a fake systemd and machined on it.
func fakeBus(t *testing.T) *manager1 {
	t.Helper()
	address, b := bustest.Start(t)
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", address)
	t.Setenv("DBUS_SESSION_BUS_ADDRESS", address)
	m := &manager1{make(chan string, 10)}
	for name, path := range map[string]dbus.ObjectPath{systemd: "/org/freedesktop/systemd1", manager: "/org/freedesktop/machine1"} {
		if err := b.Export(m, path, name+".Manager"); err != nil {
			t.Fatal(err)
		}
		if _, err := b.RequestName(name, 0); err != nil {
			t.Fatal(err)
		}
	}
	return m
}

func TestScope(t *testing.T) {
	m := fakeBus(t)
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "systemctl"), []byte("#!/bin/sh\necho \"$*\" >"+dir+"/args\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	u := Unit{Name: ScopeName("a-b"), Description: "Virtual Machine a-b", Slice: "x.slice", PIDs: []uint32{7}, Properties: []string{"MemoryMax=1G"}}
	if err := StartScope(t.Context(), System(), u); err != nil {
		t.Fatal(err)
	}
	if got, want := <-m.calls, `machine-a\x2db.scope fail Description=Virtual Machine a-b Slice=x.slice PIDs=[7] CollectMode=inactive-or-failed`; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	if b, err := os.ReadFile(filepath.Join(dir, "args")); err != nil || string(b) != "set-property --runtime "+u.Name+" MemoryMax=1G\n" {
		t.Errorf("%q %v", b, err)
	}
	if err := StartScope(t.Context(), User(), Unit{Name: "refused.scope"}); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Error(err)
	}
}

// TestDBusFallback: without the varlink socket machined is asked by D-Bus.
func TestDBusFallback(t *testing.T) {
	m := fakeBus(t)
	r, err := Register(t.Context(), Scope{Socket: t.TempDir() + "/none"}, Machine{Name: "x", ID: [16]byte{1}, Leader: 7, RootDirectory: "/r"})
	if err != nil {
		t.Fatal(err)
	}
	if got := <-m.calls; got != "register x 16 systemd-vmspawn vm 7 /r" {
		t.Error(got)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	if got := <-m.calls; got != "unregister x" {
		t.Error(got)
	}
}
