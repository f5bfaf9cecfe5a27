package control

import (
	"errors"
	"testing"

	"github.com/gvmspawn/gvmspawn/cmd/gvmspawn/internal/varlink"
)

// TestMemory: the memory methods of io.gvmspawn.Machine.
func TestMemory(t *testing.T) {
	f, _, path := start(t)
	m, err := GetMemory(t.Context(), path)
	if err != nil || m.Boot != 1<<30 || m.Current != 1<<29 || m.Guest["free"] != 5 {
		t.Errorf("%+v %v", m, err)
	}
	if err := SetMemory(t.Context(), path, 1<<30); err != nil || <-f.calls != "SetMemory" {
		t.Error(err)
	}
	var e *varlink.Error
	if err := SetMemory(t.Context(), path, 3<<30); !errors.As(err, &e) || e.Name != errMemoryRefused || e.Parameters["reason"] != "too much" {
		t.Error(err)
	}
	if n, err := ReclaimMemory(t.Context(), path); err != nil || n != 5<<20 || <-f.calls != "ReclaimMemory" {
		t.Error(n, err)
	}
	f.paused = true
	if _, err := ReclaimMemory(t.Context(), path); !errors.As(err, &e) || e.Name != errMemoryRefused || e.Parameters["reason"] != "it is paused" {
		t.Error(err)
	}
	f.gone = true
	if _, err := GetMemory(t.Context(), path); !errors.As(err, &e) || e.Name != errNotConnected {
		t.Error(err)
	}
}
