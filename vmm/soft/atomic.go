package soft

// The compare-and-swap functions work on guest memory of any alignment: the
// host's LOCK prefix gives exactly the guest's semantics. p is a host address.

//go:noescape
func cas8(p uint64, old, new uint8) bool

//go:noescape
func cas16(p uint64, old, new uint16) bool

//go:noescape
func cas32(p uint64, old, new uint32) bool

//go:noescape
func cas64(p, old, new uint64) bool

//go:noescape
func cas128(p, oldLo, oldHi, newLo, newHi uint64) (lo, hi uint64, ok bool)

// cas compares and swaps size (1, 2, 4 or 8) bytes.
func cas(p, old, new uint64, size uint8) bool {
	switch size {
	case 1:
		return cas8(p, uint8(old), uint8(new))
	case 2:
		return cas16(p, uint16(old), uint16(new))
	case 4:
		return cas32(p, uint32(old), uint32(new))
	}
	return cas64(p, old, new)
}

// hostFence is MFENCE.
func hostFence()
