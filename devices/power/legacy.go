package power

import (
	"sync/atomic"

	"github.com/gvmspawn/gvmspawn/vmm/bus"
)

// ResetRegister is the reset control register, port 0xcf9: RST_CPU going from
// 0 to 1 resets the machine, whatever the kind of reset in the other bits. It
// implements bus.Device.
//
// The port lies inside the four of PCI's configuration address. A PC tells
// them apart by width: only a four-byte access at 0xcf8 is PCI's.
type ResetRegister struct {
	Func func() // called on the CPU's thread; must not block

	value atomic.Uint32
}

const (
	rstSystem = 1 << 1
	rstCPU    = 1 << 2
	rstFull   = 1 << 3
)

// Read implements bus.Device.
func (r *ResetRegister) Read(_ uint64, size int) uint64 {
	return uint64(r.value.Load())
}

// Write implements bus.Device.
func (r *ResetRegister) Write(_ uint64, _ int, v uint64) {
	// RST_CPU is not kept: a reset clears it.
	r.value.Store(uint32(v) & (rstSystem | rstFull))
	if v&rstCPU != 0 {
		r.Func()
	}
}

// PortA is system control port A, port 0x92: bit 0 going from 0 to 1 resets
// the machine. Bit 1 is the A20 gate, which reads back and is always open. It
// implements bus.Device.
type PortA struct {
	Func func() // called on the CPU's thread; must not block

	value atomic.Uint32
}

const (
	fastReset = 1 << 0
	fastA20   = 1 << 1
)

// Read implements bus.Device.
func (p *PortA) Read(uint64, int) uint64 { return uint64(p.value.Load()) }

// Write implements bus.Device.
func (p *PortA) Write(_ uint64, _ int, v uint64) {
	old := p.value.Swap(uint32(v) & (fastReset | fastA20))
	if v&fastReset != 0 && old&fastReset == 0 {
		p.Func()
	}
}

// Reset puts the register into its state after power-on.
func (p *PortA) Reset() { p.value.Store(0) }

// pmTimerHz is the frequency of the power management timer (ACPI 6.5 §4.8.2.1).
const pmTimerHz = 3_579_545

// PMTimer is the 32-bit power management timer, a four-byte register at 0. The
// tables of a hardware-reduced machine do not name it; firmware uses it. It
// implements bus.Device.
type PMTimer struct {
	Clock bus.Clock
}

// Read implements bus.Device.
func (p *PMTimer) Read(off uint64, _ int) uint64 {
	ns := p.Clock.Now()
	ticks := ns/1e9*pmTimerHz + ns%1e9*pmTimerHz/1e9
	return uint64(uint32(ticks)) >> (8 * (off & 3))
}

// Write implements bus.Device: the timer is read-only.
func (p *PMTimer) Write(uint64, int, uint64) {}
