package identity

import (
	"encoding/binary"
	"math/bits"
)

// siphash24 is SipHash-2-4 of data (Aumasson and Bernstein, "SipHash: a fast
// short-input PRF", 2012, §2).
func siphash24(key [16]byte, data []byte) uint64 {
	k0, k1 := binary.LittleEndian.Uint64(key[:]), binary.LittleEndian.Uint64(key[8:])
	v := [4]uint64{k0 ^ 0x736f6d6570736575, k1 ^ 0x646f72616e646f6d, k0 ^ 0x6c7967656e657261, k1 ^ 0x7465646279746573}
	length := uint64(len(data))
	for ; len(data) >= 8; data = data[8:] {
		compress(&v, binary.LittleEndian.Uint64(data))
	}
	var last [8]byte
	copy(last[:], data)
	compress(&v, binary.LittleEndian.Uint64(last[:])|length<<56)
	v[2] ^= 0xff
	for range 4 {
		round(&v)
	}
	return v[0] ^ v[1] ^ v[2] ^ v[3]
}

func compress(v *[4]uint64, m uint64) {
	v[3] ^= m
	round(v)
	round(v)
	v[0] ^= m
}

func round(v *[4]uint64) {
	v[0] += v[1]
	v[1] = bits.RotateLeft64(v[1], 13) ^ v[0]
	v[0] = bits.RotateLeft64(v[0], 32)
	v[2] += v[3]
	v[3] = bits.RotateLeft64(v[3], 16) ^ v[2]
	v[0] += v[3]
	v[3] = bits.RotateLeft64(v[3], 21) ^ v[0]
	v[2] += v[1]
	v[1] = bits.RotateLeft64(v[1], 17) ^ v[2]
	v[2] = bits.RotateLeft64(v[2], 32)
}
