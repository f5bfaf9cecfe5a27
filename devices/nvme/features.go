package nvme

// feature is a value that Set Features may change without any effect here: a
// hint, or a threshold that is never reached (§5.21.1).
type feature struct{ initial, mask uint32 }

var plainFeatures = map[uint8]feature{
	featArbitration: {7, 0xffff_ff07},
	featTemperature: {343, 0x003f_ffff},
	featErrors:      {0, 0x0001_ffff},
	featCoalescing:  {0, 0xffff},
	featAtomicity:   {0, 1},
	featAsyncEvents: {0, 0xffff},
	featPower:       {0, 0},
}

// getFeatures is Get Features (§5.9). No value is saved, so the saved ones are
// the defaults.
func (c *Controller) getFeatures(cmd *command) (uint32, status) {
	id, sel := uint8(cmd.dword(10)), cmd.dword(10)>>8&7
	if sel > selectSupported {
		return 0, statusInvalidField
	}
	v, st := c.feature(id, cmd.dword(11), sel != selectCurrent)
	if st == statusOK && sel == selectSupported {
		return changeable, st
	}
	return v, st
}

// feature is the present or the initial value of a feature.
func (c *Controller) feature(id uint8, dword11 uint32, initial bool) (uint32, status) {
	switch id {
	case featWriteCache:
		if initial || c.writeCache.Load() {
			return writeCacheEnable, statusOK
		}
		return 0, statusOK
	case featQueues:
		n := uint32(c.cfg.Queues - 1)
		return n | n<<16, statusOK
	case featVector:
		if int(dword11&0xffff) >= c.msix.Vectors() {
			return 0, statusInvalidField
		}
		return dword11 & 0xffff, statusOK
	}
	f, ok := plainFeatures[id]
	if !ok {
		return 0, statusInvalidField
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if v, set := c.features[id]; set && !initial {
		return v, statusOK
	}
	return f.initial, statusOK
}

// setFeatures is Set Features (§5.21).
func (c *Controller) setFeatures(cmd *command) (uint32, status) {
	id, v := uint8(cmd.dword(10)), cmd.dword(11)
	if cmd.dword(10)&featSave != 0 {
		return 0, statusNotSaveable
	}
	switch id {
	case featWriteCache:
		on := v&writeCacheEnable != 0
		c.writeCache.Store(on)
		if !on && c.cfg.Drive.Flush() != nil {
			return 0, statusInternal
		}
		return 0, statusOK
	case featQueues:
		return c.setQueues(v)
	case featVector:
		if int(v&0xffff) >= c.msix.Vectors() {
			return 0, statusInvalidField
		}
		return 0, statusOK
	case featPower:
		if v&31 != 0 {
			return 0, statusInvalidField // there is power state 0 only
		}
	}
	f, ok := plainFeatures[id]
	if !ok {
		return 0, statusInvalidField
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.features[id] = v & f.mask
	return 0, statusOK
}

// setQueues is Number of Queues (§5.21.1.7): the host always gets all that there are.
func (c *Controller) setQueues(v uint32) (uint32, status) {
	if v&0xffff == 0xffff || v>>16 == 0xffff {
		return 0, statusInvalidField
	}
	for i := 1; i < len(c.sqs); i++ {
		if c.sqs[i].Load() != nil || c.cqs[i].Load() != nil {
			return 0, statusSequence
		}
	}
	return c.feature(featQueues, 0, false)
}
