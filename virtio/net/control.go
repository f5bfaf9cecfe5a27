package net

import (
	"encoding/binary"

	"github.com/gvmspawn/gvmspawn/virtio/virtq"
)

// maxCtrl bounds what is read of a control command, in bytes: the largest is a
// MAC table, of which only the lengths matter here.
const maxCtrl = 4096

// control serves the control queue (§5.1.6.5).
func (d *Device) control(q *virtq.Queue) {
	var c virtq.Chain
	buf := make([]byte, maxCtrl)
	for q.Wait() {
		for n := 0; n < int(q.Size()) && q.Pop(&c); n++ {
			ack := [1]byte{ctrlErr}
			if c.ReadableLen >= 2 && d.command(buf[:c.ReadAt(buf, 0)], c.ReadableLen) {
				ack[0] = ctrlOK
			}
			q.Push(&c, uint32(c.WriteAt(ack[:], 0)))
		}
		q.Notify()
	}
}

// command executes one command; p is its beginning, size its true length.
func (d *Device) command(p []byte, size uint64) bool {
	class, cmd, data := p[0], p[1], p[2:]
	switch class {
	case ctrlRX:
		// The guest gets every packet of its link anyway.
		return cmd <= ctrlRXMax && len(data) == 1
	case ctrlMAC:
		switch cmd {
		case ctrlMACTable:
			return macTable(data, size-2)
		case ctrlMACAddr:
			return d.setMAC(data)
		}
	case ctrlAnnounce:
		if cmd == ctrlAnnAck {
			d.mu.Lock()
			d.announce = false
			d.mu.Unlock()
			return true
		}
	case ctrlMQ:
		if cmd == ctrlMQPairs && len(data) == 2 {
			n := int(binary.LittleEndian.Uint16(data))
			if n >= 1 && n <= len(d.cfg.Links) {
				return d.usePairs(n) == nil
			}
		}
	}
	return false
}

// macTable checks the two tables of a MAC_TABLE_SET: le32 entries, then six
// bytes an entry, twice. Filtering is not offered beyond that (§5.1.6.5.2: the
// device may receive more).
func macTable(data []byte, size uint64) bool {
	for range 2 {
		if len(data) < 4 {
			return false
		}
		n := uint64(binary.LittleEndian.Uint32(data))
		if need := 4 + 6*n; need > size {
			return false
		} else if size -= need; need > uint64(len(data)) {
			// The rest lies beyond what was read.
			return size == 0 || size >= 4
		} else {
			data = data[need:]
		}
	}
	return size == 0
}

func (d *Device) setMAC(data []byte) bool {
	if len(data) != 6 || data[0]&1 != 0 {
		return false
	}
	d.mu.Lock()
	copy(d.mac[:], data)
	d.mu.Unlock()
	return true
}
