#include "go_asm.h"
#include "textflag.h"

// func futex(addr *uint32, op, val uint32)
TEXT ·futex(SB), NOSPLIT, $0-16
	MOVQ addr+0(FP), DI
	MOVL op+8(FP), SI
	ORL  $128, SI // FUTEX_PRIVATE_FLAG
	MOVL val+12(FP), DX
	XORL R10, R10
	MOVL $202, AX // SYS_futex
	SYSCALL
	RET

// func timerSignalAddr() uint64
TEXT ·timerSignalAddr(SB), NOSPLIT, $0-8
	LEAQ ·timerSignal(SB), AX
	MOVQ AX, ret+0(FP)
	RET

// timerSignal is the handler of the CPUs' timers, called by the kernel on the
// alternate stack: SI is the siginfo_t, whose si_value is the address of a
// State.Exit. All registers are restored when it returns. The thread that it
// runs on is as a rule the CPU's, but need not be.
TEXT ·timerSignal(SB), NOSPLIT|NOFRAME|TOPFRAME, $0
	CMPL 8(SI), $-2 // si_code is SI_TIMER
	JNE  done
	MOVQ 24(SI), DI // si_value
	LOCK
	ORL  $const_exitTimer, (DI)
	MOVL $129, SI // FUTEX_WAKE_PRIVATE
	MOVL $1, DX
	XORL R10, R10
	MOVL $202, AX
	SYSCALL

done:
	RET
