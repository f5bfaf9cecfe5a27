package net

import "encoding/binary"

// maxTable is how many addresses a table holds; a driver that sets more gets
// every packet of their kind.
const maxTable = 64

// table is a MAC filtering table.
type table struct {
	addrs    [maxTable][6]byte
	n        int
	overflow bool
}

func (t *table) has(mac [6]byte) bool {
	for i := range t.n {
		if t.addrs[i] == mac {
			return true
		}
	}
	return t.overflow
}

// rules decide which packets the guest gets (§5.1.6.5.1 to 3). They do not
// change: a command of the control queue makes new ones.
type rules struct {
	modes              [ctrlRXMax + 1]bool // by command of the RX class
	mac                [6]byte
	unicast, multicast table
	// vlans are the VLANs let through, if filtered.
	filterVLANs bool
	vlans       [4096 / 64]uint64
}

// newRules are those of a driver that has not said anything yet: it gets all
// packets, as from QEMU. Only VLANs are filtered once that is negotiated.
func newRules(mac [6]byte, filterVLANs bool) *rules {
	r := &rules{mac: mac, filterVLANs: filterVLANs}
	r.modes[ctrlRXPromisc] = true
	return r
}

// headLen is how much of a frame the rules look at: addresses, type, VLAN tag.
const headLen = 18

// IEEE 802.1Q.
const (
	typeVLAN = 0x8100
	vlanTag  = 4 // bytes
)

// accept reports whether the guest gets a frame.
func (r *rules) accept(h *[headLen]byte) bool {
	if r.modes[ctrlRXPromisc] {
		return true
	}
	if r.filterVLANs && binary.BigEndian.Uint16(h[12:]) == typeVLAN {
		if id := binary.BigEndian.Uint16(h[14:]) & 0xfff; r.vlans[id/64]>>(id%64)&1 == 0 {
			return false
		}
	}
	to := [6]byte(h[:6])
	switch {
	case to == [6]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}:
		return !r.modes[ctrlRXNoBroadcast]
	case to[0]&1 != 0:
		return !r.modes[ctrlRXNoMulti] && (r.modes[ctrlRXAllMulti] || r.multicast.has(to))
	}
	return !r.modes[ctrlRXNoUni] && (r.modes[ctrlRXAllUni] || to == r.mac || r.unicast.has(to))
}

// head copies what the rules look at from a packet of n bytes in the chains.
func (r *receiver) head(h *[headLen]byte, n int) {
	clear(h[:])
	skip, got := HeaderLen, 0
	for _, b := range r.pieces {
		p := b.Bytes
		k := min(skip, len(p))
		skip -= k
		got += copy(h[got:], p[k:])
		if got == len(h) {
			break
		}
	}
	if n < HeaderLen+headLen {
		clear(h[max(0, n-HeaderLen):])
	}
}
