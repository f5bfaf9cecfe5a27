package machined

import (
	"context"
	"encoding/json"
	"net"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/gvmspawn/gvmspawn/cmd/gvmspawn/internal/varlink"
)

// fake is a machined that keeps what it is told.
type fake struct {
	registered   map[string]any
	unregistered string
	refuse       error
	unknown      string // a parameter that it does not know
	hang         bool
}

func (f *fake) register(ctx context.Context, c *varlink.Call) (any, error) {
	if f.hang {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	if f.refuse != nil {
		return nil, f.refuse
	}
	var m map[string]any
	if err := c.Parameters(&m); err != nil {
		return nil, err
	}
	if _, has := m[f.unknown]; has {
		return nil, &varlink.Error{Name: varlink.ErrInvalidParameter, Parameters: map[string]any{"parameter": f.unknown}}
	}
	f.registered = m
	return nil, nil
}

func (f *fake) unregister(_ context.Context, c *varlink.Call) (any, error) {
	var in struct{ Name string }
	if err := c.Parameters(&in); err != nil {
		return nil, err
	}
	f.unregistered = in.Name
	return nil, nil
}

func serve(t *testing.T, f *fake) Scope {
	t.Helper()
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path="+t.TempDir()+"/none")
	path := filepath.Join(t.TempDir(), "m")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	s := &varlink.Server{Methods: map[string]varlink.Handler{"io.systemd.Machine.Register": f.register, "io.systemd.Machine.Unregister": f.unregister}}
	go func() { s.Serve(ctx, l); close(done) }()
	t.Cleanup(func() { l.Close(); cancel(); <-done })
	return Scope{Socket: path}
}

// TestFields: what vmspawn.md §2.11 says is registered.
func TestFields(t *testing.T) {
	f := &fake{}
	s := serve(t, f)
	r, err := Register(t.Context(), s, Machine{Name: "debian", ID: [16]byte{1, 255}, Leader: 7, RootDirectory: "/x", CID: 42, SSHAddress: "vsock/42", SSHKey: "/key", Control: "/control", Interactive: true, AllocateUnit: true})
	if err != nil {
		t.Fatal(err)
	}
	var want map[string]any
	if err := json.Unmarshal([]byte(`{"name":"debian","id":"01ff0000000000000000000000000000","service":"systemd-vmspawn","class":"vm","leaderProcessId":{"pid":7},
		"rootDirectory":"/x","vSockCid":42,"sshAddress":"vsock/42","sshPrivateKeyPath":"/key","controlAddress":"/control","allowInteractiveAuthentication":true,"allocateUnit":true}`), &want); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(f.registered, want) {
		t.Errorf("%v", f.registered)
	}
	if err := r.Close(); err != nil || f.unregistered != "debian" {
		t.Errorf("%q %v", f.unregistered, err)
	}
}

// TestOlder: a machined that does not know a field is asked without it.
func TestOlder(t *testing.T) {
	for _, name := range []string{"controlAddress", "allocateUnit"} {
		f := &fake{unknown: name}
		if _, err := Register(t.Context(), serve(t, f), Machine{Name: "x", Leader: 1, Control: "/c", AllocateUnit: true}); err != nil || f.registered["name"] != "x" {
			t.Errorf("%s: %v %v", name, f.registered, err)
		}
	}
	if _, err := Register(t.Context(), serve(t, &fake{unknown: "name"}), Machine{Name: "x"}); err == nil {
		t.Error("a machined that knows no names")
	}
}

func TestRefusal(t *testing.T) {
	s := serve(t, &fake{refuse: &varlink.Error{Name: "io.systemd.Machine.MachineExists"}})
	if _, err := Register(t.Context(), s, Machine{Name: "x"}); err == nil || !strings.Contains(err.Error(), "refuses the machine: io.systemd.Machine.MachineExists") {
		t.Error(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := Register(ctx, serve(t, &fake{hang: true}), Machine{Name: "x"}); err == nil || err.Error() != "systemd-machined does not answer" {
		t.Error(err)
	}
	if _, err := Register(t.Context(), Scope{Socket: s.Socket + "x"}, Machine{Name: "x"}); err == nil || !strings.Contains(err.Error(), "cannot be reached") {
		t.Error(err)
	}
}
