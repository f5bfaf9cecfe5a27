package main

import (
	"os"
	"path/filepath"
	"regexp"
	"testing"
	"time"

	"github.com/gvmspawn/gvmspawn/vmm/guesttest"
)

// promising is an environment around the binary as it is shipped.
func promising(t *testing.T) *environment {
	e := testEnvironment(t)
	e.gvmspawn = guesttest.Binary(t)
	e.host = host{dir: e.dir}
	e.only = regexp.MustCompile("^gvmspawn$")
	return e
}

// TestPromisedStart: from the start of the process to the first instruction of
// the guest take well under the 150 ms of processor time that a whole boot may
// take elsewhere. The bound is generous because tests share their machine.
func TestPromisedStart(t *testing.T) {
	e := promising(t)
	kernel := filepath.Join(e.dir, "tiny")
	if err := os.WriteFile(kernel, tinyKernel(), 0o644); err != nil {
		t.Fatal(err)
	}
	initrd := filepath.Join(e.dir, "initrd")
	if err := os.WriteFile(initrd, make([]byte, 1<<20), 0o644); err != nil {
		t.Fatal(err)
	}
	argv := e.gvmspawnArgs(machine{kernel: kernel, initrd: initrd, ram: 512}, "no")
	best := 1e9
	for range 5 {
		n, err := timeTiny(t.Context(), argv, tinyMark, time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		best = min(best, n["CPU time"])
	}
	t.Logf("%.1f ms of processor time", best)
	if best > 60 {
		t.Errorf("the start takes %.0f ms of processor time, promised are 60", best)
	}
}

// TestPromisedIdle: a VMM with an idle guest keeps at most 80 MiB of memory for
// itself, and wakes up for the guest's own interrupts only.
func TestPromisedIdle(t *testing.T) {
	if testing.Short() {
		t.Skip("boots a stock kernel and watches it being idle")
	}
	n := idleNumbers(t, "kernel-trixie", memoryCase)
	if n["own memory"] > 80 {
		t.Errorf("%.0f MiB of own memory, at most 80 are promised", n["own memory"])
	}
	// Every interrupt costs a few: the timer's goroutine, the CPU's thread.
	if most := 6*n["guest-interrupts"] + 20; n["wake-ups"] > most {
		t.Errorf("%.0f wake-ups a second with %.0f interrupts in the guest, at most %.0f are promised", n["wake-ups"], n["guest-interrupts"], most)
	}
	if n["CPU"] > 10 {
		t.Errorf("%.0f %% of a CPU for an idle guest", n["CPU"])
	}
}

// idleNumbers watches gvmspawn with an idle guest.
func idleNumbers(t *testing.T, kernel string, c benchmark) numbers {
	t.Helper()
	guesttest.KernelAsset(t, kernel)
	p, err := prepareCase(promising(t), c)
	if err != nil {
		t.Fatal(err)
	}
	n, err := p.subjects[0].run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%v", n)
	return n
}

// TestPromisedTree: after the boot of a Debian tree a VMM of one software CPU keeps at
// most 80 MiB of memory for itself.
func TestPromisedTree(t *testing.T) {
	if os.Getenv("GVMSPAWN_LONG") == "" {
		t.Skip("boots a Debian tree: set GVMSPAWN_LONG=1")
	}
	if os.Geteuid() != 0 {
		t.Skip("the tree's files belong to root")
	}
	guesttest.Asset(t, "tree-trixie")
	if n := idleNumbers(t, "kernel-trixie", memoryTreeCase); n["own memory"] > 80 {
		t.Errorf("%.0f MiB of own memory, at most 80 are promised", n["own memory"])
	}
}

// TestPromisedIdleOnKVM: on genuine KVM an idle guest's VMM has at most 10 MiB of
// memory beside the guest's and its program's file, and none of its threads but
// the guest's own CPU wakes up.
func TestPromisedIdleOnKVM(t *testing.T) {
	if testing.Short() {
		t.Skip("boots a stock kernel in the testbed and watches it being idle")
	}
	n := idleNumbers(t, "kernel-bookworm", kvmMemoryCase)
	if n["own private"] > 10 {
		t.Errorf("%.1f MiB of own memory, at most 10 are promised", n["own private"])
	}
	if n["wake-ups"] != 0 {
		t.Errorf("%.2f wake-ups a second, none are promised", n["wake-ups"])
	}
	if n["CPU-wake-ups"] > 2*n["guest-interrupts"]+1 {
		t.Errorf("the guest's CPU wakes up %.1f times a second for %.1f interrupts", n["CPU-wake-ups"], n["guest-interrupts"])
	}
}

// TestPromisedReadyOnKVM: on genuine KVM a small tree is ready earlier than with
// systemd-vmspawn without firmware, by a third at least.
func TestPromisedReadyOnKVM(t *testing.T) {
	if os.Getenv("GVMSPAWN_LONG") == "" {
		t.Skip("boots machines with systemd-vmspawn in the testbed: set GVMSPAWN_LONG=1")
	}
	guesttest.Asset(t, "host-vmspawn")
	e := promising(t)
	e.only = regexp.MustCompile("")
	p, err := prepareCase(e, kvmReadyCase)
	if err != nil {
		t.Fatal(err)
	}
	ready := map[string]float64{}
	for _, s := range p.subjects {
		n, err := s.run(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		ready[s.name] = n["ready"]
	}
	t.Log(ready)
	if ready["gvmspawn"] > ready["systemd-vmspawn"]*2/3 {
		t.Errorf("ready after %v ms", ready)
	}
}

func TestMain(m *testing.M) {
	status := m.Run()
	guesttest.RemoveBinary()
	os.Exit(status)
}
