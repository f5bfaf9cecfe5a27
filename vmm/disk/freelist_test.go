package disk

import "testing"

// TestFreeList: what was put comes back, new ones are made only when all are in
// use, and then nothing is allocated.
func TestFreeList(t *testing.T) {
	made := 0
	l := FreeList[Request]{New: func() *Request { made++; return &Request{} }}
	a, b := l.Get(), l.Get()
	if a == b || made != 2 {
		t.Fatalf("%p %p, %d made", a, b, made)
	}
	l.Put(a)
	if l.Get() != a {
		t.Error("another request than the free one")
	}
	l.Put(a)
	l.Put(b)
	if n := testing.AllocsPerRun(100, func() {
		a, b := l.Get(), l.Get()
		l.Put(a)
		l.Put(b)
	}); n != 0 || made != 2 {
		t.Errorf("%v allocations, %d made", n, made)
	}
}
