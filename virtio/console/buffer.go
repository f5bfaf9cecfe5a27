package console

// buffer is a bounded first-in first-out store of bytes. It has no lock.
type buffer struct {
	data []byte
	head int // index of the oldest byte
	n    int // bytes held
}

func newBuffer(size int) buffer { return buffer{data: make([]byte, size)} }

// room is how many bytes put would take.
func (b *buffer) room() int { return len(b.data) - b.n }

// put appends as much of p as there is room for and returns how much.
func (b *buffer) put(p []byte) int {
	total := 0
	for len(p) > 0 && b.n < len(b.data) {
		tail := (b.head + b.n) % len(b.data)
		end := len(b.data)
		if tail < b.head {
			end = b.head
		}
		n := copy(b.data[tail:end], p)
		b.n += n
		total += n
		p = p[n:]
	}
	return total
}

// peek is the oldest bytes as far as they lie in one piece. They stay valid
// while others put, until drop.
func (b *buffer) peek() []byte {
	return b.data[b.head:min(b.head+b.n, len(b.data))]
}

// drop forgets the n oldest bytes, at most what peek returned.
func (b *buffer) drop(n int) {
	b.head = (b.head + n) % len(b.data)
	b.n -= n
}
