package disk

// Vector walks over the buffers of a request piece by piece. Images that split
// requests use it, so that they need not allocate.
type Vector struct {
	rest [][]byte
	skip int // bytes of rest[0] that were taken
	part [][]byte
}

// vectors are those not in use.
var vectors = make(chan *Vector, 64)

// NewVector returns a Vector over bufs. Free it.
func NewVector(bufs [][]byte) *Vector {
	var v *Vector
	select {
	case v = <-vectors:
	default:
		v = new(Vector)
	}
	v.rest, v.skip = bufs, 0
	return v
}

// Take returns the next n bytes, which must exist. The result is valid until
// the next call.
func (v *Vector) Take(n uint64) [][]byte {
	v.part = v.part[:0]
	for n > 0 {
		b := v.rest[0][v.skip:]
		if uint64(len(b)) > n {
			v.part = append(v.part, b[:n])
			v.skip += int(n)
			return v.part
		}
		v.part = append(v.part, b)
		n -= uint64(len(b))
		v.rest, v.skip = v.rest[1:], 0
	}
	return v.part
}

// Free gives the Vector back.
func (v *Vector) Free() {
	clear(v.part)
	v.rest, v.part = nil, v.part[:0]
	select {
	case vectors <- v:
	default:
	}
}

// Length is the sum of the buffers' lengths in bytes.
func Length(bufs [][]byte) uint64 {
	n := 0
	for _, b := range bufs {
		n += len(b)
	}
	return uint64(n)
}

// Zero clears the buffers.
func Zero(bufs [][]byte) {
	for _, b := range bufs {
		clear(b)
	}
}
