package tpm

import "math/bits"

// localities decides which of the five localities has the TPM (PTP, "Locality
// Levels" and "TPM_ACCESS_x"). Its zero value is not valid: see newLocalities.
type localities struct {
	active    int8  // none is -1
	requested uint8 // mask of those that wait for the active one to let go
	seized    uint8 // mask of those from whom a higher one took the TPM
}

func newLocalities() localities { return localities{active: -1} }

// request makes n active if no other is; else n waits. It reports whether the
// active locality changed.
func (l *localities) request(n int) bool {
	switch l.active {
	case int8(n):
		return false
	case -1:
		l.active = int8(n)
		return true
	}
	l.requested |= 1 << n
	return false
}

// seize takes the TPM for n from a lower locality, or from none.
func (l *localities) seize(n int) bool {
	if l.active >= int8(n) {
		return false
	}
	if l.active >= 0 {
		l.seized |= 1 << l.active
	}
	l.active = int8(n)
	l.requested &^= 1 << n
	return true
}

// relinquish lets go of the TPM, or of the wish for it. The highest locality
// that waits gets it.
func (l *localities) relinquish(n int) bool {
	l.requested &^= 1 << n
	if l.active != int8(n) {
		return false
	}
	l.active = int8(bits.Len8(l.requested)) - 1
	if l.active >= 0 {
		l.requested &^= 1 << l.active
	}
	return true
}

// others reports whether another locality than n waits.
func (l *localities) others(n int) bool { return l.requested&^(1<<n) != 0 }
