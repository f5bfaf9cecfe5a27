package vsock

import (
	"encoding/binary"
	"math/bits"
)

// cidKey is systemd-vmspawn's key for context IDs derived from machine names.
var cidKey = [16]byte{0x03, 0xad, 0xf0, 0xa4, 0x59, 0x2c, 0x77, 0x11, 0xda, 0x39, 0x0c, 0xba, 0xf5, 0x4c, 0x80, 0x52}

// DeriveCID is the context ID that systemd-vmspawn gives a machine of that
// name, in 3 to 4294967293. try counts from 0 (to 63) as CIDs turn out to be
// in use.
func DeriveCID(name string, try uint32) uint32 {
	h := SipHash24(&cidKey, binary.LittleEndian.AppendUint32([]byte(name), try))
	return 3 + uint32(h%4294967291)
}

// SipHash24 is SipHash-2-4 of p (J.-P. Aumasson and D. J. Bernstein, "SipHash:
// a fast short-input PRF", 2012).
func SipHash24(key *[16]byte, p []byte) uint64 {
	k0, k1 := binary.LittleEndian.Uint64(key[:]), binary.LittleEndian.Uint64(key[8:])
	s := sipState{k0 ^ 0x736f6d6570736575, k1 ^ 0x646f72616e646f6d, k0 ^ 0x6c7967656e657261, k1 ^ 0x7465646279746573}
	last := uint64(len(p)) << 56
	for ; len(p) >= 8; p = p[8:] {
		s.block(binary.LittleEndian.Uint64(p))
	}
	for i, b := range p {
		last |= uint64(b) << (8 * i)
	}
	s.block(last)
	s[2] ^= 0xff
	for range 4 {
		s.round()
	}
	return s[0] ^ s[1] ^ s[2] ^ s[3]
}

// sipState is v0 to v3 of the paper's section 2.1.
type sipState [4]uint64

func (s *sipState) block(m uint64) {
	s[3] ^= m
	s.round()
	s.round()
	s[0] ^= m
}

func (s *sipState) round() {
	s[0] += s[1]
	s[1] = bits.RotateLeft64(s[1], 13) ^ s[0]
	s[0] = bits.RotateLeft64(s[0], 32)
	s[2] += s[3]
	s[3] = bits.RotateLeft64(s[3], 16) ^ s[2]
	s[0] += s[3]
	s[3] = bits.RotateLeft64(s[3], 21) ^ s[0]
	s[2] += s[1]
	s[1] = bits.RotateLeft64(s[1], 17) ^ s[2]
	s[2] = bits.RotateLeft64(s[2], 32)
}
