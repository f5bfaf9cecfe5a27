package soft

import "github.com/gvmspawn/gvmspawn/vmm/soft/decode"

// fast returns the specialised operation of a common form in 64-bit mode.
func fast(in *decode.Inst) (op, bool) { return op{}, false }
