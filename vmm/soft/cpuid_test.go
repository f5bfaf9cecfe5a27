package soft

import "testing"

// TestModel: the CPU is none that exists, above all the models that Linux
// (arch/x86/include/asm/intel-family.h) and GCC (cpuinfo.h) know by name. TestLongSameBytes
// runs a program that chooses its code by the model.
func TestModel(t *testing.T) {
	const lastKnown = 0xdd
	family, model := cpuFamilyModel>>8&15, cpuFamilyModel>>4&15|cpuFamilyModel>>12&0xf0
	if family != 6 || model <= lastKnown {
		t.Errorf("family %d, model %#x", family, model)
	}
}
