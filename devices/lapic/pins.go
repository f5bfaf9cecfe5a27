package lapic

// SetPin drives the CPU's local interrupt pin LINT0 or LINT1 (n = 0 or 1). On
// a PC the 8259's output is on LINT0 and NMI on LINT1 (§11.5.1).
func (a *APIC) SetPin(n int, level bool) {
	rising := !a.pins[n].Swap(level) && level
	if n == 0 {
		a.updateExtINT()
	}
	if !rising {
		return
	}
	if !a.enabled() {
		// §11.4.3: without an APIC the pins are INTR and NMI.
		if n == 1 {
			a.NMI()
		}
		return
	}
	e := a.lvt[lvtLINT0+n].Load()
	if e&lvtMasked != 0 {
		return
	}
	switch deliveryMode(e & lvtDeliveryMode >> lvtModeShift) {
	case modeFixed:
		a.accept(uint8(e), e&lvtLevel != 0)
	case modeNMI:
		a.NMI()
	case modeSMI:
		a.signal(EventSMI)
	case modeINIT:
		a.deliverINIT()
	}
}

// updateExtINT makes EventExtINT follow LINT0 where the entry says ExtINT.
func (a *APIC) updateExtINT() {
	a.pinMu.Lock()
	defer a.pinMu.Unlock()
	e := a.lvt[lvtLINT0].Load()
	open := !a.enabled() || e&lvtMasked == 0 && deliveryMode(e&lvtDeliveryMode>>lvtModeShift) == modeExtINT
	if open && a.pins[0].Load() {
		a.signal(EventExtINT)
	} else {
		a.Take(EventExtINT)
	}
}

// pinEOI asserts a level-triggered pin again that is still high after its
// interrupt ended.
func (a *APIC) pinEOI(vector uint8) {
	for n := range a.pins {
		e := a.lvt[lvtLINT0+n].Load()
		if a.pins[n].Load() && e&(lvtMasked|lvtDeliveryMode|lvtLevel) == lvtLevel && uint8(e) == vector {
			a.accept(vector, true)
		}
	}
}
