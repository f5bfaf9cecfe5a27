package vmm

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/gvmspawn/gvmspawn/vmm/guesttest"
)

// secureOVMF returns Debian's OVMF build that needs System Management Mode, with a
// fresh copy of a variable store.
func secureOVMF(t testing.TB, template string) *Firmware {
	t.Helper()
	dir := filepath.Join(guesttest.Asset(t, "ovmf"), "usr/share/OVMF")
	store, err := os.ReadFile(filepath.Join(dir, template))
	if err != nil {
		t.Fatal(err)
	}
	vars := filepath.Join(t.TempDir(), "vars.fd")
	if err := os.WriteFile(vars, store, 0o600); err != nil {
		t.Fatal(err)
	}
	return &Firmware{Code: filepath.Join(dir, "OVMF_CODE_4M.secboot.fd"), Vars: vars, SMM: true}
}

// TestBootSMM: the build of OVMF that keeps its variables in System Management
// Mode comes to its shell, and a variable that is set there reaches the store.
func TestBootSMM(t *testing.T) {
	if testing.Short() {
		t.Skip("boots a machine on the software CPU")
	}
	f := secureOVMF(t, "OVMF_VARS_4M.fd")
	cfg := Config{Name: "smm", CPUs: 2, RAM: 512 << 20, Accel: AccelSoft, Firmware: f}
	end := converse(t.Context(), t, cfg, 5*time.Minute,
		skipStartup,
		step{text: prompt, answer: "setvar Kept -guid 67766d73-7061-776e-8000-000000000001 -bs -rt -nv =0x47564d\r"},
		step{text: prompt, answer: "reset -s\r"},
	)
	if end != EndPowerOff {
		t.Errorf("end %d instead of a power-off", end)
	}
	store, err := os.ReadFile(f.Vars)
	if err != nil || !bytes.Contains(store, []byte("K\x00e\x00p\x00t\x00")) {
		t.Errorf("the variable is not in the store (%v)", err)
	}
}
