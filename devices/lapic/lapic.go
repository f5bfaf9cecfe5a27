// Package lapic is the local APICs of a machine's CPUs, in xAPIC and x2APIC
// mode, and what connects them: inter-processor interrupts and messages from
// devices and I/O APICs. The document is the Intel SDM, vol. 3A chapter 11
// (June 2024).
//
// # Who calls what
//
// A CPU's own registers (Read, Write, ReadMSR, WriteMSR, TPR, SetTPR,
// Interrupt, Ack, INIT) belong to the thread that runs the CPU. Everything
// else (Deliver, SetPin, NMI, the timer) may come from any goroutine and
// reaches the CPU through atomics: bits of the interrupt request register and
// one word of events, [APIC.Events], which is all that a CPU looks at between
// two instructions. Setting an event that was not set calls Config.Wake.
//
// Two locks exist: APIC.timer.mu, with which only the clock is called, and
// APIC.pinMu, with which only Config.Wake is called.
package lapic

import (
	"fmt"
	"math/bits"
	"sync"
	"sync/atomic"

	"github.com/gvmspawn/gvmspawn/vmm/bus"
	"github.com/gvmspawn/gvmspawn/vmm/layout"
)

// Event is a set of reasons for a CPU to stop and look.
type Event uint32

// Events. All but EventInterrupt and EventExtINT stay until [APIC.Take].
const (
	// EventInterrupt: a fixed interrupt may be deliverable: ask
	// [APIC.Interrupt], which clears the event when there is none.
	EventInterrupt Event = 1 << iota
	// EventExtINT: the 8259 has an interrupt, whose vector it tells. The
	// event goes away with the request.
	EventExtINT
	// EventNMI is a non-maskable interrupt.
	EventNMI
	// EventSMI is a system management interrupt.
	EventSMI
	// EventINIT: call [APIC.INIT] and wait for SIPI.
	EventINIT
	// EventSIPI: start at the address of [APIC.SIPIVector]; a CPU that does
	// not wait for it ignores it.
	EventSIPI
)

// Config is what a Cluster is made of.
type Config struct {
	// IDs are the APIC IDs by CPU, all different. CPU 0 is the BSP.
	IDs []uint32
	// Clock drives the timers: the timer's input clock is 1 GHz, which the
	// CPU must tell the guest (CPUID leaf 15H: 10⁹ Hz crystal).
	Clock bus.Clock
	// FromTSC converts a value of a CPU's time-stamp counter to the Clock's
	// time, saturating to 0 and bus.Never.
	FromTSC func(cpu int, tsc uint64) uint64
	// Wake is told of a new event. It is called from any goroutine, perhaps
	// the CPU's own and perhaps with a chip's lock held: it must neither
	// block nor call chips.
	Wake func(cpu int)
	// EOI is the broadcast of the end of a level-triggered interrupt, for
	// I/O APICs. It is called on the CPU's thread. nil means nobody listens.
	EOI func(vector uint8)
}

// TimerHz is the frequency of the timers' input clock.
const TimerHz = 1_000_000_000

// vectors is a set of the 256 vectors, shared between threads.
type vectors [4]atomic.Uint64

func (s *vectors) has(v uint8) bool { return s[v>>6].Load()&(1<<(v&63)) != 0 }
func (s *vectors) del(v uint8)      { s[v>>6].And(^(uint64(1) << (v & 63))) }

// add reports whether v is new.
func (s *vectors) add(v uint8) bool {
	bit := uint64(1) << (v & 63)
	return s[v>>6].Or(bit)&bit == 0
}

// highest is the highest vector, or 0 if there is none: 0 is never a member.
func (s *vectors) highest() uint8 {
	for i := 3; i >= 0; i-- {
		if w := s[i].Load(); w != 0 {
			return uint8(i<<6 + 63 - bits.LeadingZeros64(w))
		}
	}
	return 0
}

// word is the 32-bit register i of the eight that show the set.
func (s *vectors) word(i uint64) uint32 { return uint32(s[i/2].Load() >> (32 * (i % 2))) }

