package lapic

import "github.com/gvmspawn/gvmspawn/vmm/bus"

// Read reads the xAPIC page (§11.4.1): 32-bit registers on 16-byte boundaries.
// An access within one register gives its part of it, one that crosses gives
// zeroes for the rest. Without a page it reads as ones.
func (a *APIC) Read(off uint64, size int) uint64 {
	if _, ok := a.MMIOBase(); !ok || off > 0xfff {
		return bus.Ones(size)
	}
	if off&0xf > 3 {
		return 0 // reserved bytes between registers
	}
	return uint64(a.get(off&^0xf)) >> (8 * (off & 3)) & bus.Ones(size)
}

// Write writes the xAPIC page: only whole registers, other accesses are ignored.
func (a *APIC) Write(off uint64, size int, v uint64) {
	if _, ok := a.MMIOBase(); !ok || off > 0xfff || off&0xf != 0 || size != 4 {
		return
	}
	a.set(off, uint32(v))
}

// get reads a register by offset, in both modes.
func (a *APIC) get(reg uint64) uint32 {
	switch {
	case reg >= regISR && reg < regTMR:
		return a.isr.word((reg - regISR) >> 4)
	case reg >= regTMR && reg < regIRR:
		return a.tmr.word((reg - regTMR) >> 4)
	case reg >= regIRR && reg < regESR:
		return a.irr.word((reg - regIRR) >> 4)
	case reg >= regLVT && reg < regTICR:
		return a.lvt[(reg-regLVT)>>4].Load()
	}
	switch reg {
	case regID:
		if a.x2apic() {
			return a.id
		}
		return a.id << 24
	case regVersion:
		return version
	case regTPR:
		return uint32(a.tpr)
	case regAPR, regPPR:
		return a.ppr.Load()
	case regLDR:
		return a.ldr.Load()
	case regDFR:
		return a.dfr.Load()
	case regSVR:
		return a.svr.Load()
	case regESR:
		return a.esr
	case regICRLow:
		return a.icrLow
	case regICRHigh:
		return a.icrHigh
	case regTICR, regTCCR, regDCR:
		initial, current, divide := a.timer.registers()
		return timerRegister(reg, initial, current, divide)
	case regEOI, regRRD:
		return 0
	}
	a.fail(esrIllegalAddress)
	return 0
}

func timerRegister(reg uint64, initial, current, divide uint32) uint32 {
	switch reg {
	case regTICR:
		return initial
	case regTCCR:
		return current
	}
	return divide
}

// set writes a register by offset, in both modes.
func (a *APIC) set(reg uint64, v uint32) {
	if reg >= regLVT && reg < regTICR {
		a.setLVT(int(reg-regLVT)>>4, v)
		return
	}
	switch reg {
	case regTPR:
		a.SetTPR(uint8(v))
	case regEOI:
		a.eoi()
	case regLDR:
		a.ldr.Store(v &^ 0xff_ffff)
	case regDFR:
		a.dfr.Store(v | dfrOnes)
	case regSVR:
		a.setSVR(v)
	case regESR:
		// §11.5.3: a write makes the errors since the last one readable.
		a.esr = a.errs.Swap(0)
	case regICRLow:
		a.icrLow = v & icrMask
		a.command(a.icrLow, a.icrHigh>>24, false)
	case regICRHigh:
		a.icrHigh = v &^ 0xff_ffff
	case regTICR:
		a.timer.setInitial(v)
	case regDCR:
		a.timer.setDivide(v)
	case regID, regVersion, regAPR, regPPR, regRRD, regTCCR:
		// Read-only.
	default:
		if reg < regISR || reg >= regESR {
			a.fail(esrIllegalAddress)
		}
	}
}

// setSVR writes the spurious-interrupt vector register. Disabling masks the
// local vector table (§11.4.7.2).
func (a *APIC) setSVR(v uint32) {
	a.svr.Store(v & svrMask)
	if v&svrEnabled == 0 {
		for i := range numLVT {
			a.setLVT(i, a.lvt[i].Load())
		}
	}
}

