#include "textflag.h"

// func cas8(p uint64, old, new uint8) bool
TEXT ·cas8(SB), NOSPLIT, $0-17
	MOVQ p+0(FP), DI
	MOVB old+8(FP), AX
	MOVB new+9(FP), CX
	LOCK
	CMPXCHGB CX, (DI)
	SETEQ ret+16(FP)
	RET

// func cas16(p uint64, old, new uint16) bool
TEXT ·cas16(SB), NOSPLIT, $0-17
	MOVQ p+0(FP), DI
	MOVW old+8(FP), AX
	MOVW new+10(FP), CX
	LOCK
	CMPXCHGW CX, (DI)
	SETEQ ret+16(FP)
	RET

// func cas32(p uint64, old, new uint32) bool
TEXT ·cas32(SB), NOSPLIT, $0-17
	MOVQ p+0(FP), DI
	MOVL old+8(FP), AX
	MOVL new+12(FP), CX
	LOCK
	CMPXCHGL CX, (DI)
	SETEQ ret+16(FP)
	RET

// func cas64(p, old, new uint64) bool
TEXT ·cas64(SB), NOSPLIT, $0-25
	MOVQ p+0(FP), DI
	MOVQ old+8(FP), AX
	MOVQ new+16(FP), CX
	LOCK
	CMPXCHGQ CX, (DI)
	SETEQ ret+24(FP)
	RET

// func cas128(p, oldLo, oldHi, newLo, newHi uint64) (lo, hi uint64, ok bool)
TEXT ·cas128(SB), NOSPLIT, $0-57
	MOVQ p+0(FP), DI
	MOVQ oldLo+8(FP), AX
	MOVQ oldHi+16(FP), DX
	MOVQ newLo+24(FP), BX
	MOVQ newHi+32(FP), CX
	LOCK
	CMPXCHG16B (DI)
	MOVQ AX, lo+40(FP)
	MOVQ DX, hi+48(FP)
	SETEQ ok+56(FP)
	RET

// func hostFence()
TEXT ·hostFence(SB), NOSPLIT, $0-0
	MFENCE
	RET
