package identity

import (
	"os"
	"path/filepath"
	"testing"
)

// TestSipHash: vectors of the SipHash paper's reference implementation, with
// key 00…0f and input 00…(n-1).
func TestSipHash(t *testing.T) {
	var key [16]byte
	var in []byte
	for i := range key {
		key[i] = byte(i)
	}
	want := map[int]uint64{0: 0x726fdb47dd0e0e31, 1: 0x74f839c593dc67fd, 7: 0xab0200f58b01d137, 8: 0x93f5f5799a932462, 15: 0xa129ca6149be45e5}
	for n := range 16 {
		if w, ok := want[n]; ok && siphash24(key, in) != w {
			t.Errorf("length %d: %#x, want %#x", n, siphash24(key, in), w)
		}
		in = append(in, byte(n))
	}
}

// TestVectors: systemd-vmspawn's results for the same names.
func TestVectors(t *testing.T) {
	for in, want := range map[string]string{"debian": "vt-debian", "fedora-40-cloud": "vt-fedora-4yfAL", "123456789012": "vt-123456789012"} {
		if got := TapName(in); got != want {
			t.Errorf("TAP of %s: %s, want %s", in, got, want)
		}
	}
	for in, want := range map[string]uint32{"debian": 2068585837, "fedora-40-cloud": 3396839784, "image": 3275993745, "test": 1035132415} {
		if got := CID(in, 0); got != want {
			t.Errorf("CID of %s: %d, want %d", in, got, want)
		}
	}
	if got := CID("debian", 1); got != 2295820311 {
		t.Errorf("second CID of debian: %d", got)
	}
	p := filepath.Join(t.TempDir(), "machine-id")
	if err := os.WriteFile(p, []byte("0123456789abcdef0123456789abcdef\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	id, err := HostID(p)
	if err != nil {
		t.Fatal(err)
	}
	if got := MAC(id, "debian").String(); got != "e6:ee:90:a8:af:6c" {
		t.Errorf("MAC %s", got)
	}
}

func TestBadInput(t *testing.T) {
	for _, bad := range []string{"", "x", "00:11:22:33:44", "01:00:5e:00:00:01", "00:11:22:33:44:55:66:77"} {
		if _, err := ParseMAC(bad); err == nil {
			t.Errorf("MAC %q accepted", bad)
		}
	}
	p := filepath.Join(t.TempDir(), "machine-id")
	for _, bad := range []string{"", "uninitialized\n", "00000000000000000000000000000000\n", "zz23456789abcdef0123456789abcdef"} {
		if err := os.WriteFile(p, []byte(bad), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := HostID(p); err == nil {
			t.Errorf("machine ID %q accepted", bad)
		}
	}
	if _, err := HostID(p + "x"); err == nil {
		t.Error("missing file accepted")
	}
}
