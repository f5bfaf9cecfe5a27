package lapic

import (
	"sync"

	"github.com/gvmspawn/gvmspawn/vmm/bus"
)

// minPeriod is the shortest period in nanoseconds with which a periodic timer
// really interrupts: a guest must not keep the host busy with its timers.
const minPeriod = 100_000

// timer is the APIC timer (§11.5.4). Its expiry comes from the clock's goroutine.
type timer struct {
	apic  *APIC
	clock bus.Clock
	host  bus.Timer

	mu       sync.Mutex
	mode     uint32 // of the LVT entry, as the next two
	masked   bool
	vector   uint8
	initial  uint32
	divide   uint32 // the register
	deadline uint64 // when the count gets to zero, bus.Never if it is there
	tsc      uint64 // IA32_TSC_DEADLINE
}

func (t *timer) init(a *APIC, c bus.Clock) {
	t.apic, t.clock = a, c
	t.host = c.NewTimer(t.expired)
}

// reset stops the timer.
func (t *timer) reset() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.mode, t.masked, t.vector, t.initial, t.divide, t.tsc = 0, true, 0, 0, 0, 0
	t.deadline = bus.Never
	t.host.Arm(bus.Never)
}

// shift is log2 of the divisor (figure 11-10): bits 0, 1 and 3 count from 2,
// and all ones is 1.
func (t *timer) shift() uint {
	return uint((t.divide&3|t.divide>>1&4)+1) & 7
}

// period is the time that the initial count takes.
func (t *timer) period() uint64 { return uint64(t.initial) << t.shift() }

// setLVT tells of a new LVT entry.
func (t *timer) setLVT(e uint32) {
	t.mu.Lock()
	mode := e & lvtTimerModes
	// §11.5.4.1: a change to or from TSC-deadline disarms the timer.
	if (mode^t.mode)&lvtTSCDeadline != 0 {
		t.deadline, t.tsc, t.initial = bus.Never, 0, 0
	}
	t.settle()
	t.mode, t.masked, t.vector = mode, e&lvtMasked != 0, uint8(e)
	fire := t.arm()
	t.mu.Unlock()
	t.fire(fire)
}

// setInitial writes the initial count, which starts the count; 0 stops it.
// In TSC-deadline mode the register is ignored (§11.5.4.1).
func (t *timer) setInitial(v uint32) {
	t.mu.Lock()
	fire := nothing
	if t.mode&lvtTSCDeadline == 0 {
		t.initial, t.deadline = v, bus.Never
		if v != 0 {
			t.deadline = t.clock.Now() + t.period()
		}
		fire = t.arm()
	}
	t.mu.Unlock()
	t.fire(fire)
}

// setDivide writes the divide configuration; a running count goes on from
// where it is at the new speed.
func (t *timer) setDivide(v uint32) {
	t.mu.Lock()
	left := t.current()
	t.divide = v & 0xb
	if t.deadline != bus.Never && t.mode&lvtTSCDeadline == 0 {
		t.deadline = t.clock.Now() + uint64(left)<<t.shift()
	}
	fire := t.arm()
	t.mu.Unlock()
	t.fire(fire)
}

// setTSC writes IA32_TSC_DEADLINE (§11.5.4.1): outside its mode the write is
// ignored, 0 disarms.
func (t *timer) setTSC(v uint64) {
	t.mu.Lock()
	fire := nothing
	if t.mode&lvtTSCDeadline != 0 {
		t.tsc = v
		fire = t.armTSC()
	}
	t.mu.Unlock()
	t.fire(fire)
}

// armTSC sets the deadline from the MSR. Preconditions: mu is held.
func (t *timer) armTSC() expiry {
	t.deadline = bus.Never
	if t.tsc != 0 {
		t.deadline = t.apic.cluster.config.FromTSC(t.apic.cpu, t.tsc)
	}
	return t.arm()
}

// TSCChanged must be called after the guest changed this CPU's time-stamp
// counter, on the CPU's thread.
func (a *APIC) TSCChanged() {
	t := &a.timer
	t.mu.Lock()
	fire := nothing
	if t.mode&lvtTSCDeadline != 0 && t.tsc != 0 {
		fire = t.armTSC()
	}
	t.mu.Unlock()
	t.fire(fire)
}

// registers returns the initial and the current count and the divide register.
func (t *timer) registers() (initial, current, divide uint32) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.initial, t.current(), t.divide
}

// readTSC reads IA32_TSC_DEADLINE, 0 once it has passed.
func (t *timer) readTSC() uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.settle()
	return t.tsc
}

// current is the current count. Preconditions: mu is held.
func (t *timer) current() uint32 {
	t.settle()
	if t.deadline == bus.Never || t.mode&lvtTSCDeadline != 0 {
		return 0
	}
	left := t.deadline - min(t.clock.Now(), t.deadline)
	return uint32(min((left+1<<t.shift()-1)>>t.shift(), uint64(t.initial)))
}

// settle brings a masked timer up to date, for which the host's timer is not
// armed. An unmasked one is brought up to date by its expiry.
// Preconditions: mu is held.
func (t *timer) settle() {
	if now := t.clock.Now(); t.masked && now >= t.deadline {
		t.next(now)
	}
}

// next is what follows after the deadline. Preconditions: mu is held.
func (t *timer) next(now uint64) {
	if p := t.period(); t.mode&lvtTimerModes == lvtPeriodic && p != 0 {
		t.deadline += ((now-t.deadline)/p + 1) * p
		if p < minPeriod && !t.masked {
			t.deadline = max(t.deadline, now+minPeriod)
		}
		return
	}
	t.deadline, t.tsc = bus.Never, 0
}

// expiry is the vector of an interrupt to deliver after unlocking, or nothing.
type expiry int

const nothing expiry = -1

// arm sets the host's timer. If the deadline has passed already, it returns
// what the caller must fire after unlocking. Preconditions: mu is held.
func (t *timer) arm() expiry {
	t.settle()
	if t.masked {
		t.host.Arm(bus.Never)
		return nothing
	}
	fire := nothing
	if now := t.clock.Now(); now >= t.deadline {
		t.next(now)
		fire = expiry(t.vector)
	}
	t.host.Arm(t.deadline)
	return fire
}

// expired is called by the clock, perhaps too early or too late.
func (t *timer) expired() {
	t.mu.Lock()
	fire := t.arm()
	t.mu.Unlock()
	t.fire(fire)
}

// fire delivers the timer's interrupt. Preconditions: mu is not held.
func (t *timer) fire(e expiry) {
	if e != nothing {
		t.apic.accept(uint8(e), false)
	}
}
