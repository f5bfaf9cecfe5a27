package control

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/gvmspawn/gvmspawn/cmd/gvmspawn/internal/varlink"
)

// fake records what is asked of it.
type fake struct {
	fakeDisks
	calls  chan string
	paused bool
	gone   bool
}

func (f *fake) do(name string) error {
	f.calls <- name
	if f.gone {
		return errors.New("gone")
	}
	return nil
}

func (f *fake) Terminate() error { return f.do("Terminate") }
func (f *fake) PowerOff() error  { return f.do("PowerOff") }
func (f *fake) Reboot() error    { return f.do("Reboot") }
func (f *fake) Pause() error     { f.paused = true; return f.do("Pause") }
func (f *fake) Resume() error    { f.paused = false; return f.do("Resume") }
func (f *fake) Status() (bool, string) {
	if f.paused {
		return false, "paused"
	}
	return true, "running"
}
func (f *fake) Info() map[string]string { return map[string]string{"engine": "kvm"} }

func (f *fake) Memory(context.Context) (Memory, error) {
	if f.gone {
		return Memory{}, errors.New("gone")
	}
	return Memory{Boot: 1 << 30, Max: 2 << 30, Target: 1 << 30, Current: 1 << 29, Guest: map[string]int64{"free": 5}}, nil
}
func (f *fake) ReclaimMemory(context.Context) (uint64, error) {
	if f.paused {
		return 0, errors.New("it is paused")
	}
	return 5 << 20, f.do("ReclaimMemory")
}
func (f *fake) SetMemory(n uint64) error {
	if n > 2<<30 {
		return errors.New("too much")
	}
	return f.do("SetMemory")
}

func start(t *testing.T) (*fake, *Service, string) {
	t.Helper()
	f := &fake{calls: make(chan string, 10)}
	s := New(f)
	path := filepath.Join(t.TempDir(), "control")
	stop, err := s.Listen(path, "1")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stop)
	if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != 0o600 && os.Geteuid() != 0 {
		t.Errorf("%v %v", fi.Mode(), err)
	}
	return f, s, path
}

// TestMethods: io.systemd.MachineInstance as in vmspawn.md §2.11.
func TestMethods(t *testing.T) {
	f, _, path := start(t)
	for _, m := range []string{"Terminate", "PowerOff", "Reboot", "Pause"} {
		if err := Call(t.Context(), path, m); err != nil {
			t.Errorf("%s: %v", m, err)
		}
		if got := <-f.calls; got != m {
			t.Errorf("%s was %s", m, got)
		}
	}
	if word, info, err := Query(t.Context(), path); word != "paused" || info["engine"] != "kvm" || err != nil {
		t.Error(word, info, err)
	}
	f.gone = true
	var e *varlink.Error
	if err := Call(t.Context(), path, "Resume"); !errors.As(err, &e) || e.Name != errNotConnected {
		t.Error(err)
	}
	if err := Call(t.Context(), path, "Fly"); !errors.As(err, &e) || e.Name != varlink.ErrMethodNotFound {
		t.Error(err)
	}
}

func TestEvents(t *testing.T) {
	_, s, path := start(t)
	c, err := varlink.Dial(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	var got []string
	end := errors.New("enough")
	err = c.CallMore(t.Context(), "io.systemd.MachineInstance.SubscribeEvents", map[string]any{"filter": []string{EventStop}}, func(raw json.RawMessage) error {
		got = append(got, string(raw))
		if len(got) == 1 {
			s.Emit(EventResume, nil) // filtered out
			s.Emit(EventStop, map[string]any{"x": 1})
			return nil
		}
		return end
	})
	if err != end || len(got) != 2 || got[0] != `{"event":"READY","ready":true}` || got[1] != `{"event":"STOP","data":{"x":1}}` {
		t.Errorf("%q %v", got, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	seen := make(chan string, 100)
	go func() {
		done <- Subscribe(ctx, path, func(n string) {
			select {
			case seen <- n:
			default: // more than are looked at
			}
		})
	}()
	for n := ""; n != EventReady; { // until the subscription stands
		s.Emit(EventReady, nil)
		select {
		case n = <-seen:
		default:
		}
	}
	cancel()
	if err := <-done; err == nil {
		t.Error("no error after the end of the context")
	}
	for range 1000 { // nobody listens: nothing blocks
		s.Emit(EventStop, nil)
	}
}

func TestOwner(t *testing.T) {
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	if fromOwner(a) {
		t.Error("a connection without an owner is allowed")
	}
}
