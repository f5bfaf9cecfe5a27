package net

import (
	"testing"

	"github.com/gvmspawn/gvmspawn/virtio/virtq/virtqtest"
)

// TestReceiverWaitsForRoom: a packet may take 65550 bytes when segmentation
// offload was negotiated, over several buffers (virtio 1.2 §5.1.6.3.1). Linux
// gives back what it used only after a while; the link must not see less room
// in between, or large packets are lost.
func TestReceiverWaitsForRoom(t *testing.T) {
	d := virtqtest.New(t, 256, virtqtest.Options{EventIdx: true})
	r := receiver{q: d.Queue, merge: true}
	rooms := make(chan int)
	go func() {
		defer close(rooms)
		for r.collect() {
			rooms <- r.room
			r.deliver(MaxPacket) // a packet that fills it
		}
	}()
	const small = 1536
	add := func(n int) {
		for range n {
			d.Add(nil, []int{small})
		}
		d.Kick()
	}
	const need = (MaxPacket + small - 1) / small
	add(need - 1)
	d.UntilKickWanted()
	select {
	case room := <-rooms:
		t.Fatalf("the link was given %d bytes of room with more to come", room)
	default:
	}
	add(1)
	if room := <-rooms; room < MaxPacket {
		t.Errorf("room %d, want %d or more", room, MaxPacket)
	}
	for range need {
		d.Wait()
	}
}

// TestReceiverUsesSmallRings: a driver whose ring never holds the largest
// packet gets the small ones.
func TestReceiverUsesSmallRings(t *testing.T) {
	d := virtqtest.New(t, 8, virtqtest.Options{})
	r := receiver{q: d.Queue, merge: true}
	for range 4 {
		d.Add(nil, []int{100})
	}
	if !r.collect() || r.room != 400 {
		t.Errorf("room %d, want 400", r.room)
	}
	r.deliver(150)
	for _, want := range []int{100, 50} {
		if u := d.Wait(); int(u.Written) != want {
			t.Errorf("used %d bytes, want %d", u.Written, want)
		}
	}
}

// TestReceiverWithoutMerging takes one buffer for one packet (§5.1.6.3.1).
func TestReceiverWithoutMerging(t *testing.T) {
	d := virtqtest.New(t, 8, virtqtest.Options{})
	r := receiver{q: d.Queue}
	d.Add(nil, []int{MaxPacket})
	d.Add(nil, []int{MaxPacket})
	if !r.collect() || len(r.chains) != 1 || r.room != MaxPacket {
		t.Errorf("%d chains with %d bytes, want one with %d", len(r.chains), r.room, MaxPacket)
	}
}
