package kvm

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gvmspawn/gvmspawn/vmm/mem"
	"github.com/gvmspawn/gvmspawn/vmm/vcpu"
)

// TestProbe compares the probe's verdict with what the host says about itself.
func TestProbe(t *testing.T) {
	needKVM(t)
	info, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		t.Skip(err)
	}
	flags := strings.Fields(string(info))
	genuine := false
	for _, f := range flags {
		genuine = genuine || f == "vmx" || f == "svm"
	}
	start := time.Now()
	err = Probe(nil)
	t.Logf("probe took %v: %v", time.Since(start), err)
	var unusable *UnusableError
	switch {
	case genuine && err != nil:
		t.Errorf("genuine KVM is refused: %v", err)
	case !genuine && (!errors.As(err, &unusable) || unusable.Cause != Emulating):
		t.Errorf("KVM without virtualization extensions: %v", err)
	}
}

// TestProbeLeavesNoTrace: memory and registers are as before.
func TestProbeLeavesNoTrace(t *testing.T) {
	g := newGuest(t, 1, 1, 2, 3)
	if !native() {
		t.Skip("needs KVM that runs guests on the CPU")
	}
	ram, _ := g.mem.Slice(0, testRAM)
	before := bytes.Clone(ram)
	var old, now vcpu.Registers
	if err := g.cpus[0].Registers(&old); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(g.cpus[0].checkNative(), g.cpus[0].Registers(&now)); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(ram, before) {
		t.Error("the memory changed")
	}
	if now != old {
		t.Errorf("the registers changed from\n%+v to\n%+v", old, now)
	}
}

// TestUnusable: one sentence for each way in which a host has no KVM (hostile
// guest, row 28).
func TestUnusable(t *testing.T) {
	dir := t.TempDir()
	cause := func(err error) Cause {
		t.Helper()
		var u *UnusableError
		if !errors.As(err, &u) {
			t.Fatalf("%v is no UnusableError", err)
		}
		return u.Cause
	}
	if _, err := openDevice(filepath.Join(dir, "kvm")); cause(err) != Missing {
		t.Error(err)
	}
	if _, err := openDevice(filepath.Join(dir, "file", "kvm")); cause(err) != Missing {
		t.Error(err)
	}
	for errno, want := range map[unix.Errno]Cause{unix.EBUSY: Busy, unix.ENODEV: Missing, unix.EPERM: NotPermitted, unix.EOPNOTSUPP: Broken} {
		if err := createError(errno); cause(err) != want {
			t.Errorf("%v: %v", errno, err)
		}
	}
	if err := createError(unix.ENOMEM); !errors.Is(err, unix.ENOMEM) {
		t.Error(err)
	}
	// Something else in /dev/kvm's place.
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	if err := Probe(null); cause(err) != WrongVersion {
		t.Error(err)
	}
	m := mem.New()
	if _, err := New(Config{Memory: m, CPUs: 1, File: null}); cause(err) != WrongVersion {
		t.Error(err)
	}
	for c, text := range causeText {
		if e := (&UnusableError{Cause(c), unix.EIO}).Error(); !strings.Contains(e, "/dev/kvm") || !strings.Contains(e, "input/output") {
			t.Errorf("cause %d: %q, %q", c, text, e)
		}
	}
}

func TestNotPermitted(t *testing.T) {
	if os.Getuid() == 0 {
		t.Skip("root may open everything")
	}
	p := filepath.Join(t.TempDir(), "kvm")
	if err := os.WriteFile(p, nil, 0); err != nil {
		t.Fatal(err)
	}
	var u *UnusableError
	if _, err := openDevice(p); !errors.As(err, &u) || u.Cause != NotPermitted {
		t.Error(err)
	}
}
