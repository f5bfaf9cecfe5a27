package virtio

import (
	"fmt"
	"time"

	"github.com/gvmspawn/gvmspawn/virtio/virtq"
)

// activate starts the device with the queues as they are now. DRIVER_OK is
// set already, so that no notification comes before it.
//
// Preconditions: c.mu is held, c.phase is idle.
func (c *Core) activate() {
	c.phase = active
	act := &activation{core: c}
	c.current = act
	c.queues = make([]*virtq.Queue, len(c.rings))
	for i := range c.rings {
		if !c.rings[i].Enabled {
			continue
		}
		var err error
		if c.queues[i], err = c.open(act, i); err != nil {
			act.fail(fmt.Errorf("queue %d: %w", i, err))
			c.stopQueues()
			return
		}
	}
	queues := c.queues
	c.notified.Store(&queues)
	err := c.dev.Activate(&Activation{
		Features: c.driver, Queues: c.queues,
		ConfigChanged: act.configChanged, NeedsReset: act.needsReset,
		InterruptFD: c.wiring.QueueInterruptFD, Interrupt: act.interrupt,
	})
	if err != nil {
		act.fail(fmt.Errorf("activate: %w", err))
		c.stopQueues()
		return
	}
	for _, q := range c.queues {
		if q != nil {
			q.Settle()
		}
	}
}

// open makes the bell and the queue of an enabled ring.
//
// Preconditions: c.mu is held.
func (c *Core) open(act *activation, i int) (*virtq.Queue, error) {
	bell, err := c.wiring.OpenBell(i)
	if err != nil {
		return nil, err
	}
	r := &c.rings[i]
	q, err := virtq.New(virtq.Config{
		Mem: c.mem, Size: r.Size, Desc: r.Desc, Avail: r.Avail, Used: r.Used,
		EventIdx: c.driver.Has(FRingEventIdx), Indirect: c.driver.Has(FRingIndirectDesc),
		Packed: c.driver.Has(FRingPacked),
		Bell:   bell, Interrupt: func() { act.interrupt(i) },
		Broken: func(err error) { act.fail(fmt.Errorf("queue %d: %w", i, err)) },
	})
	if err != nil {
		c.wiring.CloseBells()
		_ = bell.Close()
		return nil, err
	}
	return q, nil
}

// stopQueues makes notifications go nowhere and ends all queues. c.queues is
// not changed by anyone else while the phase is active or resetting.
func (c *Core) stopQueues() {
	c.notified.Store(nil)
	c.wiring.CloseBells()
	for _, q := range c.queues {
		if q != nil {
			q.Close()
		}
	}
}

func (a *activation) interrupt(i int) {
	if !a.over.Load() {
		a.core.wiring.QueueInterrupt(i)
	}
}

func (a *activation) configChanged() {
	if a.over.Load() {
		return
	}
	// §2.5.1: the generation changes after the space, before the driver hears of it.
	a.core.generation.Add(1)
	a.core.wiring.ConfigInterrupt()
}

// needsReset implements §2.1.2: "The device MUST set DEVICE_NEEDS_RESET when it
// enters an error state that a reset is needed. If DRIVER_OK is set, after it
// sets DEVICE_NEEDS_RESET, the device MUST send a device configuration change
// notification to the driver."
func (a *activation) needsReset() {
	if a.over.Load() || a.core.status.Or(uint32(StatusNeedsReset))&uint32(StatusNeedsReset) != 0 {
		return
	}
	a.core.wiring.ConfigInterrupt()
}

// fail is needsReset with a reason for the log.
func (a *activation) fail(err error) {
	if !a.over.Load() {
		a.core.report(err)
	}
	a.needsReset()
}

// startReset begins a reset unless one is under way, and waits for its end,
// but not longer than patience; 0 means without limit. It reports whether the
// reset is done.
func (c *Core) startReset(patience time.Duration) bool {
	c.mu.Lock()
	switch c.phase {
	case idle:
		c.clear()
		if c.final {
			c.phase = closed
		}
		fallthrough
	case closed:
		c.mu.Unlock()
		return true
	case active:
		c.phase = resetting
		// §2.4.1: no notifications follow once the reset is complete.
		c.current.over.Store(true)
		c.done = make(chan struct{})
		go c.reset(c.done)
	}
	done := c.done
	c.mu.Unlock()
	if patience == 0 {
		<-done
		return true
	}
	t := time.NewTimer(patience)
	defer t.Stop()
	select {
	case <-done:
		return true
	case <-t.C:
		return false
	}
}

// reset stops the device and then lets the driver see a status of 0 (§2.4.1:
// "A device MUST reinitialize device status to 0 after receiving a reset").
func (c *Core) reset(done chan struct{}) {
	c.stopQueues()
	c.dev.Reset()
	c.mu.Lock()
	c.clear()
	c.phase = idle
	if c.final {
		c.phase = closed
	}
	c.mu.Unlock()
	close(done)
}

// clear brings everything into the initial state.
//
// Preconditions: c.mu is held, the device is not active.
func (c *Core) clear() {
	c.driver, c.queues, c.current = 0, nil, nil
	for i := range c.rings {
		c.rings[i] = Ring{Max: c.rings[i].Max, Size: c.rings[i].Max}
	}
	c.wiring.Cleared()
	c.status.Store(0)
}

// Reset brings the device into its initial state and returns when it is
// there. No CPU runs: this is the machine's reset.
func (c *Core) Reset() { c.startReset(0) }

// Close resets the device for the last time; it never becomes active again.
func (c *Core) Close() {
	c.mu.Lock()
	c.final = true
	c.mu.Unlock()
	c.startReset(0)
}
