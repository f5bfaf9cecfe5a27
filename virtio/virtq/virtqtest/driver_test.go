package virtqtest_test

import (
	"bytes"
	"testing"

	"github.com/gvmspawn/gvmspawn/virtio/virtq"
	"github.com/gvmspawn/gvmspawn/virtio/virtq/virtqtest"
)

// echo answers every chain with its readable bytes until the queue closes.
func echo(q *virtq.Queue) {
	var c virtq.Chain
	for q.Wait() {
		for q.Pop(&c) {
			b := make([]byte, c.ReadableLen)
			c.ReadAt(b, 0)
			q.Push(&c, uint32(c.WriteAt(b, 0)))
		}
		q.Notify()
	}
}

func TestDriverEcho(t *testing.T) {
	for _, o := range []virtqtest.Options{
		{}, {EventIdx: true}, {Indirect: true}, {EventIdx: true, Indirect: true},
		{Packed: true}, {Packed: true, EventIdx: true, Indirect: true},
	} {
		d := virtqtest.New(t, 8, o)
		go echo(d.Queue)
		for i := range 1000 {
			msg := bytes.Repeat([]byte{byte(i)}, 1+i%100)
			u := d.Do([][]byte{msg, {0xff}}, []int{10, 200})
			if want := append(msg, 0xff); !bytes.Equal(u.Bytes(), want) {
				t.Fatalf("%+v: got %x, want %x", o, u.Bytes(), want)
			}
		}
		if d.InFlight() != 0 || !d.Room(4) {
			t.Errorf("%+v: %d in flight after all came back", o, d.InFlight())
		}
	}
}