func (s *vectors) clear() {
	for i := range s {
		s[i].Store(0)
	}
}

// APIC is one CPU's local APIC.
type APIC struct {
	cluster *Cluster
	cpu     int
	id      uint32 // x2APIC ID; read-only here as on recent CPUs

	events atomic.Uint32 // a set of Event
	sipi   atomic.Uint32 // vector of the last SIPI
	pins   [2]atomic.Bool
	pinMu  sync.Mutex // makes EventExtINT follow the last of two changes

	irr, isr, tmr vectors

	// Written by the CPU's thread, read by senders.
	base atomic.Uint64
	svr  atomic.Uint32
	ldr  atomic.Uint32
	dfr  atomic.Uint32
	ppr  atomic.Uint32
	lvt  [numLVT]atomic.Uint32
	errs atomic.Uint32 // errors since ESR was written

	// Of the CPU's thread only.
	tpr     uint8
	esr     uint32
	icrLow  uint32
	icrHigh uint32

	timer timer
}

// Cluster is all local APICs and the paths between them.
type Cluster struct {
	config Config
	apics  []*APIC
	byID   [256]*APIC // IDs below 256
}

// NewCluster makes the APICs, as after power-on.
func NewCluster(c Config) (*Cluster, error) {
	cl := &Cluster{config: c}
	if c.EOI == nil {
		cl.config.EOI = func(uint8) {}
	}
	seen := map[uint32]bool{}
	for cpu, id := range c.IDs {
		if seen[id] || id == broadcast8 || id == broadcast32 {
			return nil, fmt.Errorf("local APIC of CPU %d: ID %#x is taken or reserved", cpu, id)
		}
		seen[id] = true
		a := &APIC{cluster: cl, cpu: cpu, id: id}
		a.timer.init(a, c.Clock)
		a.Reset()
		cl.apics = append(cl.apics, a)
		if id < uint32(len(cl.byID)) {
			cl.byID[id] = a
		}
	}
	return cl, nil
}

// APIC returns the local APIC of a CPU.
func (c *Cluster) APIC(cpu int) *APIC { return c.apics[cpu] }

// Reset is the state after power-on (§11.4.7.1). The CPU must not run.
func (a *APIC) Reset() {
	base := uint64(layout.LocalAPIC | baseEN)
	if a.cpu == 0 {
		base |= baseBSP
	}
	a.base.Store(base)
	a.events.Store(0)
	a.INIT()
}

// INIT is the state after an INIT (§11.4.7.3): all but ID and base address. It
// takes EventINIT; events that came after it stay.
func (a *APIC) INIT() {
	a.Take(EventINIT)
	a.irr.clear()
	a.isr.clear()
	a.tmr.clear()
	for i := range a.lvt {
		a.lvt[i].Store(lvtMasked)
	}
	a.timer.reset()
	a.svr.Store(0xff)
	a.dfr.Store(broadcast32)
	a.ldr.Store(0)
	a.errs.Store(0)
	a.tpr, a.esr, a.icrLow, a.icrHigh = 0, 0, 0, 0
	if a.x2apic() {
		a.ldr.Store(x2LDR(a.id))
	}
	a.Take(EventInterrupt)
	a.updateExtINT()
	a.updatePPR()
}

// x2LDR is the logical ID that follows from an x2APIC ID (§11.12.10.2).
func x2LDR(id uint32) uint32 { return id>>4<<16 | 1<<(id&0xf) }

// ID is the APIC ID.
func (a *APIC) ID() uint32 { return a.id }

func (a *APIC) enabled() bool { return a.base.Load()&baseEN != 0 }
func (a *APIC) x2apic() bool  { return a.base.Load()&(baseEN|baseEXTD) == baseEN|baseEXTD }

// MMIOBase is the address of the register page, and whether there is one: it
// is gone in x2APIC mode and while the APIC is disabled.
func (a *APIC) MMIOBase() (addr uint64, ok bool) {
	b := a.base.Load()
	return b & baseAddress, b&(baseEN|baseEXTD) == baseEN
}

