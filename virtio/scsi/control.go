package scsi

import (
	"encoding/binary"

	"github.com/gvmspawn/gvmspawn/virtio/virtq"
)

// control serves the control queue (§5.6.6.2).
func (d *Device) control(q *virtq.Queue) {
	var c virtq.Chain
	for q.Wait() {
		for q.Pop(&c) {
			q.Push(&c, d.manage(&c))
		}
		q.Notify()
	}
}

// manage carries a control request out and returns how much it wrote.
func (d *Device) manage(c *virtq.Chain) uint32 {
	var b [tmfSize]byte
	n := c.ReadAt(b[:], 0)
	le := binary.LittleEndian
	switch typ := le.Uint32(b[controlTypeField:]); {
	case n >= tmfSize && typ == VIRTIO_SCSI_T_TMF && c.WritableLen >= tmfAnswer:
		r := d.task(le.Uint32(b[4:]), [8]byte(b[8:]))
		return uint32(c.WriteAt([]byte{byte(r)}, 0))
	case n >= subscribeSize && (typ == VIRTIO_SCSI_T_AN_QUERY || typ == VIRTIO_SCSI_T_AN_SUBSCRIBE) && c.WritableLen >= subscribeAnswer:
		// No asynchronous events of any kind.
		r := VIRTIO_SCSI_S_OK
		if _, _, ok := d.unit([8]byte(b[4:])); !ok {
			r = VIRTIO_SCSI_S_BAD_TARGET
		}
		return uint32(c.WriteAt([]byte{0, 0, 0, 0, byte(r)}, 0))
	case c.WritableLen > 0:
		// The last byte is the response of every kind.
		end := min(c.WritableLen, subscribeAnswer)
		c.WriteAt([]byte{byte(VIRTIO_SCSI_S_FAILURE)}, end-1)
		return uint32(end)
	}
	return 0
}

// task is a task management function (SAM-5 §7). Those that end tasks wait
// until all are done that were there.
func (d *Device) task(subtype uint32, lun [8]byte) response {
	u, _, ok := d.unit(lun)
	switch {
	case !ok:
		return VIRTIO_SCSI_S_BAD_TARGET
	case u == nil:
		return VIRTIO_SCSI_S_INCORRECT_LUN
	}
	switch subtype {
	case tmfAbortTask, tmfAbortTaskSet, tmfClearTaskSet:
		d.drain()
		return VIRTIO_SCSI_S_FUNCTION_COMPLETE
	case tmfNexusReset, tmfUnitReset:
		d.drain()
		u.clear()
		return VIRTIO_SCSI_S_FUNCTION_COMPLETE
	case tmfQueryTask, tmfQueryTaskSet:
		return VIRTIO_SCSI_S_FUNCTION_COMPLETE // no such task
	}
	return VIRTIO_SCSI_S_FUNCTION_REJECTED
}

func (d *Device) drain() {
	d.mu.Lock()
	workers := d.workers
	d.mu.Unlock()
	for _, w := range workers {
		w.drain()
	}
}
