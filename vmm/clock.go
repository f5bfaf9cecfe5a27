package vmm

import (
	"io"
	"math/rand/v2"
	"time"

	"github.com/gvmspawn/gvmspawn/vmm/bus"
)

// deterministicEpoch is the time of day at the start of a deterministic machine.
var deterministicEpoch = time.Date(2024, 1, 1, 0, 0, 0, 0, time.UTC)

// deterministicPatience is how long the CPU of a deterministic machine waits for
// a device's reset, instead of polling.
const deterministicPatience = time.Minute

// clocked is an engine with a clock of its own.
type clocked interface{ Clock() bus.Clock }

// clock is the time that the chips see: the engine's own, else the host's.
func (m *Machine) clock() bus.Clock {
	if c, ok := m.vm.(clocked); ok {
		return c.Clock()
	}
	return m.hostClock
}

// now is the time of day, nil for the host's.
func (m *Machine) now() func() time.Time {
	if !m.cfg.Deterministic {
		return nil
	}
	clock := m.clock()
	return func() time.Time { return deterministicEpoch.Add(time.Duration(clock.Now())) }
}

// newSeeded returns an endless source of bytes that depends on the seed alone.
func newSeeded(seed uint64) io.Reader {
	var key [32]byte
	for i := range 8 {
		key[i] = byte(seed >> (8 * i))
	}
	return rand.NewChaCha8(key)
}
