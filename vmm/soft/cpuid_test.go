package soft

import (
	"testing"

	"github.com/gvmspawn/gvmspawn/vmm/soft/decode"
)

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

// TestOldHost: what a host of x86-64-v1 does not have, its guests do not have; what
// needs nothing of the host stays.
func TestOldHost(t *testing.T) {
	have, old := features{sse4: true}, features{}
	for code, lacks := range map[string]bool{
		"\x66\x0f\x38\x00\xc1":     true,  // pshufb xmm0, xmm1
		"\x0f\x38\x1c\xc1":         true,  // pabsb mm0, mm1
		"\x66\x0f\x3a\x0f\xc1\x04": true,  // palignr xmm0, xmm1, 4
		"\x66\x0f\x38\x17\xc1":     true,  // ptest xmm0, xmm1
		"\x66\x0f\x3a\x16\xc1\x01": true,  // pextrd ecx, xmm0, 1
		"\x66\x0f\x3a\x63\xc1\x0c": true,  // pcmpistri xmm0, xmm1, 12
		"\x0f\x38\xf0\x00":         false, // movbe eax, [rax]
		"\x66\x0f\x38\x82\x00":     false, // invpcid rax, [rax]
		"\xf3\x0f\xb8\xc1":         false, // popcnt eax, ecx
		"\x66\x0f\xef\xc1":         false, // pxor xmm0, xmm1
	} {
		var in decode.Inst
		if err := decode.Decode(&in, []byte(code), decode.Mode64); err != nil {
			t.Fatalf("% x: %v", code, err)
		}
		if have.lacks(&in) || old.lacks(&in) != lacks {
			t.Errorf("%v: %v, with SSE4 %v", in.Op, old.lacks(&in), have.lacks(&in))
		}
	}
}
