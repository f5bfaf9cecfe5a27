package linux

import (
	"testing"

	"github.com/gvmspawn/gvmspawn/vmm/layout"
	"github.com/gvmspawn/gvmspawn/vmm/mem"
)

// newMemory is a machine's RAM, split like the real one.
func newMemory(t testing.TB, size uint64) *mem.Memory {
	t.Helper()
	m := mem.New()
	low := min(size, layout.LowRAMEnd)
	if _, err := m.Add("RAM", 0, low, mem.RAM); err != nil {
		t.Fatal(err)
	}
	if size > low {
		if _, err := m.Add("high RAM", layout.HighRAMStart, size-low, mem.RAM); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	return m
}
