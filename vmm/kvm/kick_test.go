package kvm

import (
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gvmspawn/gvmspawn/vmm/vcpu"
)

// TestKickNeverLost: each kick, at a random moment, ends one Run, while the
// guest spins, makes accesses, or sleeps in HLT (hostile guest, row 27: a CPU
// that never returns).
func TestKickNeverLost(t *testing.T) {
	for name, prog := range map[string][]byte{
		"spin": {0xeb, 0xfe},                         // jmp $
		"port": {0xe6, 0x10, 0xeb, 0xfc},             // out 0x10, al; jmp
		"halt": {0xfa, 0xf4, 0xeb, 0xfd},             // cli; hlt; jmp
		"mmio": {0xa2, 0xff, 0xff, 0xeb, 0xfb, 0x00}, // mov [0xffff], al; jmp
	} {
		t.Run(name, func(t *testing.T) {
			n := 10_000
			if testing.Short() {
				n = 1000
			}
			if runtime.NumCPU() == 1 {
				n = 50 // each waits until the kernel takes the only CPU from the guest
			}
			g := newGuest(t, 1, prog...)
			g.io.log = nil
			c := g.start(t, nil)
			kicks, taken := make(chan struct{}), make(chan struct{})
			go func() {
				rng := rand.New(rand.NewPCG(1, 2))
				for range kicks {
					for range rng.IntN(2000) {
						runtime.KeepAlive(rng)
					}
					if rng.IntN(8) == 0 {
						runtime.Gosched()
					}
					c.Kick()
					taken <- struct{}{}
				}
			}()
			onThread(t, func() {
				defer close(kicks)
				for range n {
					kicks <- struct{}{}
					exit, err := c.Run()
					if err != nil || exit.Reason != vcpu.ExitKick {
						t.Errorf("Run: %+v, %v", exit, err)
						<-taken
						return
					}
					<-taken
				}
			})
		})
	}
}

// TestKickBeforeRun: a kick that comes first ends the next Run, and several
// count once.
func TestKickBeforeRun(t *testing.T) {
	g := newGuest(t, 2, 0xeb, 0xfe)
	c := g.start(t, nil)
	c.Kick()
	c.Kick()
	runOnce(t, c, vcpu.ExitKick)
	time.AfterFunc(50*time.Millisecond, c.Kick)
	start := time.Now()
	runOnce(t, c, vcpu.ExitKick)
	if d := time.Since(start); d < 40*time.Millisecond {
		t.Errorf("the second Run ended after %v without a kick", d)
	}
	// A CPU that waits for SIPI can be kicked too.
	time.AfterFunc(20*time.Millisecond, g.cpus[1].Kick)
	runOnce(t, g.cpus[1], vcpu.ExitKick)
}

// TestKickStorm: several goroutines kick, the CPU always comes back.
func TestKickStorm(t *testing.T) {
	storm := 300
	if runtime.NumCPU() == 1 {
		storm = 30
	}
	g := newGuest(t, 1, 0xeb, 0xfe)
	c := g.start(t, nil)
	var stop atomic.Bool
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			for !stop.Load() {
				c.Kick()
				runtime.Gosched()
			}
		})
	}
	onThread(t, func() {
		for range storm {
			if exit, err := c.Run(); err != nil || exit.Reason != vcpu.ExitKick {
				t.Errorf("Run: %+v, %v", exit, err)
				break
			}
		}
		stop.Store(true)
	})
	wg.Wait()
}
