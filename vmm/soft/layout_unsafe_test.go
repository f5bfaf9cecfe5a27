package soft

import (
	"testing"
	"unsafe"

	"github.com/gvmspawn/gvmspawn/vmm/soft/decode"
)

// TestStateLayout pins what assembly and the translator rely on.
func TestStateLayout(t *testing.T) {
	var s State
	for name, c := range map[string]struct{ have, want uintptr }{
		"R": {unsafe.Offsetof(s.R), 0}, "RIP": {unsafe.Offsetof(s.RIP), 256}, "FRes": {unsafe.Offsetof(s.FRes), 264},
		"FAux": {unsafe.Offsetof(s.FAux), 272}, "Flags": {unsafe.Offsetof(s.Flags), 280}, "TLB": {unsafe.Offsetof(s.TLB), 288},
		"Exit": {unsafe.Offsetof(s.Exit), 296}, "CPL": {unsafe.Offsetof(s.CPL), 300}, "Count": {unsafe.Offsetof(s.Count), 304},
		"MXCSR": {unsafe.Offsetof(s.MXCSR), 312}, "XMM": {unsafe.Offsetof(s.XMM), 320}, "FX": {unsafe.Offsetof(s.FX), 832},
		"FXHead": {unsafe.Offsetof(s.FXHead), 1344}, "Scratch": {unsafe.Offsetof(s.Scratch), 1408}, "TLBEntry": {unsafe.Sizeof(TLBEntry{}), 32},
	} {
		if c.have != c.want {
			t.Errorf("%s at %d, want %d", name, c.have, c.want)
		}
	}
	// The fast shifts number the operations from ROL on.
	for i, o := range []decode.Op{decode.ROL, decode.ROR, decode.RCL, decode.RCR, decode.SHL, decode.SHR, decode.SAR} {
		if o != decode.ROL+decode.Op(i) {
			t.Errorf("%v is not ROL+%d", o, i)
		}
	}
}
