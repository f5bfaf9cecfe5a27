package nvme

// admin carries an admin command out (§5); noStatus says that it is answered later.
func (c *Controller) admin(cmd *command) (result uint32, st status) {
	if cmd.usesSGL() {
		return 0, statusInvalidField
	}
	switch cmd.opcode() {
	case adminCreateCQ:
		return 0, c.createCQ(cmd)
	case adminCreateSQ:
		return 0, c.createSQ(cmd)
	case adminDeleteCQ:
		return 0, c.deleteCQ(cmd)
	case adminDeleteSQ:
		return 0, c.deleteSQ(cmd)
	case adminIdentify:
		return 0, c.identify(cmd)
	case adminGetLogPage:
		return 0, c.logPage(cmd)
	case adminSetFeatures:
		return c.setFeatures(cmd)
	case adminGetFeatures:
		return c.getFeatures(cmd)
	case adminAsyncEvent:
		return 0, c.events.listen(cmd)
	case adminAbort:
		return 1, statusOK // §5.1: the command was not aborted
	case adminDoorbellBuf:
		return 0, c.doorbellBuffers(cmd)
	}
	return 0, statusInvalidOpcode
}

// queueID is the identifier in dword 10 if it is one of an I/O queue.
func (c *Controller) queueID(cmd *command) (uint16, bool) {
	id := uint16(cmd.dword(10))
	return id, id != 0 && int(id) < len(c.sqs)
}

// queueMemory checks what Create I/O Submission and Completion Queue have in
// common: the size in dword 10, contiguity, and the address (§5.3, §5.4).
func queueMemory(cmd *command) (size uint32, at uint64, st status) {
	const contiguous = 1 << 0
	size, at = cmd.dword(10)>>16+1, cmd.qword(6)
	switch {
	case size < 2 || size > maxEntries:
		return 0, 0, statusBadQueueSize
	case cmd.dword(11)&contiguous == 0:
		return 0, 0, statusInvalidField // CAP.CQR
	case at%pageSize != 0:
		return 0, 0, statusInvalidOffset
	}
	return size, at, statusOK
}

// createCQ is Create I/O Completion Queue (§5.3).
func (c *Controller) createCQ(cmd *command) status {
	id, ok := c.queueID(cmd)
	if !ok || c.cqs[id].Load() != nil {
		return statusBadQueueID
	}
	size, at, st := queueMemory(cmd)
	if st != statusOK {
		return st
	}
	const interrupts = 1 << 1
	vector := uint16(cmd.dword(11) >> 16)
	if int(vector) >= c.msix.Vectors() {
		return statusBadVector
	}
	// CC says how long an entry is; §3.1.5 leaves no choice.
	c.mu.Lock()
	shift := c.cc >> ccIOCQES & 15
	c.mu.Unlock()
	if shift != cqEntryShift {
		return statusInvalidField
	}
	q, err := c.newCQ(id, size, at, cmd.dword(11)&interrupts != 0, vector)
	if err != nil {
		return statusInvalidField
	}
	c.cqs[id].Store(q)
	return statusOK
}

// createSQ is Create I/O Submission Queue (§5.4).
func (c *Controller) createSQ(cmd *command) status {
	id, ok := c.queueID(cmd)
	if !ok || c.sqs[id].Load() != nil {
		return statusBadQueueID
	}
	size, at, st := queueMemory(cmd)
	if st != statusOK {
		return st
	}
	cqid := cmd.dword(11) >> 16
	switch {
	case cqid >= uint32(len(c.cqs)):
		return statusBadQueueID
	case cqid == 0 || c.cqs[cqid].Load() == nil:
		return statusBadCQ
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.phase != active {
		return statusSequence // a reset has begun; nobody will see this
	}
	if c.cc>>ccIOSQES&15 != sqEntryShift || c.startSQ(id, size, at, c.cqs[cqid].Load()) != nil {
		return statusInvalidField
	}
	return statusOK
}

// deleteSQ is Delete I/O Submission Queue (§5.6). What the host of the
// machine is carrying out is waited for and answered before.
func (c *Controller) deleteSQ(cmd *command) status {
	id, ok := c.queueID(cmd)
	if !ok || c.sqs[id].Load() == nil {
		return statusBadQueueID
	}
	s := c.sqs[id].Load()
	s.stop()
	<-s.ended
	s.cq.forget(s)
	c.sqs[id].Store(nil)
	return statusOK
}

// deleteCQ is Delete I/O Completion Queue (§5.5): "If there are any associated
// I/O Submission Queues present, then the Delete I/O Completion Queue command
// shall fail".
func (c *Controller) deleteCQ(cmd *command) status {
	id, ok := c.queueID(cmd)
	if !ok || c.cqs[id].Load() == nil {
		return statusBadQueueID
	}
	for i := range c.sqs {
		if s := c.sqs[i].Load(); s != nil && s.cq.id == id {
			return statusBadDeletion
		}
	}
	c.cqs[id].Store(nil)
	return statusOK
}

// doorbellBuffers is Doorbell Buffer Config (§5.7).
func (c *Controller) doorbellBuffers(cmd *command) status {
	buffer, event := cmd.qword(6), cmd.qword(8)
	if buffer%pageSize != 0 || event%pageSize != 0 {
		return statusInvalidOffset
	}
	sh, err := newShadow(c.mem, buffer, event)
	if err != nil {
		return statusInvalidField
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.phase != active {
		return statusSequence
	}
	c.shadow.Store(sh)
	for i := range c.sqs {
		if s := c.sqs[i].Load(); s != nil {
			c.bind(s)
			s.bell.Ring() // its goroutine waits for the doorbell only
		}
	}
	return statusOK
}
