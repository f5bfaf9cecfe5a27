#include "textflag.h"

// func nativeBase() uint64
TEXT ·nativeBase(SB), NOSPLIT, $0-8
	LEAQ ·nativeCode(SB), AX
	MOVQ AX, ret+0(FP)
	RET

// func callNative(a *nativeArgs, entry uint64)
TEXT ·callNative(SB), NOSPLIT, $8-16
	MOVQ a+0(FP), DI
	MOVQ entry+8(FP), R11
	MOVUPS 0(DI), X0
	MOVUPS 16(DI), X1
	MOVUPS 32(DI), X2
	MOVQ 48(DI), AX
	MOVQ 80(DI), DX
	STMXCSR 0(SP)
	LDMXCSR 56(DI)
	CALL R11
	PUSHFQ
	POPQ 64(DI)
	STMXCSR 60(DI)
	LDMXCSR 0(SP)
	MOVUPS X0, 0(DI)
	MOVUPS X1, 16(DI)
	MOVQ AX, 48(DI)
	MOVQ CX, 88(DI)
	RET

// func callNativeMMX(a *nativeArgs, entry uint64)
TEXT ·callNativeMMX(SB), NOSPLIT, $8-16
	MOVQ a+0(FP), DI
	MOVQ entry+8(FP), R11
	MOVUPS 16(DI), X1
	MOVUPS 32(DI), X2
	MOVQ 16(DI), M1
	MOVQ 32(DI), M2
	MOVQ 48(DI), AX
	STMXCSR 0(SP)
	LDMXCSR 56(DI)
	CALL R11
	STMXCSR 60(DI)
	LDMXCSR 0(SP)
	MOVUPS X1, 16(DI)
	MOVQ M1, 72(DI)
	MOVQ AX, 48(DI)
	EMMS
	RET

// func callX87(fx, operand, entry, flags uint64) uint64
TEXT ·callX87(SB), NOSPLIT, $8-40
	MOVQ fx+0(FP), SI
	MOVQ operand+8(FP), DI
	MOVQ entry+16(FP), R11
	MOVQ flags+24(FP), AX
	FXRSTOR64 (SI)
	PUSHQ AX
	POPFQ
	CALL R11
	PUSHFQ
	POPQ AX
	FXSAVE64 (SI)
	BYTE $0xdb; BYTE $0xe3 // FNINIT
	CLD
	MOVQ AX, ret+32(FP)
	RET
