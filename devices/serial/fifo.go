package serial

// fifo is a ring of bytes, each with the line status that belongs to it.
type fifo struct {
	b       [fifoSize]uint8
	flag    [fifoSize]lsr
	head, n int
	flags   int  // entries with a flag
	refused bool // a byte found no room
}

// push appends a byte. Preconditions: n < fifoSize.
func (f *fifo) push(b uint8, flag lsr) {
	i := (f.head + f.n) % fifoSize
	f.b[i], f.flag[i] = b, flag
	f.n++
	if flag != 0 {
		f.flags++
	}
}

// pop takes the first byte; an empty fifo gives 0.
func (f *fifo) pop() (uint8, bool) {
	if f.n == 0 {
		return 0, false
	}
	f.takeFlag()
	b := f.b[f.head]
	f.head = (f.head + 1) % fifoSize
	f.n--
	return b, true
}

// first is the byte that pop takes. Preconditions: n > 0.
func (f *fifo) first() uint8 { return f.b[f.head] }

// firstFlag is the status of the byte that pop takes. Preconditions: n > 0.
func (f *fifo) firstFlag() lsr { return f.flag[f.head] }

// takeFlag forgets the status of the first byte, as reading LSR does.
func (f *fifo) takeFlag() {
	if f.n > 0 && f.flag[f.head] != 0 {
		f.flag[f.head] = 0
		f.flags--
	}
}

func (f *fifo) clear() { f.head, f.n, f.flags = 0, 0, 0 }
