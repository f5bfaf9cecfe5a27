#include "textflag.h"

// func jitCall(entry uint64)
TEXT ·jitCall(SB), NOSPLIT|NOFRAME, $0-8
	MOVQ 8(SP), AX
	PUSHQ BP
	CALL AX
	POPQ BP
	RET