func (a *APIC) setLVT(i int, v uint32) {
	v &= lvtMasks[i]
	if a.svr.Load()&svrEnabled == 0 {
		v |= lvtMasked
	}
	a.lvt[i].Store(v)
	switch i {
	case lvtTimer:
		a.timer.setLVT(v)
	case lvtLINT0:
		a.updateExtINT()
	}
}

// ReadMSR reads IA32_APIC_BASE, IA32_TSC_DEADLINE or an x2APIC register. It
// reports false where the CPU raises #GP (§11.12.1.3).
func (a *APIC) ReadMSR(msr uint32) (v uint64, ok bool) {
	switch msr {
	case MSRAPICBase:
		return a.base.Load(), true
	case MSRTSCDeadline:
		return a.timer.readTSC(), true
	}
	if msr < MSRX2APICFirst || msr > MSRX2APICLast || !a.x2apic() {
		return 0, false
	}
	reg := uint64(msr-MSRX2APICFirst) << 4
	switch {
	case reg == regICRLow:
		return uint64(a.icrHigh)<<32 | uint64(a.icrLow), true
	case !x2Readable(reg):
		return 0, false
	}
	return uint64(a.get(reg)), true
}

// x2Readable is table 11-6.
func x2Readable(reg uint64) bool {
	switch reg {
	case regID, regVersion, regTPR, regPPR, regLDR, regSVR, regESR, regTICR, regTCCR, regDCR:
		return true
	}
	return reg >= regISR && reg < regESR || reg >= regLVT && reg < regTICR
}

// WriteMSR writes IA32_APIC_BASE, IA32_TSC_DEADLINE or an x2APIC register. It
// reports false where the CPU raises #GP: read-only and missing registers,
// reserved bits (§11.12.1.3).
func (a *APIC) WriteMSR(msr uint32, v uint64) (ok bool) {
	switch msr {
	case MSRAPICBase:
		return a.setBase(v)
	case MSRTSCDeadline:
		a.timer.setTSC(v)
		return true
	}
	if msr < MSRX2APICFirst || msr > MSRX2APICLast || !a.x2apic() {
		return false
	}
	reg := uint64(msr-MSRX2APICFirst) << 4
	if reg == regICRLow {
		if v&icrX2Reserved != 0 {
			return false
		}
		a.icrLow, a.icrHigh = uint32(v)&icrMask, uint32(v>>32)
		a.command(a.icrLow, a.icrHigh, true)
		return true
	}
	if v&^x2Writable(reg) != 0 {
		return false
	}
	switch {
	case reg == regSelfIPI:
		a.command(uint32(v)|shortSelf<<icrShortShift, 0, true)
	case reg == regEOI, reg == regESR, x2Writable(reg) != 0:
		a.set(reg, uint32(v))
	default:
		return false
	}
	return true
}

// x2Writable is the bits of a register that may be set in x2APIC mode. EOI and
// ESR take only 0 (§11.12.1.2).
func x2Writable(reg uint64) uint64 {
	switch reg {
	case regTPR, regSelfIPI:
		return 0xff
	case regSVR:
		return svrMask
	case regTICR:
		return 0xffff_ffff
	case regDCR:
		return 0xb
	}
	if reg >= regLVT && reg < regTICR {
		// The status bits 12 and 14 are read-only, writes are ignored.
		return uint64(lvtMasks[(reg-regLVT)>>4]) | 1<<12 | 1<<14
	}
	return 0
}

// setBase writes IA32_APIC_BASE and changes the mode if the state machine of
// §11.12.5 (figure 11-27) allows.
func (a *APIC) setBase(v uint64) (ok bool) {
	old := a.base.Load()
	const modes = baseEN | baseEXTD
	from, to := old&modes, v&modes
	switch {
	case v&baseReserved != 0,
		to == baseEXTD,
		from == modes && to == baseEN,
		from == 0 && to == modes:
		return false
	}
	a.base.Store(v&^baseBSP | old&baseBSP)
	switch {
	case from == to:
	case to == 0, from == 0:
		// §11.4.3: re-enabling is like a power-up.
		a.INIT()
	default:
		// §11.12.5.1: the logical ID follows, the rest stays.
		a.ldr.Store(x2LDR(a.id))
		a.icrHigh = 0
	}
	return true
}
