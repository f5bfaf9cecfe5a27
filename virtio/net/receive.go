package net

import (
	"encoding/binary"
	"errors"

	"github.com/gvmspawn/gvmspawn/virtio"
	"github.com/gvmspawn/gvmspawn/virtio/virtq"
)

// receiver collects receive buffers until the largest packet fits, hands them
// to the link in one piece, and gives back what the packet used.
type receiver struct {
	q       *virtq.Queue
	merge   bool
	chains  []*virtq.Chain // taken and not given back, in order
	spare   []*virtq.Chain // unused Chain values
	written []uint32       // of the chains given back, kept for its storage
	pieces  []virtq.Buffer // of all chains, in order
	room    int            // bytes in pieces
}

// receive feeds packets to the guest until the queue is closed or the link is
// interrupted.
func (d *Device) receive(q *virtq.Queue, l Link, f virtio.Features) {
	r := receiver{q: q, merge: f.Has(FMrgRxbuf)}
	limit := MaxPacket
	if f.Has(FMTU) {
		limit = int(d.mtu())
	}
	var head [headLen]byte
	for r.collect() {
		q.Away()
		n, err := l.Receive(r.pieces, r.room)
		if d.stop.Load() {
			return
		}
		switch {
		case errors.Is(err, ErrClosed):
			continue
		case err != nil:
			d.dropped.Add(1)
			d.cfg.Log.Warn("network link failed", "error", err)
			// The link is broken for good, say a TAP that was deleted:
			// the guest sees the cable pulled.
			_ = d.SetLink(false)
			return
		}
		r.head(&head, n)
		switch {
		case n > limit && r.tooLong(&head, n, limit):
			d.dropped.Add(1)
		case d.up.Load() && d.rules.Load().accept(&head):
			r.deliver(n)
		}
	}
}

// tooLong reports whether a packet of n bytes, which are not for the driver to cut
// into segments, is more than the MTU allows: "the device MUST NOT pass received
// packets that exceed mtu (plus low level ethernet header length) size with gso_type
// NONE or ECN" (§5.1.4.1).
func (r *receiver) tooLong(h *[headLen]byte, n, mtu int) bool {
	most := HeaderLen + maxEthernet + mtu
	if binary.BigEndian.Uint16(h[12:]) != typeVLAN {
		most -= vlanTag
	}
	return n > most && r.gsoType()&^GSOECN == GSONone
}

// gsoType is the packet's.
func (r *receiver) gsoType() byte {
	off := HdrGSOType
	for _, b := range r.pieces {
		if off < len(b.Bytes) {
			return b.Bytes[off]
		}
		off -= len(b.Bytes)
	}
	return GSONone
}

// collect takes chains until MaxPacket fits, or, without merged buffers, one.
// It waits for them: a link that got less room would have to drop a large
// packet, and TCP takes a lost packet for a congested network. A driver whose
// ring cannot hold MaxPacket gets packets into half of it. collect returns
// false when the queue is closed.
func (r *receiver) collect() bool {
	for !r.enough() {
		c := r.take()
		if !r.q.Pop(c) {
			r.spare = append(r.spare, c)
			if !r.q.Wait() {
				return false
			}
			continue
		}
		r.chains = append(r.chains, c)
		r.pieces = append(r.pieces, c.Writable...)
		r.room += int(min(c.WritableLen, MaxPacket))
	}
	return true
}

// enough reports whether the chains at hand will do.
func (r *receiver) enough() bool {
	if !r.merge {
		return len(r.chains) > 0
	}
	return r.room >= MaxPacket || len(r.pieces) >= int(r.q.Size())/2 && len(r.chains) > 0
}

func (r *receiver) take() *virtq.Chain {
	if n := len(r.spare); n > 0 {
		c := r.spare[n-1]
		r.spare = r.spare[:n-1]
		return c
	}
	return new(virtq.Chain)
}

// deliver gives the chains that a packet of n bytes fills back to the driver
// and writes how many they are into its header (§5.1.6.4).
func (r *receiver) deliver(n int) {
	used, left := 0, n
	for used < len(r.chains) && left > 0 {
		left -= int(min(uint64(left), r.chains[used].WritableLen))
		used++
	}
	if used == 0 {
		return
	}
	var count [2]byte
	binary.LittleEndian.PutUint16(count[:], uint16(used))
	r.chains[0].WriteAt(count[:], hdrNumBuffers)
	left = n
	r.written = r.written[:0]
	for _, c := range r.chains[:used] {
		part := min(uint64(left), c.WritableLen)
		r.written = append(r.written, uint32(part))
		left -= int(part)
	}
	// A driver that polls must not see the first buffer without the others.
	r.q.PushAll(r.chains[:used], r.written)
	r.q.Notify()
	r.spare = append(r.spare, r.chains[:used]...)
	r.chains = append(r.chains[:0], r.chains[used:]...)
	r.rebuild()
}

func (r *receiver) rebuild() {
	r.pieces, r.room = r.pieces[:0], 0
	for _, c := range r.chains {
		r.pieces = append(r.pieces, c.Writable...)
		r.room += int(min(c.WritableLen, MaxPacket))
	}
}
