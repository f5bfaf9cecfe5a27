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
		return d.setMode(cmd, data)
	case ctrlMAC:
		switch cmd {
		case ctrlMACTable:
			return d.setTables(data, size-2)
		case ctrlMACAddr:
			return d.setMAC(data)
		}
	case ctrlVLAN:
		return d.setVLAN(cmd, data)
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

// change replaces the rules by a changed copy. The control queue's goroutine
// alone calls it.
func (d *Device) change(f func(*rules)) bool {
	r := *d.rules.Load()
	f(&r)
	d.rules.Store(&r)
	return true
}

// setMode turns a receive mode on or off (§5.1.6.5.1).
func (d *Device) setMode(cmd byte, data []byte) bool {
	if cmd > ctrlRXMax || len(data) != 1 {
		return false
	}
	return d.change(func(r *rules) { r.modes[cmd] = data[0] != 0 })
}

// setTables takes the two tables of a MAC_TABLE_SET (§5.1.6.5.2), unicast and
// multicast: le32 entries, then six bytes an entry. size is their true length.
func (d *Device) setTables(data []byte, size uint64) bool {
	var unicast, multicast table
	for _, t := range []*table{&unicast, &multicast} {
		if len(data) < 4 {
			return false
		}
		n := uint64(binary.LittleEndian.Uint32(data))
		need := 4 + 6*n
		if need > size {
			return false
		}
		size -= need
		if n > maxTable {
			t.overflow = true
		} else {
			for i := range n {
				t.addrs[i] = [6]byte(data[4+6*i:])
			}
			t.n = int(n)
		}
		if need > uint64(len(data)) {
			// The other table lies beyond what was read.
			if t == &multicast && size != 0 || t == &unicast && size < 4 {
				return false
			}
			size, multicast.overflow = 0, true
			break
		}
		data = data[need:]
	}
	if size != 0 {
		return false
	}
	return d.change(func(r *rules) { r.unicast, r.multicast = unicast, multicast })
}

// setMAC changes the guest's address (§5.1.6.5.2).
func (d *Device) setMAC(data []byte) bool {
	if len(data) != 6 || data[0]&1 != 0 {
		return false
	}
	d.mu.Lock()
	copy(d.mac[:], data)
	d.mu.Unlock()
	return d.change(func(r *rules) { r.mac = [6]byte(data) })
}

// setVLAN lets a VLAN through or no longer (§5.1.6.5.3).
func (d *Device) setVLAN(cmd byte, data []byte) bool {
	if cmd > ctrlVLANDel || len(data) != 2 || !d.rules.Load().filterVLANs {
		return false
	}
	id := binary.LittleEndian.Uint16(data)
	if id > 4095 {
		return false
	}
	return d.change(func(r *rules) {
		r.vlans[id/64] &^= 1 << (id % 64)
		if cmd == ctrlVLANAdd {
			r.vlans[id/64] |= 1 << (id % 64)
		}
	})
}
