package virtiotest

import (
	"os"
	"testing"
)

// LongResets runs a device's test of resets under load ten thousand times over, in the
// long suite only.
func LongResets(t *testing.T, resets func(t *testing.T, n int)) {
	t.Helper()
	if os.Getenv("GVMSPAWN_LONG") == "" {
		t.Skip("set GVMSPAWN_LONG=1 for the long tests")
	}
	resets(t, 10_000)
}
