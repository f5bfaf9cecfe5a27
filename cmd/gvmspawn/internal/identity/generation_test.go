package identity

import (
	"encoding/hex"
	"testing"
)

// TestGeneration: systemd-id128 --app-specific gives this vector.
func TestGeneration(t *testing.T) {
	const invocation = "0123456789abcdef0123456789abcdef"
	got := Generation(invocation)
	if hex.EncodeToString(got[:]) != "8ee17cbd5b0a4319908d38dc47ff1f69" {
		t.Errorf("%x", got)
	}
	for _, bad := range []string{"", "0123", "00000000000000000000000000000000", "x123456789abcdef0123456789abcdef"} {
		a, b := Generation(bad), Generation(bad)
		if a == b || a[6]>>4 != 4 || a[8]>>6 != 2 {
			t.Errorf("%q: %x and %x", bad, a, b)
		}
	}
}
