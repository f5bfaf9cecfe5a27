package virtio_test

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"github.com/gvmspawn/gvmspawn/virtio"
)

// A FIFO against a plain slice, over random puts, peeks, gets and drops.
func TestFIFO(t *testing.T) {
	const limit = 10000
	f := virtio.NewFIFO(limit)
	r := rand.New(rand.NewPCG(1, 2))
	var model []byte
	next := byte(0)
	for range 20000 {
		switch r.IntN(3) {
		case 0:
			p := make([]byte, r.IntN(3000))
			for i := range p {
				p[i] = next
				next++
			}
			n := f.Put(p)
			if n != min(len(p), limit-len(model)) {
				t.Fatalf("put took %d of %d with %d held", n, len(p), len(model))
			}
			next -= byte(len(p) - n)
			model = append(model, p[:n]...)
		case 1:
			p := make([]byte, r.IntN(3000))
			n := f.Get(p)
			if !bytes.Equal(p[:n], model[:n]) || n != min(len(p), len(model)) {
				t.Fatalf("get gave %d of %d", n, len(model))
			}
			model = model[n:]
		case 2:
			p := f.Peek()
			if len(p) == 0 != (len(model) == 0) || !bytes.HasPrefix(model, p) {
				t.Fatal("peek differs")
			}
			f.Put([]byte{next}[:min(1, f.Room())])
			if len(model) < limit {
				model = append(model, next)
				next++
			}
			if !bytes.HasPrefix(model, p) {
				t.Fatal("peeked bytes changed")
			}
			f.Drop(len(p))
			model = model[len(p):]
		}
		if f.Len() != len(model) || f.Room() != limit-len(model) {
			t.Fatalf("%d held, want %d", f.Len(), len(model))
		}
	}
}

func TestReadConfigBytes(t *testing.T) {
	p := []byte{9, 9, 9, 9}
	virtio.ReadConfigBytes(p, []byte{1, 2, 3}, 2)
	if !bytes.Equal(p, []byte{3, 0, 0, 0}) {
		t.Errorf("got %x", p)
	}
	virtio.ReadConfigBytes(p, []byte{1, 2, 3}, 1<<63)
	if !bytes.Equal(p, make([]byte, 4)) {
		t.Errorf("got %x", p)
	}
}
