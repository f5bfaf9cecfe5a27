package power

import (
	"sync"

	"github.com/gvmspawn/gvmspawn/vmm/bus"
)

// Registers of the power management block at PMBASE (Intel ICH9 datasheet §13.8.3).
const (
	pm1Enable  = 0x02
	pm1Control = 0x04
	pmTimer    = 0x08
	gpe0Enable = 0x28
	smiEnable  = 0x30

	smiGlobal = 1 << 0 // GBL_SMI_EN, in byte 0 of SMI_EN
	smiAPM    = 1 << 5 // APMC_EN
	// ICH9Size is the size of the block in bytes.
	ICH9Size = 0x80

	sciEnable      = 1 << 0  // of PM1_CNT
	pm1SleepType   = 7 << 10 // S5 is 0, as in QEMU, whose firmware this is for
	pm1SleepEnable = 1 << 13
	pm1Writable    = sciEnable | 1<<1 | pm1SleepType
)

// ICH9 is the power management block of the ICH9 south bridge, as far as
// firmware uses it: the timer, sleep and the enables. Nothing in the machine sets a
// status bit here: an operating system gets its events from [Events] instead.
// It implements bus.Device.
type ICH9 struct {
	Timer    PMTimer
	PowerOff func() // called on the CPU's thread, any number of times; must not block

	mu     sync.Mutex // guards the rest
	regs   [ICH9Size]byte
	locked bool // GBL_SMI_EN does not change any more
}

// LockSMI makes GBL_SMI_EN read-only until a reset: SMI_LOCK of the LPC bridge
// (§13.8.1.1).
func (c *ICH9) LockSMI() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.locked = true
}

// EnableAPM turns APMC_EN on, by which a BIOS sees that System Management Mode is
// set up already, as QEMU does in machines without it: SeaBIOS would else wait for
// an SMI for ever.
func (c *ICH9) EnableAPM() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.regs[smiEnable] |= smiAPM
}

// APMRaisesSMI reports whether a write to the APM command port raises an SMI
// (§13.8.3.8).
func (c *ICH9) APMRaisesSMI() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.regs[smiEnable]&(smiGlobal|smiAPM) == smiGlobal|smiAPM
}

// Reset is power-on.
func (c *ICH9) Reset() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.regs, c.locked = [ICH9Size]byte{}, false
}

// Read implements bus.Device.
func (c *ICH9) Read(off uint64, size int) uint64 {
	if off >= pmTimer && off < pmTimer+4 {
		return c.Timer.Read(off-pmTimer, size) & bus.Ones(size)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	v := uint64(0)
	for i := 0; i < size && off+uint64(i) < ICH9Size; i++ {
		v |= uint64(c.regs[off+uint64(i)]) << (8 * i)
	}
	return v
}

// ich9Writable has the bits that keep what is written to them.
var ich9Writable = func() (w [ICH9Size]byte) {
	put := func(off, n int) {
		for i := range n {
			w[off+i] = 0xff
		}
	}
	put(pm1Enable, 2)
	put(gpe0Enable, 8)
	put(smiEnable, 4)
	w[pm1Control], w[pm1Control+1] = pm1Writable&0xff, pm1Writable>>8
	return w
}()

// Write implements bus.Device. Status bits are cleared by writing ones; they are
// never set here.
func (c *ICH9) Write(off uint64, size int, v uint64) {
	c.mu.Lock()
	for i := 0; i < size && off+uint64(i) < ICH9Size; i++ {
		at := off + uint64(i)
		w := ich9Writable[at]
		if at == smiEnable && c.locked {
			w &^= smiGlobal
		}
		c.regs[at] = c.regs[at]&^w | byte(v>>(8*i))&w
	}
	sleepType := c.regs[pm1Control+1] & (pm1SleepType >> 8)
	c.mu.Unlock()
	if touches := off <= pm1Control+1 && pm1Control+1 < off+uint64(size); !touches {
		return
	}
	if byte(v>>(8*(pm1Control+1-off)))&(pm1SleepEnable>>8) != 0 && sleepType == 0 {
		c.PowerOff()
	}
}

// APM is the two ports of the advanced power management interface, 0xb2 and
// 0xb3: a command for system management mode and its scratch register. It
// implements bus.Device.
type APM struct {
	// Command, if not nil, is called with what is written to 0xb2, on the
	// CPU's thread.
	Command func(uint8)

	mu   sync.Mutex // guards regs
	regs [2]byte
}

// Read implements bus.Device.
func (a *APM) Read(off uint64, size int) uint64 { return bus.ReadBytes(a, off, size) }

// Write implements bus.Device.
func (a *APM) Write(off uint64, size int, v uint64) { bus.WriteBytes(a, off, size, v) }

// ReadByteAt implements bus.ByteChip.
func (a *APM) ReadByteAt(off uint64) uint8 {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.regs[off&1]
}

// WriteByteAt implements bus.ByteChip.
func (a *APM) WriteByteAt(off uint64, v uint8) {
	a.mu.Lock()
	a.regs[off&1] = v
	a.mu.Unlock()
	if off == 0 && a.Command != nil {
		a.Command(v)
	}
}
