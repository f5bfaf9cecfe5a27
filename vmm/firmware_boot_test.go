package vmm

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gvmspawn/gvmspawn/vmm/guesttest"
)

// ovmf returns the code image and a fresh copy of the variable store of
// Debian's OVMF.
func ovmf(t testing.TB) (code, vars string) { return ovmfOf(t, "ovmf") }

// ovmfOf is ovmf of a release of Debian.
func ovmfOf(t testing.TB, asset string) (code, vars string) {
	t.Helper()
	dir := filepath.Join(guesttest.Asset(t, asset), "usr/share/OVMF")
	template, err := os.ReadFile(filepath.Join(dir, "OVMF_VARS_4M.fd"))
	if err != nil {
		t.Fatal(err)
	}
	vars = filepath.Join(t.TempDir(), "vars.fd")
	if err := os.WriteFile(vars, template, 0o600); err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, "OVMF_CODE_4M.fd"), vars
}

// dialogue is a console that types an answer when it reads something. It
// implements io.Writer for the guest's output.
type dialogue struct {
	mu    sync.Mutex // guards all
	out   bytes.Buffer
	seen  int // of out, up to which steps are done
	steps []step
	keys  io.Writer
}

// step waits for text and then types an answer, or does something.
type step struct {
	text, answer string
	do           func()
}

func (d *dialogue) Write(p []byte) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.out.Write(p)
	for len(d.steps) > 0 {
		s := d.steps[0]
		i := bytes.Index(d.out.Bytes()[d.seen:], []byte(s.text))
		if i < 0 {
			break
		}
		d.seen += i + len(s.text)
		d.steps = d.steps[1:]
		if s.do != nil {
			s.do()
		}
		if s.answer != "" {
			go io.WriteString(d.keys, s.answer) //nolint:errcheck // a pipe
		}
	}
	return len(p), nil
}

// tail is the end of the output, for people.
func (d *dialogue) tail() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	b := d.out.Bytes()
	return strings.ToValidUTF8(string(b[max(0, len(b)-3000):]), "?")
}

// unanswered is the text of the step that was not reached, or empty.
func (d *dialogue) unanswered() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.steps) == 0 {
		return ""
	}
	return d.steps[0].text
}

// converse boots a machine, over its reboots, on its serial console, until it
// ends or ctx does, and fails the test if not all steps were reached.
func converse(ctx context.Context, t testing.TB, cfg Config, limit time.Duration, steps ...step) End {
	t.Helper()
	var m *Machine
	return converseWith(ctx, t, &m, cfg, limit, steps...)
}

// converseWith is converse for steps that use the machine.
func converseWith(ctx context.Context, t testing.TB, running **Machine, cfg Config, limit time.Duration, steps ...step) End {
	t.Helper()
	r, w := io.Pipe()
	defer w.Close()
	d := &dialogue{steps: steps, keys: w}
	cfg.Console = Console{Transport: ConsoleSerial, Out: d, In: NewInput(r)}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	end := EndReboot
	for n := 0; end == EndReboot && n < 5; n++ {
		m, err := New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		*running = m
		end, err = m.Run(ctx)
		if cerr := m.Close(); err != nil || cerr != nil {
			t.Fatalf("%v, %v\n%s", err, cerr, d.tail())
		}
	}
	if text := d.unanswered(); text != "" {
		t.Fatalf("the guest never said %q; end %d; its last words:\n%s", text, end, d.tail())
	}
	return end
}

// The way of UEFI's shell with its user: it counts to five before the prompt.
var (
	skipStartup = step{text: "any other key to continue", answer: "\x1b"}
	prompt      = "Shell> "
)

// bootShell boots OVMF to its shell, whose commands show what it knows of the
// machine, resets by it, and powers off by it. A variable survives the reset.
func bootShell(t *testing.T, cpus int, ram uint64, limit time.Duration) {
	code, vars := ovmf(t)
	useShell(t, Config{
		Name: "shell", CPUs: cpus, RAM: ram, Accel: AccelSoft,
		Firmware: &Firmware{Code: code, Vars: vars},
	}, limit)
}

// useShell is bootShell with any machine.
func useShell(t *testing.T, cfg Config, limit time.Duration) {
	t.Helper()
	end := converse(context.Background(), t, cfg, limit,
		skipStartup,
		step{text: prompt, answer: "setvar Kept -guid 67766d73-7061-776e-8000-000000000001 -bs -rt -nv =0x47564d\r"},
		step{text: prompt, answer: "reset\r"},
		skipStartup,
		step{text: prompt, answer: "setvar Kept -guid 67766d73-7061-776e-8000-000000000001\r"},
		step{text: "4D 56 47 00"},
		step{text: prompt, answer: "reset -s\r"},
	)
	if end != EndPowerOff {
		t.Errorf("end %d instead of a power-off", end)
	}
	store, err := os.ReadFile(cfg.Firmware.Vars)
	if err != nil || !bytes.Contains(store, []byte("K\x00e\x00p\x00t\x00")) {
		t.Errorf("the variable is not in the store (%v)", err)
	}
}

// TestBootFirmwareShell: OVMF on the software CPU, to its shell and back.
func TestBootFirmwareShell(t *testing.T) {
	if testing.Short() {
		t.Skip("boots a machine on the software CPU")
	}
	bootShell(t, 1, 512<<20, 4*time.Minute)
}

// TestLongFirmwareShell: with several CPUs, and RAM on both sides of the hole.
func TestLongFirmwareShell(t *testing.T) {
	if os.Getenv("GVMSPAWN_LONG") == "" {
		t.Skip("set GVMSPAWN_LONG=1")
	}
	bootShell(t, 4, 3<<30, 10*time.Minute)
}
