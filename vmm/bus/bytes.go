package bus

// ByteChip is a chip whose registers are bytes, as most chips of the ISA bus
// are. That bus turns a wider access into one access a byte, lowest first.
// Offsets are those of Device.
type ByteChip interface {
	ReadByteAt(off uint64) uint8
	WriteByteAt(off uint64, v uint8)
}

// ReadBytes makes a Device's Read of a ByteChip.
func ReadBytes(c ByteChip, off uint64, size int) uint64 {
	var v uint64
	for i := range size {
		v |= uint64(c.ReadByteAt(off+uint64(i))) << (8 * i)
	}
	return v
}

// WriteBytes makes a Device's Write of a ByteChip.
func WriteBytes(c ByteChip, off uint64, size int, v uint64) {
	for i := range size {
		c.WriteByteAt(off+uint64(i), uint8(v>>(8*i)))
	}
}