// Events returns the pending events. It is one atomic load.
func (a *APIC) Events() Event { return Event(a.events.Load()) }

// Take clears an event and reports whether it was set.
func (a *APIC) Take(e Event) bool { return a.events.And(^uint32(e))&uint32(e) != 0 }

// SIPIVector is the vector of the last SIPI: the CPU starts in real mode at
// vector × 4096.
func (a *APIC) SIPIVector() uint8 { return uint8(a.sipi.Load()) }

// signal sets an event and wakes the CPU if it is new.
func (a *APIC) signal(e Event) {
	if a.events.Or(uint32(e))&uint32(e) == 0 && a.cluster.config.Wake != nil {
		a.cluster.config.Wake(a.cpu)
	}
}

// NMI delivers a non-maskable interrupt.
func (a *APIC) NMI() { a.signal(EventNMI) }

// SMI delivers a system management interrupt.
func (a *APIC) SMI() { a.signal(EventSMI) }

// Interrupt is the fixed interrupt that the CPU would take now, if its
// interrupt flag allows (§11.8.3.1): the highest request, if its priority class
// is above the processor priority's.
func (a *APIC) Interrupt() (vector uint8, ok bool) {
	if v := a.deliverable(); v != 0 {
		return v, true
	}
	// Clear first, look again: a request that comes in between sets it again.
	a.Take(EventInterrupt)
	if v := a.deliverable(); v != 0 {
		a.events.Or(uint32(EventInterrupt))
		return v, true
	}
	return 0, false
}

// deliverable is the highest request above the processor priority, or 0.
func (a *APIC) deliverable() uint8 {
	v := a.irr.highest()
	if uint32(v>>4) <= a.ppr.Load()>>4 || !a.enabled() {
		return 0
	}
	return v
}

// Ack is the CPU taking the interrupt that Interrupt returned.
func (a *APIC) Ack(vector uint8) {
	a.irr.del(vector)
	a.isr.add(vector)
	a.updatePPR()
}

// TPR is the task priority register; CR8 is its upper four bits.
func (a *APIC) TPR() uint8 { return a.tpr }

// SetTPR writes the task priority.
func (a *APIC) SetTPR(v uint8) {
	a.tpr = v
	a.updatePPR()
}

// updatePPR computes the processor priority (§11.8.3.1) and raises
// EventInterrupt if a request is now above it.
func (a *APIC) updatePPR() {
	ppr := a.tpr
	if s := a.isr.highest(); s>>4 > a.tpr>>4 {
		ppr = s & 0xf0
	}
	a.ppr.Store(uint32(ppr))
	if a.deliverable() != 0 {
		a.signal(EventInterrupt)
	}
}

// eoi ends the highest interrupt in service (§11.8.5).
func (a *APIC) eoi() {
	v := a.isr.highest()
	if v == 0 {
		return
	}
	a.isr.del(v)
	a.updatePPR()
	if a.tmr.has(v) {
		if a.svr.Load()&svrSuppressEOI == 0 {
			a.cluster.config.EOI(v)
		}
		a.pinEOI(v)
	}
}

// accept takes a fixed interrupt (§11.8.4). The trigger mode register is set
// first, so that whoever sees the request sees its trigger.
func (a *APIC) accept(vector uint8, level bool) {
	if vector < firstVector {
		a.fail(esrReceiveIllegal)
		return
	}
	if level {
		a.tmr.add(vector)
	} else if a.tmr.has(vector) {
		a.tmr.del(vector)
	}
	if a.irr.add(vector) {
		a.signal(EventInterrupt)
	}
}

// fail records an error (§11.5.3).
func (a *APIC) fail(bit uint32) {
	a.errs.Or(bit)
	e := a.lvt[lvtError].Load()
	// An error entry with an illegal vector must not fail for ever.
	if v := uint8(e & lvtVector); e&lvtMasked == 0 && v >= firstVector {
		a.accept(v, false)
	}
}
