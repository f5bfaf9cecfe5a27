package vmm

import (
	"bytes"
	"strings"
	"testing"
)

func TestFallback(t *testing.T) {
	start := func() (*fallback, *bytes.Buffer) {
		var out bytes.Buffer
		return &fallback{tap: &consoleTap{out: &out}}, &out
	}
	write := func(f *fallback, s string) {
		if n, err := f.Write([]byte(s)); n != len(s) || err != nil {
			t.Error(n, err)
		}
	}
	// The virtio console speaks: nothing of the serial port is shown.
	f, out := start()
	write(f, "early\n")
	f.spoken().Write([]byte("hvc\n")) //nolint:errcheck // a buffer
	write(f, "late\n")
	f.close()
	if out.String() != "hvc\n" {
		t.Errorf("%q", out)
	}
	// It never does: the end shows all, and a panic is known.
	f, out = start()
	write(f, "early\nKernel panic - not syncing: x\n")
	if out.Len() != 0 || f.tap.panicked() == "" {
		t.Errorf("%q %q", out, f.tap.panicked())
	}
	f.close()
	if !strings.HasPrefix(out.String(), "early\nKernel panic") {
		t.Errorf("%q", out)
	}
	// Time passes: everything is shown from then on, and held memory is bounded.
	f, out = start()
	for range 10 {
		write(f, strings.Repeat("x", serialQueue/2))
	}
	if len(f.held) > 3*serialQueue {
		t.Errorf("%d bytes are held", len(f.held))
	}
	f.show()
	write(f, "shell")
	if !strings.HasSuffix(out.String(), "xshell") {
		t.Errorf("%d bytes", out.Len())
	}
	f.close()
}
