package virtqtest

import "runtime"

// Again returns a function that makes the same chain available once more,
// rings the bell and waits until the device has used it. Neither allocates nor
// sleeps, so it measures the device's allocations and time. It owns the ring:
// the driver's other methods must not be used before or after it.
func (d *Driver) Again(chain ...Desc) func() {
	s := d.Split
	for i, e := range chain {
		if i+1 < len(chain) {
			e.Flags |= DescNext
			e.Next = uint16(i + 1)
		}
		s.SetDesc(i, e)
	}
	idx := s.Avail.LoadUint16(2)
	return func() {
		s.SetAvail(idx, 0)
		idx++
		s.SetAvailIdx(idx)
		d.ring()
		for s.UsedIdx() != idx {
			runtime.Gosched()
		}
	}
}
