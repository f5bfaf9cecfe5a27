package vsock_test

import (
	"encoding/binary"
	"testing"

	"github.com/gvmspawn/gvmspawn/virtio/vsock"
)

func TestDeriveCID(t *testing.T) {
	for _, v := range []struct {
		name string
		try  uint32
		want uint32
	}{
		{"debian", 0, 2068585837},
		{"debian", 1, 2295820311},
		{"fedora-40-cloud", 0, 3396839784},
		{"image", 0, 3275993745},
		{"test", 0, 1035132415},
	} {
		if got := vsock.DeriveCID(v.name, v.try); got != v.want {
			t.Errorf("CID of %q, try %d, is %d, want %d", v.name, v.try, got, v.want)
		}
	}
}

// The paper's appendix A vector, and those of its reference code for short inputs.
func TestSipHash24(t *testing.T) {
	var key [16]byte
	var p []byte
	for i := range key {
		key[i] = byte(i)
	}
	for i := range 15 {
		p = append(p, byte(i))
	}
	for n, want := range map[int]uint64{
		15: 0xa129ca6149be45e5,
		0:  binary.LittleEndian.Uint64([]byte{0x31, 0x0e, 0x0e, 0xdd, 0x47, 0xdb, 0x6f, 0x72}),
		1:  binary.LittleEndian.Uint64([]byte{0xfd, 0x67, 0xdc, 0x93, 0xc5, 0x39, 0xf8, 0x74}),
		8:  binary.LittleEndian.Uint64([]byte{0x62, 0x24, 0x93, 0x9a, 0x79, 0xf5, 0xf5, 0x93}),
	} {
		if got := vsock.SipHash24(&key, p[:n]); got != want {
			t.Errorf("%d bytes: %#x, want %#x", n, got, want)
		}
	}
}
