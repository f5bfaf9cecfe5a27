// Package cmos is the PC's real-time clock with its battery-backed memory: an
// MC146818A (Motorola, 1988) behind an index and a data port, with memory
// sizes in the bytes where PC firmware looks for them.
//
// The clock shows the host's time in UTC plus whatever the guest added by
// setting it. Interrupts (periodic, alarm, update ended) use a timer that is
// armed only while the guest has enabled one.
package cmos

import (
	"sync"
	"time"

	"github.com/gvmspawn/gvmspawn/vmm/bus"
)

// Config is what the chip is made with.
type Config struct {
	// Line is the interrupt, ISA IRQ 8.
	Line bus.Line
	// Now is the time of day; nil means time.Now.
	Now func() time.Time
	// Clock gives the timer for the interrupts.
	Clock bus.Clock
	// RAMBelow4G and RAMAbove4G are the sizes of guest RAM in bytes.
	RAMBelow4G, RAMAbove4G uint64
	// CPUs is the number of virtual CPUs.
	CPUs int
}

// RTC is the chip: the index port and the data port. It implements bus.Device.
type RTC struct {
	line  bus.Line
	now   func() time.Time
	clock bus.Clock
	timer bus.Timer

	mu     sync.Mutex // guards all below, held while line is called
	ram    [size]uint8
	index  uint8
	offset time.Duration // guest's time less host's
	set    fields        // what is shown while SET is on
	seen   time.Time     // guest's time up to which flags were raised
	flags  statusC
	level  bool
}

// New returns the chip with its registers as firmware would leave them.
func New(c Config) *RTC {
	r := &RTC{line: c.Line, now: c.Now, clock: c.Clock}
	if r.now == nil {
		r.now = time.Now
	}
	r.timer = c.Clock.NewTimer(r.expired)
	r.putSizes(&c)
	r.Reset()
	return r
}

// Reset is the RESET pin: time and memory survive, interrupts are disabled.
func (r *RTC) Reset() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ram[regA] = uint8(aReset)
	r.setB(b24)
	r.flags, r.index = 0, regD
	r.seen = r.time()
	r.update()
}

// putSizes fills in the memory sizes.
func (r *RTC) putSizes(c *Config) {
	put := func(reg int, bytes int, v uint64) {
		v = min(v, 1<<(8*bytes)-1)
		for i := range bytes {
			r.ram[reg+i] = uint8(v >> (8 * i))
		}
	}
	above := func(start uint64) uint64 { return c.RAMBelow4G - min(c.RAMBelow4G, start) }
	put(cmosBaseLow, 2, min(c.RAMBelow4G>>10, 640))
	put(cmosExtLow, 2, above(1<<20)>>10)
	put(cmosExtLow2, 2, above(1<<20)>>10)
	put(cmosAbove16M, 2, above(16<<20)>>16)
	put(cmosAbove4G, 3, c.RAMAbove4G>>16)
	r.ram[cmosCPUs] = uint8(max(c.CPUs, 1) - 1)
}

// Read implements bus.Device.
func (r *RTC) Read(off uint64, size int) uint64 { return bus.ReadBytes(r, off, size) }

// Write implements bus.Device.
func (r *RTC) Write(off uint64, size int, v uint64) { bus.WriteBytes(r, off, size, v) }

// ReadByteAt reads the data port at 1; the index port is write-only.
func (r *RTC) ReadByteAt(off uint64) uint8 {
	if off != 1 {
		return 0xff
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.get(int(r.index))
}

// WriteByteAt writes the index port at 0, whose bit 7 masks NMI on a PC and
// does nothing here, and the data port at 1.
func (r *RTC) WriteByteAt(off uint64, v uint8) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch off {
	case 0:
		r.index = v % size
	case 1:
		r.put(int(r.index), v)
	}
}

func (r *RTC) get(reg int) uint8 {
	switch reg {
	case regA:
		v := statusA(r.ram[regA])
		if r.updating() {
			v |= aUIP
		}
		return uint8(v)
	case regC:
		r.raise()
		v := r.flags
		r.flags = 0
		r.update()
		return uint8(v)
	case regD:
		return dVRT
	}
	if isTime(reg) {
		return r.timeRegister(reg)
	}
	return r.ram[reg]
}

func (r *RTC) put(reg int, v uint8) {
	switch reg {
	case regA:
		r.raise()
		r.ram[regA] = v &^ uint8(aUIP)
		r.update()
	case regB:
		r.raise()
		r.setB(statusB(v))
		r.update()
	case regC, regD: // read-only
	default:
		if isTime(reg) {
			r.setTimeRegister(reg, v)
			return
		}
		r.ram[reg] = v
		if reg <= regHoursAlarm {
			r.update()
		}
	}
}

func (r *RTC) b() statusB { return statusB(r.ram[regB]) }

// setB writes register B. SET stops the clock so that a time can be written,
// and starts it from what was written.
func (r *RTC) setB(v statusB) {
	if v&bSET != 0 && r.b()&bSET == 0 {
		r.set = fieldsOf(r.time())
		v &^= bUIE // the document: SET clears UIE
	}
	if v&bSET == 0 && r.b()&bSET != 0 {
		r.seen = r.set.time()
		r.offset = r.seen.Sub(r.now())
	}
	r.ram[regB] = uint8(v)
}

// stopped is whether the time does not advance.
func (r *RTC) stopped() bool {
	return r.b()&bSET != 0 || statusA(r.ram[regA])&divider == divider
}

// time is the guest's time of day.
func (r *RTC) time() time.Time {
	if r.b()&bSET != 0 {
		return r.set.time()
	}
	return r.now().Add(r.offset).UTC()
}

// updating is UIP: an update comes within 244 µs (table 5).
func (r *RTC) updating() bool {
	const lead = 244 * time.Microsecond
	return !r.stopped() && time.Duration(r.time().Nanosecond()) >= time.Second-lead
}
