package virtio

// FIFO is a first-in first-out store of bytes with a bound, for device
// streams that a slow reader must not make grow. It has no lock.
type FIFO struct {
	data []byte
	head int // index of the oldest byte
	n    int // bytes held
	max  int
}

// minFIFO is the smallest storage, in bytes, that a FIFO makes for itself.
const minFIFO = 4 << 10

// NewFIFO returns an empty FIFO that holds at most limit bytes. Storage is made
// as it is needed and kept.
func NewFIFO(limit int) FIFO { return FIFO{max: limit} }

// Len is the number of bytes held.
func (f *FIFO) Len() int { return f.n }

// Room is how many bytes Put would take.
func (f *FIFO) Room() int { return f.max - f.n }

// Put appends as much of p as there is room for and returns how much.
func (f *FIFO) Put(p []byte) int {
	p = p[:min(len(p), f.Room())]
	if f.n+len(p) > len(f.data) {
		f.grow(f.n + len(p))
	}
	tail := f.head + f.n
	if tail >= len(f.data) {
		tail -= len(f.data)
	}
	n := copy(f.data[tail:], p)
	copy(f.data, p[n:])
	f.n += len(p)
	return len(p)
}

// grow makes room for n bytes in all. What Peek returned stays valid.
func (f *FIFO) grow(n int) {
	size := max(len(f.data), min(minFIFO, f.max))
	for size < n {
		size = min(2*size, f.max)
	}
	data := make([]byte, size)
	k := copy(data, f.Peek())
	copy(data[k:], f.data[:f.n-k])
	f.data, f.head = data, 0
}

// Peek is the oldest bytes as far as they lie in one piece. They stay as they
// are, whatever is put meanwhile, until they are dropped.
func (f *FIFO) Peek() []byte {
	return f.data[f.head:min(f.head+f.n, len(f.data))]
}

// Drop forgets the n oldest bytes, at most Len.
func (f *FIFO) Drop(n int) {
	f.n -= n
	if f.head += n; f.head >= len(f.data) {
		f.head -= len(f.data)
	}
	if f.n == 0 {
		f.head = 0
	}
}

// Get moves the oldest bytes into p and returns how many.
func (f *FIFO) Get(p []byte) int {
	n := 0
	for n < len(p) && f.n > 0 {
		k := copy(p[n:], f.Peek())
		f.Drop(k)
		n += k
	}
	return n
}
