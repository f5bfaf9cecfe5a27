package soft

import (
	"github.com/gvmspawn/gvmspawn/devices/ioapic"
	"github.com/gvmspawn/gvmspawn/devices/lapic"
	"github.com/gvmspawn/gvmspawn/vmm/bus"
	"github.com/gvmspawn/gvmspawn/vmm/layout"
	"github.com/gvmspawn/gvmspawn/vmm/vcpu"
)

// newAPICs makes the local APICs.
func (vm *VM) newAPICs() error {
	vm.ioapic = ioapic.New(ioapic.Config{Send: func(addr uint64, data uint32) { vm.apics.Deliver(addr, data) }})
	clock := vm.clock
	if vm.hostClock != nil {
		clock = apicClock{vm.clock, vm}
	}
	var err error
	vm.apics, err = lapic.NewCluster(lapic.Config{
		IDs:     vm.topology.APICIDs(),
		Clock:   clock,
		FromTSC: func(cpu int, tsc uint64) uint64 { return vm.cpus[cpu].fromTSC(tsc) },
		Wake:    vm.wakeCPU,
		EOI:     vm.ioapic.EOI,
	})
	return err
}

// fromTSC converts a value of the time stamp counter to the machine's time.
func (c *CPU) fromTSC(tsc uint64) uint64 {
	off := c.tscOffset.Load()
	t := tsc - off
	switch {
	case int64(off) >= 0 && tsc < off:
		return 0
	case int64(off) < 0 && t < tsc:
		return bus.Never
	}
	return t
}

// apicRead and apicWrite reach the CPU's own local APIC and the I/O APIC at
// their memory-mapped addresses.
func (c *CPU) apicRead(gpa uint64, size uint8) (uint64, bool) {
	if off := gpa - layout.IOAPIC; off < layout.IOAPICSize {
		return c.vm.ioapic.Read(off, int(size)), true
	}
	base, ok := c.apic.MMIOBase()
	if !ok || gpa-base >= 4096 {
		return 0, false
	}
	return c.apic.Read(gpa-base, int(size)), true
}

func (c *CPU) apicWrite(gpa, v uint64, size uint8) bool {
	if off := gpa - layout.IOAPIC; off < layout.IOAPICSize {
		c.vm.ioapic.Write(off, int(size), zeroExtend(v, size))
		return true
	}
	base, ok := c.apic.MMIOBase()
	if !ok || gpa-base >= 4096 {
		return false
	}
	c.apic.Write(gpa-base, int(size), zeroExtend(v, size))
	return true
}

func apicMSR(n uint32) bool {
	return n == msrAPICBase || n == msrTSCDeadline || n >= msrX2APICFirst && n <= msrX2APICLast
}

func (c *CPU) apicReadMSR(n uint32) (v uint64, ok, mine bool) {
	if !apicMSR(n) {
		return 0, false, false
	}
	v, ok = c.apic.ReadMSR(n)
	return v, ok, true
}

func (c *CPU) apicWriteMSR(n uint32, v uint64) (ok, mine bool) {
	if !apicMSR(n) {
		return false, false
	}
	return c.apic.WriteMSR(n, v), true
}

// wakeCPU makes a CPU look at its local APIC. A timer's goroutine may still
// come here when the machine is closed.
func (vm *VM) wakeCPU(cpu int) {
	vm.life.RLock()
	defer vm.life.RUnlock()
	if cpu < len(vm.cpus) {
		vm.cpus[cpu].notify(exitIntr)
	}
}

func (c *CPU) readCR8() uint64 { return uint64(c.apic.TPR() >> 4) }

func (c *CPU) writeCR8(v uint64) bool {
	if v>>4 != 0 {
		return c.faultErr(vecGP, 0)
	}
	c.apic.SetTPR(uint8(v) << 4)
	return true
}

// interrupts handles what the local APIC has for the CPU. done says that the
// loop must go on from a new State.RIP or that Run must return.
func (c *CPU) interrupts() (ex vcpu.Exit, stop, done bool) {
	a := c.apic
	ev := a.Events()
	if ev&lapic.EventSMI != 0 && c.takeSMI() {
		return ex, false, true
	}
	if c.smm {
		ev &^= lapic.EventINIT | lapic.EventSIPI // they wait for RSM
	}
	if ev&lapic.EventINIT != 0 {
		c.init()
		return ex, false, true
	}
	if ev&lapic.EventSIPI != 0 && a.Take(lapic.EventSIPI) && c.waiting {
		c.startUp(a.SIPIVector())
		return ex, false, true
	}
	if c.waiting {
		return ex, false, false
	}
	if ev&lapic.EventNMI != 0 && !c.nmiBlocked {
		a.Take(lapic.EventNMI)
		c.halted, c.nmiBlocked = false, true
		ex, stop = c.inject(2)
		return ex, stop, true
	}
	if ev&(lapic.EventInterrupt|lapic.EventExtINT) == 0 {
		return ex, false, false
	}
	if c.s.Flags&flagIF == 0 {
		c.intrWaiting = true
		return ex, false, false
	}
	vec, ok := a.Interrupt()
	if ok {
		a.Ack(vec)
	} else if ev&lapic.EventExtINT != 0 && c.vm.extINT != nil {
		vec, ok = c.vm.extINT(), true
	}
	if !ok {
		return ex, false, false
	}
	c.halted = false
	ex, stop = c.inject(vec)
	return ex, stop, true
}

// init is the INIT signal: reset registers and wait for SIPI, or for the boot
// CPU start at the reset vector (SDM vol. 3A §9.4.3).
func (c *CPU) init() {
	c.apic.INIT()
	mtrrs, pat := c.mtrrs, c.pat
	fx, mxcsr, xmm := c.s.FX, c.s.MXCSR, c.s.XMM
	c.resetRegisters()
	c.mtrrs, c.pat, c.s.FX, c.s.MXCSR, c.s.XMM = mtrrs, pat, fx, mxcsr, xmm
	c.waiting = c.id != 0
	c.halted = c.waiting
}

// startUp is the start-up IPI (SDM vol. 3A §9.4.4).
func (c *CPU) startUp(vector uint8) {
	s := c.s
	s.Seg[vcpu.CS].Selector, s.Seg[vcpu.CS].Base = uint16(vector)<<8, uint64(vector)<<12
	s.RIP = 0
	c.waiting, c.halted = false, false
	c.setMode()
}
