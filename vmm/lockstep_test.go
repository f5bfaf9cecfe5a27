package vmm

import (
	"context"
	"flag"
	"io"
	"os"
	"testing"
	"time"

	"github.com/gvmspawn/gvmspawn/vmm/soft"
	"github.com/gvmspawn/gvmspawn/vmm/soft/lockstep"
)

// lockstepKernel is what to boot: go test ./vmm -run TestLongLockstep -args -lockstep.kernel=…
var lockstepKernel = flag.String("lockstep.kernel", "kernel-bookworm", "asset that TestLongLockstep boots")

// TestLongLockstep boots a Debian kernel with the translator and with the
// interpreter, and finds the first block after which the two differ, if they do.
func TestLongLockstep(t *testing.T) {
	if testing.Short() || os.Getenv("GVMSPAWN_LONG") == "" {
		t.Skip("boots a kernel in the interpreter; GVMSPAWN_LONG=1 runs it")
	}
	config := deterministicConfig(t, *lockstepKernel)
	run := func(tier string) lockstep.Runner {
		return func(from, every uint64, f func(*soft.Checkpoint) bool) error {
			t.Setenv("GVMSPAWN_CPU", tier)
			m, err := New(config(io.Discard))
			if err != nil {
				return err
			}
			defer m.Close()
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
			defer cancel()
			m.vm.(*soft.VM).Checkpoints(from, every, func(c *soft.Checkpoint) bool {
				ok := f(c)
				if !ok {
					m.Kill()
				}
				return ok
			})
			start := time.Now()
			_, err = m.Run(ctx)
			t.Logf("%q from instruction %d: %v", tier, from, time.Since(start))
			return err
		}
	}
	d, n, err := lockstep.Find(run(""), run("interp"))
	if err != nil {
		t.Fatal(err)
	}
	if d != nil {
		t.Errorf("translated, interpreted: %v", d)
	}
	t.Logf("%d instructions are the same", n)
}
